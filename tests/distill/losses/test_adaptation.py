"""Losses of the partners for domain adaptation against values computed by hand."""

import math

import pytest
import torch
from torch import Tensor

from distill.losses import adaptation as losses


def kernel(squared: float, mean_squared: float) -> float:
    """Five Gaussians, bandwidths 1/4, 1/2, 1, 2 and 4 times the mean squared distance."""
    return sum(math.exp(-squared / (mean_squared * 2.0**i)) for i in (-2, -1, 0, 1, 2))


def column(*values: float) -> Tensor:
    """Features of width one."""
    return torch.tensor(values)[:, None].requires_grad_()


def test_mk_mmd_of_two_points() -> None:
    """One point each, whatever their distance d: the mean of d^2 is d^2, so 5 + 5 - 2 (e^-4 + e^-2 + e^-1 + ...)."""
    expected = 10 - 2 * kernel(1, 1)
    for distance in (0.1, 3.0):
        loss = losses.mk_mmd(column(0.0), column(distance))
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_mk_mmd_of_unlike_sizes() -> None:
    """Source 0 and 2, target 3: squared distances 4, 9 and 1, their mean 14/3."""
    mean = 14 / 3
    expected = (2 * 5 + 2 * kernel(4, mean)) / 4 + 5 - 2 * (kernel(9, mean) + kernel(1, mean)) / 2
    assert losses.mk_mmd(column(0.0, 2.0), column(3.0)).item() == pytest.approx(expected, rel=1e-5)


def test_equal_sets_have_no_distance() -> None:
    """The same rows in another order; and rows that are all equal, whose bandwidth is zero."""
    rows = torch.randn(4, 3)
    assert losses.mk_mmd(rows, rows.flip(0)).item() == pytest.approx(0, abs=1e-5)
    assert losses.coral(rows, rows.flip(0)).item() == pytest.approx(0, abs=1e-6)
    same = torch.ones(3, 2, requires_grad=True)
    loss = losses.mk_mmd(same, same.detach())
    loss.backward()
    assert loss.item() == 0
    assert same.grad is not None
    assert same.grad.isfinite().all()


def test_mk_mmd_pulls_the_domains_together() -> None:
    """A step against the gradient moves the source towards the target."""
    source = column(0.0, 0.5)
    losses.mk_mmd(source, column(3.0, 3.5)).backward()
    assert source.grad is not None
    assert (source.grad < 0).all()


def test_coral_by_hand() -> None:
    """Source (0, 0) and (2, 2): covariance all 2. Target (0, 0) and (2, 0): 2, 0, 0, 0. (2^2 x 3) / (4 x 2^2)."""
    source = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    target = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    assert losses.coral(source, target).item() == pytest.approx(12 / 16)


def test_coral_of_one_row_each() -> None:
    """One row has no covariance: zero, not NaN."""
    source = torch.ones(1, 3, requires_grad=True)
    loss = losses.coral(source, torch.zeros(1, 3))
    loss.backward()
    assert loss.item() == 0
    assert source.grad is not None
    assert torch.equal(source.grad, torch.zeros(1, 3))


def test_lmmd_by_hand() -> None:
    """Source 0 (class 0) and 2 (class 1), target 3 with argmax 0: class 0 alone counts, with weights 1 and 1."""
    loss = losses.lmmd(
        column(0.0, 2.0), column(3.0), torch.tensor([0, 1]), torch.tensor([[0.7, 0.3]])
    )
    assert loss.item() == pytest.approx(10 - 2 * kernel(9, 14 / 3), rel=1e-5)


