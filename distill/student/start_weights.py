"""Starting weights of a student: a local file of plain tensors, or the folder of a run, checked key by key."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from distill.student.files import OUTPUT_LAYER, WEIGHTS, check_weights
from distill.student.tapped import TappedModel
from featstore.errors import ConfigError, shorten

PREFIXES = ("module.", "model.", "backbone.", "ema.", "student.", "encoder.", "_orig_mod.")
"""Prefixes that training frameworks put before a model's own keys."""

DICTS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "ema")
"""Keys under which training frameworks keep the state dict, in the order in which they are looked for."""

COUNTER = "num_batches_tracked"
"""Buffer of batch norm that older files lack; nothing is computed from it at a fixed momentum."""


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Load a local file into a student's model; a missing or differently sized classifier stays as initialised.

    Args:
        model: timm model or ``TappedModel``; changed in place.
        path: safetensors, a PyTorch file of plain tensors, or the folder of a finished run.

    Returns:
        Notes for the user: what was left out or starts fresh.

    Raises:
        ConfigError: no such file, damaged, not a file of plain tensors, or keys, shapes or types that do not fit.
    """
    if path.is_dir():
        path = path / WEIGHTS
    found, notes = read_weights(path)
    names = _classifiers(model)
    if isinstance(model, TappedModel):
        notes += _load_output_layer(model, path.with_name(OUTPUT_LAYER))
        model = model.module
    wanted = model.state_dict()
    found = _without_prefix(found, wanted, notes)
    head = {key for key in wanted if key.startswith(names)}
    # Keys of a classifier that this model has not, or has in another size.
    fresh = any(key not in found or found[key].shape != wanted[key].shape for key in head)
    skipped = head if fresh else set()
    others = sorted(key for key in found if key.startswith(names) and key not in wanted)
    if skipped:
        notes.append(f"the classifier starts fresh ({', '.join(sorted(skipped))})")
    if others:
        notes.append(f"the classifier of the file is left out ({', '.join(others)})")
    absent = {key for key in wanted.keys() - found.keys() if key.endswith(f".{COUNTER}")}
    _check_fit(path, found, wanted, skipped=skipped | absent, ignored=set(others))
    kept = {key: found[key] for key in wanted.keys() - skipped - absent}
    model.load_state_dict({**wanted, **kept})
    return [f"{path}: {note}" for note in notes]


def load_saved(model: nn.Module, path: Path) -> list[str]:
    """Load the weights of a finished run into the model that its config.json describes, all keys as they are.

    Returns:
        Notes for the user.

    Raises:
        ConfigError: damaged.
        RuntimeError: other keys or shapes.
    """
    state, notes = read_weights(path)
    if not isinstance(model, TappedModel):
        model.load_state_dict(state)
        return notes
    model.module.load_state_dict(state)
    if model.output_layer.state_dict():
        layer, more = read_weights(path.with_name(OUTPUT_LAYER))
        model.output_layer.load_state_dict(layer)
        notes += more
    return notes


def _load_output_layer(model: TappedModel, path: Path) -> list[str]:
    """Load the output layer beside a run's weights if it fits."""
    wanted = model.output_layer.state_dict()
    if not wanted or not path.is_file():
        return ["the output layer starts fresh"] if wanted else []
    found, notes = read_weights(path)
    if {key: value.shape for key, value in found.items()} != {
        key: value.shape for key, value in wanted.items()
    }:
        return [*notes, "the output layer starts fresh"]
    model.output_layer.load_state_dict(found)
    return notes


