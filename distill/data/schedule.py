"""Which image is shown when, and in which view: pure functions of seed and position, so that any run can resume.

Each part is an endless stream: one shuffled pass over its samples after another. Optimiser step s takes the positions
from s x batch on, whatever the number of processes; each process and each accumulated piece takes its equal share.
Every image is thus shown equally often up to one, and a part that is smaller than a batch is simply cycled.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distill.config import DataConfig, TrainConfig
from featstore.errors import ConfigError, ViewMismatch
from featstore.format.views import ViewSet, describe_views

Indices = npt.NDArray[np.int64]


class Request(NamedTuple):
    """One picture to be made."""

    sample: int  # its index in ``Samples``
    column: int  # on the view axis of the store; -1 for the canonical view
    draw: int  # 64 random bits for photometric changes; 0 for none
    labelled: bool  # whether its label may be used
    strong: int = 0
    """0 for the picture that a teacher's loss sees; k for the k-th strongly changed copy of it."""


CANONICAL = -1  # column number of the canonical view, whether or not the store holds it


def random_bits(*parts: int | str) -> int:
    """64 bits from SHA-256 over the parts; equal everywhere, unlike ``hash``."""
    *first, last = parts
    hashed = _hash_of(*first).copy()
    hashed.update(str(last).encode())
    return int.from_bytes(hashed.digest()[:8], "little")


@lru_cache(maxsize=64)
def _hash_of(*parts: int | str) -> "hashlib._Hash":
    """SHA-256 that has read the parts, which are the same for many images of a pass."""
    return hashlib.sha256("".join(f"{part}|" for part in parts).encode())


