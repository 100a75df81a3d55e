"""Losses that compare an image to many others that are not in the batch: rows of a queue or of a memory bank."""

# B batch, D width, Q rows of a queue, K negatives

from distill.lazy import F, Tensor, torch
from distill.losses.common import check_axes
from distill.losses.features import unit

NCE_EPS = 1e-7
"""Added to the probabilities of ``nce``."""


def queue_kl(
    student_BD: Tensor, target_BD: Tensor, queue_QD: Tensor, *, temperature: float
) -> Tensor:
    """KL(softmax(t Q^T / T) || softmax(s Q^T / T)), mean over the batch, in float32 (LightlyTrain, method of v1).

    Every row of the queue is a pseudo-class; student, target and queue are brought to length 1.

    Args:
        target_BD: (B, D); no gradient flows into it.
        queue_QD: (Q, D) stored features of other images; no gradient flows into it.
        temperature: T, positive.
    """
    check_axes("queue_kl", "BD BD QD", student_BD, target_BD, queue_QD)
    if not len(queue_QD):
        raise ValueError("queue_kl: the queue is empty.")
    if temperature <= 0:
        raise ValueError(f"queue_kl: temperature {temperature} must be positive.")
    queue = unit(queue_QD.detach()).T
    student = F.log_softmax(unit(student_BD) @ queue / temperature, dim=1)
    target = F.log_softmax(unit(target_BD.detach()) @ queue / temperature, dim=1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True)


def nce(positive_B: Tensor, negative_BK: Tensor, known_BK: Tensor, *, rows: int) -> Tensor:
    """Noise-contrastive estimation, mean over the batch, in float32 (CRD, Tian et al., ICLR 2020).

    The sum of -log(p / (p + m/n + eps)) for the positive and of -log((m/n) / (p + m/n + eps)) for each of the anchor's
    m negatives: the noise distribution is uniform over the n rows of a bank.

    Args:
        positive_B: (B,) positive estimates p of how likely an anchor and its own counterpart are.
        negative_BK: (B, K) those of the anchors and other rows.
        known_BK: (B, K) bool, which of these are negatives of the anchor; m is their number.
        rows: n, of the bank that the negatives are drawn from.
    """
    check_axes("nce", "B BK BK", positive_B, negative_BK, known_BK)
    noise = known_BK.sum(1).float() / rows
    own = torch.log1p((noise + NCE_EPS) / positive_B.float())
    # Without any negative the noise is zero; the clamp then keeps what is masked out finite.
    others = torch.log1p((negative_BK.float() + NCE_EPS) / noise.clamp(min=1 / rows)[:, None])
    return (own + (others * known_BK).sum(1)).mean()
