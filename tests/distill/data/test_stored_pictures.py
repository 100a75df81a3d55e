"""Phase two from the copies in a store: the same regions as from the files, and no file needed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.commands.config import EvaluateConfig
from distill.commands.evaluate import run as evaluate
from distill.commands.train import run as train
from distill.config import DataConfig, DistillConfig
from distill.data.images import default_source, open_images
from distill.data.join_samples import join_samples
from distill.data.pictures import ViewDataset, load_batches
from distill.data.rules import rule_of
from distill.data.schedule import Request
from featstore import FeatureStore
from featstore.errors import ConfigError, MissingSamples
from featstore.extraction.config import StoreConfig
from featstore.sources import open_source
from featstore.sources.base import Source
from featstore.sources.config import SourceConfig
from tests.featstore.formula import make_config as make_extract_config
from tests.featstore.formula import run as extract

ALL = DataConfig(labelled=["*"], unlabelled=[], test=["*"])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Smooth pictures of odd sizes in two classes."""
    generator = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "photos" / ("left", "right")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        size = (90 + 7 * number, 151 - 9 * number)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(
            folder / f"{number}.png"
        )
    return tmp_path / "photos"


def make_store(photos: Path, path: Path, *, side: int, quality: int) -> FeatureStore:
    store = StoreConfig(
        path=str(path), fields=["cls"], shard_rows=8, pictures=side, picture_quality=quality
    )
    extract(make_extract_config(photos, path, store=store))
    return FeatureStore.open(path)


def views(source: Source, store: FeatureStore, workers: int = 0) -> torch.Tensor:
    """Both stored views of every image at 24 px, float."""
    samples = join_samples(source, store, ALL)
    dataset = ViewDataset(samples, rule_of(store, "cls"), size=(24, 24))
    requests = [Request(i, column, 0, False) for column in (0, 1) for i in range(len(samples.ids))]
    (pictures,) = load_batches(dataset, [requests], workers=workers)
    return pictures.pixels.float()


def test_full_copies_give_the_same_pixels(photos: Path, tmp_path: Path) -> None:
    """Uncompressed copies at full size: every view is that of the files to the last bit, in loader processes too."""
    store = make_store(photos, tmp_path / "s", side=4096, quality=0)
    files = open_source(SourceConfig(kind="folder", path=str(photos)))
    copies = open_images(SourceConfig(kind="store"), store)
    assert torch.equal(views(files, store), views(copies, store))
    assert torch.equal(views(files, store), views(copies, store, workers=1))


def test_small_copies_show_the_same_region(photos: Path, tmp_path: Path) -> None:
    """Boxes follow the original's size: small copies differ from the files by resampling alone, not by a shift."""
    store = make_store(photos, tmp_path / "s", side=40, quality=95)
    files = open_source(SourceConfig(kind="folder", path=str(photos)))
    exact, small = views(files, store), views(open_images(SourceConfig(kind="store"), store), store)
    shifted = (exact[..., 1:] - exact[..., :-1]).abs().mean()
    assert (exact - small).abs().mean() < 0.25 * shifted


def test_a_student_is_trained_without_the_files(
    photos: Path, tmp_path: Path, make_config: Callable[..., DistillConfig]
) -> None:
    """With the folder of images gone and no source named, both copies and labels come from the store."""
    store = make_store(photos, tmp_path / "s", side=32, quality=90)
    shutil.rmtree(photos)
    config = make_config(
        store=str(store.path),
        source=SourceConfig(),
        data=DataConfig(labelled=["*"], unlabelled=[], test=[], holdout=0.5),
        methods=["labels"],
        report=False,
    )
    (record,) = train(config)
    assert record["num_labelled"] + record["num_test"] == 12
    measured = evaluate(EvaluateConfig(model=f"{config.out}/labels/seed0", workers=0))
    assert measured["top1"] == pytest.approx(record["top1"])


def test_copies_of_other_images_are_refused(photos: Path, tmp_path: Path) -> None:
    """Same ids, other contents: the error names an id, as for changed files."""
    store = make_store(photos, tmp_path / "s", side=32, quality=90)
    for path in photos.rglob("*.png"):
        Image.new("RGB", (50, 40), (int(path.stem), 0, 0)).save(path)
    other = make_store(photos, tmp_path / "other", side=32, quality=90)
    with pytest.raises(MissingSamples, match=r"left/0\.png"):
        join_samples(
            open_images(SourceConfig(kind="store", path=str(other.path)), store), store, ALL
        )
    part = open_images(SourceConfig(kind="store", path=str(other.path), include=["left/*"]), store)
    with pytest.raises(MissingSamples, match=r"left/0\.png"):
        join_samples(part, store, ALL)


def test_copies_are_used_where_nothing_else_is_named(
    photos: Path, tmp_path: Path, store: FeatureStore
) -> None:
    """Images that are named win; a store without copies says so."""
    holds = make_store(photos, tmp_path / "s", side=32, quality=90)
    assert default_source(SourceConfig(), holds) == SourceConfig(kind="store")
    named = SourceConfig(kind="folder", path="x")
    assert default_source(named, holds) == named
    assert default_source(SourceConfig(), store) == SourceConfig()
    with pytest.raises(ConfigError, match=r"--store\.pictures"):
        open_images(SourceConfig(kind="store"), store)
    with pytest.raises(ConfigError, match=r"--source\.path"):
        open_images(SourceConfig(kind="store"), None)
