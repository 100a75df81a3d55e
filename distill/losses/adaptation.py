"""Losses of the partners for domain adaptation: distances of two sets of features, and losses on predictions.

Source and target may differ in size; a batch of one is a valid set.
"""

# S source images, T target images, C student width, K classes, B any of them

import math

from distill.lazy import F, Tensor, torch
from distill.losses.common import check_axes

NUM_KERNELS = 5  # gaussians in the kernel
KERNEL_STEP = 2.0  # ratio of two neighbouring bandwidths
EPS = 1e-12
"""Smallest bandwidth, and what is added inside logarithms of frequencies that may be zero."""


def mk_mmd(source_SC: Tensor, target_TC: Tensor) -> Tensor:
    """Squared maximum mean discrepancy, biased: mean K_ss + mean K_tt - 2 mean K_st (DAN; DeepDA)."""
    kernel = _kernel("mk_mmd", source_SC, target_TC)
    split = len(source_SC)
    return (
        kernel[:split, :split].mean()
        + kernel[split:, split:].mean()
        - 2 * kernel[:split, split:].mean()
    )


def lmmd(source_SC: Tensor, target_TC: Tensor, labels_S: Tensor, probability_TK: Tensor) -> Tensor:
    """MMD within each class: sum(w_ss K_ss + w_tt K_tt - 2 w_st K_st) (DSAN; DeepDA).

    The weights of a class are the source's one-hot labels and the target's probabilities, each divided by its sum over
    the batch. Only classes that are both a source label and a target argmax in this batch count; the result is their
    mean.

    Args:
        labels_S: (S,) int64.
        probability_TK: (T, K); no gradient flows into it.

    Returns:
        A scalar; zero, with a gradient of zero, if the batch shares no class.
    """
    check_axes("lmmd", "SC TC S TK", source_SC, target_TC, labels_S, probability_TK)
    kernel = _kernel("lmmd", source_SC, target_TC)
    classes = probability_TK.shape[1]
    target_TK = probability_TK.detach().float()
    source_SK = F.one_hot(labels_S, classes).float()
    guessed_TK = F.one_hot(target_TK.argmax(1), classes).float()
    common_K = (source_SK.sum(0) > 0) & (guessed_TK.sum(0) > 0)
    sides = [
        common_K * side / side.sum(0).clamp(min=EPS) for side in (source_SK, target_TK)
    ]  # (S, K), (T, K)
    signed_BK = torch.cat([sides[0], -sides[1]])
    return (signed_BK @ signed_BK.T * kernel).sum() / common_K.sum().clamp(min=1)


def _kernel(name: str, source_SC: Tensor, target_TC: Tensor) -> Tensor:
    """(S + T, S + T) sum of Gaussians; the middle bandwidth is the mean squared distance of two different rows."""
    check_axes(name, "SC TC", source_SC, target_TC)
    both_BC = torch.cat([source_SC, target_TC]).float()
    # Without matrix products: they would leave distances of equal rows that are not zero.
    distance = torch.cdist(both_BC, both_BC, compute_mode="donot_use_mm_for_euclid_dist").square()
    count = len(both_BC)
    bandwidth = (distance.detach().sum() / max(count * (count - 1), 1)).clamp(min=EPS)
    middle = NUM_KERNELS // 2
    kernel = torch.zeros_like(distance)
    for number in range(NUM_KERNELS):
        kernel = kernel + torch.exp(-distance / (bandwidth * KERNEL_STEP ** (number - middle)))
    return kernel


def coral(source_SC: Tensor, target_TC: Tensor) -> Tensor:
    """||cov(source) - cov(target)||_F^2 / (4 C^2) (DeepCORAL); the covariance of one row is zero."""
    check_axes("coral", "SC TC", source_SC, target_TC)
    difference = _covariance(source_SC.float()) - _covariance(target_TC.float())
    return difference.square().sum() / (4 * source_SC.shape[1] ** 2)


