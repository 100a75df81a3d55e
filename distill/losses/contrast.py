"""Losses that compare a sample to many others: rows of a queue or of a memory bank, or of the batch."""

# B batch, D width, Q rows of a queue, K negatives

from distill.lazy import F, Tensor, torch
from distill.losses.common import check_axes
from distill.losses.features import unit

MASKED = -1e4
"""Logit of a pair that is no negative: small enough for every temperature, finite in half precision."""

NCE_EPS = 1e-7  # added to the probabilities of ``nce``


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


def symmetric_info_nce(
    one_PD: Tensor, other_PD: Tensor, same_PP: Tensor, *, temperature: float
) -> Tensor:
    """Mean over both directions of the cross entropy of cosine / T against the own counterpart, in float32 (CLIP).

    Args:
        one_PD: (P, D).
        other_PD: (P, D), row i belongs to row i of ``one_PD``.
        same_PP: (P, P) bool, which rows belong together too; they are no negatives. Its diagonal does not matter.
        temperature: T, positive.
    """
    check_axes("symmetric_info_nce", "PD PD PP", one_PD, other_PD, same_PP)
    logits = unit(one_PD) @ unit(other_PD).T / temperature
    own = torch.arange(len(one_PD), device=one_PD.device)
    logits = logits.masked_fill(same_PP & (own[:, None] != own), MASKED)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
