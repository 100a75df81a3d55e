"""Weights: read from a file without running code, loaded key by key."""

from collections.abc import Mapping

from torch import Tensor, nn

from featstore.errors import TeacherError, shorten
from featstore.extraction.teachers.base import brief


def read_state(path: str) -> dict[str, Tensor]:
    """Read a state dict from safetensors or from a PyTorch file of plain tensors."""
    from timm.models import load_state_dict

    try:
        state = dict(load_state_dict(path, use_ema=True, weights_only=True))
    except Exception as error:  # safetensors, zipfile and torch each raise their own kinds
        raise TeacherError(
            f"--teacher.weights {path}: cannot be read as safetensors or as a PyTorch file of plain tensors "
            f"({brief(error)}). Pickled Python objects are refused; save the state dict as safetensors."
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise TeacherError(f"--teacher.weights {path}: holds no state dict (tensors by name).")
    return {
        key: value.float() if value.is_floating_point() else value for key, value in state.items()
    }


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, where: str, name: str) -> None:
    """Load a state dict; every key must fit. A missing ``num_batches_tracked`` counts as zero: it is not used."""
    own = model.state_dict()
    counters = {
        key: own[key] for key in own.keys() - state.keys() if key.endswith("num_batches_tracked")
    }
    state = {**state, **counters}
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    if missing or unknown or shapes:
        problems = [
            f"missing: {shorten(missing)}" if missing else "",
            f"not in the model: {shorten(unknown)}" if unknown else "",
            f"of another shape: {shorten(shapes, 3)}" if shapes else "",
        ]
        raise TeacherError(
            f"{where}: these weights do not fit {name}; {'; '.join(item for item in problems if item)}. "
            "Check --teacher.name, --teacher.image_size and --teacher.model_args."
        )
    model.load_state_dict(state, strict=True)
