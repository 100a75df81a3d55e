"""Values that the caller gives for a new store (arrays, labels, hashes, teacher and fields), as those of the format."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from featstore.errors import ConfigError, shorten
from featstore.files.array_types import Array, Bytes, Rows
from featstore.format.fields import numpy_dtype
from featstore.format.manifest_records import (
    Codec,
    FieldRecord,
    Int8Encoding,
    PreprocessingRecord,
    TeacherRecord,
)

TEACHER = "teacher"  # name of the teacher in the manifest, as in stores that were extracted
NO_WEIGHTS = "0" * 64  # hash of weights that are not known
DECODE_RULE = "unknown"  # decoding rule of images that were decoded by another program

Field = FieldRecord | tuple[int | tuple[int, ...], str]
"""A field: its record, or its shape (of one row) and dtype."""

ContentHash = Callable[[str], bytes]
"""Given a sample id, returns the SHA-256 of the sample's bytes (32 bytes)."""


def field_of(values: Any) -> tuple[tuple[int, ...], str]:
    """Shape of one row and dtype of the field that arrays like these are stored in."""
    array = as_numpy(values)
    if array.dtype == object or array.dtype.kind in "US":
        return array.shape[1:], "text"
    dtype = {"float64": "float32", "uint32": "int64"}.get(array.dtype.name, array.dtype.name)
    return array.shape[1:], dtype


def as_numpy(value: Any) -> Array:
    """An array of numpy of a tensor of another library, without importing that library."""
    if hasattr(value, "detach"):  # PyTorch; numpy has no bfloat16, float32 holds the same numbers
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.asarray(value)


def label_numbers(
    labels: Any, class_names: Sequence[str], ids: Sequence[str]
) -> tuple[Rows | None, tuple[str, ...]]:
    """Class numbers of labels that are numbers or names, and the names."""
    if labels is None:
        return None, tuple(class_names)
    given = as_numpy(labels).tolist()
    if len(given) != len(ids):
        raise ConfigError(f"{len(given):,} labels for {len(ids):,} ids.")
    names = tuple(class_names)
    if any(isinstance(label, str) for label in given):
        names = names or tuple(sorted({label for label in given if isinstance(label, str)}))
        table = {name: number for number, name in enumerate(names)}
        found = [-1 if label is None else table.get(label, -2) for label in given]
    else:
        found = [-1 if label is None else int(label) for label in given]
    numbers = np.array(found, dtype=np.int64)
    most = len(names) or 2**31
    wrong = np.flatnonzero((numbers < -1) | (numbers >= most))
    if len(wrong):
        shown = shorten([f"{ids[row]} ({given[row]!r})" for row in wrong.tolist()])
        raise ConfigError(
            f"{len(wrong)} labels are not classes: {shown}. Expected 0 to {most - 1:,}, a class name, or -1 or None "
            "where there is no label."
        )
    return numbers, names


def teacher_record(
    teacher: str | TeacherRecord | None,
    weights_sha256: str,
    preprocessing: PreprocessingRecord | Mapping[str, Any] | int | None,
) -> TeacherRecord | None:
    """The record of the teacher; None if there is none."""
    if not isinstance(teacher, str):
        return teacher
    if not teacher.strip():
        raise ConfigError("the teacher's name is empty. Name the model and its version.")
    if isinstance(preprocessing, int):
        preprocessing = {"size": preprocessing}
    if isinstance(preprocessing, Mapping):
        size = preprocessing["size"]
        preprocessing = {
            **{"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"},
            **{"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "decode": DECODE_RULE},
            **preprocessing,
            "size": (size, size) if isinstance(size, int) else tuple(size),
        }
    values = {
        "library": "external",
        "name": teacher,
        "weights_sha256": weights_sha256,
        "precision": "fp32",
        "preprocessing": preprocessing,
    }
    try:
        return TeacherRecord.model_validate(values)
    except ValueError as error:
        raise ConfigError(f"teacher {teacher!r}: {error}") from None


def field_record(name: str, given: Field, teacher: str, codec: Codec) -> FieldRecord:
    """The record of a field."""
    if isinstance(given, FieldRecord):
        if isinstance(given.encoding, Int8Encoding) and given.encoding.channels:
            raise ConfigError(
                f'field "{name}": scales per channel need rows to measure them on. Create it as float16, then run '
                "featstore requantise --dtype int8."
            )
        return given.model_copy(update={"teacher": given.teacher and teacher})
    shape, dtype = given
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    text = dtype == "text"
    spatial = ("y", "x", "channel") if len(shape) == 3 else ()
    dims = {0: (), 1: ("channel",), 3: spatial}.get(len(shape)) or tuple(
        f"axis{number}" for number in range(len(shape))
    )
    try:
        return FieldRecord.model_validate(
            {
                "shape": shape,
                "dtype": dtype,
                "dims": dims,
                "meaning": "computed by another program",
                "teacher": "" if text else teacher,
                "per_view": not text,
                "codec": "raw" if text else codec,
            }
        )
    except ValueError as error:
        raise ConfigError(f'field "{name}" {given}: {error}') from None


def content_hashes(given: Any, count: int) -> Bytes | ContentHash | None:
    """(N, 32) hashes of the samples, the function that gives them, or None."""
    if given is None or callable(given):
        return given  # type: ignore[no-any-return]
    values = as_numpy(given)
    if values.dtype.kind in "USO":
        try:
            digests = b"".join(bytes.fromhex(text) for text in values.tolist())
        except (TypeError, ValueError) as error:
            raise ConfigError(f"content_sha256: not hexadecimal: {error}") from None
        values = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)
    if values.shape != (count, 32) or values.dtype != np.uint8:
        raise ConfigError(
            f"content_sha256: {values.dtype} of shape {values.shape}; expected uint8 ({count}, 32)."
        )
    return values


def is_finite(values: Array) -> bool:
    """Whether all numbers are finite."""
    return values.dtype.kind in "biu" or bool(np.isfinite(values).all())


def cast_to(values: Array, dtype: str, where: str) -> Array:
    """Numbers in the dtype of the field; what is too large for a float becomes infinity, and is refused as such."""
    wanted = numpy_dtype(dtype)
    assert wanted is not None
    floating = dtype in ("float16", "bfloat16", "float32")
    if values.dtype.kind not in "biuf" and values.dtype.name != "bfloat16":
        raise ConfigError(f"{where}: {values.dtype} cannot be stored as {dtype}.")
    with np.errstate(over="ignore", invalid="ignore"):
        out = values.astype(wanted, copy=False)
        if not floating and (out.astype(values.dtype) != values).any():
            raise ConfigError(
                f"{where}: {values.dtype} values that {dtype} cannot hold (fractions, or out of range)."
            )
    return out
