"""``--data.decode reduced`` beside full decoding: speed, pixels, and features of a student.

    python benchmarks/reduced_decoding.py                                           about two minutes
    python benchmarks/reduced_decoding.py --images PHOTOS --weights FILE            photographs and a trained student

One seeded view of every image, decoded and cut both ways in turn, as phase two's loader does it; CPU seconds. Without
``--images``, JPEGs of photograph-like noise. Pixels: mean difference in levels of 255, of all images and of the worst.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks._measure import print_table
from benchmarks.stored_pictures import make_images, make_store, make_teacher


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of JPEGs")
    parser.add_argument("--every", type=int, default=1, help="take every so manieth image")
    parser.add_argument(
        "--sizes", nargs="+", default=["500x375:24", "4000x3000:4"], metavar="WxH:N"
    )
    parser.add_argument("--image-size", nargs="+", type=int, default=[64, 96, 224])
    parser.add_argument("--student", default="tf_mobilenetv3_small_100", help="of timm")
    parser.add_argument("--weights", help="of the student; without it, features are not compared")
    parser.add_argument("--csv", type=Path, help="also write the table there")
    return parser.parse_args()


def both(source: Any, store: Any, size_px: int) -> tuple[list[float], list[Any]]:
    """CPU seconds and views (n, H, W, 3) of full, then of reduced decoding."""
    from distill.config import DataConfig
    from distill.data.join_samples import join_samples
    from distill.data.pictures import ViewDataset
    from distill.data.rules import rule_of
    from distill.data.schedule import Request

    samples = join_samples(source, store, DataConfig(labelled=[], unlabelled=["*"], test=[]))
    ways = [
        ViewDataset(samples, rule_of(store, "cls"), size=(size_px, size_px), reduced=reduced)
        for reduced in (False, True)
    ]
    seconds, views = [0.0, 0.0], [[], []]  # type: ignore[var-annotated]
    for sample, position in enumerate(samples.positions.tolist()):
        data, request = source.read(position), Request(sample, 1, 0, False)
        for way in (0, 1) if sample % 2 else (1, 0):
            began = time.process_time()
            views[way].append(ways[way].cut(request, data)[0])
            seconds[way] += time.process_time() - began
    return seconds, [np.stack(found) for found in views]


def features(chosen: argparse.Namespace, views: Any) -> Any:
    """(n, C) unit vectors of the student."""
    import timm
    import torch

    model: Any = timm.create_model(chosen.student, num_classes=0).eval()
    timm.models.load_checkpoint(model, chosen.weights, strict=False)
    pixels = torch.from_numpy(views).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        return torch.nn.functional.normalize(model(pixels), dim=1).numpy()


def main() -> None:
    """Measure and print a table."""
    chosen = options()
    from featstore.sources import open_source
    from featstore.sources.config import SourceConfig

    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        weights = make_teacher(folder)
        sets = {}
        if chosen.images:
            images = folder / "some"
            images.mkdir()
            for number, path in enumerate(sorted(chosen.images.rglob("*.jpg"))[:: chosen.every]):
                (images / f"{number:05d}.jpg").symlink_to(path.absolute())
            sets[chosen.images.name] = images
        else:
            for name in chosen.sizes:
                size, count = name.split(":")
                width, height = (int(side) for side in size.split("x"))
                make_images(folder / size, (width, height), int(count))
                sets[size] = folder / size
        for name, images in sets.items():
            store = make_store(images, folder / f"{name}-store", "16:90", weights)
            source = open_source(SourceConfig(kind="folder", path=str(images)))
            for size_px in chosen.image_size:
                seconds, views = both(source, store, size_px)
                pixels = np.abs(views[0].astype(int) - views[1]).mean(axis=(1, 2, 3))
                cosine = "-"
                if chosen.weights:
                    one, other = (features(chosen, found) for found in views)
                    same = (one * other).sum(axis=1)
                    cosine = f"{same.mean():.4f} ({same.min():.4f})"
                full, reduced = (f"{1000 * spent / len(pixels):.2f}" for spent in seconds)
                speed = f"{seconds[0] / seconds[1]:.2f}"
                difference = f"{pixels.mean():.2f} ({pixels.max():.2f})"
                rows.append((name, size_px, full, reduced, speed, difference, cosine))
    print_table(
        "Full and reduced decoding of JPEGs, one core",
        ("images", "view", "full, ms", "reduced, ms", "speed", "pixels (worst)", "cosine (worst)"),
        rows,
        chosen.csv,
    )


if __name__ == "__main__":
    main()
