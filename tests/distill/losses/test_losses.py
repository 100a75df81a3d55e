"""What all losses share: the cross entropy on labels, and the check of shapes."""

import math

import pytest
import torch
from torch.nn import functional as F

from distill import losses


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
    """Against torch's own mean; half precision is taken in float32."""
    logits, labels = torch.randn(6, 5), torch.tensor([0, 4, 2, 1, 3, 3])
    found = losses.cross_entropy(logits, labels)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels))
    half = losses.cross_entropy(60_000 * logits.half().sign(), labels)
    assert half.dtype == torch.float32
    assert half.isfinite()


def test_wrong_arguments_are_refused() -> None:
    """Logits and labels of unlike batches, and features that would broadcast."""
    with pytest.raises(ValueError, match="cross_entropy"):
        losses.cross_entropy(torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\b2\b.*\b3\b.*\b1\b.*\b3\b"):
        losses.check_axes("name", "BK BK", torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"\b2\b"):
        losses.check_axes("name", "BK BK", torch.zeros(2), torch.zeros(2))
    losses.check_axes("name", "BK BK B", torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2))
