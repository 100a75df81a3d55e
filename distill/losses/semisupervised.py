"""Losses on predicted labels for the semi-supervised partners, and the weights of these labels.

Predictions, weights and statistics carry no gradient. A loss is the mean over all rows, also those of weight 0, so that
it grows with the share of images that are used.
"""

# U unlabelled images, K classes, N labelled images in a bank

from distill.lazy import F, Tensor, torch
from distill.losses.common import check_axes

EPS = 1e-12  # added inside logarithms and below quotients of probabilities that may be zero
ALIGN_EPS = 1e-6  # added to both distributions of an alignment


def probabilities(logits_UK: Tensor) -> Tensor:
    """Softmax in float32, without gradient."""
    return F.softmax(logits_UK.detach().float(), dim=1)


def pseudo_label_ce(logits_UK: Tensor, labels_U: Tensor, weight_U: Tensor) -> Tensor:
    """mean_u weight_u CE(logits_u, label_u), the term of FixMatch and its successors (USB).

    Args:
        logits_UK: (U, K); gradients flow here alone.
        labels_U: (U,) int64 predicted classes.
        weight_U: (U,) weight of each predicted label, 0 to 1.

    Returns:
        A scalar; zero, with a gradient of zero, if all weights are zero.
    """
    check_axes("pseudo_label_ce", "UK U U", logits_UK, labels_U, weight_U)
    loss_U = F.cross_entropy(logits_UK.float(), labels_U, reduction="none")
    return (weight_U.detach().float() * loss_U).mean()


def soft_label_ce(logits_UK: Tensor, target_UK: Tensor, weight_U: Tensor) -> Tensor:
    """mean_u weight_u CE(logits_u, target_u) with probabilities as targets (SimMatch).

    Args:
        logits_UK: (U, K); gradients flow here alone.
        target_UK: (U, K); rows sum to one.
        weight_U: (U,) 0 to 1.
    """
    check_axes("soft_label_ce", "UK UK U", logits_UK, target_UK, weight_U)
    loss_U = -(target_UK.detach().float() * F.log_softmax(logits_UK.float(), dim=1)).sum(1)
    return (weight_U.detach().float() * loss_U).mean()


def flexmatch_threshold(counts: Tensor, threshold: float) -> Tensor:
    """Per class threshold beta / (2 - beta), beta = count / largest count (FlexMatch, convex map, warm-up).

    Args:
        counts: (K + 1,) images whose last confident prediction was none so far (first entry), or class 0, 1, ... The
            first entry is a bin like the others, so that all thresholds start at zero.
        threshold: Threshold of the class with the largest count, 0 to 1.

    Returns:
        (K,) float32.
    """
    beta_K = counts[1:].float() / counts.max().clamp(min=1)
    return threshold * beta_K / (2 - beta_K)


def freematch_threshold(mean: Tensor, mean_K: Tensor) -> Tensor:
    """Per class threshold tau p_c / max p (FreeMatch, self-adaptive).

    Args:
        mean: () moving mean of the largest probability, tau.
        mean_K: (K,) moving mean of the probabilities, p.

    Returns:
        (K,) float32.
    """
    return mean * mean_K / mean_K.max()


def freematch_fairness(
    logits_UK: Tensor, mask_U: Tensor, mean_K: Tensor, histogram_K: Tensor
) -> Tensor:
    """sum_c norm(p / h)_c log norm(q / g)_c: minus the cross entropy of two distributions over classes (FreeMatch).

    p and h are the moving mean and histogram of the predictions, q and g those of the strong views in the mask; norm
    divides by the sum. A class that no such view predicts counts as zero.

    Args:
        logits_UK: (U, K) of the strong views; gradients flow here alone, through q.
        mask_U: (U,) bool, which images count.
        mean_K: (K,) p.
        histogram_K: (K,) h.

    Returns:
        A scalar, not positive; zero, with a gradient of zero, if the mask is empty.
    """
    check_axes("freematch_fairness", "UK U K K", logits_UK, mask_U, mean_K, histogram_K)
    some = mask_U.any()
    used_U = (mask_U | ~some).float()  # all rows if there is none, so that no step divides by zero
    strong_UK = F.softmax(logits_UK.float(), dim=1)
    guessed_K = F.one_hot(strong_UK.argmax(1), strong_UK.shape[1]).float().T @ used_U
    mean_strong_K = (strong_UK * used_U[:, None]).sum(0) / used_U.sum()
    ours_K = _normalised(_over(mean_strong_K, guessed_K / used_U.sum()))
    target_K = _normalised(_over(mean_K.detach(), histogram_K.detach()))
    return some * (target_K * torch.log(ours_K + EPS)).sum()


def _over(value_K: Tensor, histogram_K: Tensor) -> Tensor:
    """value / histogram, zero where the histogram is zero."""
    return torch.where(histogram_K > 0, value_K / histogram_K.clamp(min=EPS), 0.0)


def _normalised(value_K: Tensor) -> Tensor:
    return value_K / value_K.sum().clamp(min=EPS)


def softmatch_weight(
    confidence_U: Tensor, mean: Tensor, variance: Tensor, *, n_sigma: float
) -> Tensor:
    """exp(-min(confidence - mean, 0)^2 / (2 variance / n_sigma^2)) (SoftMatch, truncated Gaussian).

    Args:
        confidence_U: (U,) largest probability of each image.
        mean: () moving mean of the confidences.
        variance: () moving variance of the confidences.
        n_sigma: Standard deviation of the confidences over that of the Gaussian.

    Returns:
        (U,) float32, 0 to 1; 1 from the mean on.
    """
    below_U = (confidence_U - mean).clamp(max=0)
    return torch.exp(-below_U.square() / (2 * variance.clamp(min=EPS) / n_sigma**2))


def align(probability_UK: Tensor, target_K: Tensor, current_K: Tensor) -> Tensor:
    """Move probabilities from their mean towards another one: p target / current, normalised (ReMixMatch; USB).

    Args:
        target_K: (K,) mean that they should have.
        current_K: (K,) mean that they have.

    Returns:
        (U, K); rows sum to one.
    """
    moved_UK = probability_UK * (target_K + ALIGN_EPS) / (current_K + ALIGN_EPS)
    return moved_UK / moved_UK.sum(1, keepdim=True)


def unfold(similarity_UN: Tensor, probability_UK: Tensor, labels_N: Tensor) -> Tensor:
    """Weigh similarities to labelled images with the probability of their class, and normalise (SimMatch).

    Args:
        similarity_UN: (U, N) rows sum to one.
        labels_N: (N,) int64 classes of the labelled images.

    Returns:
        (U, N); rows sum to one.
    """
    weighed_UN = similarity_UN * probability_UK[:, labels_N]
    return weighed_UN / weighed_UN.sum(1, keepdim=True).clamp(min=EPS)


def aggregate(similarity_UN: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """Sum similarities to labelled images over each class (SimMatch): (U, N) -> (U, K)."""
    return similarity_UN @ F.one_hot(labels_N, num_classes).to(similarity_UN.dtype)
