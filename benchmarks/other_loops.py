"""What stored features cost in somebody else's PyTorch loop: seconds of a step with them over seconds without.

    python benchmarks/other_loops.py                  a minute on an idle machine
    python benchmarks/other_loops.py --turns 15

A step decodes JPEG files of 224 pixels and trains a MobileNetV3-Small on them, in this process. With features,
each sample also carries a vector of 1,024 float16 and a grid of 7 x 7 x 384 (``featstore.torch.with_features``). Both
kinds of steps take turns; the ratio is that of one turn. The hash of each image is compared in the first epoch, which
is not measured.
"""

import argparse
import hashlib
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.models import mobilenet_v3_small
from torchvision.transforms.functional import pil_to_tensor

import featstore
import featstore.torch
from benchmarks._measure import Case, print_table, seconds_in_turn, speed_ratio

IMAGES, BATCH, SIZE = 256, 32, 224


class Pictures(torch.utils.data.Dataset[Any]):
    """JPEG files in memory, decoded on access."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.files = []
        for _ in range(IMAGES):
            small = generator.integers(0, 256, (28, 28, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(small).resize((SIZE, SIZE)).save(buffer, "JPEG", quality=90)
            self.files.append(buffer.getvalue())

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.open(io.BytesIO(self.files[index]))
        return pil_to_tensor(image).float() / 255, index % 10


def endless(loader: Any) -> Iterator[Any]:
    """Batches of one epoch after another."""
    while True:
        yield from loader


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="See the head of this file.")
    parser.add_argument("--turns", type=int, default=9, help="how often everything is measured")
    options = parser.parse_args()
    pictures = Pictures()
    ids = [f"{i:05d}" for i in range(IMAGES)]
    generator = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        arrays = {
            "cls": generator.standard_normal((IMAGES, 1024)).astype(np.float16),
            "grid7": generator.standard_normal((IMAGES, 7, 7, 384)).astype(np.float16),
        }
        hashes = [hashlib.sha256(data).hexdigest() for data in pictures.files]
        store = featstore.from_arrays(
            Path(folder) / "store", arrays, ids=ids, teacher="random", content_sha256=hashes
        )
        data = featstore.torch.with_features(
            pictures, store, ids, content=pictures.files.__getitem__
        )
        model = mobilenet_v3_small(num_classes=10)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        plain = endless(DataLoader(pictures, batch_size=BATCH, shuffle=True))
        joined = endless(DataLoader(data, batch_size=BATCH, shuffle=True))

        def step(batch: Any) -> None:
            loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        cases = {
            "images alone": Case(step=lambda _: step(next(plain)), steps=2),
            "with features": Case(step=lambda _: step(next(joined)), steps=2),
            "features alone": Case(
                step=lambda _: data._features.gather(data.rows[:BATCH]), steps=2
            ),
        }
        for _ in range(IMAGES // BATCH):  # the epoch in which hashes are compared
            next(joined)
        seconds = seconds_in_turn(cases, turns=options.turns, slices=1)
    base = seconds["images alone"]
    rows = [
        (name, f"{1000 * float(np.median(of)):.2f}", str(speed_ratio(base, of)))
        for name, of in seconds.items()
    ]
    title = f"a step of {BATCH} images, {torch.get_num_threads()} threads; median (smallest - largest turn)"
    print_table(title, ["step", "ms", "time over that of images alone"], rows)


if __name__ == "__main__":
    main()
