"""What channels-last, bf16 and torch.compile do to an optimiser step of phase two, on this device.

    python pipelines/extract.py; python benchmarks/step_options.py                    the digits: about three minutes
    python benchmarks/step_options.py --student mobilenetv3_small_100 --image-size 64

Steps on batches in memory (forward pass, losses, backward pass, optimiser), in turn. Channels-last is what a run has;
it is compared with the plain memory format. CPU seconds on a CPU, the first steps and compiling left out.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._measure import Spread, print_table
from benchmarks.loop import SLICE, bare_step, in_memory, loop_maker

PLAIN = "channels first"
CASES = {
    "default (float32, channels last)": [],
    PLAIN: [],
    "--train.precision bf16": ["--train.precision", "bf16"],
    "--train.compile true": ["--train.compile", "true"],
}


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="customkd")
    parser.add_argument("--store", default="outputs/digits/store", help="of the digits")
    parser.add_argument("--student", default="", help="any timm model; default: the recipe's")
    parser.add_argument("--image-size", type=int, default=0, help="default: the recipe's")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="also write the table there")
    return parser.parse_args()


def prepare(make: Any, name: str) -> tuple[Any, list[Any], float]:
    """A run, its batches, and the seconds of the first steps."""
    import torch
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # each run has a precision of its own
    run = make(name)
    run.method.begin_epoch(0, run.student)
    run.trainee.train()
    batches = in_memory(run)
    if name == PLAIN:
        run.trainee.to(memory_format=torch.contiguous_format)
        batches = [dataclasses.replace(item, images=item.images.contiguous()) for item in batches]
    began = time.perf_counter()
    for batch in batches[:3]:
        bare_step(run, batch)
    return run, batches, time.perf_counter() - began


def main() -> None:
    """Measure and print a table."""
    chosen = options()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        runs = {
            name: prepare(loop_maker(chosen, chosen.method, Path(folder), *flags), name)
            for name, flags in CASES.items()
        }
        for _ in range(chosen.turns):
            for name, (run, batches, _) in runs.items():
                began = clock()
                for number in range(SLICE):
                    bare_step(run, batches[number])
                if on_gpu:
                    torch.cuda.synchronize()
                seconds[name].append((clock() - began) / SLICE)
    base = seconds[next(iter(CASES))]
    rows = [
        (
            name,
            f"{1000 * Spread.of(spent).median:.1f} ms",
            str(Spread.of([other / own for own, other in zip(spent, base, strict=True)])),
            f"{runs[name][2]:.1f} s",
        )
        for name, spent in seconds.items()
    ]
    print_table(
        f"{chosen.method}, one thread or one GPU, {chosen.turns} turns of {SLICE} steps",
        ("options", "step", "images/s over the default", "first three steps"),
        rows,
        chosen.csv,
    )


if __name__ == "__main__":
    main()
