"""Relations between tokens: by hand, with other widths and heads on both sides, with tokens that are padding."""

import math

import pytest
import torch

from distill.losses.token_relations import token_relation_mse, token_relations


def test_relations_by_hand() -> None:
    """Two tokens, two heads of width 1: A A^T / sqrt(1), and its softmax over the tokens."""
    tokens = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]])
    scores = torch.tensor([[[[1.0, 3.0], [3.0, 9.0]], [[4.0, -2.0], [-2.0, 1.0]]]])
    torch.testing.assert_close(token_relations(tokens, 2, "scores"), scores)
    e = math.exp(-2)
    assert token_relations(tokens, 2)[0, 0, 0, 0].item() == pytest.approx(e / (1 + e))
    one = torch.tensor([[[7.0, 1.0], [1.0, 10.0]]]) / math.sqrt(2)  # one head of width 2
    one[0, 0, 0] = 5 / math.sqrt(2)
    torch.testing.assert_close(token_relations(tokens, 1, "scores")[:, 0], one)


def test_the_loss_by_hand() -> None:
    """Width 1 against width 2, one head: mean over four pairs of the squared differences of scores."""
    student, teacher = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
    r = 1 / math.sqrt(2)
    expected = ((1 - 2 * r) ** 2 + 2 * (2 - r) ** 2 + (4 - r) ** 2) / 4
    found = token_relation_mse(student, teacher, heads=1, compared="scores")
    assert found.item() == pytest.approx(expected)
    soft = [
        torch.tensor([[1.0, 2], [2, 4]]).softmax(1),
        torch.tensor([[2 * r, r], [r, r]]).softmax(1),
    ]
    assert token_relation_mse(student, teacher, heads=1).item() == pytest.approx(
        (soft[0] - soft[1]).square().mean().item()
    )


@pytest.mark.parametrize("compared", ["softmax", "scores"])
def test_padding_changes_nothing(compared: str) -> None:
    """With a mask, tokens behind the end of a sample do not count; a batch is the mean over all real pairs."""
    student, teacher = torch.randn(1, 3, 4), torch.randn(1, 3, 8)
    plain = token_relation_mse(student, teacher, heads=2, compared=compared)  # type: ignore[arg-type]
    longer = [
        torch.cat([part, 9 * torch.randn(1, 2, part.shape[2])], 1) for part in (student, teacher)
    ]
    mask = torch.tensor([[True] * 3 + [False] * 2])
    masked = token_relation_mse(*longer, heads=2, compared=compared, mask_BN=mask)  # type: ignore[arg-type]
    torch.testing.assert_close(masked, plain)


def test_no_gradient_reaches_the_target() -> None:
    """And none is lost where both are equal: the loss is zero there."""
    student = torch.randn(2, 3, 4, requires_grad=True)
    teacher = student.detach().clone().requires_grad_()
    loss = token_relation_mse(student, teacher, heads=2)
    loss.backward()
    assert loss.item() == 0
    assert teacher.grad is None


def test_widths_that_do_not_divide() -> None:
    """Named, with the heads; other numbers of tokens are refused by their shapes."""
    with pytest.raises(ValueError, match=r"6 .* 4"):
        token_relations(torch.randn(1, 2, 6), 4)
    with pytest.raises(ValueError, match=r"\(1, 2, 4\).*\(1, 3, 4\)"):
        token_relation_mse(torch.randn(1, 2, 4), torch.randn(1, 3, 4), heads=2)
