"""Losses and rules of the semi-supervised partners against values computed by hand."""

import math

import pytest
import torch
from torch import Tensor

from distill.losses import semisupervised as losses


def logits(*rows: tuple[float, ...]) -> Tensor:
    """Logits with the given probabilities."""
    return torch.tensor(rows).log().requires_grad_()


def test_pseudo_label_ce_is_the_mean_over_all_rows() -> None:
    """(1 ln 4 + 0.5 ln 2 + 0 ln 10) / 3: a row of weight 0 counts below the line."""
    strong = logits((0.25, 0.75), (0.5, 0.5), (0.1, 0.9))
    loss = losses.pseudo_label_ce(strong, torch.tensor([0, 1, 0]), torch.tensor([1.0, 0.5, 0.0]))
    assert loss.item() == pytest.approx((math.log(4) + 0.5 * math.log(2)) / 3, rel=1e-6)


def test_soft_label_ce_by_hand() -> None:
    """Row 1: -(0.2 ln 0.25 + 0.8 ln 0.75); row 2 is not trusted."""
    strong = logits((0.25, 0.75), (0.5, 0.5))
    target = torch.tensor([[0.2, 0.8], [0.5, 0.5]])
    loss = losses.soft_label_ce(strong, target, torch.tensor([1.0, 0.0]))
    expected = -(0.2 * math.log(0.25) + 0.8 * math.log(0.75)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_soft_labels_that_are_one_hot_are_hard_labels() -> None:
    """Equal to the hard form."""
    strong, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 2, 2])
    weight = torch.rand(5)
    hot = torch.nn.functional.one_hot(labels, 4).float()
    torch.testing.assert_close(
        losses.soft_label_ce(strong, hot, weight), losses.pseudo_label_ce(strong, labels, weight)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, 3])
def test_nothing_trusted_is_zero_with_a_gradient_of_zero(dtype: torch.dtype, rows: int) -> None:
    """Also for logits at the end of float16's range, and for a batch of one."""
    strong = torch.full((rows, 3), 6e4, dtype=dtype)
    strong[:, 1] = -6e4
    strong.requires_grad_()
    labels, mask = torch.ones(rows, dtype=torch.int64), torch.zeros(rows)
    uniform = torch.full((3,), 1 / 3)
    total = (
        losses.pseudo_label_ce(strong, labels, mask)
        + losses.soft_label_ce(strong, uniform.expand(rows, 3), mask)
        + losses.freematch_fairness(strong, mask > 0, uniform, uniform)
    )
    total.backward()
    assert total.item() == 0
    assert strong.grad is not None
    assert torch.equal(strong.grad, torch.zeros_like(strong))


def test_huge_float16_logits_are_taken_in_float32() -> None:
    """The cross entropy of logits 60,000 and -60,000 is 120,000, beyond float16."""
    strong = torch.tensor([[6e4, -6e4]], dtype=torch.float16)
    loss = losses.pseudo_label_ce(strong, torch.tensor([1]), torch.ones(1))
    assert loss.item() == pytest.approx(120_000, rel=1e-3)
    assert torch.equal(losses.probabilities(strong), torch.tensor([[1.0, 0.0]]))


def test_flexmatch_threshold_by_hand() -> None:
    """Counts 4 (none), 2, 1: beta 1/2 and 1/4, thresholds 0.95 (1/2)/(3/2) and 0.95 (1/4)/(7/4)."""
    threshold = losses.flexmatch_threshold(torch.tensor([4, 2, 1]), 0.95)
    torch.testing.assert_close(threshold, torch.tensor([0.95 / 3, 0.95 / 7]))


def test_flexmatch_threshold_at_both_ends() -> None:
    """Nothing learnt: zero. The class learnt best, once it outgrows the unused images: the full threshold."""
    assert torch.equal(losses.flexmatch_threshold(torch.tensor([9, 0, 0]), 0.95), torch.zeros(2))
    full = losses.flexmatch_threshold(torch.tensor([1, 6, 0]), 0.95)
    torch.testing.assert_close(full, torch.tensor([0.95, 0.0]))


def test_freematch_threshold_by_hand() -> None:
    """0.8 (0.6, 0.3, 0.1) / 0.6."""
    threshold = losses.freematch_threshold(torch.tensor(0.8), torch.tensor([0.6, 0.3, 0.1]))
    torch.testing.assert_close(threshold, torch.tensor([0.8, 0.4, 0.8 / 6]))


