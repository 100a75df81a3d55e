"""Teachers from the user's own Python code: ``package.module:function`` or ``path/to/file.py:function``.

The function is called with ``--teacher.model_args`` and returns an ``nn.Module``. Its forward pass takes (B, 3, H, W)
normalised images and returns one tensor or a dict of tensors by name: cls, pooled, tokens, map (B, h, w, D), or names
of the user's own. Module attributes that are read, all optional:

    preprocessing       dict with size, mean, std, crop_pct, crop_mode, interpolation
    num_prefix_tokens   tokens in front of the patches, for fields such as grid7 and block8.grid7
    licence             licence of the weights
    points              dict with columns, most_points, grid, bounds (``PointRecord`` of the manifest), of an encoder
                        of point clouds: its input is (B, P, C) float32, NaN behind the last point of a cloud

An entry that is a list of B tensors, of any number of rows each, becomes a ragged field (features of occupied cells).
"""

import math
from pathlib import Path

from torch import Tensor, nn

from featstore.errors import ConfigError, TeacherError
from featstore.extraction.config import TeacherConfig
from featstore.extraction.teachers.base import Built, Tower, brief, stated_preprocessing
from featstore.extraction.teachers.weights import load_state, read_state
from featstore.files.user_code import find_function
from featstore.format.manifest_records import PointRecord, PreprocessingRecord


def split_tokens(tokens: Tensor, prefix: int) -> dict[str, Tensor]:
    """Split (B, N, D) tokens with a known number of prefix tokens in front of a square grid of patches."""
    out = {"tokens": tokens}
    if tokens.ndim != 3:
        return out
    if prefix:
        out["cls"] = tokens[:, 0]
    if prefix > 1:
        out["registers"] = tokens[:, 1:prefix]
    side = math.isqrt(max(0, tokens.shape[1] - prefix))
    if side and side * side == tokens.shape[1] - prefix:
        out["map"] = tokens[:, prefix:].reshape(len(tokens), side, side, -1)
    return out


class PythonTower(Tower):
    """A module of the user's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))

    def split(self, tokens: Tensor) -> dict[str, Tensor]:
        return split_tokens(tokens, self.prefix)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        out = self.model(images)
        if isinstance(out, Tensor):
            name = {2: "pooled", 3: "tokens"}.get(out.ndim, "output")
            out = {name: out} if out.ndim != 4 else {"map": out.permute(0, 2, 3, 1)}
        if not isinstance(out, dict) or not all(
            isinstance(value, Tensor | list) and len(value) == len(images) for value in out.values()
        ):
            raise TeacherError(
                "the module of --teacher.library python must return a tensor, or a dict of tensors by name, each with "
                f"one row per image; it returned {type(out).__name__}."
            )
        if "tokens" in out and hasattr(self.model, "num_prefix_tokens"):
            out = {**self.split(out["tokens"]), **out}
        return out


def build(config: TeacherConfig) -> Built:
    """Call the function that a config names."""
    try:
        function = find_function(config.name, setting="--teacher.name")
    except ConfigError as error:
        raise TeacherError(str(error)) from error
    try:
        model = function(**config.model_args)
    except Exception as error:  # the user's code: any kind
        raise TeacherError(
            f"--teacher.name {config.name}: called with {config.model_args}, it failed ({brief(error)})."
        ) from error
    if not isinstance(model, nn.Module):
        raise TeacherError(
            f"--teacher.name {config.name}: returned {type(model).__name__}; expected a torch.nn.Module."
        )
    if config.weights:
        load_state(
            model,
            read_state(config.weights),
            where=f"--teacher.weights {config.weights}",
            name=config.name,
        )
    preprocessing: PreprocessingRecord | PointRecord
    if hasattr(model, "points"):
        try:
            preprocessing = PointRecord.model_validate(model.points)
        except ValueError as error:
            raise TeacherError(
                f"--teacher.name {config.name}: its attribute points is wrong ({brief(error)})."
            ) from error
    else:
        preprocessing = stated_preprocessing(config, dict(getattr(model, "preprocessing", {})))
    return Built(
        PythonTower(model),
        preprocessing,
        str(getattr(model, "licence", "")),
        recorded_name=Path(config.name).name,
    )
