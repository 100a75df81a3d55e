"""A training step with the live teacher beside the same step from the store: images/s, memory, and when storing pays.

    python benchmarks/cached_and_live.py                                        a CPU: about a quarter of an hour
    python benchmarks/cached_and_live.py --teachers vit_small_patch16_224       ViT-S/16 alone: a few minutes
    python benchmarks/cached_and_live.py --precision bf16 --num-images 4096 --batch-size 64 --workers 8       on a GPU

For each teacher the project's own phase one extracts a store, and the project's own loop trains a student on it with
``fitnet``; the two sides differ in where a batch's features come from. *store*: they are read. *live*: the teacher,
loaded beside the student, computes them from the pictures of the very same views. Each side runs in a process of its
own, which gives its peak memory, and they take turns: one trains for a moment while the other waits. Ratios are taken
within a turn, of its median steps; printed are the median and the smallest and largest turn. The first and the last
step of every epoch (checkpoint, log) and the first steps of all are left out.

The live side is given every advantage: its pictures lie in memory, decoded and cut at the teacher's size, so that it is
charged with the forward pass alone. The student's pictures come decoded from memory on both sides. Weights are random:
they cost the same.

"epochs to break even": extraction, everything in it, over what an epoch from the store saves. With V stored views the
extraction costs V times as much (``--seeded``), while the live teacher sees one view per image and epoch.
"""

import argparse
import contextlib
import dataclasses
import io
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._measure import Spread, print_table, speed_ratio
from benchmarks.training_step import make_images

SHAPES = {
    "vit_small_patch16_224": "ViT-S/16",
    "vit_large_patch14_clip_224": "ViT-L/14",
}
FIELD = "cls"
EDGE_STEPS = 2  # of the first steps nothing is kept: caches, allocators
SLICES = 4  # pieces of a side's part of a turn: a busy machine changes its pace within seconds
COST_IMAGES = 10_000  # an epoch's images in the column of costs


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teachers", nargs="+", default=list(SHAPES), help="any timm models")
    parser.add_argument("--student", default="mobilenetv3_small_100", help="any timm classifier")
    parser.add_argument("--image-size", type=int, default=128, help="of the student, pixels")
    parser.add_argument("--num-images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4, help="labelled, and as many without")
    parser.add_argument("--seeded", type=int, default=0, help="stored crops beside the whole view")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="of both")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a side's part of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--workers", type=int, default=0, help="of the extraction; 0 decodes in line"
    )
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as it likes")
    parser.add_argument("--dir", type=Path, help="where it all goes (default: a temporary folder)")
    return parser.parse_args()


@dataclass(frozen=True)
class Place:
    """Where one teacher's files are, and what is asked of it."""

    chosen: argparse.Namespace
    folder: Path
    teacher: str

    @property
    def images(self) -> Path:
        """Folder of images."""
        return self.folder / "images"

    @property
    def weights(self) -> Path:
        """Random weights."""
        return self.folder / f"{self.teacher}.safetensors"

    @property
    def store(self) -> Path:
        """Folder of the store."""
        return self.folder / f"{self.teacher}-store"


# ---------------------------------------------------------------- in a process of its own


def settle(chosen: argparse.Namespace) -> Any:
    """Set the number of threads; returns the device."""
    import torch

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_live(place: Place, device: Any) -> Any:
    """The teacher, as phase one builds it, and its settings."""
    from featstore.extraction.config import TeacherConfig
    from featstore.extraction.teachers import build_teacher

    config = TeacherConfig(
        name=place.teacher, weights=str(place.weights), precision=place.chosen.precision
    )
    teacher = build_teacher(
        config, fields=[FIELD], dtype="float16", precision=place.chosen.precision, device=device
    )
    return config, teacher


def extract(place: Place, answers: Connection) -> None:
    """Write random weights and extract the store; answers with seconds and images."""
    import timm
    from safetensors.torch import save_file

    from featstore.extraction import new_manifest as design
    from featstore.extraction import shards as phase_one
    from featstore.extraction.accelerator import start_accelerator
    from featstore.extraction.config import ExtractConfig, StoreConfig, ViewsConfig
    from featstore.sources import open_source
    from featstore.sources.config import SourceConfig

    device = settle(place.chosen)
    save_file(timm.create_model(place.teacher, num_classes=0).state_dict(), place.weights)
    config, teacher = build_live(place, device)
    settings = ExtractConfig(
        source=SourceConfig(kind="folder", path=str(place.images)),
        teacher=config,
        views=ViewsConfig(seeded=place.chosen.seeded),
        store=StoreConfig(path=str(place.store), fields=[FIELD]),
        batch_size=2 * place.chosen.batch_size,
        workers=place.chosen.workers,
    )
    source = open_source(settings.source)
    made = design.design_store(settings, source=source, teacher=teacher)
    with contextlib.redirect_stderr(io.StringIO()):
        summary = phase_one.run(
            settings,
            manifest=made.manifest,
            source=source,
            teacher=teacher,
            accelerator=start_accelerator(),
        )
    answers.send((summary.seconds, summary.rows))


