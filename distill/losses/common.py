"""What all losses share: the check of shapes, and the cross entropy on labels."""

# B batch, D width of a feature, K classes

from distill.lazy import F, Tensor

IGNORE = -1
"""Target of an image whose label is unknown or must not be used."""


def same_shape(name: str, student: Tensor, target: Tensor, *, dims: int) -> None:
    """Check that two tensors have one shape.

    Raises:
        ValueError: names the loss and both shapes.
    """
    if student.shape != target.shape or student.dim() != dims:
        raise ValueError(
            f"{name}: student {tuple(student.shape)} and target {tuple(target.shape)} must be equal and have {dims} "
            "axes; a loss over unlike shapes would broadcast."
        )


def cross_entropy(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Mean cross entropy over the labelled rows, in float32; zero, with a gradient of zero, if there are none.

    Args:
        logits_BK: (B, K).
        labels_B: (B,) int64, ``IGNORE`` where there is no label.

    Raises:
        ValueError: the lengths differ, or a label is not a class.
    """
    if logits_BK.dim() != 2 or labels_B.shape != logits_BK.shape[:1]:
        raise ValueError(
            f"cross_entropy: logits {tuple(logits_BK.shape)} and labels {tuple(labels_B.shape)} "
            "do not belong together; "
            "expected (B, K) and (B,)."
        )
    known = labels_B != IGNORE
    total = F.cross_entropy(logits_BK.float(), labels_B, ignore_index=IGNORE, reduction="sum")
    return total / known.sum().clamp(min=1)
