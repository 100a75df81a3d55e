"""The check of shapes that all losses make, and the cross entropy on labels."""

# B batch, D width of a feature, K classes

from distill.lazy import F, Tensor

IGNORE = -1  # target of an image whose label is unknown or must not be used


def check_axes(name: str, axes: str, *tensors: Tensor) -> None:
    """Check tensors against the names of their axes, e.g. "BC BD B"; a letter stands for one size in all of them.

    Raises:
        ValueError: names the loss, all shapes and the axes; without this check, unlike shapes would broadcast.
    """
    sizes: dict[str, int] = {}
    for letters, tensor in zip(axes.split(), tensors, strict=True):
        fits = len(letters) == tensor.dim()
        if not fits or any(
            sizes.setdefault(letter, size) != size
            for letter, size in zip(letters, tensor.shape, strict=True)
        ):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            expected = " ".join(f"({', '.join(letters)})" for letters in axes.split())
            raise ValueError(f"{name}: shapes {shapes} do not fit together; expected {expected}.")


def cross_entropy(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Mean cross entropy over the labelled rows, in float32; zero, with a gradient of zero, if there are none.

    Args:
        logits_BK: (B, K).
        labels_B: (B,) int64, ``IGNORE`` where there is no label.
    """
    check_axes("cross_entropy", "BK B", logits_BK, labels_B)
    known = labels_B != IGNORE
    total = F.cross_entropy(logits_BK.float(), labels_B, ignore_index=IGNORE, reduction="sum")
    return total / known.sum().clamp(min=1)
