"""The loop's own cost: phase two beside a bare PyTorch loop with the same model, losses, optimiser and batches.

    python pipelines/extract.py; python benchmarks/loop.py               the digits: about three minutes
    python benchmarks/loop.py --steps 40 --turns 3 --methods labels --profile

Both sides take steps in turns, ten each. The bare loop has whole batches (pictures, labels, features) in memory:
forward pass, the method's losses, backward pass, optimiser in PyTorch's default form. The project's loop takes
decoded views from memory (``data.cache_mb``) and does all it does in a run: makes batches, reads the store, checks
losses, takes the gradient's norm, logs. "steps" leaves out the ends of epochs; "whole" has them, with their
checkpoints and measurements, but without stage 1 of customkd, which is training too.
"""

import argparse
import contextlib
import cProfile
import io
import os
import pstats
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._measure import Spread, print_table

clock = time.process_time
"""CPU seconds of this process: wall time on a busy machine measures the others. Waiting for the disk is left out."""

SLICE = 10  # steps that one side takes in a row


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=["labels", "fitnet", "customkd"])
    parser.add_argument("--store", default="outputs/digits/store", help="of the digits")
    parser.add_argument("--student", default="", help="any timm model; default: the recipe's")
    parser.add_argument("--image-size", type=int, default=0, help="default: the recipe's")
    parser.add_argument("--steps", type=int, default=120, help="of one turn, on each side")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="show where the loop's time goes")
    parser.add_argument("--csv", type=Path, help="also write the table there")
    return parser.parse_args()


class Enough(Exception):
    """Raised out of the loop when all steps are measured."""


def in_memory(run: Any) -> list[Any]:
    """The first 16 batches of a run."""
    maker = run.data.stored_maker(
        run.student, run.accelerator.device, vector=run.needs.vector, grid=run.needs.grid
    )
    pictures = run.pictures(0)
    return [maker(next(pictures)) for _ in range(16)]


def bare_step(run: Any, batch: Any) -> None:
    """One optimiser step and nothing else."""
    import torch

    from distill.training.step_loss import loss_terms

    torch.stack(list(loss_terms(run, batch, 0).values())).sum().backward()
    run.optimiser.step()
    run.optimiser.zero_grad()


