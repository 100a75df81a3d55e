"""A training step of phase two: features from the store beside the same features in memory.

    python benchmarks/training_step.py                                    about four minutes
    python benchmarks/training_step.py --student mobilenetv3_large_100 --image-size 128 --steps 200

The project's own loop trains a student (``customkd``, random weights); only the source of the features changes from
step to step: from the store, or from one float32 tensor in memory that is indexed. Steps alternate (store, memory,
memory, store), so that both sides see the same machine; each turn compares its median steps ("time", "CPU"). The first
and the last step of every epoch, which hold stage 1 and the checkpoint, are left out. Two steps on a busy machine
differ by far more than the features cost, so the time that goes by until a batch has its features is measured by itself
too, and "by features" is what the step would take if nothing else differed: 1 + (store - memory) / step from memory.

Images come decoded from memory (``data.cache_mb``, no loading process), where nothing but the features can differ, or
are read and decoded at every step with 0, 1 and 2 loading processes. Two fields: ``cls``, 1024 numbers; and ``grid7``,
7 x 7 x 1024 numbers, which both sides average to 1024, because the methods match vectors. float16 in the store, warm
(in the page cache, checksums checked).
"""

import argparse
import contextlib
import dataclasses
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._measure import Spread, print_table

CLASSES = 8
TEACHER: dict[str, Any] = {
    "img_size": 112,
    "embed_dim": 1024,
    "depth": 1,
    "num_heads": 16,
    "mlp_ratio": 0.25,
}
"""A ViT as wide as ViT-L, with 7 x 7 patches and next to no depth: only the shape of its features matters here."""
EDGE_STEPS = 3  # of the first steps nothing is kept: caches, allocators


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", default="mobilenetv3_small_100", help="any timm classifier")
    parser.add_argument("--image-size", type=int, default=64, help="of the student, pixels")
    parser.add_argument("--num-images", type=int, default=1536)
    parser.add_argument("--batch-size", type=int, default=32, help="labelled, and as many without")
    parser.add_argument("--fields", nargs="+", default=["cls", "grid7"], help="cls, grid7")
    parser.add_argument("--seeded", type=int, default=0, help="stored crops beside the whole view")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=36, help="kept, per line of the table")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in the main process")
    parser.add_argument("--dir", type=Path, help="where it all goes (default: a temporary folder)")
    return parser.parse_args()


def make_images(folder: Path, count: int) -> None:
    """Write JPEGs of 128 px: train/CLASS/*.jpg, and a few test/CLASS/*.jpg."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for number in range(count):
        part = "test" if number < 4 * CLASSES else "train"
        path = folder / part / f"class{number % CLASSES}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC)
        picture.save(path, quality=90)


def make_store(chosen: argparse.Namespace, folder: Path) -> None:
    """Extract the fields with a random teacher of the right width, by the project's own phase one."""
    import timm
    import torch
    from accelerate import Accelerator
    from safetensors.torch import save_file

    from featstore.extraction import new_manifest as design
    from featstore.extraction import shards as extract
    from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig, ViewsConfig
    from featstore.extraction.teachers import build_teacher
    from featstore.sources import open_source
    from featstore.sources.config import SourceConfig

    name, weights = "vit_tiny_patch16_224", folder / "teacher.safetensors"
    save_file(timm.create_model(name, num_classes=0, **TEACHER).state_dict(), weights)
    config = ExtractConfig(
        source=SourceConfig(kind="folder", path=str(folder / "images")),
        teacher=TeacherConfig(
            name=name, weights=str(weights), model_args=TEACHER, image_size=112, precision="fp32"
        ),
        views=ViewsConfig(seeded=chosen.seeded),
        store=StoreConfig(path=str(folder / "store"), fields=list(chosen.fields)),
        workers=0,
    )
    source = open_source(config.source)
    teacher = build_teacher(
        config.teacher,
        fields=config.store.fields,
        dtype="float16",
        precision="fp32",
        device=torch.device("cpu"),
    )
    made = design.design_store(config, source=source, teacher=teacher)
    with contextlib.redirect_stderr(io.StringIO()):
        extract.run(
            config,
            manifest=made.manifest,
            source=source,
            teacher=teacher,
            accelerator=Accelerator(cpu=True),
        )


