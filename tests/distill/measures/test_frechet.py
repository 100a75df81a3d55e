"""Frechet distance: Gaussians whose distance is known, and sets of features."""

import math

import pytest
import torch

from distill.measures.frechet import frechet_distance, gaussian_distance


def test_gaussians_with_a_known_distance() -> None:
    """Diagonal: |m - m'|^2 + sum (s - s')^2. General 2 x 2: tr sqrt(AB) = sqrt(tr AB + 2 sqrt det AB)."""
    zero = torch.zeros(2).double()
    mean = torch.tensor([3.0, 4.0]).double()
    first, second = (torch.diag(torch.tensor(v)).double() for v in ([4.0, 9.0], [1.0, 16.0]))
    assert gaussian_distance(zero, first, mean, second) == pytest.approx(25 + 1 + 1)
    a = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    b = torch.tensor([[1.0, -0.5], [-0.5, 2.0]]).double()
    product = a @ b
    root = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    expected = float(a.trace() + b.trace()) - 2 * root
    assert gaussian_distance(zero, a, zero, b) == pytest.approx(expected)


def test_sets_of_features() -> None:
    """Equal sets: 0. A shift by d adds |d|^2. Order of the sets does not matter; a singular covariance is fine."""
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    other = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) * 2
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    shifted = frechet_distance(features, features + torch.tensor([1.0, 2.0, 0.0]))
    assert shifted == pytest.approx(5, rel=1e-5)
    assert frechet_distance(features, other) == pytest.approx(frechet_distance(other, features))
    assert frechet_distance(features[:2], other) > 0


def test_sets_that_do_not_fit() -> None:
    """One row, or another width."""
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(4, 2))
