"""Decoding in phase two: from the original JPEGs, from the copies in a store (``--store.pictures``), from memory.

    python benchmarks/stored_pictures.py                              about three minutes
    python benchmarks/stored_pictures.py --image-size 224 --copies 256:90

One process, one thread: read, check, decode and cut one seeded view of every image, as phase two's loader does.
Originals are JPEGs of quality 90 of photograph-like noise, in the page cache. Copies are SIDE:QUALITY; quality 0 is
uncompressed. Ratios are to the original of the same size, turn by turn.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._measure import Case, print_table, seconds_in_turn, speed_ratio
from featstore.display.text import format_rate

TEACHER: dict[str, Any] = {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3}


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["500x375", "4000x3000"], metavar="WxH")
    parser.add_argument("--copies", nargs="+", default=["160:90", "160:0", "256:90"])
    parser.add_argument("--image-size", type=int, default=128, help="of the student, pixels")
    parser.add_argument("--num-images", type=int, default=24, help="of each size")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="also write the table there")
    return parser.parse_args()


def make_images(folder: Path, size: tuple[int, int], count: int) -> None:
    """Write JPEGs with detail at all scales; a photograph of that size takes about as many bytes."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        picture = np.zeros((size[1], size[0], 3), np.float32)
        for cells, weight in ((6, 0.5), (40, 0.3), (250, 0.2)):
            coarse = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            picture += weight * np.asarray(
                Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            )
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(
            folder / f"{number:04d}.jpg", quality=90
        )


def make_teacher(folder: Path) -> Path:
    """Write the weights of a small random teacher."""
    import timm
    from safetensors.torch import save_file

    weights = folder / "teacher.safetensors"
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TEACHER)
    save_file(model.state_dict(), weights)
    return weights


def make_store(images: Path, out: Path, copies: str, weights: Path) -> Any:
    """Extract with a small random teacher."""
    import featstore

    side, quality = copies.split(":")
    return featstore.extract(
        images,
        out=out,
        fields=["cls"],
        teacher={
            "name": "vit_tiny_patch16_224", "weights": str(weights), "model_args": TEACHER, "image_size": 32,
            "precision": "fp32",
        },
        views={"seeded": 1},
        store={"pictures": int(side), "picture_quality": int(quality), "shard_s": 0},
        workers=0,
        progress=False,
    )  # fmt: skip


def loads(source: Any, store: Any, size_px: int, *, megabytes: int = 0) -> Case:
    """One view of every image, as phase two's loader makes it."""
    from distill.config import DataConfig
    from distill.data.join_samples import join_samples
    from distill.data.pictures import PictureCache, ViewDataset
    from distill.data.rules import rule_of
    from distill.data.schedule import Request

    samples = join_samples(source, store, DataConfig(labelled=[], unlabelled=["*"], test=[]))
    dataset = ViewDataset(
        samples, rule_of(store, "cls"), size=(size_px, size_px), cache=PictureCache(megabytes)
    )
    requests = [Request(i, 1, 0, False) for i in range(len(samples.ids))]

    def step(_: int) -> None:
        batch = dataset.__getitems__(requests)
        assert [batch.problems, batch.changed, batch.failure] == [[], [], None]

    return Case(step=step, warm=lambda: step(0))


def main() -> None:
    """Measure every size of original with every form of copy."""
    chosen = options()
    import torch

    from distill.data.images import open_images
    from featstore.sources import open_source
    from featstore.sources.config import SourceConfig

    torch.set_num_threads(1)
    head = ("original", "read from", "kB per image", "images/s", "over the original")
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        weights = make_teacher(folder)
        for name in chosen.sizes:
            width, height = (int(side) for side in name.split("x"))
            images = folder / name
            make_images(images, (width, height), chosen.num_images)
            stores = {
                copies: make_store(images, folder / f"{name}-{copies}", copies, weights)
                for copies in chosen.copies
            }
            files = open_source(SourceConfig(kind="folder", path=str(images)))
            first = next(iter(stores.values()))
            cases = {"files": loads(files, first, chosen.image_size)}
            sizes = {"files": sum(path.stat().st_size for path in images.iterdir())}
            for copies, store in stores.items():
                source = open_images(SourceConfig(kind="store"), store)
                cases[f"pictures {copies}"] = loads(source, store, chosen.image_size)
                sizes[f"pictures {copies}"] = sum(len(source.read(i)) for i in range(len(source)))
            cases["memory (decoded views)"] = loads(files, first, chosen.image_size, megabytes=4096)
            seconds = seconds_in_turn(cases, turns=chosen.turns, slices=3)
            for case, spent in seconds.items():
                rate = chosen.num_images / sorted(spent)[len(spent) // 2]
                size = f"{sizes[case] / chosen.num_images / 1000:.1f}" if case in sizes else "-"
                ratio = speed_ratio(spent, seconds["files"])
                rows.append((name, case, size, format_rate(rate), str(ratio)))
    print_table(
        f"One core, one seeded view at {chosen.image_size} px; {chosen.turns} turns",
        head,
        rows,
        chosen.csv,
    )


if __name__ == "__main__":
    main()
