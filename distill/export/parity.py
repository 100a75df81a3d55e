"""The same pictures through every format of a student, and how far the answers are apart."""

# B batch, H W student input, N images, K classes

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax

from distill.export.images import Pixels
from distill.student.model import Student

Logits = npt.NDArray[np.float32]
Runner = Callable[[Pixels], Logits]
"""(B, 3, H, W) uint8 pictures -> (B, K): feeds one file of an export, its share of the preprocessing included."""


def torch_runner(student: Student) -> Runner:
    """The plain student in PyTorch, float32 on the CPU."""
    mean, std = (torch.tensor(item).reshape(1, 3, 1, 1) for item in (student.mean, student.std))

    def run(pixels: Pixels) -> Logits:
        with torch.inference_mode():
            found: Logits = student.model(
                (torch.from_numpy(pixels).float() / 255 - mean) / std
            ).numpy()
        return found

    return run


def answers(batches: Iterable[Pixels], runners: Mapping[str, Runner]) -> dict[str, Logits]:
    """Run every format on every batch; pictures are decoded once.

    Returns:
        (N, K) by the runner's name.
    """
    found: dict[str, list[Logits]] = {name: [] for name in runners}
    for pixels in batches:
        for name, runner in runners.items():
            found[name].append(runner(pixels))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def compare(logits: Logits, reference: Logits) -> dict[str, float]:
    """How far two sets of answers are apart.

    Args:
        logits: (N, K).
        reference: (N, K), what they should be.

    Returns:
        ``max_abs_difference`` of the logits; ``top1_agreement``, the share of equal answers; ``kl``,
        KL(reference || logits) in nats per image.
    """
    ours, theirs = (log_softmax(item.astype(np.float64), axis=1) for item in (logits, reference))
    return {
        "max_abs_difference": float(np.abs(logits - reference).max()),
        "top1_agreement": float((logits.argmax(1) == reference.argmax(1)).mean()),
        "kl": float((np.exp(theirs) * (theirs - ours)).sum(1).mean()),
    }


def accuracy(
    logits: Logits, labels: npt.NDArray[np.int64], class_names: list[str]
) -> dict[str, Any]:
    """Top-1 overall and per class; a class without an image gets None."""
    right = logits.argmax(1) == labels
    return {
        "top1": float(right.mean()),
        "per_class": {
            name: float(right[labels == number].mean()) if (labels == number).any() else None
            for number, name in enumerate(class_names)
        },
    }