def _covariance(rows_BC: Tensor) -> Tensor:
    centred = rows_BC - rows_BC.mean(0)
    return centred.T @ centred / max(len(rows_BC) - 1, 1)


def reverse_gradient(value: Tensor, factor: float) -> Tensor:
    """The value itself, with its gradient times -factor (DANN)."""
    if not value.requires_grad:
        return value
    copy = value.view_as(value)
    copy.register_hook(lambda gradient: -factor * gradient)
    return copy


def domain_bce(source_S: Tensor, target_T: Tensor) -> Tensor:
    """0.5 (BCE(source, 1) + BCE(target, 0)) (DANN; DeepDA, TLlib).

    Args:
        source_S: (S,) or (S, 1) logits of a discriminator.
        target_T: (T,) or (T, 1).
    """
    source, target = source_S.float(), target_T.float()
    return 0.5 * (F.softplus(-source).mean() + F.softplus(target).mean())


def ramp(progress: float, gamma: float) -> float:
    """2 / (1 + exp(-gamma progress)) - 1: 0 at the start, rising (DANN, DSAN)."""
    return 2 / (1 + math.exp(-gamma * progress)) - 1


def entropy(logits_BK: Tensor) -> Tensor:
    """(B, K) logits -> (B,) entropy of their softmax, in nats, float32."""
    log_BK = F.log_softmax(logits_BK.float(), dim=1)
    return -(log_BK.exp() * log_BK).sum(1)


def information_maximisation(logits_BK: Tensor) -> Tensor:
    """Mean entropy minus the entropy of the mean prediction (SHOT): sharp, but not all of one class."""
    mean_K = F.softmax(logits_BK.float(), dim=1).mean(0)
    return entropy(logits_BK).mean() + (mean_K * torch.log(mean_K + EPS)).sum()


def committee_entropy(
    logits_TK: Tensor, committee: list[Tensor], weight_T: Tensor
) -> tuple[Tensor, Tensor]:
    """Entropy of agreeing strong views minus that of disagreeing ones, mean over the target images (SENTRY).

    An image whose strong views mostly predict what the plain view predicts is judged by the last that does; one whose
    strong views mostly do not, by the last that does not. With an even committee some images are neither.

    Args:
        logits_TK: (T, K) of the plain view; no gradient flows into it.
        committee: (T, K) each, of the strong views; gradients flow here alone.
        weight_T: (T,) of the images.

    Returns:
        The loss, and (T,) bool: which images are agreed on.
    """
    if not committee:
        raise ValueError("committee_entropy: expected at least one strong view.")
    check_axes("committee_entropy", "TK " * (1 + len(committee)), logits_TK, *committee)
    plain_T = logits_TK.detach().argmax(1)
    same = torch.stack([member.detach().argmax(1) == plain_T for member in committee])  # (V, T)
    majority = len(committee) // 2 + 1
    agreed_T, disputed_T = same.sum(0) >= majority, (~same).sum(0) >= majority
    chosen = committee[0]
    for votes_T, member in zip(same, committee, strict=True):
        chosen = torch.where((votes_T == agreed_T)[:, None], member, chosen)
    sign_T = agreed_T.float() - disputed_T.float()
    return (weight_T * sign_T * entropy(chosen)).mean(), agreed_T


def frequent_classes(logits_TK: Tensor, frequency_K: Tensor, weight_T: Tensor) -> Tensor:
    """mean_t weight_t sum_c p_c log q_c: pushes predictions p away from frequent classes (SENTRY).

    Args:
        frequency_K: (K,) q, of the latest predictions.
        weight_T: (T,) of the images.
    """
    check_axes("frequent_classes", "TK K", logits_TK, frequency_K)
    log_q_K = torch.log(frequency_K.detach().float() + EPS)
    return (weight_T * (F.softmax(logits_TK.float(), dim=1) @ log_q_K)).mean()