class Stream:
    """An endless series of shuffled passes over a part.

    Args:
        members: (n,) indices of the samples, n at least 1.
        name: Name of the part; two parts of one run are shuffled differently.
    """

    def __init__(self, members: Indices, *, seed: int, name: str) -> None:
        self.members = members
        self._key = random_bits("distill-stream", seed, name)
        self._passes: dict[int, Indices] = {}

    def __len__(self) -> int:
        return len(self.members)

    def take(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(index of the sample, number of the pass) at positions start to stop - 1."""
        taken: list[tuple[int, int]] = []
        while start < stop:
            number, place = divmod(start, len(self.members))
            chosen = self._shuffled(number)[place : place + stop - start]
            taken += [(index, number) for index in chosen.tolist()]
            start += len(chosen)
        return taken

    def _shuffled(self, number: int) -> Indices:
        """(n,) the members in the order of one pass."""
        if number not in self._passes:
            # Positions rise, so an old pass is never asked for again; two cover a batch across the border.
            for old in [key for key in self._passes if key < number - 1]:
                del self._passes[old]
            order = np.random.default_rng([self._key, number]).permutation(len(self.members))
            self._passes[number] = self.members[order]
        return self._passes[number]


def allowed_columns(views: ViewSet, config: DataConfig) -> list[int]:
    """Columns of the view axis that training may pick from.

    Raises:
        ViewMismatch: the store does not hold what the settings ask for.
    """
    kind = None if config.views == "all" else config.views
    columns = views.index(kind=kind, mirrored=False)
    if config.mirror:
        columns = sorted(columns + views.index(kind=kind, mirrored=True))
    return _first_seeded(views, columns, config.seeded) if config.seeded else columns


def _first_seeded(views: ViewSet, columns: list[int], count: int) -> list[int]:
    """Leave out the seeded views after the first ``count`` of them, with their mirror images."""
    numbers = sorted({view.number for view in views.views if view.kind == "seeded"})
    if count > len(numbers):
        raise ViewMismatch(
            f"--data.seeded {count}: the store holds {len(numbers)} seeded views ({describe_views(views.views)}). A "
            "crop that the teacher never saw has no stored feature; extract a store with more (--views.seeded), or "
            "ask for fewer."
        )
    kept = numbers[:count]
    stored = views.views
    return [c for c in columns if stored[c].kind == "canonical" or stored[c].number in kept]


class ViewPicker:
    """Picks one stored view per (seed, pass, sample), and the random bits of its photometric changes."""

    def __init__(self, columns: Sequence[int], stored_ids: Sequence[str], *, seed: int) -> None:
        self.columns = list(columns)
        self._ids = stored_ids
        self._seed = seed

    def __call__(self, index: int, number: int) -> tuple[int, int]:
        """(column, bits) of sample ``index`` in pass ``number``."""
        bits = random_bits("distill-view", self._seed, number, self._ids[index])
        return self.columns[bits % len(self.columns)], bits // len(self.columns)

    def strong(self, index: int, number: int, copy: int) -> int:
        """Random bits of the strong changes of copy 1, 2, ... of sample ``index`` in pass ``number``."""
        return random_bits("distill-strong", self._seed, number, f"{self._ids[index]}|{copy}")


@dataclass(frozen=True)
class EpochPlan:
    """How many images make a step, and how many steps an epoch."""

    labelled: int  # labelled images of one process and one accumulated piece
    unlabelled: int  # unlabelled ones; 0 if the method or the data has none
    pieces: int  # processes times accumulated pieces
    steps_per_epoch: int  # optimiser steps of one epoch


def make_epoch_plan(
    config: TrainConfig,
    *,
    num_labelled: int,
    num_unlabelled: int,
    use_unlabelled: bool,
    processes: int,
) -> EpochPlan:
    """Cut the batch of a step into equal pieces. The number of steps does not depend on the method.

    Raises:
        ConfigError: a batch cannot be cut evenly.
    """
    pieces = processes * config.grad_accum
    for name in ("labelled_batch", "unlabelled_batch"):
        size = getattr(config, name)
        used = num_labelled if name == "labelled_batch" else num_unlabelled
        if used and size % pieces:
            raise ConfigError(
                f"--train.{name} {size} cannot be cut evenly into {processes} processes x "
                f"{config.grad_accum} accumulated "
                f"pieces; choose a multiple of {pieces}."
            )
    steps = -(-num_labelled // config.labelled_batch)
    if num_unlabelled:
        steps = max(steps, -(-num_unlabelled // config.unlabelled_batch))
    steps = config.epoch_steps or max(steps, config.min_epoch_steps)
    with_unlabelled = use_unlabelled and num_unlabelled > 0
    return EpochPlan(
        labelled=config.labelled_batch // pieces if num_labelled else 0,
        unlabelled=config.unlabelled_batch // pieces if with_unlabelled else 0,
        pieces=pieces,
        steps_per_epoch=steps,
    )


@dataclass(kw_only=True, eq=False)
class JointSampler:
    """Batches of requests for one process: its labelled images, its unlabelled ones, then strong copies of the latter.

    Iterating starts at optimiser step ``start`` and ends before step ``stop``; each step gives one batch for every
    accumulated piece.
    """

    labelled: Stream | None
    unlabelled: Stream | None
    picker: ViewPicker
    plan: EpochPlan
    rank: int
    processes: int
    start: int
    stop: int
    strong: int = 0

    def __len__(self) -> int:
        return (self.stop - self.start) * (self.plan.pieces // self.processes)

    def __iter__(self) -> Iterator[list[Request]]:
        per_step = self.plan.pieces
        for step in range(self.start, self.stop):
            for piece in range(self.rank, per_step, self.processes):
                slot = step * per_step + piece
                batch: list[Request] = []
                if self.labelled is not None:
                    batch += self._share(self.labelled, self.plan.labelled, slot, labelled=True)
                if self.unlabelled is not None:
                    batch += self._share(
                        self.unlabelled, self.plan.unlabelled, slot, labelled=False
                    )
                    batch += self._copies(self.unlabelled, self.plan.unlabelled, slot)
                yield batch

    def _share(self, stream: Stream, size: int, slot: int, *, labelled: bool) -> list[Request]:
        return [
            Request(index, *self.picker(index, number), labelled)
            for index, number in stream.take(slot * size, (slot + 1) * size)
        ]

    def _copies(self, stream: Stream, size: int, slot: int) -> list[Request]:
        """Strong copies: the same views once more, all first copies, then all second ones."""
        shown = stream.take(slot * size, (slot + 1) * size)
        return [
            Request(
                index,
                self.picker(index, number)[0],
                self.picker.strong(index, number, copy),
                False,
                copy,
            )
            for copy in range(1, self.strong + 1)
            for index, number in shown
        ]