class Enough(Exception):
    """Raised out of the loop when all steps are measured."""


class Alternating:
    """Stands for ``distill.data.stored_features.Features``; every second batch comes from memory.

    Args:
        task: of the run; its rows are read into memory once.
        field: what is stored.
        device: whose memory.
    """

    def __init__(self, task: Any, field: str, device: Any) -> None:
        import numpy as np
        import torch

        from distill.data.stored_features import Features

        self._field, self._store, self._rows = field, task.store, task.samples.rows
        self._grid = len(task.store.manifest.fields[field].shape) > 1
        self._stored = None if self._grid else Features(task.store, field, task.samples)
        self.width = task.store.manifest.fields[field].shape[-1]
        self.reference = 0
        everything = task.store.gather(field, self._rows).astype(np.float32)
        self._memory = torch.from_numpy(everything).to(device)
        self.from_store = True
        self.seconds = 0.0

    def take(self, indices: Any, columns: Any = None) -> Any:
        """(S, D) float32, from the store or from memory; see ``distill.data.stored_features.Features.take``."""
        import numpy as np
        import torch

        start = time.perf_counter()
        chosen = np.full(len(indices), self.reference) if columns is None else columns
        if not self.from_store:
            device = self._memory.device
            found = self._memory[
                torch.as_tensor(indices, device=device), torch.as_tensor(chosen, device=device)
            ]
        elif self._stored is not None:
            found = self._stored.take(indices, chosen)
        else:
            found = self._take_grid(indices, chosen)
        if self._grid:
            found = found.mean(dim=(1, 2))
        self.seconds += time.perf_counter() - start
        return found

    def norm(self, kind: Any, indices: Any, columns: Any) -> Any:
        """Normalisation of what ``take`` returns; see ``distill.data.stored_features.Features.norm``."""
        import numpy as np

        from distill.data.feature_norm import FeatureNorm, measure_channels

        views = [self.take(indices, np.full(len(indices), column)) for column in columns]
        return FeatureNorm(kind, measure_channels(views))

    def _take_grid(self, indices: Any, columns: Any) -> Any:
        """What ``Features.take`` does, for a field that is no vector."""
        import numpy as np

        from featstore.reading.torch_data import gather_tensors

        stored = gather_tensors(self._store, [self._field], self._rows[indices])[self._field]
        if stored.shape[1] == 1:
            return stored[:, 0].float()
        return stored[np.arange(len(indices)), columns].float()


@dataclass
class Steps:
    """What was measured of one side; one entry per step."""

    wall: list[float] = field(default_factory=list)  # seconds of the step
    cpu: list[float] = field(default_factory=list)  # CPU-seconds of the training process
    # seconds of it until the features were there
    features: list[float] = field(default_factory=list)


class Watch:
    """Measures every step of a loop, and says where the next one takes its features from."""

    def __init__(self, features: Alternating, per_epoch: int, steps: int) -> None:
        self.store, self.memory = Steps(), Steps()
        self._features, self._per_epoch, self._steps = features, per_epoch, steps
        self._now = (0.0, 0.0, 0.0)

    def __call__(self, step: int) -> None:
        """Called after every step."""
        before, now = self._now, self._clocks()
        edge = step % self._per_epoch in (0, 1) or step <= EDGE_STEPS
        if not edge:
            side = self.store if self._features.from_store else self.memory
            for series, old, new in zip(
                (side.wall, side.cpu, side.features), before, now, strict=True
            ):
                series.append(new - old)
        if min(len(self.store.wall), len(self.memory.wall)) >= self._steps // 2:
            raise Enough
        self._features.from_store = step % 4 in (0, 3)
        self._now = self._clocks()

    def _clocks(self) -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), self._features.seconds