def test_lmmd_is_the_mean_over_common_classes_with_soft_targets() -> None:
    """Both classes are common; target weights are the probabilities over their sums, 0.6/0.9, 0.3/0.9 and so on."""
    source, target = [0.0, 2.0], [3.0, 1.0]
    probability = torch.tensor([[0.6, 0.4], [0.3, 0.7]])
    points = source + target
    squares = [(a - b) ** 2 for a in points for b in points]
    mean = sum(squares) / 12
    expected = 0.0
    for weights in ([1, 0, -0.6 / 0.9, -0.3 / 0.9], [0, 1, -0.4 / 1.1, -0.7 / 1.1]):
        pairs = [a * b for a in weights for b in weights]
        expected += sum(w * kernel(s, mean) for w, s in zip(pairs, squares, strict=True)) / 2
    loss = losses.lmmd(column(*source), column(*target), torch.tensor([0, 1]), probability)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_lmmd_without_a_common_class_is_zero_with_a_gradient_of_zero() -> None:
    """Source of class 0, target of class 1."""
    source, target = column(0.0, 1.0), column(3.0)
    loss = losses.lmmd(source, target, torch.tensor([0, 0]), torch.tensor([[0.1, 0.9]]))
    loss.backward()
    assert loss.item() == 0
    for rows in (source, target):
        assert rows.grad is not None
        assert torch.equal(rows.grad, torch.zeros_like(rows))


def test_lmmd_with_one_class_is_mmd() -> None:
    """All images are of the one class there is."""
    source, target = torch.randn(3, 2), torch.randn(4, 2)
    loss = losses.lmmd(source, target, torch.zeros(3, dtype=torch.int64), torch.ones(4, 1))
    torch.testing.assert_close(loss, losses.mk_mmd(source, target))


def test_the_reversed_gradient_is_flipped_and_scaled() -> None:
    """The value passes, the gradient (1, 2) becomes (-0.25, -0.5)."""
    value = torch.tensor([3.0, 4.0], requires_grad=True)
    reversed_ = losses.reverse_gradient(value, 0.25)
    assert torch.equal(reversed_, value)
    (reversed_ * torch.tensor([1.0, 2.0])).sum().backward()
    assert value.grad is not None
    torch.testing.assert_close(value.grad, torch.tensor([-0.25, -0.5]))


def test_domain_bce_by_hand() -> None:
    """A discriminator that knows nothing pays ln 2; one that gives the source 3/4 and the target 1/4, ln(4/3)."""
    zero = torch.zeros(2, 1)
    assert losses.domain_bce(zero, zero).item() == pytest.approx(math.log(2))
    three = torch.full((2, 1), math.log(3))
    assert losses.domain_bce(three, -three).item() == pytest.approx(math.log(4 / 3), rel=1e-6)


def test_ramp_by_hand() -> None:
    """0 at the start; gamma 10 ends at 2 / (1 + e^-10) - 1, gamma 1 at 0.462."""
    assert losses.ramp(0, 10) == 0
    assert losses.ramp(1, 10) == pytest.approx(2 / (1 + math.exp(-10)) - 1)
    assert losses.ramp(1, 1) == pytest.approx(0.46212, abs=1e-5)


def test_entropy_and_information_maximisation_by_hand() -> None:
    """Uniform over 4: ln 4, and nothing to gain. Sharp and divided evenly over two classes: 0 - ln 2."""
    uniform = torch.zeros(3, 4)
    torch.testing.assert_close(losses.entropy(uniform), torch.full((3,), math.log(4)))
    assert losses.information_maximisation(uniform).item() == pytest.approx(0, abs=1e-6)
    sharp = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    assert losses.information_maximisation(sharp).item() == pytest.approx(-math.log(2), rel=1e-6)