def live_features(place: Place, stored: Any, device: Any) -> Any:
    """Stands for ``distill.data.stored_features.Features``: the teacher computes what the store would be asked for."""
    import numpy as np
    import torch

    from distill.data.pictures import ViewDataset
    from distill.data.rules import rule_of
    from distill.data.schedule import Request
    from distill.data.stored_features import Features

    samples, store = stored._samples, stored.store
    rule = rule_of(store, FIELD)
    dataset = ViewDataset(samples, rule, size=rule.size)
    columns = range(len(store.manifest.views))
    every = [Request(index, c, 0, False) for index in range(len(samples.ids)) for c in columns]
    pixels = torch.stack([dataset[request].pixels[0] for request in every])
    pixels = pixels.reshape(len(samples.ids), len(columns), *pixels.shape[1:])
    _, teacher = build_live(place, device)

    class Live(Features):
        def _read(self, indices: Any, columns: Any) -> Any:
            grid = np.broadcast_to(columns, (len(indices), columns.shape[-1]))
            shown = pixels[np.repeat(indices, grid.shape[1]), grid.reshape(-1)]
            found = teacher.features(shown)[FIELD].clone().float()  # no tensor of inference mode
            return found.reshape(*grid.shape, -1)

    return Live(store, FIELD, samples)


class Turns:
    """The loop's hook: trains for as long as it is told, then answers, and waits to be told again."""

    def __init__(self, connection: Connection, per_epoch: int) -> None:
        self._connection, self._per_epoch = connection, per_epoch
        self._kept: list[float] = []
        self._left = 0.0
        self._now = time.perf_counter()

    def __call__(self, step: int) -> None:
        """Called after every step."""
        spent = time.perf_counter() - self._now
        edge = step % self._per_epoch in (0, 1) or step <= EDGE_STEPS
        if not edge:
            self._kept.append(spent)
            self._left -= spent
        if self._left <= 0 and (self._kept or step == EDGE_STEPS):
            self._connection.send((self._kept, *peak_memory()))
            order = self._connection.recv()
            if order is None:
                raise SystemExit(0)
            self._kept, self._left = [], order
        self._now = time.perf_counter()


def peak_memory() -> tuple[float, float]:
    """MB of this process, and of it on the device."""
    import torch

    device = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, device


def side(place: Place, connection: Connection, live: bool) -> None:
    """Train until told to stop; answers every order with the seconds of its steps and the peak memory."""
    from distill.config import DataConfig, DistillConfig, StudentConfig, TrainConfig
    from distill.data import joined
    from distill.training import loop as train
    from distill.training.launch import make_accelerator
    from featstore import FeatureStore
    from featstore.sources import open_source
    from featstore.sources.config import SourceConfig

    chosen = place.chosen
    device = settle(chosen)
    out = place.folder / f"{place.teacher}-{'live' if live else 'store'}"
    config = DistillConfig(
        store=str(place.store),
        field=FIELD,
        out=str(out),
        source=SourceConfig(kind="folder", path=str(place.images)),
        data=DataConfig(labels_per_class=4, unlabelled=["train/*"], cache_mb=4096),
        student=StudentConfig(name=chosen.student, image_size=chosen.image_size),
        methods=["fitnet"],
        train=TrainConfig(
            epochs=1_000_000,
            labelled_batch=chosen.batch_size,
            unlabelled_batch=chosen.batch_size,
            workers=0,
            precision="no" if chosen.precision == "fp32" else chosen.precision,
        ),
        trackers=[],
    )
    data = joined.join_data(
        open_source(config.source), FeatureStore.open(config.store), config.data, config.field
    )
    probe = data.fit_probe(data.split(0), most=64, seed=0)
    if live:
        data = dataclasses.replace(data, features=live_features(place, data.features, device))
    quiet = io.StringIO()
    with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
        loop = train.Loop(
            config,
            data,
            probe,
            method="fitnet",
            seed=0,
            accelerator=make_accelerator(config),
            folder=out,
            asked={},
        )
        loop.start(None)
        loop.train(Turns(connection, loop.plan.steps_per_epoch))


