"""Phase one against its parts: an extraction beside plain decoding and the bare teacher.

    python benchmarks/extraction.py                                     ViT-S on made-up JPEGs, about five minutes
    python benchmarks/extraction.py --images DIR --turns 5              your own images instead
    python benchmarks/extraction.py --batch-size 64 --num-small 256 --num-large 128     as phase one's default; an hour
    python benchmarks/extraction.py --teacher vit_large_patch14_dinov2.lvd142m --image-size 224 --precision bf16 \\
        --batch-size 64 --num-small 8192 --num-large 512 --workers 4 8 16          on a GPU

The parts: the same files read and decoded by Pillow and preprocessed as timm's own evaluation transform does it, then
timm's model alone, same batches, same precision, no store. The extraction:
``featstore.extraction.shards.run`` into a fresh
store each time, with 1, 2 and 4 loading processes (0 decodes in line).

**CPU per image**, of all threads and loading processes; on a CPU only. A busy machine changes its pace within seconds,
and the same forward pass, timed twice, differs by a tenth. So the two sides alternate batch by batch: whenever the
extraction asks its teacher for a batch, the parts do the same batch, before or after it in turn, and their cost is
taken out of the extraction's. "teacher x forward" is the median over every two such pairs; "load + store" is all that
is left of the extraction, reading and decoding included. A run's fixed part (loading processes, creating the store, its
commit, opening it again) is measured with a tiny picture for each loading process and a teacher that does nothing; the
ratio is printed without and with it, and how many images' worth it is. Imports and the building of the model are in
neither side. Weights are random: they cost the same.

**Images per second**: extractions that nothing interrupts, less the fixed part, over the bare forward pass on pictures
that are on the device already. "waits for" names what such a run waited for; the first is the bottleneck. Loading the
first batch is part of it, so take many batches where this is the figure of interest.
"""

import argparse
import contextlib
import io
import math
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._measure import Spread, print_table
from featstore.format.manifest_records import PreprocessingRecord

CASES = {"small": (160, 224), "large": (3000, 2000)}
"""Sides in pixels: those of small pictures lie between the two, large ones have exactly these."""


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of images instead of made-up ones")
    parser.add_argument("--num-small", type=int, default=32, help="small JPEGs; 0 for none")
    parser.add_argument("--num-large", type=int, default=16, help="large JPEGs; 0 for none")
    parser.add_argument("--teacher", default="vit_small_patch16_224", help="any timm model")
    parser.add_argument("--image-size", type=int, default=0, help="teacher's input; 0: its own")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--field", default="cls", help="what is stored")
    parser.add_argument("--device", default="", help="cpu, or nothing for what there is")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--threads", type=int, default=1, help="of torch, in the main process")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where stores go (default: a temporary folder)")
    return parser.parse_args()


@dataclass(frozen=True)
class Run:
    """What one extraction took.

    Attributes:
        cpu: CPU-seconds of this process, its threads and the processes it started.
        wall: seconds.
        waits: seconds that it waited, by part.
    """

    cpu: float
    wall: float
    waits: dict[str, float]


def cpu_seconds() -> float:
    """CPU time so far of this process and of all its processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def make_images(folder: Path, count: int, sides: tuple[int, int]) -> None:
    """Write JPEGs that compress about as photographs do: noise of every scale, coarse scales strongest."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        if max(sides) > 1000:
            width, height = sides
        else:
            width, height = (int(side) for side in generator.integers(sides[0], sides[1] + 1, 2))
        pixels = np.full((height, width, 3), 128, np.float32)
        for level in range(1, int(math.log2(max(width, height))) + 1):
            shape = (min(2**level, height), min(2**level, width), 3)
            noise = generator.integers(0, 256, shape, dtype=np.uint8)
            octave = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
            pixels += (np.asarray(octave, np.float32) - 128) * 0.75**level
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{number:06d}.jpg", quality=90)


