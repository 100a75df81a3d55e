"""Starting weights of a student: a local file of plain tensors, checked key by key."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featstore.errors import ConfigError, shorten


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Load a local file into a timm model; a missing or differently sized classifier stays as initialised.

    Returns:
        Notes for the user; one if the classifier starts fresh.

    Raises:
        ConfigError: no such file, not a file of plain tensors, or keys or shapes that do not fit.
    """
    found = read_weights(path)
    wanted = model.state_dict()
    head: Any = model.get_classifier()  # type: ignore[operator]
    prefix = next(name for name, module in model.named_modules() if module is head)
    head_keys = {key for key in wanted if key.startswith(f"{prefix}.")}
    fresh = any(key not in found or found[key].shape != wanted[key].shape for key in head_keys)
    skipped = head_keys if fresh else set()
    missing = sorted(wanted.keys() - found.keys() - skipped)
    unknown = sorted(found.keys() - wanted.keys())
    unlike = [
        f"{key} has {tuple(found[key].shape)}, the model {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & found.keys() - skipped)
        if found[key].shape != wanted[key].shape
    ]
    problems = [
        f"{len(items)} {what}: {shorten(items, 3)}"
        for items, what in (
            (missing, "keys are missing"),
            (unknown, "keys are not the model's"),
            (unlike, "shapes differ"),
        )
        if items
    ]
    if problems:
        raise ConfigError(
            f"--student.weights {path} does not fit the model: {'; '.join(problems)}. Expected the state dict of the "
            "same timm model (--student.name, --student.model_args)."
        )
    model.load_state_dict({**found, **{key: wanted[key] for key in skipped}})
    return [f"{path}: the classifier starts fresh ({prefix})"] if fresh else []


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of plain tensors, safetensors or PyTorch's, without running any code in it.

    Raises:
        ConfigError: no such file, or something else inside.
    """
    if not path.is_file():
        raise ConfigError(f"--student.weights {path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        first = str(error).strip().split("\n")[0][:200]
        raise ConfigError(f"--student.weights {path} cannot be read: {first}") from error
    except Exception as error:  # pickle.UnpicklingError and its kin: not plain tensors
        raise ConfigError(
            f"--student.weights {path}: holds more than plain tensors ({type(error).__name__}); "
            "it is not loaded, because "
            "loading could run code. Save its state dict as safetensors."
        ) from error
    values = values.get("state_dict", values) if isinstance(values, dict) else values
    if not isinstance(values, dict) or not all(
        isinstance(item, Tensor) for item in values.values()
    ):
        raise ConfigError(
            f"--student.weights {path}: expected a dict of tensors, found {type(values).__name__}."
        )
    return values
