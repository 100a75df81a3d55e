"""Fields of class logits: names of their classes, and how to tell logits from probabilities."""

import numpy as np

from featstore.files.array_types import Array
from featstore.format.manifest_records import CLASS_NAMES, TeacherRecord


def class_names_of(teacher: TeacherRecord) -> list[str] | None:
    """Names of the classes of a teacher's logits, in their order; None if the manifest does not state them."""
    found = teacher.model_args.get(CLASS_NAMES)
    return list(map(str, found)) if isinstance(found, list) else None


def are_probabilities(values: Array) -> bool:
    """Whether every vector has no negative number and a sum of 1.

    Args:
        values: (..., C), at least one vector.
    """
    numbers = values.astype(np.float64)
    return bool((numbers >= 0).all() and np.allclose(numbers.sum(axis=-1), 1, atol=0.01))