class Bench:
    """The teacher, twice (featstore's and timm's own), and what both are run with."""

    def __init__(self, chosen: argparse.Namespace, folder: Path) -> None:
        import timm
        import torch
        from accelerate import Accelerator
        from safetensors.torch import save_file

        from featstore.extraction.config import TeacherConfig
        from featstore.extraction.teachers import build_teacher
        from featstore.extraction.teachers.base import AUTOCAST

        torch.set_num_threads(chosen.threads)
        torch.manual_seed(0)
        self.chosen, self.folder = chosen, folder
        self.accelerator = Accelerator(cpu=chosen.device == "cpu")
        self.device = self.accelerator.device
        size = {"img_size": chosen.image_size} if chosen.image_size else {}
        base = chosen.teacher.split(".")[0]
        self.model = timm.create_model(base, pretrained=False, **size).eval()
        weights = folder / "weights.safetensors"
        save_file(self.model.state_dict(), weights)
        self.teacher_config = TeacherConfig(
            name=chosen.teacher,
            weights=str(weights),
            image_size=chosen.image_size,
            precision=chosen.precision,
        )
        self.teacher = build_teacher(
            self.teacher_config,
            fields=[chosen.field],
            dtype="float16",
            precision=chosen.precision,
            device=self.device,
        )
        weights.unlink()
        self.model.to(self.device).requires_grad_(False)
        rule = self.teacher.preprocessing
        assert isinstance(rule, PreprocessingRecord)
        self.transform = timm.data.create_transform(
            input_size=(3, *rule.size),
            crop_pct=rule.crop_pct,
            crop_mode=rule.crop_mode,
            interpolation=rule.interpolation,
            normalize=False,
        )
        self.mean = torch.tensor(rule.mean, device=self.device).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(rule.std, device=self.device).view(1, 3, 1, 1) * 255
        self.autocast = AUTOCAST.get(chosen.precision)

    def decode(self, paths: Sequence[Path]) -> Any:
        """(B, 3, H, W) uint8 by Pillow and timm's transform."""
        import torch
        from PIL import Image

        pictures = [Image.open(path) for path in paths]
        # convert() copies a picture that is RGB already; the parts are not made dearer than they need be.
        rgb = [item if item.mode == "RGB" else item.convert("RGB") for item in pictures]
        return torch.stack([self.transform(item) for item in rgb])

    def forward(self, pixels: Any, *, fetch: bool = True) -> Any:
        """Normalise on the device, run timm's model alone, and fetch what it returns."""
        import torch

        with torch.inference_mode():
            images = pixels.to(self.device, non_blocking=True).float()
            images = images.sub_(self.mean).div_(self.std)
            context: Any = contextlib.nullcontext()
            if self.autocast is not None:
                context = torch.autocast(self.device.type, dtype=self.autocast)
            with context:
                out = self.model(images)
            return out.cpu() if fetch else out

    def bare_rate(self, batches: Sequence[Any]) -> float:
        """Images per second of the forward pass alone, pictures on the device already."""
        pixels = [batch.to(self.device) for batch in batches]
        self.forward(pixels[0])
        start = time.perf_counter()
        last = [self.forward(batch, fetch=False) for batch in pixels][-1]
        last.sum().item()  # work on a device is done in order: the last result ends it
        return sum(map(len, pixels)) / (time.perf_counter() - start)

    def extract(self, source: Any, teacher: Any, workers: int, batch_size: int) -> Run:
        """One extraction into a fresh store."""
        from featstore.extraction import new_manifest as design
        from featstore.extraction import shards as extract
        from featstore.extraction.config import ExtractConfig, StoreConfig
        from featstore.sources.config import SourceConfig

        store = self.folder / "store"
        config = ExtractConfig(
            source=SourceConfig(kind="folder", path=source.uri),
            teacher=self.teacher_config,
            store=StoreConfig(path=str(store), fields=[self.chosen.field]),
            batch_size=batch_size,
            workers=workers,
        )
        made = design.design_store(config, source=source, teacher=teacher)
        cpu, wall = cpu_seconds(), time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):  # the progress bar works, unseen
            summary = extract.run(
                config,
                manifest=made.manifest,
                source=source,
                teacher=teacher,
                accelerator=self.accelerator,
            )
        run = Run(cpu_seconds() - cpu, time.perf_counter() - wall, dict(summary.waits))
        shutil.rmtree(store)
        if summary.invalid or summary.written != len(source):
            sys.exit(f"{source.uri}: not every image could be used: {summary.invalid[:3]}")
        return run


