"""Paired tests against values computed by hand."""

import math

import numpy as np
import pytest

from distill.measures.paired_tests import detectable, holm, mcnemar, paired_test, sign_test


def test_paired_t_of_three_pairs() -> None:
    """Differences 1, 2, 3: mean 2, deviation 1, t = 2 sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2)."""
    found = paired_test([3.0, 5.0, 4.0], [2.0, 3.0, 1.0])
    t = 2 * math.sqrt(3)
    assert found.mean == pytest.approx(2)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t**2))
    # The 97.5 % point of t with 2 degrees of freedom solves 0.95 = t / sqrt(2 + t^2): 4.30265.
    half = math.sqrt(2 * 0.95**2 / (1 - 0.95**2)) / math.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(2 - half), pytest.approx(2 + half))
    assert (found.better, found.worse, found.sign_p) == (3, 0, pytest.approx(0.25))
    assert detectable(3) == pytest.approx(half)


def test_where_a_t_test_does_not_apply() -> None:
    """One pair, equal gains, and equal runs: no interval is invented; float32 rounding is no spread."""
    one = paired_test([0.6], [0.5])
    assert (one.mean, one.low, one.p, one.better) == (pytest.approx(0.1), None, None, 1)
    rounded = [float(np.float32(x)) for x in (0.7, 0.8, 0.9)]
    gains = paired_test(rounded, [0.6, 0.7, 0.8])
    assert (gains.low, gains.p, gains.better) == (None, None, 3)
    same = paired_test(rounded, [0.7, 0.8, 0.9])
    assert (same.p, same.better, same.worse, same.sign_p) == (1.0, 0, 0, 1.0)
    with pytest.raises(ValueError, match=r"0.*0"):
        paired_test([], [])
    with pytest.raises(ValueError, match=r"1.*2"):
        paired_test([1.0], [1.0, 2.0])


def test_sign_test_is_exact() -> None:
    """Two-sided binomial: all of n on one side have 2 / 2^n, a split of 4 to 1 has 12 / 32."""
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(1, 4) == pytest.approx(12 / 32)
    assert sign_test(2, 1) == pytest.approx(1.0)


def test_mcnemar_counts_the_images_that_one_alone_has_right() -> None:
    """8 against 2: p = 2 (1 + 10 + 45) / 2^10, whatever both have right or wrong."""
    right = np.array([True] * 8 + [False] * 2 + [True] * 50 + [False] * 7)
    baseline = np.array([False] * 8 + [True] * 2 + [True] * 50 + [False] * 7)
    assert mcnemar(right, baseline) == (8, 2, pytest.approx(112 / 1024))
    assert mcnemar(right, right) == (0, 0, 1.0)
    with pytest.raises(ValueError, match=r"\(67,\).*\(66,\)"):
        mcnemar(right, baseline[1:])


def test_holm_by_hand() -> None:
    """The smallest of three times 3, the next times 2, never below its predecessor; a missing test does not count."""
    assert holm([0.04, None, 0.01, 0.03]) == [
        pytest.approx(0.06),
        None,
        pytest.approx(0.03),
        pytest.approx(0.06),
    ]
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