# ---------------------------------------------------------------- in the main process


class Child:
    """A process that answers through a pipe."""

    def __init__(self, target: Any, place: Place, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(place, theirs, *arguments))
        self._process.start()
        theirs.close()

    def answer(self) -> Any:
        """Wait for what it says.

        Raises:
            SystemExit: it has ended without a word; its own message is on standard error.
        """
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit(f"process {self._process.pid} failed") from None

    def tell(self, order: Any) -> None:
        """Send an order."""
        self._pipe.send(order)

    def end(self) -> None:
        """Wait for its end, and make it end if it does not."""
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


@dataclass
class Side:
    """What was measured of one side: the median seconds of a step in each turn; peaks in MB."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    memory_mb: float = 0.0
    device_mb: float = 0.0


def measure(place: Place) -> tuple[float, dict[str, Side]]:
    """Extract, then let both sides take turns; returns seconds per image of extraction, and the sides."""
    child = Child(extract, place)
    seconds, rows = child.answer()
    child.end()
    children = {"store": Child(side, place, False), "live": Child(side, place, True)}
    sides = {name: Side() for name in children}
    try:
        for process in children.values():
            process.answer()
        for turn in range(place.chosen.turns):
            steps: dict[str, list[float]] = {name: [] for name in children}
            for number in range(SLICES):
                for name in ("store", "live") if (turn + number) % 2 == 0 else ("live", "store"):
                    children[name].tell(place.chosen.seconds / SLICES)
                    taken, memory, device = children[name].answer()
                    steps[name] += taken
                    sides[name].memory_mb, sides[name].device_mb = memory, device
            for name, found in sides.items():
                found.seconds.append(statistics.median(steps[name]))
        for process in children.values():
            process.tell(None)
    finally:
        for process in children.values():
            process.end()
    return seconds / rows, sides


def compare(place: Place) -> None:
    """Measure one teacher, and print its table."""
    chosen = place.chosen
    extraction, sides = measure(place)
    batch = 2 * chosen.batch_size
    rows = []
    for name, found in sides.items():
        step = statistics.median(found.seconds)
        rows.append(
            [
                name,
                f"{1000 * step:.1f} ms",
                f"{batch / step:.1f}",
                f"{found.memory_mb:,.0f} MB",
                f"{found.device_mb:,.0f} MB" if found.device_mb else "-",
                f"{COST_IMAGES * step / batch:,.0f} s",
            ]
        )
    print_table(
        f"{SHAPES.get(place.teacher, place.teacher)} -> {chosen.student} at {chosen.image_size} px, {batch} images per "
        f"step, {1 + chosen.seeded} stored view(s), {chosen.precision}",
        ["features", "step", "images/s", "memory", "on the device", f"{COST_IMAGES:,} images"],
        rows,
    )
    store, live = sides["store"], sides["live"]
    print(f"store over live, images/s   {speed_ratio(store.seconds, live.seconds)}")
    print(f"live over store, memory     {live.memory_mb / store.memory_mb:.2f}")
    print(
        f"extraction                  {1 / extraction:.1f} images/s, {COST_IMAGES * extraction:,.0f} s"
    )
    print(f"epochs to break even        {break_even(extraction, store, live, batch)}", flush=True)


def break_even(extraction: float, store: Side, live: Side, batch: int) -> str:
    """Extraction over what an epoch saves, turn by turn."""
    saved = [(b - a) / batch for a, b in zip(store.seconds, live.seconds, strict=True)]
    epochs = Spread.of([extraction / value if value > 0 else math.inf for value in saved])
    return "never: the store saves nothing" if math.isinf(epochs.median) else str(epochs)


def main() -> None:
    """Compare with every teacher."""
    chosen = options()
    if chosen.threads:
        os.environ["OMP_NUM_THREADS"] = str(chosen.threads)  # children read it when they start
    if chosen.dir:
        Path(chosen.dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=chosen.dir) as text:
        make_images(Path(text) / "images", chosen.num_images)
        for teacher in chosen.teachers:
            compare(Place(chosen, Path(text), teacher))


if __name__ == "__main__":
    main()
