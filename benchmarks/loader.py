"""Phase two with loading processes, beside what decoding alone allows.

    python benchmarks/loader.py                                    about four minutes

Two questions, each measured so that other work on the machine does not count:

- "worker": CPU seconds of Pillow alone (open, decode, resize) over those of a loading process, for the same pictures in
  the same process. It also reads files, checks their bytes, computes views and hands the batch over.
- "loop": batches per second of a run whose decoding is a pause, over what these pauses allow. What is lost is waiting:
  at ends of epochs, with their checkpoints and measurements.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks._measure import Spread, print_table
from benchmarks.stored_pictures import make_images, make_store, make_teacher

BATCH = 32
NUM_IMAGES = 128
SIZE = 500, 375


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--image-size", type=int, default=64, help="of the student, pixels")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two batches")
    parser.add_argument("--batches", type=int, default=20, help="of one turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="also write the table there")
    return parser.parse_args()


def make_loop(images: Path, store: str, out: Path, chosen: argparse.Namespace, workers: int) -> Any:
    """A run of fitnet without labels, as long as the measurement needs."""
    from distill.config import RECIPES, DistillConfig
    from distill.data import joined
    from distill.register import kinds
    from distill.tasks import resolve
    from distill.training import loop as train
    from distill.training.launch import make_accelerator
    from featstore import FeatureStore
    from featstore.cli.recipe import parse
    from featstore.sources import open_source

    flags = ["--store", store, "--source.kind", "folder", "--source.path", str(images)]
    flags += [
        "--task",
        "none",
        "--data.labelled",
        "[]",
        "--data.unlabelled",
        '["*"]',
        "--data.test",
        "[]",
    ]
    flags += ["--data.holdout", "0.25", "--data.cache_mb", "0", "--train.workers", str(workers)]
    flags += [
        "--train.unlabelled_batch",
        str(BATCH),
        "--train.epoch_steps",
        str(chosen.batches // 2),
    ]
    flags += ["--student.image_size", str(chosen.image_size), "--train.epochs", "1000"]
    flags += ["--trackers", "[]", "--data.views", "seeded"]
    config = parse(DistillConfig, default_recipe=RECIPES / "distill.yaml", argv=flags, extend=kinds)
    source, opened = open_source(config.source), FeatureStore.open(config.store)
    config = resolve(config, source, opened)
    data = joined.join_data(source, opened, config.data, config.field)
    loop = train.Loop(
        config, data, None, method="fitnet", seed=0, accelerator=make_accelerator(config), folder=out, asked={},
    )  # fmt: skip
    loop.start(None)
    return loop


def bare(data: bytes, frame: Any) -> Any:
    """Decode one picture and cut a view with Pillow alone."""
    from PIL import Image

    image = Image.open(io.BytesIO(data))
    size = frame.size[::-1]
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=frame.box))


def timed(dataset: Any) -> Any:
    """Decode every picture once more, bare; let each batch carry its process, and CPU seconds of both until then."""
    plain, cut, clock = dataset.__getitems__, dataset.cut, time.process_time
    alone, aside = [0.0], [0.0]

    def again(request: Any, data: bytes) -> None:
        start = clock()
        frame = dataset.rule.frame(
            SIZE[::-1],
            dataset.rule.views.views[request.column],
            sample_id=dataset.samples.stored_ids[request.sample],
            size=dataset.size,
        )
        began = clock()
        bare(data, frame)
        alone[0] += clock() - began
        aside[0] += clock() - start

    def cut_twice(request: Any, data: bytes) -> Any:
        # In turn: whichever comes second finds the file in the processor's cache.
        if request.sample % 2:
            again(request, data)
            return cut(request, data)
        found = cut(request, data)
        again(request, data)
        return found

    def getitems(_: Any, requests: Any) -> Any:
        pictures = plain(requests)
        object.__setattr__(pictures, "spent", (os.getpid(), clock() - aside[0], alone[0]))
        return pictures

    dataset.cut = cut_twice
    dataset.__class__ = type("Timed", (type(dataset),), {"__getitems__": getitems})
    return dataset


def worker_ratios(loop: Any, chosen: argparse.Namespace, workers: int) -> Spread:
    """CPU seconds of bare decoding over those of a loading process, turn by turn, without its first batch."""
    from distill.data.pictures import load_batches
    from distill.data.schedule import Request

    some = [next(pictures) for pictures in [loop.pictures(0)] for _ in range(4)]
    tables = [pictures.requests.tolist() for pictures in some]
    asked = [[Request(*row) for row in tables[i % 4]] for i in range(chosen.batches)]
    ratios = []
    for _ in range(chosen.turns):
        seen: dict[int, list[tuple[float, float]]] = {}
        for pictures in load_batches(
            timed(loop.data.dataset(loop.student)), asked, workers=workers
        ):
            process, *spent = pictures.spent  # type: ignore[attr-defined]
            seen.setdefault(process, []).append(tuple(spent))
        whole, alone = np.sum([np.subtract(spent[-1], spent[0]) for spent in seen.values()], axis=0)
        ratios.append(alone / whole)
    return Spread.of(ratios)


class Enough(Exception):
    """Raised out of the loop when all steps are measured."""


def loop_ratios(loop: Any, chosen: argparse.Namespace, workers: int) -> Spread:
    """Batches per second of a run over those that the pauses allow, turn by turn, with two ends of epochs each."""
    from distill.data.pictures import ViewDataset

    view = np.zeros((chosen.image_size, chosen.image_size, 3), np.uint8)
    ratios: list[float] = []
    began = 0.0

    def paused(self: Any, request: Any, changed: list[str]) -> Any:
        time.sleep(chosen.pause * workers / BATCH)
        return view, None

    def on_step(step: int) -> None:
        nonlocal began
        if step % chosen.batches == 0:
            now = time.perf_counter()
            if began:
                ratios.append(chosen.batches * chosen.pause / (now - began))
            began = now
            if len(ratios) == chosen.turns:
                raise Enough

    with contextlib.suppress(Enough), mock.patch.object(ViewDataset, "_view", paused):
        loop.train(on_step)
    return Spread.of(ratios)


def main() -> None:
    """Measure with several numbers of loading processes and print a table."""
    chosen = options()
    import torch

    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        images = folder / "images"
        make_images(images, SIZE, NUM_IMAGES)
        store = make_store(images, folder / "store", "16:90", make_teacher(folder))
        for workers in chosen.workers:
            with contextlib.redirect_stdout(io.StringIO()):
                loop = make_loop(images, store.address, folder / str(workers), chosen, workers)
                worker = worker_ratios(loop, chosen, workers)
                rows.append((workers, str(worker), str(loop_ratios(loop, chosen, workers))))
    print_table(
        f"Over decoding alone; 500 x 375 JPEGs, views of {chosen.image_size} px, batches of {BATCH}, "
        f"{chosen.turns} turns of {chosen.batches} batches",
        ("loading processes", "worker", "loop"),
        rows,
        chosen.csv,
    )


if __name__ == "__main__":
    main()