class Turns:
    """Take bare steps between those of the loop, and time both."""

    def __init__(self, loop: Any, bare: Any, chosen: argparse.Namespace) -> None:
        self.loop, self.bare, self.chosen = loop, bare, chosen
        for group in bare.optimiser.param_groups:
            group["foreach"] = None  # PyTorch's default
        self.profile = cProfile.Profile(time.process_time) if chosen.profile else None
        self.batches = in_memory(bare)
        self.steps: list[float] = []
        self.whole: list[float] = []
        self.other: list[float] = []
        self.ratios: list[tuple[float, float]] = []
        epoch = loop.plan.steps_per_epoch
        self.warm = -(-2 * epoch // SLICE) * SLICE  # the first pass over the images decodes them
        self._stage1 = 0.0
        self._ends = False
        self._now = 0.0
        self._aside = 0.0  # seconds of the bare loop
        stage1: Any
        begin, end, stage1 = (
            loop._begin_epoch, loop._end_epoch, getattr(loop.method, "_stage1", None),
        )  # fmt: skip

        def begin_epoch(epoch: int) -> None:
            self._ends = True
            begin(epoch)

        def end_epoch(epoch: int) -> None:
            self._ends = True
            end(epoch)

        def timed_stage1(*values: Any) -> Any:
            start = clock()
            numbers = stage1(*values)
            self._stage1 += clock() - start
            return numbers

        loop._begin_epoch, loop._end_epoch = begin_epoch, end_epoch
        if stage1 is not None:
            loop.method._stage1 = timed_stage1

    def __call__(self, step: int) -> None:
        """Called by the loop after every step."""
        spent = clock() - self._now - self._stage1
        if step > self.warm:
            self.whole.append(spent)
            if not self._ends:
                self.steps.append(spent)
        if step % SLICE == 0:
            if self.profile is not None:
                self.profile.disable()
            start = clock()
            self._bare()
            self._aside += clock() - start
            if self.profile is not None:
                self.profile.enable()
        if len(self.whole) >= self.chosen.steps:
            middle = statistics.median(self.other)
            self.ratios.append(
                (
                    middle / statistics.median(self.steps),
                    statistics.mean(self.other) / statistics.mean(self.whole),
                )
            )
            self.times = middle, statistics.median(self.steps)
            self.steps, self.whole, self.other = [], [], []
            if len(self.ratios) == self.chosen.turns:
                raise Enough
        self._stage1, self._ends, self._now = 0.0, False, clock()

    def own_clock(self) -> float:
        """Seconds of the loop alone: checkpoints come as often as in a run that has a core for itself."""
        return clock() - self._aside

    def _bare(self) -> None:
        self.bare.trainee.train()
        for number in range(SLICE):
            start = clock()
            bare_step(self.bare, self.batches[number % len(self.batches)])
            self.other.append(clock() - start)


def loop_maker(chosen: argparse.Namespace, method: str, folder: Path, *more: str) -> Any:
    """Return a function that builds a run over the digits in a folder of some name.

    Args:
        more: further flags of the run.
    """
    from distill.config import RECIPES, DistillConfig
    from distill.data import joined
    from distill.register import kinds
    from distill.tasks import build_task, resolve
    from distill.training.launch import make_accelerator
    from distill.training.loop import Loop
    from featstore import FeatureStore
    from featstore.cli.recipe import parse
    from featstore.sources import open_source

    flags = ["--store", chosen.store, "--train.epochs", "10000", "--trackers", "[]", *more]
    flags += ["--data.views", "canonical"]  # every picture is in memory after one pass
    flags += ["--student.name", chosen.student] if chosen.student else []
    flags += ["--student.image_size", str(chosen.image_size)] if chosen.image_size else []
    config = parse(DistillConfig, default_recipe=RECIPES / "distill.yaml", argv=flags, extend=kinds)
    source, store = open_source(config.source), FeatureStore.open(config.store)
    config = resolve(config, source, store)
    data = joined.join_data(source, store, config.data, config.field)
    task = build_task(config, data)
    probe = task.probe(task.split(0), 0)

    def make(name: str) -> Any:
        return Loop(
            config, data, probe, method=method, seed=0, accelerator=make_accelerator(config),
            folder=folder / name, asked={},
        )  # fmt: skip

    return make


def measure(chosen: argparse.Namespace, method: str, folder: Path) -> Turns:
    """Train for a while on both sides."""
    from distill.training import loop as train

    make = loop_maker(chosen, method, folder)
    loop, bare = make("loop"), make("bare")
    bare.method.begin_epoch(0, bare.student)
    loop.start(None)
    turns = Turns(loop, bare, chosen)
    with contextlib.suppress(Enough), mock.patch.object(train, "time") as shown:
        shown.monotonic = turns.own_clock
        loop.train(turns)
    return turns


def main() -> None:
    """Measure every method and print a table."""
    chosen = options()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    import torch

    torch.set_num_threads(chosen.threads)
    head = ("method", "bare step", "loop's step", "steps: loop over bare", "whole: loop over bare")
    rows = []
    for method in chosen.methods:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            turns = measure(chosen, method, Path(folder))
        bare, loop = (f"{1000 * value:.1f} ms" for value in turns.times)
        steps, whole = (Spread.of(ratios) for ratios in zip(*turns.ratios, strict=True))
        rows.append((method, bare, loop, str(steps), str(whole)))
        if turns.profile is not None:
            pstats.Stats(turns.profile).sort_stats("tottime").print_stats(45)
            pstats.Stats(turns.profile).sort_stats("cumtime").print_stats(
                "distill/|featstore/|accelerate", 70
            )
    print_table(
        f"Loop over bare loop, images/s; {chosen.threads} thread(s), {chosen.turns} turns of {chosen.steps} steps",
        head,
        rows,
        chosen.csv,
    )


if __name__ == "__main__":
    main()
