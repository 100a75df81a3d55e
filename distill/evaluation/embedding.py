"""Measure a backbone by its teacher, without labels, and fit the head that maps it to the teacher's space.

Neighbours are those by cosine among the measured images themselves.
"""

# N measured images, n images to fit on, C student width, D teacher width, k neighbours

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from distill.measures.feature_similarity import linear_cka
from featstore.errors import ConfigError
from featstore.files.atomic import write_bytes

HEAD = "embedding_head.safetensors"  # beside the student of a run of task ``none``

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties that are tried, as shares of the mean variance of a channel."""

CHUNK = 512  # rows of a similarity matrix at a time


@dataclass(frozen=True)
class EmbeddingHead:
    """A linear map from the student's feature to the teacher's."""

    weight_DC: Tensor  # (D, C) float32
    bias_D: Tensor  # (D,) float32

    def __call__(self, features_NC: Tensor) -> Tensor:
        """(N, C) -> (N, D) float32."""
        return features_NC.float() @ self.weight_DC.T + self.bias_D

    def write(self, folder: Path) -> Path:
        """Write ``weight`` (D, C) and ``bias`` (D,), as ``torch.nn.Linear`` names them."""
        tensors = {"weight": self.weight_DC.contiguous(), "bias": self.bias_D.contiguous()}
        write_bytes(folder / HEAD, save(tensors))
        return folder / HEAD

    @classmethod
    def from_bytes(cls, data: bytes) -> "EmbeddingHead":
        """The inverse of ``write``. Raises ConfigError: not such a file."""
        try:
            tensors = load(data)
            return cls(tensors["weight"], tensors["bias"])
        except Exception as error:  # safetensors raises types of its own
            raise ConfigError(
                f"{HEAD}: cannot be read ({type(error).__name__}: {error})."
            ) from error


def fit_head(student_nC: Tensor, teacher_nD: Tensor) -> EmbeddingHead:
    """Fit the head by ridge regression; every fifth row chooses the penalty, then all rows fit.

    Args:
        student_nC: features of images that are not measured.
    """
    chosen = PENALTIES[0]
    if len(student_nC) >= 10:
        held = torch.arange(len(student_nC)) % 5 == 0
        errors = []
        for penalty in PENALTIES:
            head = _ridge(student_nC[~held], teacher_nD[~held], penalty)
            errors.append(float((head(student_nC[held]) - teacher_nD[held]).square().mean()))
        chosen = PENALTIES[errors.index(min(errors))]
    return _ridge(student_nC, teacher_nD, chosen)


def _ridge(student_nC: Tensor, teacher_nD: Tensor, penalty: float) -> EmbeddingHead:
    x, y = student_nC.double(), teacher_nD.double()
    mean, target = x.mean(0), y.mean(0)
    x = x - mean
    covariance = x.T @ x / len(x)
    scale = covariance.diagonal().mean().clamp(min=1e-12)
    covariance += penalty * scale * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(covariance, x.T @ (y - target) / len(x)).T
    return EmbeddingHead(weight.float(), (target - weight @ mean).float())


def nearest_rows(queries_NX: Tensor, gallery_NX: Tensor, k: int) -> Tensor:
    """(N, k) indices of the nearest rows by cosine, without the row itself, the nearest first.

    Args:
        queries_NX: one row for each image.
        gallery_NX: of the same images in the same order.
        k: below N.
    """
    queries, gallery = (
        F.normalize(queries_NX.float(), dim=1),
        F.normalize(gallery_NX.float(), dim=1),
    )
    found = []
    for start in range(0, len(queries), CHUNK):
        similarity = queries[start : start + CHUNK] @ gallery.T
        rows = torch.arange(len(similarity))
        similarity[rows, rows + start] = -torch.inf
        found.append(similarity.topk(k, dim=1).indices)
    return torch.cat(found)


def neighbour_agreement(student_NC: Tensor, teacher_ND: Tensor, neighbours: int = 10) -> float:
    """Share of an image's nearest neighbours by the teacher that are also its nearest by the student, on average.

    Args:
        student_NC: features; at least three images.
        neighbours: k; at most two less than there are images.
    """
    k = min(neighbours, len(student_NC) - 2)
    ours, theirs = nearest_rows(student_NC, student_NC, k), nearest_rows(teacher_ND, teacher_ND, k)
    return float((ours[:, :, None] == theirs[:, None, :]).any(2).double().mean())


def compare_embeddings(
    student_NC: Tensor,
    teacher_ND: Tensor,
    head: EmbeddingHead,
    *,
    rows: Tensor,
    neighbours: int = 10,
) -> dict[str, Any]:
    """All numbers that need no label.

    Args:
        student_NC: features of images that neither student nor head were fitted on.
        rows: which of the images the CKA is computed on.

    Returns:
        ``neighbour_agreement``; ``explained_variance``: 1 - squared error / variance, of the head's output; ``cosine``
        of the head's output and the stored feature; ``recall_at_1`` and ``recall_at_10``: how often the teacher's
        nearest image is among the nearest 1 and 10 when the query is embedded by the student and the others by the
        teacher; ``cka``.
    """
    embedded, teacher = head(student_NC), teacher_ND.float()
    error = (embedded - teacher).double().square().sum()
    total = (teacher - teacher.mean(0)).double().square().sum()
    k = min(10, len(teacher) - 1)
    first = nearest_rows(teacher, teacher, 1)
    found = nearest_rows(embedded, teacher, k) == first
    return {
        "neighbour_agreement": neighbour_agreement(student_NC, teacher, neighbours),
        "explained_variance": float(1 - error / total) if total > 0 else 0.0,
        "cosine": float(F.cosine_similarity(embedded, teacher, dim=1).double().mean()),
        "recall_at_1": float(found[:, :1].any(1).double().mean()),
        "recall_at_10": float(found.any(1).double().mean()),
        "cka": linear_cka(student_NC[rows], teacher[rows]),
    }
