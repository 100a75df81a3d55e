"""The losses that methods are made of. Each compares shapes: unlike ones would broadcast silently."""

# B batch, D width of a feature, K classes

from torch import Tensor
from torch.nn import functional as F

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


def feature_mse(student_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Mean squared error over batch and width, in float32.

    Args:
        student_BD: (B, D).
        target_BD: (B, D); no gradient flows into it.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("feature_mse", student_BD, target_BD, dims=2)
    return F.mse_loss(student_BD.float(), target_BD.detach().float())


def layernorm_mse(student_BD: Tensor, target_BD: Tensor) -> Tensor:
    """``feature_mse`` after both sides were brought to mean 0 and variance 1 over their width, row by row.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("layernorm_mse", student_BD, target_BD, dims=2)
    width = student_BD.shape[1:]
    return feature_mse(
        F.layer_norm(student_BD.float(), width), F.layer_norm(target_BD.float(), width)
    )


def kd_kl(student_BK: Tensor, target_BK: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL(softmax(target / T) || softmax(student / T)), summed over classes, mean over the batch, in float32.

    Args:
        student_BK: (B, K) logits.
        target_BK: (B, K) logits; no gradient flows into them.
        temperature: T, positive.

    Raises:
        ValueError: the shapes differ, or T is not positive.
    """
    same_shape("kd_kl", student_BK, target_BK, dims=2)
    if temperature <= 0:
        raise ValueError(f"kd_kl: temperature {temperature} must be positive.")
    student = F.log_softmax(student_BK.float() / temperature, dim=1)
    target = F.log_softmax(target_BK.detach().float() / temperature, dim=1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


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
