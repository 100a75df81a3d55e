"""Predictions of a student and of the teacher's probe for every test image: predictions.npz in a run's folder.

Reports and paired tests read it in place of running anything again. It is a plain archive of numpy arrays, without
pickled objects.
"""

# N test images, K classes

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.errors import ConfigError
from featstore.files.atomic import write_bytes
from featstore.files.numpy_files import read_npz

NAME = "predictions.npz"

LARGEST = float(np.finfo(np.float16).max)  # logits are clipped to the largest finite float16


@dataclass(frozen=True)
class Predictions:
    """Answers to the test part, in its order."""

    ids: npt.NDArray[np.str_]  # (N,) sample ids in the source
    class_names: npt.NDArray[np.str_]  # (K,)
    labels: npt.NDArray[np.int64]  # (N,) int64 true classes
    student: npt.NDArray[np.float16]  # (N, K) float16 logits
    # (N,) int64, the largest logit as float32; ties of float16 do not change it
    student_class: npt.NDArray[np.int64]
    # (N, K) float16 logits of the teacher's linear probe; None without a store
    teacher: npt.NDArray[np.float16] | None = None
    teacher_class: npt.NDArray[np.int64] | None = None  # (N,) int64, or None


def predictions(
    ids: list[str],
    class_names: tuple[str, ...],
    labels_N: npt.NDArray[np.int64],
    student_NK: npt.NDArray[Any],
    teacher_NK: npt.NDArray[Any] | None,
) -> Predictions:
    """Round float32 logits for storage."""
    return Predictions(
        ids=np.array(ids, dtype=np.str_),
        class_names=np.array(class_names, dtype=np.str_),
        labels=labels_N,
        student=_rounded(student_NK),
        student_class=student_NK.argmax(1),
        teacher=None if teacher_NK is None else _rounded(teacher_NK),
        teacher_class=None if teacher_NK is None else teacher_NK.argmax(1),
    )


def write_predictions(folder: Path, values: Predictions) -> Path:
    """Write the file atomically; equal predictions give equal bytes."""
    buffer = io.BytesIO()
    arrays = {name: array for name, array in vars(values).items() if array is not None}
    np.savez_compressed(buffer, **arrays)
    write_bytes(folder / NAME, buffer.getvalue())
    return folder / NAME


def read_predictions(folder: Path) -> Predictions | None:
    """Read the file of a run, without running any code in it; None if there is none."""
    path = folder / NAME
    try:
        return Predictions(**read_npz(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a file of predictions ({error}). Delete {folder} and run again, or measure the student again "
            "with pipelines/evaluate.py."
        ) from error


def _rounded(logits_NK: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    return np.clip(logits_NK, -LARGEST, LARGEST).astype(np.float16)  # type: ignore[no-any-return]