def test_committee_entropy_by_hand() -> None:
    """Image 1: views 1 and 3 agree, the last of them is view 3. Image 2: views 1 and 2 disagree, the last is view 2."""
    plain = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    views = [
        torch.tensor([[9.0, 0.0], [0.0, 9.0]], requires_grad=True),
        torch.tensor([[0.0, 9.0], [0.0, math.log(3)]], requires_grad=True),
        torch.tensor([[math.log(4), 0.0], [9.0, 0.0]], requires_grad=True),
    ]
    loss, agreed = losses.committee_entropy(plain, views, torch.tensor([1.0, 2.0]))
    of_four_to_one = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    of_three_to_one = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert loss.item() == pytest.approx((of_four_to_one - 2 * of_three_to_one) / 2, rel=1e-6)
    assert agreed.tolist() == [True, False]
    loss.backward()
    gradients = [view.grad for view in views]
    assert gradients[0] is None or not gradients[0].any()
    assert gradients[1] is not None
    assert gradients[1].any(1).tolist() == [False, True]
    assert gradients[2] is not None
    assert gradients[2].any(1).tolist() == [True, False]


def test_an_even_committee_may_be_undecided() -> None:
    """One of two agrees: neither a majority for nor against."""
    plain = torch.tensor([[1.0, 0.0]])
    loss, _ = losses.committee_entropy(plain, [plain, plain.flip(1)], torch.ones(1))
    assert loss.item() == 0


def test_frequent_classes_by_hand() -> None:
    """p uniform, q (0.9, 0.1): (ln 0.9 + ln 0.1) / 2. Its gradient lowers the frequent class."""
    plain = torch.zeros(1, 2, requires_grad=True)
    loss = losses.frequent_classes(plain, torch.tensor([0.9, 0.1]), torch.ones(1))
    assert loss.item() == pytest.approx((math.log(0.9) + math.log(0.1)) / 2, rel=1e-6)
    loss.backward()
    assert plain.grad is not None
    assert plain.grad[0, 0] > 0 > plain.grad[0, 1]


def test_a_class_that_was_never_predicted_gives_finite_values() -> None:
    """q = 0."""
    loss = losses.frequent_classes(torch.zeros(1, 2), torch.tensor([1.0, 0.0]), torch.ones(1))
    assert loss.item() == pytest.approx(math.log(1e-12) / 2, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 4])
def test_half_precision_and_huge_values_stay_finite(rows: int) -> None:
    """Everything at the end of float16's range, in float32 inside, with a gradient."""
    generator = torch.Generator().manual_seed(0)
    huge = (torch.randn(rows, 3, generator=generator) * 3e4).clamp(-6e4, 6e4).half()
    huge.requires_grad_()
    other = -huge.detach()
    labels, probability = torch.zeros(rows, dtype=torch.int64), torch.eye(3)[:rows]
    probability = torch.cat([probability, torch.eye(3)[:1].expand(rows - len(probability), 3)])
    total = (
        losses.mk_mmd(huge, other)
        + losses.lmmd(huge, other, labels, probability)
        + losses.coral(huge, other) * 1e-12
        + losses.domain_bce(huge[:, 0], huge[:, 1])
        + losses.information_maximisation(huge)
        + losses.committee_entropy(huge, [huge], torch.ones(rows))[0]
        + losses.frequent_classes(huge, torch.full((3,), 1 / 3), torch.ones(rows))
    )
    total.backward()
    assert total.dtype == torch.float32
    assert total.isfinite()
    assert huge.grad is not None
    assert huge.grad.isfinite().all()


def test_unlike_shapes_are_refused() -> None:
    """They would broadcast, or be cut silently."""
    two, three = torch.zeros(2, 2), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="mk_mmd"):
        losses.mk_mmd(two, three)
    with pytest.raises(ValueError, match="coral"):
        losses.coral(two, three)
    with pytest.raises(ValueError, match="lmmd"):
        losses.lmmd(two, two, torch.zeros(1, dtype=torch.int64), three)
    with pytest.raises(ValueError, match="committee_entropy"):
        losses.committee_entropy(two, [three], torch.ones(2))
    with pytest.raises(ValueError, match="committee_entropy"):
        losses.committee_entropy(two, [], torch.ones(2))
    with pytest.raises(ValueError, match="frequent_classes"):
        losses.frequent_classes(two, torch.ones(3), torch.ones(2))