def test_freematch_fairness_by_hand() -> None:
    """Rows 1 and 2: mean (0.575, 0.425), one argmax each. p / h = (2, 1/3), so p is 6/7 and 1/7."""
    strong = logits((0.75, 0.25), (0.4, 0.6), (0.99, 0.01))
    loss = losses.freematch_fairness(
        strong,
        torch.tensor([True, True, False]),
        torch.tensor([0.8, 0.2]),
        torch.tensor([0.4, 0.6]),
    )
    expected = 6 / 7 * math.log(0.575) + 1 / 7 * math.log(0.425)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert strong.grad is not None
    assert torch.equal(strong.grad[2], torch.zeros(2))
    assert strong.grad[:2].abs().sum() > 0


def test_freematch_fairness_leaves_out_classes_that_nobody_predicts() -> None:
    """Only class 0 is predicted: its share is 1, the other's 0; and h = 0 counts as 0, not infinity."""
    strong = logits((0.75, 0.25), (0.6, 0.4))
    everyone = torch.tensor([True, True])
    loss = losses.freematch_fairness(
        strong, everyone, torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    )
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert strong.grad is not None
    assert strong.grad.isfinite().all()


def test_softmatch_weight_by_hand() -> None:
    """Mean 0.8, variance 0.04, n_sigma 2: at 0.6 exp(-0.04 / (2 x 0.04 / 4)) = exp(-2); from the mean on 1."""
    weight = losses.softmatch_weight(
        torch.tensor([0.6, 0.8, 0.95]), torch.tensor(0.8), torch.tensor(0.04), n_sigma=2
    )
    torch.testing.assert_close(weight, torch.tensor([math.exp(-2), 1.0, 1.0]))


def test_softmatch_weight_without_variance() -> None:
    """Equal confidences: full weight at the mean, none below, never NaN."""
    weight = losses.softmatch_weight(
        torch.tensor([0.5, 0.7]), torch.tensor(0.7), torch.tensor(0.0), n_sigma=2
    )
    assert torch.equal(weight, torch.tensor([0.0, 1.0]))


def test_align_by_hand() -> None:
    """(0.5 / 0.8, 0.5 / 0.2) normalised is (0.2, 0.8); the epsilon moves it by less than 1e-5."""
    aligned = losses.align(
        torch.tensor([[0.5, 0.5]]), torch.tensor([0.5, 0.5]), torch.tensor([0.8, 0.2])
    )
    torch.testing.assert_close(aligned, torch.tensor([[0.2, 0.8]]), atol=1e-5, rtol=0)


def test_align_survives_a_class_that_is_never_predicted() -> None:
    """Its mean is 0: no division by zero."""
    aligned = losses.align(
        torch.tensor([[1.0, 0.0]]), torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    )
    torch.testing.assert_close(aligned, torch.tensor([[1.0, 0.0]]))


def test_unfold_and_aggregate_by_hand() -> None:
    """(0.5, 0.3, 0.2) x (0.8, 0.2, 0.2) / 0.5; and the sums over classes 0 and 1, class 2 having no image."""
    similarity, bank = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([0, 1, 1])
    probability = torch.tensor([[0.8, 0.2, 0.0]])
    torch.testing.assert_close(
        losses.unfold(similarity, probability, bank), torch.tensor([[0.8, 0.12, 0.08]])
    )
    torch.testing.assert_close(
        losses.aggregate(similarity, bank, 3), torch.tensor([[0.5, 0.5, 0.0]])
    )


def test_unfold_survives_an_impossible_class() -> None:
    """All labelled images are of classes with probability 0."""
    unfolded = losses.unfold(
        torch.tensor([[0.6, 0.4]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0, 0])
    )
    assert torch.equal(unfolded, torch.zeros(1, 2))


def test_no_gradient_flows_into_guesses() -> None:
    """Targets and weights are detached."""
    strong = torch.randn(2, 3, requires_grad=True)
    target = torch.full((2, 3), 1 / 3, requires_grad=True)
    weight = torch.ones(2, requires_grad=True)
    total = losses.soft_label_ce(strong, target, weight) + losses.pseudo_label_ce(
        strong, torch.tensor([0, 1]), weight
    )
    total.backward()
    assert target.grad is None
    assert weight.grad is None
    assert not losses.probabilities(strong).requires_grad


def test_unlike_shapes_are_refused() -> None:
    """A (1,) weight against two rows would broadcast."""
    two, one = torch.zeros(2, 3), torch.zeros(1)
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="pseudo_label_ce"):
        losses.pseudo_label_ce(two, labels, one)
    with pytest.raises(ValueError, match="soft_label_ce"):
        losses.soft_label_ce(two, torch.zeros(1, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="soft_label_ce"):
        losses.soft_label_ce(two, two, one)
    with pytest.raises(ValueError, match="freematch_fairness"):
        losses.freematch_fairness(two, one > 0, torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="freematch_fairness"):
        losses.freematch_fairness(two, labels > 0, torch.ones(3), torch.ones(2))
