"""Losses that compare relations between the images of a batch: distances, angles, similarities.

Student and teacher may have any width, as only numbers of images against images are compared. All are coupled through
the batch: the loss of a batch is not the mean of the losses of its parts. All are computed in float32, and no gradient
flows into the teacher's side.
"""

# B batch, C student width, D teacher width, E width of an embedding

import math
from collections.abc import Sequence

from distill.lazy import F, Tensor, no_grad, torch
from distill.losses.common import check_axes
from distill.losses.features import unit

NEAR = 1e-3
"""Distance, as a share of the mean one, up to which two rows count as the same: rounding decides their direction."""
PKT_EPS = 1e-7  # keeps the logarithms of ``pkt`` finite


def rkd_distance(student_BC: Tensor, target_BD: Tensor) -> Tensor:
    """SmoothL1(d_s / mean d_s, d_t / mean d_t), mean over all B x B pairs (RKD-D, Park et al., CVPR 2019).

    d are Euclidean distances; the means are over the positive ones. If all rows of one side are equal, its distances
    are all zero. A distance of zero gets no gradient.
    """
    student, target = _of_one_batch("rkd_distance", student_BC, target_BD)
    d_s, d_t = _pairwise(student), _pairwise(target)
    return F.smooth_l1_loss(d_s / _positive_mean(d_s), d_t / _positive_mean(d_t))


def rkd_angle(student_BC: Tensor, target_BD: Tensor) -> Tensor:
    """SmoothL1 of the cosines of all angles i-j-k, mean over all B^3 triplets (RKD-A, Park et al., CVPR 2019).

    Needs B^3 numbers, whatever the widths. A triplet counts as zero on both sides where i or k is the same as j, or as
    near to it as rounding: such an angle is not defined (an image that is twice in a batch) (our choice).
    """
    student, target = _of_one_batch("rkd_angle", student_BC, target_BD)
    apart = _apart(student) & _apart(target)
    return F.smooth_l1_loss(_cosines(student, apart), _cosines(target, apart))


def cc(student_BC: Tensor, target_BD: Tensor, *, gamma: float, order: int) -> Tensor:
    """MSE between correlation matrices, mean over all B x B pairs (CC, Peng et al., ICCV 2019).

    The correlation of two images is the Taylor series of a Gaussian kernel on features f of length 1,
    sum over p = 0 .. order of e^(-2 gamma) (2 gamma)^p / p! <f_i, f_j>^p.

    Args:
        gamma: Width parameter of the kernel, positive.
        order: Last power of the series, at least 1.
    """
    student, target = _of_one_batch("cc", student_BC, target_BD)
    factors = [
        math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(order + 1)
    ]
    return F.mse_loss(_series(student, factors), _series(target, factors))


def cc_crd(student_BE: Tensor, target_BE: Tensor) -> Tensor:
    """Mean over i of sum_d delta_i delta_(i+1) with delta = |student - target|: CC as the authors of CRD wrote it.

    Depends on the order of the batch, as only neighbours are compared. A batch of one costs nothing. Gradients flow
    into both sides, as both are embeddings that are trained.

    Args:
        student_BE: (B, E), embedded.
        target_BE: (B, E), embedded.
    """
    check_axes("cc_crd", "BE BE", student_BE, target_BE)
    delta = (student_BE.float() - target_BE.float()).abs()
    return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)


def sp(student_BC: Tensor, target_BD: Tensor) -> Tensor:
    """||G_s - G_t||_F^2 / B^2, G = F F^T with rows of length 1 (SP, Tung and Mori, ICCV 2019)."""
    student, target = _of_one_batch("sp", student_BC, target_BD)
    return F.mse_loss(unit(student @ student.T), unit(target @ target.T))


def pkt(student_BC: Tensor, target_BD: Tensor) -> Tensor:
    """KL of the row-normalised similarities (cos + 1) / 2 (PKT, Passalis and Tefas, ECCV 2018).

    Mean over all B x B pairs of p log((p + eps) / (q + eps)), p of the teacher and q of the student, eps 1e-7.
    """
    student, target = _of_one_batch("pkt", student_BC, target_BD)
    q, p = (_neighbours(feature) for feature in (student, target))
    return (p * ((p + PKT_EPS) / (q + PKT_EPS)).log()).mean()


def _of_one_batch(name: str, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, the target detached."""
    check_axes(name, "BC BD", student, target)
    return student.float(), target.detach().float()


def _pairwise(feature: Tensor) -> Tensor:
    """(B, D) -> (B, B) distances from differences: through products, those of near rows would be noise."""
    return torch.cdist(feature, feature, compute_mode="donot_use_mm_for_euclid_dist")


def _positive_mean(distance: Tensor) -> Tensor:
    """Mean over the positive distances, 1 if there are none."""
    positive = distance > 0
    mean = distance.sum() / positive.sum().clamp(min=1)
    return torch.where(positive.any(), mean, torch.ones_like(mean))


@no_grad
def _apart(feature: Tensor) -> Tensor:
    """(B, D) -> (B, B): whether two rows are far enough from each other for a direction between them."""
    distance = _pairwise(feature)
    return distance > NEAR * _positive_mean(distance)


def _cosines(feature: Tensor, apart: Tensor) -> Tensor:
    """(B, D) -> (B, B, B): at [j, i, k] the cosine of the angle at j; zero where a side of it is not ``apart``.

    <x_i - x_j, x_k - x_j> comes from the products of all pairs, B^3 numbers in place of B^2 differences of width D. The
    mean is taken off first, which changes no angle, and keeps the products as small as the differences.
    """
    feature = feature - feature.mean(0)
    gram = feature @ feature.T
    inner = gram - gram[:, :, None] - gram[:, None, :] + gram.diagonal()[:, None, None]
    inverse = apart / torch.where(apart, _pairwise(feature), torch.ones_like(gram))
    return inner * inverse[:, :, None] * inverse[:, None, :]


def _series(feature: Tensor, factors: Sequence[float]) -> Tensor:
    """(B, D) -> (B, B): sum over p of factor p times the cosine to the power of p."""
    direction = unit(feature)
    cosine = direction @ direction.T
    return torch.stack([factor * cosine**p for p, factor in enumerate(factors)]).sum(0)


def _neighbours(feature: Tensor) -> Tensor:
    """(B, D) -> (B, B): (cos + 1) / 2 with rows that sum to 1."""
    direction = unit(feature)
    similarity = (direction @ direction.T + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)