class Idle:
    """A teacher that answers zeros at once."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher

    def __getattr__(self, name: str) -> Any:
        """Everything else is the real one's."""
        return getattr(self._teacher, name)

    def features(self, images: Any) -> dict[str, Any]:
        """Zeros of every field."""
        import torch

        fields = self._teacher.fields.items()
        return {name: torch.zeros(len(images), *spec.shape) for name, spec in fields}


class Paired(Idle):
    """A teacher beside which the parts do every batch too.

    Attributes:
        decode: CPU-seconds of decoding so far.
        bare: CPU-seconds of the bare forward pass, batch by batch.
        real: CPU-seconds of the teacher, batch by batch.
    """

    def __init__(self, bench: Bench, paths: Sequence[Path]) -> None:
        super().__init__(bench.teacher)
        self._bench, self._paths = bench, paths
        self._done = 0
        self.decode = 0.0
        self.bare: list[float] = []
        self.real: list[float] = []

    def features(self, images: Any) -> dict[str, Any]:
        """The real features; the parts' batch comes before or after, in turn."""
        paths = self._paths[self._done : self._done + len(images)]
        self._done += len(images)
        parts_first = len(self.real) % 2 == 0
        if parts_first:
            self._parts(paths)
        start = time.process_time()
        out: dict[str, Any] = self._teacher.features(images)
        self.real.append(time.process_time() - start)
        if not parts_first:
            self._parts(paths)
        return out

    def _parts(self, paths: Sequence[Path]) -> None:
        start = time.process_time()
        pixels = self._bench.decode(paths)
        decoded = time.process_time()
        self._bench.forward(pixels)
        self.decode += decoded - start
        self.bare.append(time.process_time() - decoded)

    def teacher_ratio(self) -> float:
        """The teacher over the bare forward pass: median over every two batches, one in each order."""
        whole = range(0, len(self.real) - 1, 2) if len(self.real) > 1 else (0,)
        return statistics.median(
            sum(self.real[at : at + 2]) / sum(self.bare[at : at + 2]) for at in whole
        )


@dataclass
class Turns:
    """What all turns found for one number of loading processes; one entry per turn."""

    bare: list[float] = field(default_factory=list)  # images per second of the bare forward pass
    alone: list[Run] = field(default_factory=list)  # runs that nothing interrupted
    fixed: list[Run] = field(default_factory=list)  # runs with next to nothing to do
    # runs beside the parts, and what the parts took
    paired: list[tuple[Run, Paired]] = field(default_factory=list)


def first_of(source: Any, count: int) -> Any:
    """A source of the first images of another one."""
    from featstore.sources.base import Source

    class First(Source):
        """The first images of a source."""

        def __init__(self) -> None:
            self.kind, self.uri = source.kind, source.uri
            self.sample_ids = source.sample_ids[:count]

        def read(self, row: int) -> bytes:
            """Return the bytes of one file."""
            data: bytes = source.read(row)
            return data

    return First()


def compare(bench: Bench, name: str, folder: Path, tiny: Path) -> None:
    """Measure one folder of images in turns, and print a table."""
    from featstore.sources.folder import FolderSource

    source = first_of(FolderSource(str(folder), labels_from="none"), 10**9)
    paths = [folder / sample_id for sample_id in source.sample_ids]
    size = bench.chosen.batch_size
    batches = [bench.decode(paths[at : at + size]) for at in range(0, len(paths), size)]
    found = {workers: Turns() for workers in bench.chosen.workers}
    for turn in range(bench.chosen.turns):
        bare = bench.bare_rate(batches)
        for workers in list(found)[turn % len(found) :] + list(found)[: turn % len(found)]:
            result = found[workers]
            result.bare.append(bare)
            few = first_of(FolderSource(str(tiny)), max(1, workers))
            result.fixed.append(bench.extract(few, Idle(bench.teacher), workers, 1))
            result.alone.append(bench.extract(source, bench.teacher, workers, size))
            if bench.device.type == "cpu":
                paired = Paired(bench, paths)
                result.paired.append((bench.extract(source, paired, workers, size), paired))
    show(bench, name, paths, found)


