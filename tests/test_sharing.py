"""A store goes from one team to another: pushed, pulled, verified, merged, and trained from where it lies.

The other team has ``featstore`` and what a plain installation brings, and no torch (tests/bare.py).
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.commands.train import run as distill_run
from distill.config import DataConfig, DistillConfig, EvalConfig, StudentConfig, TrainConfig
from distill.config import TeacherConfig as FurtherTeacher
from featstore import FeatureStore
from featstore.cli.main import main
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig
from featstore.format.ids import content_sha256
from featstore.sources.config import SourceConfig
from pipelines import extract
from tests.conftest import ROOT, TINY_ARGS, save_teacher
from tests.distill.stores import draw_images
from tests.servers.fixtures import OwnBucket


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 training and 12 test images of three classes."""
    return draw_images(tmp_path_factory.mktemp("images"), per_class=12, test_per_class=4)


@pytest.fixture(scope="module")
def renamed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files under names that say nothing, and so in another order."""
    folder = tmp_path_factory.mktemp("renamed")
    for path in images.rglob("*.png"):
        data = path.read_bytes()
        (folder / f"{content_sha256(data).hex()[:16]}.png").write_bytes(data)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Models this small gain nothing from more."""
    torch.set_num_threads(1)


def extract_store(images: Path, weights: Path, path: Path, *, fields: list[str]) -> Path:
    """Phase one with a tiny ViT."""
    teacher = TeacherConfig(
        name="vit_tiny_patch16_224", weights=str(weights), image_size=32, model_args=TINY_ARGS
    )
    extract.run(
        ExtractConfig(
            source=SourceConfig(kind="folder", path=str(images)),
            teacher=teacher,
            store=StoreConfig(path=str(path), fields=fields, dtype="float32", shard_rows=7),
            batch_size=7,
            workers=0,
        )
    )
    return path


def train(images: Path, store: str, out: Path, *, fields: Sequence[str]) -> bytes:
    """Phase two, a few steps of it; returns the student's file."""
    first, *others = fields
    config = DistillConfig(
        store=store,
        field=first,
        teachers=[FurtherTeacher(store=store, field=name) for name in others],
        out=str(out),
        source=SourceConfig(kind="folder", path=str(images)),
        data=DataConfig(
            labelled=["train/*"], labels_per_class=4, unlabelled=["train/*"], test=["test/*"]
        ),
        student=StudentConfig(name="test_convnext", image_size=32),
        methods=["customkd"],
        seeds=[0],
        train=TrainConfig(
            epochs=2, warmup_epochs=0, labelled_batch=4, unlabelled_batch=8, workers=0
        ),
        eval=EvalConfig(knn_k=3),
        trackers=[],
        report=False,
    )
    distill_run(config)
    return (out / "customkd/seed0/student.safetensors").read_bytes()


def elsewhere(*commands: Sequence[str]) -> str:
    """Run commands as the other team does; returns what they print."""
    argv = [sys.executable, "-m", "tests.bare", json.dumps(commands), "remote"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_store_is_shared(
    images: Path,
    renamed: Path,
    teacher_file: Path,
    s3: OwnBucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pushed here, pulled, verified and merged without torch, pushed again, and trained from in place: the student of
    the local store, bit for bit.
    """
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))
    other = save_teacher(tmp_path / "other.safetensors", seed=1)
    ours = extract_store(images, teacher_file, tmp_path / "ours", fields=["cls", "grid2"])
    theirs = extract_store(renamed, other, tmp_path / "theirs", fields=["cls"])
    assert FeatureStore.open(ours).sample_ids != FeatureStore.open(theirs).sample_ids

    assert main(["push", str(ours), f"{s3.url}/ours"]) == 0
    pulled, merged = str(tmp_path / "pulled"), str(tmp_path / "merged")
    said = elsewhere(
        ["pull", f"{s3.url}/ours", pulled],
        ["verify", pulled],
        ["merge", pulled, str(theirs), merged, "--names", "a,b"],
        ["verify", merged],
        ["push", merged, f"{s3.url}/merged"],
    )
    assert said.count("sound, complete") == 2

    local, both = FeatureStore.open(ours), FeatureStore.open(merged)
    assert both.sample_ids == local.sample_ids
    rows = np.arange(local.num_rows)
    np.testing.assert_array_equal(both.gather("a_cls", rows), local.gather("cls", rows))

    expected = train(images, str(ours), tmp_path / "local", fields=["cls"])
    url = f"{s3.url}/merged"
    assert train(images, url, tmp_path / "in place", fields=["a_cls"]) == expected
    both_teachers = train(images, url, tmp_path / "both", fields=["a_cls", "b_cls"])
    assert both_teachers != expected
