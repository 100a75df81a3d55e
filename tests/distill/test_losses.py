"""Losses against values computed by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from distill import losses


def test_feature_mse_is_the_mean_over_batch_and_width() -> None:
    """((1-0)^2 + (2-0)^2 + (3-1)^2 + (4-1)^2) / 4 = 18 / 4."""
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    target = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert losses.feature_mse(student, target).item() == pytest.approx(4.5)


def test_feature_mse_of_half_precision_is_taken_in_float32() -> None:
    """300^2 = 90,000 is beyond float16."""
    student = torch.full((1, 2), 300.0, dtype=torch.float16)
    assert losses.feature_mse(student, torch.zeros(1, 2)).item() == pytest.approx(90_000)


def test_layernorm_mse_ignores_scale_and_shift() -> None:
    """Both sides are normalised, so a scaled and shifted copy costs nothing."""
    feature = torch.tensor([[1.0, 2.0, 4.0]])
    # 1e-5 is torch's epsilon inside the normalisation, which is not scale-free.
    assert losses.layernorm_mse(3 * feature + 7, feature).item() == pytest.approx(0, abs=1e-9)


def test_kd_kl_by_hand() -> None:
    """T = 2: teacher logits (2 ln 3, 0) give (3/4, 1/4), student (0, 0) gives (1/2, 1/2)."""
    teacher = torch.tensor([[2 * math.log(3), 0.0]])
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert losses.kd_kl(torch.zeros(1, 2), teacher, temperature=2).item() == pytest.approx(
        expected, rel=1e-6
    )


def test_kd_kl_is_the_mean_over_the_batch_and_zero_for_equal_logits() -> None:
    """A second, equal row halves the value."""
    student, teacher = torch.zeros(1, 3), torch.tensor([[1.0, 0.0, -1.0]])
    one = losses.kd_kl(student, teacher, temperature=4)
    two = losses.kd_kl(torch.cat([student, teacher]), torch.cat([teacher, teacher]), temperature=4)
    assert two.item() == pytest.approx(one.item() / 2, rel=1e-6)


def test_cross_entropy_leaves_out_unlabelled_rows() -> None:
    """Rows with label -1 change neither value nor gradient."""
    logits = torch.tensor([[1.0, 0.0], [5.0, -5.0]], requires_grad=True)
    loss = losses.cross_entropy(logits, torch.tensor([0, losses.IGNORE]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[1].abs().sum() == 0


def test_cross_entropy_without_any_label_is_zero_with_a_gradient() -> None:
    """A batch without labels must not give NaN, nor break a distributed backward pass."""
    logits = torch.randn(3, 4, requires_grad=True)
    loss = losses.cross_entropy(logits, torch.full((3,), losses.IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(3, 4))


def test_cross_entropy_equals_torch_on_labelled_rows() -> None:
    """Against torch's own mean."""
    logits, labels = torch.randn(6, 5), torch.tensor([0, 4, 2, 1, 3, 3])
    torch.testing.assert_close(
        losses.cross_entropy(logits, labels), F.cross_entropy(logits, labels)
    )


def test_no_gradient_flows_into_a_target() -> None:
    """The teacher's side of every pairwise loss is detached."""
    target = torch.randn(2, 3, requires_grad=True)
    student = torch.randn(2, 3, requires_grad=True)
    for loss in (losses.feature_mse, losses.layernorm_mse):
        loss(student, target).backward()
    losses.kd_kl(student, target, temperature=1).backward()
    assert target.grad is None


@pytest.mark.parametrize("loss", [losses.feature_mse, losses.layernorm_mse])
def test_unlike_shapes_are_refused(loss: object) -> None:
    """(2, 3) against (1, 3) would broadcast."""
    with pytest.raises(ValueError, match=r"\(2, 3\) and target \(1, 3\)"):
        loss(torch.zeros(2, 3), torch.zeros(1, 3))  # type: ignore[operator]


def test_other_wrong_arguments_are_refused() -> None:
    """Shapes of logits and labels, and a temperature of zero."""
    with pytest.raises(ValueError, match="kd_kl"):
        losses.kd_kl(torch.zeros(2, 3), torch.zeros(2, 4), temperature=1)
    with pytest.raises(ValueError, match="temperature"):
        losses.kd_kl(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0)
    with pytest.raises(ValueError, match="cross_entropy"):
        losses.cross_entropy(torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64))