def measure(
    chosen: argparse.Namespace, folder: Path, field: str, *, workers: int, cache_mb: int
) -> Watch:
    """Train for a while; returns the steps of both sides."""
    from distill.config import DataConfig, DistillConfig, StudentConfig, TrainConfig
    from distill.data import joined
    from distill.training import loop as train
    from distill.training.launch import make_accelerator
    from featstore import FeatureStore
    from featstore.sources import open_source
    from featstore.sources.config import SourceConfig

    config = DistillConfig(
        store=str(folder / "store"),
        out=str(folder / "out"),
        source=SourceConfig(kind="folder", path=str(folder / "images")),
        data=DataConfig(labels_per_class=16, unlabelled=["train/*"], cache_mb=cache_mb),
        student=StudentConfig(name=chosen.student, image_size=chosen.image_size),
        methods=["customkd"],
        train=TrainConfig(
            epochs=10_000,
            labelled_batch=chosen.batch_size,
            unlabelled_batch=chosen.batch_size,
            workers=workers,
        ),
        trackers=[],
    )
    vector = next(name for name in chosen.fields if name == "cls")
    data = joined.join_data(
        open_source(config.source), FeatureStore.open(config.store), config.data, vector
    )
    accelerator = make_accelerator(config)
    features: Any = Alternating(data, field, accelerator.device)
    data = dataclasses.replace(data, features=features)
    probe = data.fit_probe(data.split(0), most=64, seed=0)
    loop = train.Loop(
        config,
        data,
        probe,
        method="customkd",
        seed=0,
        accelerator=accelerator,
        folder=folder / "out",
        asked={},
    )
    watch = Watch(features, loop.plan.steps_per_epoch, chosen.steps)
    quiet = io.StringIO()  # a student with random weights earns itself warnings
    with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
        loop.start(None)
        with contextlib.suppress(Enough):
            loop.train(watch)
    return watch


def compare(chosen: argparse.Namespace, folder: Path, field: str) -> None:
    """Measure one field with every way to get images, and print a table."""
    rows = []
    settings = [("memory", 0, 4096), *(("decoded", workers, 0) for workers in chosen.workers)]
    for images, workers, cache_mb in settings:
        watch = measure(chosen, folder, field, workers=workers, cache_mb=cache_mb)
        store, memory = watch.store, watch.memory
        rows.append(
            [
                images,
                workers,
                f"{1000 * statistics.median(memory.wall):.1f} ms",
                in_turns(store.wall, memory.wall, chosen.turns),
                in_turns(store.cpu, memory.cpu, chosen.turns),
                by_features(store, memory, chosen.turns),
                share(store),
                share(memory),
            ]
        )
    print_table(
        f"{field}: {chosen.student} at {chosen.image_size} px, {chosen.batch_size} + {chosen.batch_size} images per "
        f"step, {1 + chosen.seeded} stored view(s), {chosen.threads} thread(s); store over memory",
        ["images", "workers", "step", "time", "CPU", "by features", "store", "memory"],
        rows,
    )


def cuts(store: Sequence[float], memory: Sequence[float], turns: int) -> list[slice]:
    """The steps of every turn."""
    size = min(len(store), len(memory)) // turns
    return [slice(turn * size, (turn + 1) * size) for turn in range(turns)]


def in_turns(store: Sequence[float], memory: Sequence[float], turns: int) -> Spread:
    """Median step over median step, for each turn."""
    middle = statistics.median
    return Spread.of([middle(store[at]) / middle(memory[at]) for at in cuts(store, memory, turns)])


def by_features(store: Steps, memory: Steps, turns: int) -> str:
    """The same, of a step from memory in which only the features take as long as from the store."""
    middle, ratios = statistics.median, []
    for at in cuts(store.wall, memory.wall, turns):
        more = middle(store.features[at]) - middle(memory.features[at])
        ratios.append(1 + more / middle(memory.wall[at]))
    return f"{middle(ratios):.4f} ({min(ratios):.4f} - {max(ratios):.4f})"


def share(steps: Steps) -> str:
    """``0.4 ms (0.3%)``: time until the features are there, and its part of the step."""
    features, wall = statistics.median(steps.features), statistics.median(steps.wall)
    return f"{1000 * features:.2f} ms ({features / wall:.2%})"


def main() -> None:
    """Write a store, then compare on every field."""
    chosen = options()
    # Read when torch is loaded; loading processes inherit it.
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    import torch

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=chosen.dir) as text:
        folder = Path(text)
        make_images(folder / "images", chosen.num_images)
        make_store(chosen, folder)
        for name in chosen.fields:
            compare(chosen, folder, name)


if __name__ == "__main__":
    main()
