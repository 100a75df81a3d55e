"""Losses in a space shared with texts, against values computed by hand, and what must not change them."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from distill.losses.alignment import batch_contrast, cosine_mse, text_logits, topk_kl

T = 0.5
STUDENT = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
TARGET = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
TEXTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])


def entropy(row: list[float], own: int) -> float:
    """Cross entropy of one row of logits."""
    return math.log(sum(map(math.exp, row))) - row[own]


def softmax(row: list[float]) -> list[float]:
    """Shares of one row of logits."""
    return [math.exp(item) / sum(map(math.exp, row)) for item in row]


def test_logits_are_cosines_over_the_temperature() -> None:
    """3-4-5: cosines .6 and .8."""
    logits = text_logits(TARGET, TEXTS, temperature=T)
    torch.testing.assert_close(logits, torch.tensor([[2.0, 0.0, -2.0], [1.2, 1.6, -1.2]]))


def test_cosine_mse_by_hand() -> None:
    """|(0, 1) - (.6, .8)|^2 = .4 of two rows, the other zero; 2 - 2 cos."""
    assert float(cosine_mse(STUDENT, TARGET)) == pytest.approx(0.2)


def test_batch_contrast_by_hand() -> None:
    """Both directions of cosines [[1, .6], [0, .8]] over the temperature; pairs of one class are no negatives."""
    rows = entropy([2, 1.2], 0) + entropy([0, 1.6], 1)
    columns = entropy([2, 0], 0) + entropy([1.2, 1.6], 1)
    value = float(batch_contrast(STUDENT, TARGET, temperature=T))
    assert value == pytest.approx((rows + columns) / 4)
    alike = torch.tensor([[True, True], [False, True]])
    rows = entropy([2], 0) + entropy([0, 1.6], 1)
    columns = entropy([2, 0], 0) + entropy([1.6], 0)
    value = float(batch_contrast(STUDENT, TARGET, temperature=T, alike_BB=alike))
    assert value == pytest.approx((rows + columns) / 4)


@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_topk_kl_by_hand(k: int) -> None:
    """Softmaxes over the k texts nearest to the teacher alone; of more than there are, over all."""
    student = [[2.0, 0, -2], [0, 2, 0]]
    target = [[2.0, 0, -2], [1.2, 1.6, -1.2]]
    total = 0.0
    for own, theirs in zip(student, target, strict=True):
        near = sorted(range(3), key=lambda i: -theirs[i])[:k]
        p, q = softmax([theirs[i] for i in near]), softmax([own[i] for i in near])
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    value = float(topk_kl(STUDENT, TARGET, TEXTS, k=k, temperature=T))
    assert value == pytest.approx(total / 2, abs=1e-6)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": cosine_mse,
    "cst": lambda s, t: batch_contrast(s, t, temperature=T),
    "vlalign": lambda s, t: topk_kl(s, t, TEXTS, k=2, temperature=T),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_does_not_change_a_loss(name: str) -> None:
    """The length of an embedding, and the order of the images; the teacher's own embedding cannot be improved on."""
    loss = LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    student, target = (torch.randn(6, 2, generator=generator) for _ in range(2))
    value = loss(student, target)
    torch.testing.assert_close(loss(3 * student, 0.1 * target), value)
    order = torch.randperm(6, generator=generator)
    torch.testing.assert_close(loss(student[order], target[order]), value)
    own = target.clone().requires_grad_()
    loss(own, target).backward()
    if name != "cst":
        assert own.grad is not None
        assert float(own.grad.abs().max()) < 1e-6
        assert float(loss(target, target)) == pytest.approx(0, abs=1e-6)
    teacher = target.clone().requires_grad_()
    loss(student.clone().requires_grad_(), teacher).backward()
    assert teacher.grad is None


def test_shapes_and_numbers_are_checked() -> None:
    """Names both shapes; a temperature or number of texts that is not positive."""
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(1, 2\)"):
        cosine_mse(STUDENT, TARGET[:1])
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(3, 3\)"):
        text_logits(STUDENT, torch.ones(3, 3), temperature=T)
    with pytest.raises(ValueError, match="0"):
        text_logits(STUDENT, TEXTS, temperature=0)
    with pytest.raises(ValueError, match="0"):
        topk_kl(STUDENT, TARGET, TEXTS, k=0, temperature=T)