def show(bench: Bench, name: str, paths: Sequence[Path], found: dict[int, Turns]) -> None:
    """Print what was found."""
    count, rule, middle = len(paths), bench.teacher.preprocessing, statistics.median
    assert isinstance(rule, PreprocessingRecord)
    size = sum(path.stat().st_size for path in paths) / count
    pairs = [paired for turns in found.values() for _, paired in turns.paired]
    title = (
        f"{name}: {count} images of {size / 1000:,.0f} kB; {bench.chosen.teacher} at {rule.size[0]} px, "
        f"{bench.chosen.precision} on {bench.device}, batches of {bench.chosen.batch_size}; bare forward "
        f"{middle(rate for turns in found.values() for rate in turns.bare):,.1f} images/s"
    )
    if pairs:
        decode_ms = 1000 * middle(paired.decode for paired in pairs) / count
        forward_ms = 1000 * middle(sum(paired.bare) for paired in pairs) / count
        head = ["workers", "CPU x parts", "with fixed part", "fixed part"]
        head += ["teacher x forward", "load + store"]
        print_table(
            f"{title}\nthe parts: decode {decode_ms:.1f} + forward {forward_ms:.1f} CPU-ms per image",
            head,
            [[workers, *cpu_cells(turns, count)] for workers, turns in found.items()],
        )
    rows = []
    for workers, turns in found.items():
        fixed = middle(run.wall for run in turns.fixed)
        rates = [count / (run.wall - fixed) for run in turns.alone]
        against = [rate / bare for rate, bare in zip(rates, turns.bare, strict=True)]
        rows.append([workers, Spread.of(against), f"{middle(rates):,.1f}", waits_of(turns.alone)])
    print_table(title, ["workers", "images/s x bare forward", "images/s", "waits for"], rows)


def cpu_cells(turns: Turns, count: int) -> list[object]:
    """One row of the table of CPU per image."""
    fixed = statistics.median(run.cpu for run in turns.fixed)
    without, whole, worth, teacher, rest_ms = [], [], [], [], []
    for run, paired in turns.paired:
        forward = sum(paired.bare)
        rest = run.cpu - fixed - paired.decode - forward - sum(paired.real)
        parts = paired.decode + forward
        teacher.append(paired.teacher_ratio())
        without.append((rest + teacher[-1] * forward) / parts)
        whole.append(without[-1] + fixed / parts)
        worth.append(fixed / parts * count)
        rest_ms.append(1000 * rest / count)
    return [
        Spread.of(without),
        Spread.of(whole),
        f"{statistics.median(worth):.1f} images",
        Spread.of(teacher),
        f"{statistics.median(rest_ms):.1f} ms",
    ]


def waits_of(runs: Sequence[Run]) -> str:
    """``teacher 98%, load 2%``: what runs waited for, the most first."""
    total = sum(sum(run.waits.values()) for run in runs)
    shares = {part: sum(run.waits[part] for run in runs) / total for part in runs[0].waits}
    order = sorted(shares, key=lambda part: -shares[part])
    return ", ".join(f"{part} {shares[part]:.0%}" for part in order)


def folders(chosen: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of each set of images."""
    if chosen.images is not None:
        yield "given", chosen.images
        return
    for name, count in (("small", chosen.num_small), ("large", chosen.num_large)):
        if count:
            make_images(folder / name, count, CASES[name])
            yield name, folder / name


def main() -> None:
    """Compare on every set of images."""
    chosen = options()
    # Read when torch is loaded; loading processes inherit it.
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    with tempfile.TemporaryDirectory(dir=chosen.dir) as text:
        folder = Path(text)
        bench = Bench(chosen, folder)
        make_images(folder / "tiny", max(1, *chosen.workers), (32, 32))
        for name, images in folders(chosen, folder):
            compare(bench, name, images, folder / "tiny")


if __name__ == "__main__":
    main()
