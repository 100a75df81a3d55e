"""Losses in a space that images share with texts (VLM distillation, arXiv:2307.03135); rows get length 1 first."""

# B batch, D width of the space, K texts

from distill.lazy import F, Tensor, torch
from distill.losses.common import check_axes
from distill.losses.features import unit


def text_logits(embedding_BD: Tensor, texts_KD: Tensor, *, temperature: float) -> Tensor:
    """Cosine to every text over a temperature, (B, K) float32.

    Args:
        texts_KD: (K, D); no gradient flows into it.
        temperature: positive.
    """
    check_axes("text_logits", "BD KD", embedding_BD, texts_KD)
    if temperature <= 0:
        raise ValueError(f"text_logits: temperature {temperature} must be positive.")
    return unit(embedding_BD) @ unit(texts_KD.detach()).T / temperature


def cosine_mse(student_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Squared distance of the directions, summed over the width, mean over the batch; no gradient to the target."""
    check_axes("cosine_mse", "BD BD", student_BD, target_BD)
    return (unit(student_BD) - unit(target_BD.detach())).square().sum(1).mean()


def batch_contrast(
    student_BD: Tensor, target_BD: Tensor, *, temperature: float, alike_BB: Tensor | None = None
) -> Tensor:
    """Mean of both cross entropies of telling an image's counterpart from those of the other images of the batch.

    Args:
        target_BD: (B, D) counterparts; no gradient flows into it.
        temperature: positive.
        alike_BB: (B, B) bool, pairs that are no negatives, such as images of one class; the diagonal does not matter.
    """
    check_axes("batch_contrast", "BD BD", student_BD, target_BD)
    logits = text_logits(student_BD, target_BD, temperature=temperature)
    own = torch.arange(len(logits), device=logits.device)
    if alike_BB is not None:
        logits = logits.masked_fill(alike_BB & (own[:, None] != own), -torch.inf)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def topk_kl(
    student_BD: Tensor, target_BD: Tensor, texts_KD: Tensor, *, k: int, temperature: float
) -> Tensor:
    """KL(softmax(t.e / T) || softmax(s.e / T)) over the k texts nearest to the teacher, mean over the batch.

    Args:
        target_BD: (B, D) the teacher's embeddings; no gradient flows into it.
        k: texts per image, those with the largest cosine by the teacher; all where K is smaller.
        temperature: T, positive.
    """
    check_axes("topk_kl", "BD BD KD", student_BD, target_BD, texts_KD)
    if k <= 0:
        raise ValueError(f"topk_kl: k {k} must be positive.")
    target = text_logits(target_BD.detach(), texts_KD, temperature=temperature)
    student = text_logits(student_BD, texts_KD, temperature=temperature)
    target, nearest = target.topk(min(k, len(texts_KD)), dim=1)
    return F.kl_div(
        F.log_softmax(student.gather(1, nearest), dim=1),
        F.log_softmax(target, dim=1),
        reduction="batchmean",
        log_target=True,
    )
