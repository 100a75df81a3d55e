"""Losses in a space that images share with texts: students of image-text teachers (VLM distillation, arXiv:2307.03135).

Rows are brought to length 1. What the public code of the paper does is marked [C], our readings [I].
"""

# B batch, D width of the space, K texts, k nearest texts

from distill.lazy import F, Tensor, torch
from distill.losses.common import same_shape
from distill.losses.features import unit


def text_logits(embedding_BD: Tensor, texts_KD: Tensor, *, temperature: float) -> Tensor:
    """Cosine to every text over a temperature, (B, K) float32.

    Args:
        embedding_BD: (B, D) images.
        texts_KD: (K, D); no gradient flows into it.
        temperature: positive.

    Raises:
        ValueError: the widths differ, or the temperature is not positive.
    """
    if embedding_BD.dim() != 2 or embedding_BD.shape[1:] != texts_KD.shape[1:]:
        raise ValueError(
            f"text_logits: images {tuple(embedding_BD.shape)} and texts {tuple(texts_KD.shape)}; expected (B, D) and "
            "(K, D)."
        )
    if temperature <= 0:
        raise ValueError(f"text_logits: temperature {temperature} must be positive.")
    return unit(embedding_BD) @ unit(texts_KD.detach()).T / temperature


def cosine_mse(student_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Squared distance of the two directions, summed over the width, mean over the batch [C].

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("cosine_mse", student_BD, target_BD, dims=2)
    return (unit(student_BD) - unit(target_BD.detach())).square().sum(1).mean()


def batch_contrast(
    student_BD: Tensor,
    target_BD: Tensor,
    *,
    temperature: float,
    alike_BB: Tensor | None = None,
) -> Tensor:
    """Mean of both cross entropies of telling an image's counterpart from those of the other images of the batch [C].

    Args:
        student_BD: (B, D).
        target_BD: (B, D) counterparts; no gradient flows into it.
        temperature: positive.
        alike_BB: (B, B) bool, pairs that are no negatives, such as images of one class; the diagonal does not matter.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.
    """
    same_shape("batch_contrast", student_BD, target_BD, dims=2)
    logits = text_logits(student_BD, target_BD, temperature=temperature)
    own = torch.arange(len(logits), device=logits.device)
    if alike_BB is not None:
        others = own[:, None] != own
        logits = logits.masked_fill(alike_BB & others, -torch.inf)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def topk_kl(
    student_BD: Tensor, target_BD: Tensor, texts_KD: Tensor, *, k: int, temperature: float
) -> Tensor:
    """KL(softmax(t.e / T) || softmax(s.e / T)) over the k texts nearest to the teacher, mean over the batch [C].

    Args:
        student_BD: (B, D).
        target_BD: (B, D) the teacher's embeddings; no gradient flows into it.
        texts_KD: (K, D).
        k: texts per image, those with the largest cosine by the teacher; all where K is smaller.
        temperature: T, positive.

    Raises:
        ValueError: the shapes do not belong together, or a number is not positive.
    """
    same_shape("topk_kl", student_BD, target_BD, dims=2)
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
