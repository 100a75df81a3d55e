"""Small stores with a teacher that is a formula, written through featstore's own writer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from featstore import FeatureStore
from featstore.containers import ZarrBackend
from featstore.format.ids import content_sha256, ids_sha256
from featstore.format.manifest import new_manifest
from featstore.format.manifest_records import (
    FieldRecord,
    PreprocessingRecord,
    SourceRecord,
    TeacherRecord,
    WorkRecord,
)
from featstore.format.views import ViewSet, cut, make_views, view_box
from featstore.sources.base import Source
from featstore.sources.decode import DECODE_RULE, decode_image
from featstore.writing.commit import commit, open_or_create
from featstore.writing.shard import Shard, text_column

SIZE = (8, 8)
WIDTH = 24
CLASSES = ("left", "right", "top")


def draw_images(folder: Path, *, per_class: int, test_per_class: int, seed: int = 0) -> Path:
    """A folder of noisy PNGs, train/CLASS/*.png and test/CLASS/*.png; a bright patch tells the class."""
    generator = np.random.default_rng(seed)
    corners = {"left": (8, 2), "right": (8, 16), "top": (1, 9)}
    for part, count in (("train", per_class), ("test", test_per_class)):
        for name, (row, column) in corners.items():
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = generator.integers(0, 90, (20, 24, 3), dtype=np.uint8)
                dy, dx = generator.integers(-1, 2, 2)
                pixels[row + dy : row + dy + 6, column + dx : column + dx + 6] += 150
                Image.fromarray(pixels).save(folder / part / name / f"{number:03d}.png")
    return folder


def formula(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The teacher: random ReLU features of an (8, 8, 3) view -> (WIDTH,)."""
    weight = np.random.default_rng(7).standard_normal((pixels.size, WIDTH)) / np.sqrt(pixels.size)
    return np.maximum((pixels.reshape(-1) / 255 - 0.4) @ weight * 4, 0).astype(np.float32)


def averaged(pixels: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Views as vectors (n, V, 8 x 8 x 3) -> (n, V, side, side, 3): the means of about equal parts."""
    grid = pixels.reshape(*pixels.shape[:2], *SIZE, 3)
    cut = [round(i * SIZE[0] / side) for i in range(side)]
    sums = np.add.reduceat(np.add.reduceat(grid, cut, axis=2), cut, axis=3)
    count = np.diff([*cut, SIZE[0]])
    return (sums / np.outer(count, count)[:, :, None]).astype(np.float32)


def _field(
    shape: tuple[int, ...], dtype: Literal["float16", "float32"], meaning: str
) -> FieldRecord:
    dims = ("y", "x", "channel")[-len(shape) :]
    return FieldRecord(shape=shape, dtype=dtype, dims=dims, meaning=meaning, teacher="teacher")


def write_store(
    path: Path,
    source: Source,
    *,
    seeded: int = 2,
    canonical: bool = True,
    mirrored: bool = False,
    invalid: Sequence[str] = (),
    shard_rows: int = 16,
    labels: bool = True,
    weights: str = "0" * 64,
    view_seed: int = 0,
    grids: Sequence[int] = (2,),
    crop_pct: float = 0.9,
) -> FeatureStore:
    """Write a complete store: ``cls`` (float16, the formula), ``pixels`` (float32, the view itself), ``gridK``."""
    views = ViewSet(
        seed=view_seed, views=make_views(canonical=canonical, seeded=seeded, mirrored=mirrored)
    )
    rule = PreprocessingRecord(
        size=SIZE,
        crop_pct=crop_pct,
        crop_mode="center",
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        decode=DECODE_RULE,
    )
    count = SIZE[0] * SIZE[1] * 3
    has_labels = labels and source.labels is not None
    manifest = new_manifest(
        teachers={
            "teacher": TeacherRecord(
                library="timm",
                name="formula",
                weights_sha256=weights,
                precision="fp32",
                preprocessing=rule,
            )
        },
        views=views,
        fields={
            "cls": _field((WIDTH,), "float16", "formula of a view"),
            "pixels": _field((count,), "float32", "a view"),
            **{f"grid{k}": _field((k, k, 3), "float32", "the view, averaged") for k in grids},
        },
        source=SourceRecord(
            kind=source.kind,
            uri=source.uri,
            num_samples=len(source),
            ids_sha256=ids_sha256(source.sample_ids),
            has_labels=has_labels,
            class_names=source.class_names if has_labels else (),
        ),
        work=WorkRecord(shard_rows=shard_rows, batch_size=shard_rows),
        created_by={"test": "1"},
    )
    open_or_create(path, manifest)
    backend = ZarrBackend(path, manifest)
    for number in range(manifest.num_shards):
        rows = manifest.shard_range(number)
        cls = np.zeros((len(rows), len(views), WIDTH), np.float16)
        pixels = np.zeros((len(rows), len(views), count), np.float32)
        hashes = np.zeros((len(rows), 32), np.uint8)
        ids = [source.sample_ids[row] for row in rows]
        for place, row in enumerate(rows):
            data = source.read(row)
            hashes[place] = np.frombuffer(content_sha256(data), np.uint8)
            image = decode_image(data)
            for column, view in enumerate(views.views):
                box = view_box(
                    view,
                    views,
                    sample_id=ids[place],
                    width=image.width,
                    height=image.height,
                    size=SIZE,
                    crop_pct=rule.crop_pct,
                    crop_mode=rule.crop_mode,
                )
                seen = np.asarray(
                    cut(image, box, size=SIZE, interpolation="bicubic", mirrored=view.mirrored)
                )
                cls[place, column] = formula(seen)
                pixels[place, column] = seen.reshape(-1)
        columns = {
            "sample_id": text_column(ids),
            "content_sha256": hashes,
            "valid": np.array([name not in invalid for name in ids]),
            "fields/cls": cls,
            "fields/pixels": pixels,
            **{f"fields/grid{k}": averaged(pixels, k) for k in grids},
        }
        if has_labels:
            assert source.labels is not None
            columns["label"] = source.labels[rows.start : rows.stop]
        reasons = ["made invalid by the test" if name in invalid else None for name in ids]
        commit(backend, Shard(number, columns, reasons, {}))
    return FeatureStore.open(path)
