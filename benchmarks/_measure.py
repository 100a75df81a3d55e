"""What the benchmarks share: measuring things in turn on a busy machine, and printing the ratios as a table.

Absolute times of a shared machine mean little, and even two measurements one after the other may see different
machines. So a turn is cut into slices, the cases take the slices in rotation, a case's time in the turn is the median
of its slices, and only ratios within one turn are kept; what is printed of them is the median and the smallest and
largest turn.
"""

import csv
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.display.text import columns

Step = Callable[[int], object]
"""One unit of work; its argument is a running number, from 0, which says e.g. which batch to read."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something to be timed."""

    step: Step  # one unit of work
    steps: int = 1  # units per slice
    # slices of a turn that it takes part in, from the first on; None: all of them
    slices: int | None = None
    # called, untimed, when a turn begins: systems give memory back that was not used for a while
    warm: Callable[[], object] | None = None
    before: Callable[[], object] | None = None  # called, untimed, before each slice


def fitted(
    step: Step, *, slices: int, seconds: float = 0.25, warm: Callable[[], object] | None = None
) -> Case:
    """Make a case whose turns take about so many seconds; one step at least, however long it takes.

    Args:
        step: one unit of work; called here once or twice.
        slices: pieces of a turn; slow cases take part in fewer.
        seconds: per turn.
        warm: see ``Case``.
    """
    spent = _slice(Case(step=step), 0)
    if spent < 4 * seconds:  # the first time may include making something
        spent = _slice(Case(step=step), 1)
    steps = max(1, round(seconds / spent))
    parts = min(steps, slices)
    return Case(step=step, steps=steps // parts, slices=parts, warm=warm)


def seconds_in_turn(
    cases: Mapping[str, Case], *, turns: int, slices: int
) -> dict[str, list[float]]:
    """Time the cases in rotation.

    Args:
        cases: what to time, by name.
        turns: how many times everything is measured.
        slices: pieces that a case's work in one turn is cut into.

    Returns:
        For each case the seconds per step of every turn.
    """
    names = list(cases)
    done = dict.fromkeys(names, 0)
    result: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns):
        spent: dict[str, list[float]] = {name: [] for name in names}
        for case in cases.values():
            if case.warm is not None:
                case.warm()
        for number in range(slices):
            # Whoever comes after a slow case finds other things in the caches: take turns in that, too.
            first = (turn * slices + number) % len(names)
            for name in names[first:] + names[:first]:
                case = cases[name]
                if case.slices is None or number < case.slices:
                    spent[name].append(_slice(case, done[name]))
                    done[name] += case.steps
        for name in names:
            result[name].append(statistics.median(spent[name]) / cases[name].steps)
    return result


def _slice(case: Case, number: int) -> float:
    if case.before is not None:
        case.before()
    start = time.perf_counter()
    for step in range(number, number + case.steps):
        case.step(step)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of several turns."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of some values."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        """As ``1.02 (0.97 - 1.05)``."""
        return f"{_short(self.median)} ({_short(self.least)} - {_short(self.most)})"


def speed_ratio(seconds: Sequence[float], base: Sequence[float]) -> Spread:
    """How many times as fast as ``base`` something was, turn by turn; above 1 is faster."""
    return Spread.of([other / own for own, other in zip(seconds, base, strict=True)])


def batch_memory(shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Make an array to read batches into, that begins 64 bytes into a page, where torch puts its own.

    It matters where: rows whose place in their page is that of their copy, or up to 255 bytes before it, are copied
    from the end (glibc avoids false dependencies so), which made reading in order a third slower. Rows of a .npy file
    begin 128 bytes into a page and those of a store at one, so that chance would decide who is quicker.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 2 * 4096, np.uint8)
    start = -memory.ctypes.data % 4096 + 64
    return memory[start : start + size].view(dtype).reshape(shape)


def print_table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[object]], out: Path | None = None
) -> None:
    """Print a heading and rows in columns; also write them as CSV if a file is given."""
    print(f"\n{title}\n{columns([head, *rows])}", flush=True)
    if out:
        with out.open("w", newline="") as file:
            csv.writer(file).writerows([head, *rows])


def _short(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
