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
    plain = student.plain().eval()
    mean, std = (torch.tensor(item).reshape(1, 3, 1, 1) for item in (student.mean, student.std))

    def run(pixels: Pixels) -> Logits:
        with torch.inference_mode():
            found: Logits = plain((torch.from_numpy(pixels).float() / 255 - mean) / std).numpy()
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


def compare_answers(logits: Logits, reference: Logits, *, classes: bool = True) -> dict[str, float]:
    """How far two sets of answers are apart.

    Args:
        logits: (N, K), or (N, K, H, W) for classes of pixels.
        reference: of the same shape, what they should be.
        classes: whether K are classes of which one is right; False for other outputs.

    Returns:
        ``max_abs_difference`` of the outputs. With classes: ``top1_agreement``, the share of equal answers; ``kl``,
        KL(reference || logits) in nats. Without: ``relative_error``, the root of the mean squared difference over the
        deviation of the reference.
    """
    largest = float(np.abs(logits - reference).max())
    if not classes:
        error = np.sqrt(np.mean((logits - reference) ** 2, dtype=np.float64))
        return {
            "max_abs_difference": largest,
            "relative_error": float(error / max(reference.std(dtype=np.float64), 1e-12)),
        }
    ours, theirs = (log_softmax(item.astype(np.float64), axis=1) for item in (logits, reference))
    return {
        "max_abs_difference": largest,
        "top1_agreement": float((logits.argmax(1) == reference.argmax(1)).mean()),
        "kl": float((np.exp(theirs) * (theirs - ours)).sum(1).mean()),
    }


def distance(found: dict[str, float]) -> float:
    """How far answers are apart by the result of ``compare_answers``, to choose the nearest."""
    return found["kl"] if "kl" in found else found["relative_error"]


def distance_text(found: dict[str, float]) -> str:
    """The result of ``compare_answers`` in words."""
    if "kl" in found:
        return f"agrees on {100 * found['top1_agreement']:.1f} %, KL {found['kl']:.4f}"
    return f"differs by {100 * found['relative_error']:.2f} % of the outputs' deviation"


def top1_by_class(
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
