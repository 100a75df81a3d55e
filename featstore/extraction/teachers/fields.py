"""Fields: how each is made from a teacher's output, and its record in the manifest."""

# B images, N tokens, D teacher width, h w patch grid, C classes

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from featstore.errors import TeacherError, shorten
from featstore.extraction.field_names import GRID, TOP_K, split_prefix
from featstore.format.manifest_records import (
    FieldRecord,
    FloatType,
    NumberType,
    PointRecord,
    PreprocessingRecord,
    RaggedEncoding,
    TextRecord,
    TopKEncoding,
)

SCALARS = {
    "confidence": "largest softmax of the model's classifier",
    "argmax": "class of the largest output of the model's classifier",
}
"""Fields of one number per view, made from the logits."""


def select_field(name: str, parts: Mapping[str, Tensor]) -> Any:
    """Make one field from a tower's output."""
    prefix, base = ("", name) if name in parts else split_prefix(name)
    start = f"{prefix}." if prefix else ""
    found = parts.get(f"{start}map")
    grid = GRID.fullmatch(base)
    if grid and found is not None:
        side = int(grid.group(1))
        if side <= min(found.shape[1:3]):
            pooled = nn.functional.adaptive_avg_pool2d(found.permute(0, 3, 1, 2).float(), side)
            return pooled.permute(0, 2, 3, 1)
        raise TeacherError(
            f"field {name!r}: the teacher's patch grid is {found.shape[1]} x {found.shape[2]}, smaller than asked for."
        )
    if base == "mean" and found is not None:
        return found.float().mean(dim=(1, 2))
    if TOP_K.fullmatch(name) and "logits" in parts:
        return parts["logits"]  # all of them: the largest are kept when they are stored
    if name in SCALARS and name not in parts and "logits" in parts:
        logits = parts["logits"].float()
        return logits.softmax(1).amax(1) if name == "confidence" else logits.argmax(1)
    if f"{start}{base}" in parts and base != "map":
        return parts[f"{start}{base}"]
    raise TeacherError(
        f"field {name!r}: this teacher can give {_known(parts)}.{_hint(name, parts)}"
    )


def _known(parts: Mapping[str, Tensor]) -> str:
    plain = sorted(name for name in parts if "." not in name and name != "map")
    known = plain + (["mean", "gridK"] if "map" in parts else [])
    known += ["logits_topK", *SCALARS] if "logits" in parts else []
    return shorten(known, 12)


def _hint(name: str, parts: Mapping[str, Tensor]) -> str:
    if name == "projected":
        return " timm keeps CLIP's projection as the classifier: ask for logits."
    if name == "cls" and "pooled" in parts:
        return " It has no class token; pooled is its image vector."
    if name == "registers":
        return " It has no register tokens."
    return ""


_MEANINGS = {
    "cls": "class token after the final norm",
    "mean": "mean of the patch features",
    "pooled": "the model's own pooled feature, before classifier or projection",
    "tokens": "all tokens after the final norm, prefix tokens first, then patches row by row",
    "registers": "register tokens after the final norm",
    "projected": "image embedding after the contrastive projection, not normalised",
    "logits": "output of the model's classifier",
}
_MEANINGS_OF_TEXTS = {
    "cls": "first token",
    "pooled": "tokens of the text, pooled as the teacher's record states",
    "projected": "text embedding after the contrastive projection, not normalised",
    "tokens": "all tokens, zeros behind the end of a text",
}
_MEANINGS_OF_CELLS = {
    "voxel_coords": "occupied cells of each cloud as (z, y, x)",
    "voxel_counts": "points in each occupied cell",
    "voxel_features": "features of each occupied cell",
}
_MEANINGS_OF_BLOCKS = {
    "cls": "class token",
    "mean": "mean of the patch tokens",
    "tokens": "all tokens, prefix tokens first, then patches row by row",
    "registers": "register tokens",
}
_PREFIXES = {
    "q": "queries of the last block, heads side by side, before any norm or rotation of them",
    "k": "keys of the last block, heads side by side, before any norm or rotation of them",
    "v": "values of the last block, heads side by side",
}


def describe_field(
    name: str, shape: Sequence[int], dtype: FloatType, *, texts: bool = False
) -> FieldRecord:
    """Record of a field whose single-view, single-row shape is known; ``texts`` where inputs are texts."""
    top_k = TOP_K.fullmatch(name)
    if top_k:
        kept, classes = int(top_k.group(1)), shape[0]
        if kept > classes:
            raise TeacherError(
                f"field {name!r}: the teacher has {classes} classes, fewer than asked for."
            )
        return FieldRecord(
            shape=(kept,),
            dtype=dtype,
            dims=("rank",),
            meaning=f"the {kept} largest outputs of the model's classifier, largest first",
            encoding=TopKEncoding(num_classes=classes),
        )
    if name in SCALARS and not shape:
        kind = "int32" if name == "argmax" else dtype
        return FieldRecord(shape=(), dtype=kind, dims=(), meaning=SCALARS[name])
    axes = {1: ("channel",), 2: ("token", "channel"), 3: ("y", "x", "channel")}
    if len(shape) not in axes:
        raise TeacherError(
            f"field {name!r}: an output of shape {tuple(shape)} per image; expected one to three axes."
        )
    dims = ("class",) if name == "logits" else axes[len(shape)]
    meaning = _meaning(name, tuple(shape), _MEANINGS_OF_TEXTS if texts else {})
    return FieldRecord(shape=tuple(shape), dtype=dtype, dims=dims, meaning=meaning)


def describe_ragged(
    name: str,
    items: Tensor,
    dtype: FloatType,
    preprocessing: PreprocessingRecord | TextRecord | PointRecord,
) -> FieldRecord:
    """Record of a field with any number of items per sample, each of a known shape."""
    if not isinstance(preprocessing, PointRecord):
        raise TeacherError(f"field {name!r}: lists of tensors are for teachers of point clouds.")
    kind = dtype if items.is_floating_point() else str(items.dtype).removeprefix("torch.")
    return FieldRecord(
        shape=tuple(items.shape[1:]),
        dtype=cast(NumberType, kind),
        dims=tuple(f"axis{number}" for number in range(items.dim() - 1)),
        meaning=_MEANINGS_OF_CELLS.get(name, f"the model's output {name!r}"),
        encoding=RaggedEncoding(most_items=preprocessing.most_points),
    )


def _meaning(name: str, shape: tuple[int, ...], own: Mapping[str, str]) -> str:
    """What a field is; ``own`` are the words of the teacher's kind of input, by field without prefix."""
    prefix, base = split_prefix(name)
    grid = (
        f"patch grid averaged to {shape[0]} x {shape[1]}, top row first" if len(shape) == 3 else ""
    )
    if prefix.startswith("block"):
        what = own.get(base) or _MEANINGS_OF_BLOCKS.get(base) or grid
        return f"{what}; output of block {prefix[5:]}, counted from 0, before the final norm"
    if prefix in _PREFIXES:
        return f"{_PREFIXES[prefix]}: {own.get(base) or _MEANINGS_OF_BLOCKS.get(base) or grid}"
    if GRID.fullmatch(name):
        return grid
    return own.get(name) or _MEANINGS.get(name, f"the model's output {name!r}")
