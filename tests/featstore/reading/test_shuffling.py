"""Orders are permutations at any size, and ranks see each row once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore.errors import ConfigError
from featstore.reading.shuffling import BatchSampler, Order, Permutation


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**70), st.integers(0, 9))
def test_a_permutation_leaves_out_nothing(size: int, seed: int, epoch: int) -> None:
    """Every number once, whatever the size; another epoch is another order."""
    positions = np.arange(size)
    found = Permutation(size, seed, epoch)(positions)
    assert sorted(found.tolist()) == positions.tolist()
    if size > 20:
        assert (found != Permutation(size, seed, epoch + 1)(positions)).any()
        assert (found != positions).any()


def test_a_permutation_of_a_billion_needs_no_list() -> None:
    """Any position is computed alone, and looks random: no correlation with its place, neighbours far apart."""
    order = Permutation(10**9, 0)
    positions = np.random.default_rng(0).integers(0, 10**9, 100_000)
    rows = order(positions)
    assert abs(np.corrcoef(positions, rows)[0, 1]) < 0.02
    assert abs(rows.mean() / 10**9 - 0.5) < 0.01
    near = np.abs(np.diff(order(np.arange(100_000))))
    assert (near < 10**6).mean() < 0.01
    assert len(np.unique(rows)) == len(np.unique(positions))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 700), st.integers(1, 40), st.integers(1, 6), st.integers(0, 5), st.booleans())
def test_block_shuffles_are_permutations_too(
    rows: int, block: int, buffer: int, seed: int, shuffle: bool
) -> None:
    """With a short last block anywhere, every row once; a buffer's positions hold the rows of its blocks only."""
    order = Order(num_rows=rows, seed=seed, block_rows=block, buffer_blocks=buffer, shuffle=shuffle)
    found = order(np.arange(rows))
    assert sorted(found.tolist()) == list(range(rows))
    if shuffle:
        lacking = -rows % block  # the first buffer may hold the short block
        first = found[: block * buffer - lacking]
        assert len(np.unique(first // block)) <= buffer
    # Any positions give what the whole order gives.
    some = np.random.default_rng(seed).permutation(rows)[:50]
    np.testing.assert_array_equal(order(some), found[some])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 20), st.integers(1, 5), st.booleans(), st.integers(0, 30)
)
def test_ranks_share_an_epoch(
    rows: int, batch: int, world: int, drop_last: bool, steps: int
) -> None:
    """Equally many batches for each rank; together every row once, but for what is dropped or filled up.

    Leaving after some steps and going on with other ranks and another batch size misses no row either.
    """
    order = Order(num_rows=rows, seed=1)
    if drop_last and rows < batch * world:
        with pytest.raises(ConfigError):
            BatchSampler(order, batch_size=batch, world_size=world, drop_last=True)
        return

    def sampler(rank: int) -> BatchSampler:
        return BatchSampler(
            order, batch_size=batch, rank=rank, world_size=world, drop_last=drop_last
        )

    parts = [list(sampler(rank)) for rank in range(world)]
    assert {len(part) for part in parts} == {len(sampler(0))}
    seen = [row for step in zip(*parts, strict=True) for part in step for row in part.tolist()]
    epoch = order(np.arange(rows)).tolist()
    if drop_last:
        assert seen == epoch[: len(seen)]
        assert rows - len(seen) < batch * world
        return
    assert seen[:rows] == epoch
    assert len(seen) - rows < batch * world
    steps = min(steps, len(parts[0]))
    state = sampler(0).state_dict(steps)
    other = BatchSampler(order, batch_size=3)
    other.load_state_dict(state)
    rest = np.concatenate([*other, np.empty(0, np.int64)]).tolist()
    assert (epoch[: state["samples"]] + rest)[:rows] == epoch


def test_positions_of_another_run_are_refused() -> None:
    """Another seed or more rows than there are."""
    sampler = BatchSampler(Order(num_rows=10), batch_size=2)
    for state in ({"seed": 1, "epoch": 0, "samples": 2}, {"seed": 0, "epoch": 0, "samples": 11}):
        with pytest.raises(ConfigError, match=r"\b10\b"):
            sampler.load_state_dict(state)
    with pytest.raises(ConfigError, match=r"\b2\b"):
        BatchSampler(Order(num_rows=10), batch_size=2, rank=2, world_size=2)
