"""Retrieval of the right items: recall at 1, 5 and 10."""

# P queries, Q items, X width

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from featstore.files.array_types import Array

RANKS = (1, 5, 10)


def recall(
    queries_PX: Tensor,
    items_QX: Tensor,
    right_PQ: Tensor | None = None,
    wrong_PQ: Tensor | None = None,
) -> dict[str, float]:
    """How often a right item is among the nearest 1, 5 and 10 by cosine.

    Args:
        queries_PX: one row per query.
        right_PQ: bool, the right items of each query, at least one; None: that of the same row alone.
        wrong_PQ: bool, the items that they compete with; None: all others.

    Returns:
        ``recall_at_1``, ``recall_at_5``, ``recall_at_10``. Of equally near items a right one counts as the first.
    """
    right = torch.eye(len(queries_PX), dtype=torch.bool) if right_PQ is None else right_PQ
    wrong = ~right if wrong_PQ is None else wrong_PQ
    similarity = F.normalize(queries_PX.float(), dim=1) @ F.normalize(items_QX.float(), dim=1).T
    nearest = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    nearer = ((similarity > nearest) & wrong).sum(1)
    return {f"recall_at_{rank}": float((nearer < rank).double().mean()) for rank in RANKS}


def between_languages(
    features_NC: Tensor,
    embedded_ND: Tensor,
    teacher_ND: Tensor,
    pairs: Mapping[tuple[str, str], Array],
) -> dict[str, dict[str, float]]:
    """Recall of translations, for each direction.

    Args:
        pairs: by (language, other language), (P, 2) rows of each text and its translation.

    Returns:
        By "en -> zh" the recall among the student's features of the other language, and by "en -> stored zh" that
        among the teacher's stored features of them.
    """
    found = {}
    for (language, other), rows in pairs.items():
        ours, theirs = torch.from_numpy(rows).unbind(1)
        found[f"{language} -> {other}"] = recall(features_NC[ours], features_NC[theirs])
        found[f"{language} -> stored {other}"] = recall(embedded_ND[ours], teacher_ND[theirs])
    return found


def mean_recall_at_1(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """``translation_recall_at_1``: mean over the directions in the student's space; nothing without translations."""
    values = [value["recall_at_1"] for name, value in found.items() if "stored" not in name]
    return {"translation_recall_at_1": sum(values) / len(values)} if values else {}
