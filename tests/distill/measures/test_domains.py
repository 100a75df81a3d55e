"""Two sets of stored features: of one domain or not."""

import numpy as np
import pytest

from distill.measures.domains import separability


def drawn(count: int, shift: float = 0.0, *, seed: int = 0) -> np.ndarray:
    """(count, 16) features about a mean."""
    values: np.ndarray = np.random.default_rng(seed).normal(size=(count, 16)) + shift
    return values


@pytest.mark.parametrize(("first", "second"), [(200, 200), (40, 900), (900, 40)])
def test_draws_of_one_domain_are_not_told_apart(first: int, second: int) -> None:
    """However unequal the sets are; shifted ones are."""
    assert 0.4 < separability(drawn(first), drawn(second, seed=1)) < 0.6
    assert separability(drawn(first), drawn(second, 1.5, seed=1)) > 0.9


def test_few_rows_say_nothing() -> None:
    """A handful of rows is chance; so are channels that never change."""
    assert separability(drawn(5), drawn(300, 3.0)) == 0.5
    assert separability(np.zeros((0, 4)), np.zeros((300, 4))) == 0.5
    assert separability(np.ones((20, 4)), np.ones((20, 4))) == pytest.approx(0.5)


def test_it_is_the_same_every_time() -> None:
    """Every process of a run, and every resumed run, decides alike."""
    first, second = drawn(100), drawn(300, 0.3, seed=1)
    assert separability(first, second) == separability(first.astype(np.float32), second)