def read_weights(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Read a file of plain tensors, safetensors or PyTorch's, without running any code in it.

    Returns:
        Tensors by name, and notes for the user.

    Raises:
        ConfigError: no such file, damaged, or something else inside.
    """
    if not path.is_file():
        raise ConfigError(f"--student.weights {path.absolute()}: no such file.")
    notes: list[str] = []
    try:
        if path.suffix == ".safetensors":
            data = path.read_bytes()
            notes += check_weights(path, data)
            return load(data), notes
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        first = str(error).strip().split("\n")[0][:200]
        raise ConfigError(
            f"--student.weights {path.absolute()}: cannot be read: {first}"
        ) from error
    except Exception as error:  # pickle.UnpicklingError and its kin: not plain tensors
        raise ConfigError(
            f"--student.weights {path.absolute()}: holds more than plain tensors; it is not loaded, because loading "
            "could run code. Save its state dict as safetensors where the file is trusted."
        ) from error
    for name in DICTS:
        if isinstance(values, dict) and isinstance(values.get(name), dict):
            notes += [] if name in DICTS[:2] else [f"its {name!r} is taken"]
            values = values[name]
            break
    if not isinstance(values, dict) or not all(
        isinstance(key, str) and isinstance(item, Tensor) for key, item in values.items()
    ):
        raise ConfigError(
            f"--student.weights {path.absolute()}: expected a dict of tensors, found {type(values).__name__}."
        )
    return values, notes


def _without_prefix(
    found: dict[str, Tensor], wanted: Iterable[str], notes: list[str]
) -> dict[str, Tensor]:
    """Leave out the prefix, of up to three known ones, with which most keys are the model's own."""
    names = set(wanted)
    prefixes = [""]
    for _ in range(3):
        prefixes += [
            new
            for known in prefixes
            for part in PREFIXES
            if (new := known + part) not in prefixes and any(key.startswith(new) for key in found)
        ]
    best = max(
        prefixes, key=lambda prefix: sum(prefix + name in found for name in names)
    )  # the first of equals, so that none is taken without need
    if not best:
        return found
    others = sorted(key for key in found if not key.startswith(best))
    notes.append(f"the prefix {best!r} of its keys is left out")
    if others:
        notes.append(f"{len(others)} keys without it are left out: {shorten(others, 3)}")
    return {key[len(best) :]: value for key, value in found.items() if key.startswith(best)}


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the keys of the model's last layers, which depend on the number of classes."""
    settings: Any = getattr(model, "pretrained_cfg", {})
    named = settings.get("classifier") or ()
    names = {named} if isinstance(named, str) else set(named)
    if isinstance(model, TappedModel):
        names |= {model.taps.last_linear} - {""}
        return tuple(f"{name}." for name in sorted(names))
    head: Any = model.get_classifier()  # type: ignore[operator]
    names |= {name for name, module in model.named_modules() if module is head and name}
    return tuple(f"{name}." for name in sorted(names))


def _check_fit(
    path: Path,
    found: dict[str, Tensor],
    wanted: dict[str, Tensor],
    *,
    skipped: set[str],
    ignored: set[str],
) -> None:
    shared = sorted(wanted.keys() & found.keys() - skipped)
    problems = [
        f"{len(items)} {what}: {shorten(items, 3)}"
        for items, what in (
            (sorted(wanted.keys() - found.keys() - skipped), "keys are missing"),
            (sorted(found.keys() - wanted.keys() - ignored), "keys are not the model's"),
            (
                [
                    f"{key} has {tuple(found[key].shape)}, the model {tuple(wanted[key].shape)}"
                    for key in shared
                    if found[key].shape != wanted[key].shape
                ],
                "shapes differ",
            ),
            (
                [
                    f"{key} is {found[key].dtype}, the model's {wanted[key].dtype}"
                    for key in shared
                    if found[key].is_floating_point() != wanted[key].is_floating_point()
                ],
                "types differ",
            ),
            (
                [
                    key
                    for key in shared
                    if found[key].is_floating_point() and not bool(found[key].isfinite().all())
                ],
                "tensors hold values that are not finite",
            ),
        )
        if items
    ]
    if problems:
        raise ConfigError(
            f"--student.weights {path.absolute()}: does not fit the model: {'; '.join(problems)}. Expected the state "
            "dict of the same model (--student.name or --student.factory, --student.model_args)."
        )
