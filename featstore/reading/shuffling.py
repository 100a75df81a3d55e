"""In which order rows are read: shuffled wholly or block by block, for any rank, from any position.

A shuffled order is a permutation that is computed, not stored: a small Feistel network maps positions to rows, so that
a hundred million rows need no list, and a run resumes in the middle of an epoch without replaying it.
"""

# n rows of a data set, i positions in an epoch, b rows of a block

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.errors import ConfigError
from featstore.files.array_types import Rows

ROUNDS = 6


class Permutation:
    """A pseudo-random order of ``range(size)``, the same for the same key, at any position in constant time.

    A Feistel network (Luby and Rackoff 1988) permutes the next larger square of a power of two; positions that fall
    outside of the range walk on until they are inside (Black and Rogaway 2002).

    Args:
        key: numbers that choose the permutation, such as seed and epoch.
    """

    def __init__(self, size: int, *key: int) -> None:
        self.size = size
        half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half = np.uint64(half)
        self._mask = np.uint64(2**half - 1)
        entropy = [number & (2**64 - 1) for number in (size, *key)]
        self._keys = np.random.SeedSequence(entropy).generate_state(ROUNDS, np.uint64)

    def __call__(self, positions: Rows) -> Rows:
        """Numbers at some positions.

        Args:
            positions: (m,) int64 in ``range(size)``.

        Returns:
            (m,) int64 in ``range(size)``; different for different positions.
        """
        numbers = self._encrypt(positions.astype(np.uint64))
        outside = numbers >= self.size
        while outside.any():
            numbers[outside] = self._encrypt(numbers[outside])
            outside = numbers >= self.size
        return numbers.astype(np.int64)

    def _encrypt(self, numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = numbers >> self._half, numbers & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << self._half) | right


def _mix(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of one epoch.

    With ``block_rows`` 0, all rows are shuffled. Otherwise blocks of consecutive rows are, and then the rows of every
    ``buffer_blocks`` blocks among each other: each block is fetched and decompressed once per epoch, and what is held
    at a time is one buffer.
    """

    num_rows: int
    # seed, epoch: choose the order
    seed: int = 0
    epoch: int = 0
    shuffle: bool = True
    block_rows: int = 0  # rows that are read together
    buffer_blocks: int = 32  # blocks whose rows are mixed

    def __call__(self, positions: Rows) -> Rows:
        """Rows at some positions of the epoch.

        Args:
            positions: (m,) int64 in ``range(num_rows)``.

        Returns:
            (m,) int64.
        """
        if not self.shuffle or self.num_rows <= 1:
            return positions
        if not self.block_rows:
            return Permutation(self.num_rows, self.seed, self.epoch)(positions)
        return self._blocks(positions)

    def _blocks(self, positions: Rows) -> Rows:
        size, per_buffer = self.block_rows, self.buffer_blocks
        blocks = -(-self.num_rows // size)
        shuffled = Permutation(blocks, self.seed, self.epoch)
        slots = np.arange(blocks, dtype=np.int64) if blocks <= per_buffer else None
        # The last block may be short: the buffer that holds it is smaller, and those after it begin earlier.
        lacking = blocks * size - self.num_rows
        short = self._slot_of_last(shuffled, blocks)
        buffer_of_short = short // per_buffer
        end = min((buffer_of_short + 1) * per_buffer, blocks) * size - lacking
        padded = positions + np.where(positions >= end, lacking, 0)
        buffers = padded // (per_buffer * size)
        rows = np.empty_like(positions)
        for buffer in np.unique(buffers).tolist():
            chosen = buffers == buffer
            first = buffer * per_buffer
            held = np.arange(first, min(first + per_buffer, blocks), dtype=np.int64)
            numbers = shuffled(held if slots is None else slots)
            total = len(held) * size
            if buffer == buffer_of_short:
                total -= lacking
                # The short block comes last, so that places and rows stay without a gap.
                numbers = np.concatenate([numbers[numbers != blocks - 1], [blocks - 1]])
            places = Permutation(total, self.seed, self.epoch, buffer)(
                padded[chosen] - first * size
            )
            rows[chosen] = numbers[places // size] * size + places % size
        return rows

    def _slot_of_last(self, shuffled: Permutation, blocks: int) -> int:
        """Where the last block stands in the shuffled order; found piece by piece, in constant memory."""
        step = 2**16
        for start in range(0, blocks, step):
            slots = np.arange(start, min(start + step, blocks), dtype=np.int64)
            found = np.flatnonzero(shuffled(slots) == blocks - 1)
            if found.size:
                return start + int(found[0])
        raise AssertionError("a permutation leaves out no number")


@dataclass(eq=False)
class BatchSampler:
    """Batches of row positions for one of several ranks; every rank gets equally many.

    Batches are dealt in turn: what the ranks see together in one step is a run of the epoch's order. The epoch can be
    left and entered at any sample, also with another number of ranks or another batch size.

    Args:
        rank, world_size: which of how many.
        drop_last: leave out the rows that do not fill a step of all ranks; else the last step starts again with the
            epoch's first rows, so that ranks stay in step.

    Raises:
        ConfigError: numbers that cannot be.
    """

    order: Order
    _: KW_ONLY
    batch_size: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    start: int = field(default=0, init=False)
    """Samples of this epoch, of all ranks together, that were seen already."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"batch_size {self.batch_size}, rank {self.rank}, world_size {self.world_size}: expected at least 1, "
                "and a rank below world_size."
            )
        if self.drop_last and self.order.num_rows < self.step_rows:
            raise ConfigError(
                f"{self.order.num_rows} rows do not fill one step of {self.world_size} x {self.batch_size}; use a "
                "smaller batch_size, or drop_last=False."
            )

    @property
    def step_rows(self) -> int:
        """Rows of one step of all ranks."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Batches that are left in this epoch, for each rank."""
        left = self.order.num_rows - self.start
        return left // self.step_rows if self.drop_last else -(-left // self.step_rows)

    def __iter__(self) -> Iterator[Rows]:
        """Yield (batch_size,) int64 rows per step."""
        for step in range(len(self)):
            first = self.start + step * self.step_rows + self.rank * self.batch_size
            positions = np.arange(first, first + self.batch_size, dtype=np.int64)
            yield self.order(positions % self.order.num_rows)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; each has an order of its own."""
        self.order = Order(**{**self.order.__dict__, "epoch": epoch})
        self.start = 0

    def state_dict(self, steps: int) -> dict[str, Any]:
        """Where an epoch stands after some steps of this iterator, as plain numbers.

        Args:
            steps: batches that the caller has used; a loader may have fetched more.
        """
        seen = min(self.start + steps * self.step_rows, self.order.num_rows)
        return {"seed": self.order.seed, "epoch": self.order.epoch, "samples": seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a run stopped. Raises ConfigError: the state is of another order or of more rows."""
        if state["seed"] != self.order.seed or not 0 <= state["samples"] <= self.order.num_rows:
            raise ConfigError(
                f"the position {state} is not one in {self.order.num_rows} rows shuffled with seed {self.order.seed}."
            )
        self.set_epoch(int(state["epoch"]))
        self.start = int(state["samples"])
