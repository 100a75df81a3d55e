"""Phase two on pseudo-samples: drawn again from the store, taught by its logits, with the teacher's labels."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import distill
import featstore
from distill.config import DataConfig, StudentConfig
from distill.data import joined
from distill.data.pictures import ViewDataset, load_batches
from distill.data.schedule import CANONICAL, Request
from distill.student.model import build_student
from featstore.errors import ConfigError, MissingSamples
from featstore.format.ids import content_sha256
from featstore.reading.stored_pictures import images_of
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from tests import pseudo


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of pseudo-samples."""
    folder = tmp_path_factory.mktemp("pseudo")
    pseudo.extract(folder)
    return folder


def hashes(store: featstore.FeatureStore) -> list[bytes]:
    source = images_of(store)
    return [content_sha256(source.read(row)) for row in range(store.num_rows)]


def test_phase_two_draws_the_bytes_that_phase_one_saw(place: Path, tmp_path: Path) -> None:
    """From the record in the store alone, also where rows were merged or left out, in both containers."""
    store = featstore.open(place / "store")
    assert hashes(store) == [row.tobytes() for row in store.content_sha256]
    more = pseudo.extract(place, "more", source={"first_seed": 12})
    featstore.merge([store.path, more.path], tmp_path / "both", progress=False)
    featstore.subset(tmp_path / "both", tmp_path / "part", where=["*/dog/*"], progress=False)
    part = featstore.convert(
        tmp_path / "part", tmp_path / "tars", container="webdataset", progress=False
    )
    assert part.num_rows == 24
    assert hashes(part) == [row.tobytes() for row in part.content_sha256]


def test_another_record_is_refused(place: Path, tmp_path: Path) -> None:
    """Same ids, other statistics: rows of a store are bound to the bytes."""
    path = pseudo.write_record(tmp_path, seed=1)
    source = open_source(SourceConfig(kind="synthetic", path=str(path), samples=12))
    data = joined.join_data(
        source,
        featstore.open(place / "store"),
        DataConfig(labelled=["*"], test=["*/dog/*"]),
        "logits",
    )
    student = build_student(StudentConfig(name="test_resnet", image_size=32), 2)
    dataset = data.dataset(student)
    assert isinstance(dataset, ViewDataset)
    shown = [[Request(0, CANONICAL, 0, False, 0)]]
    with pytest.raises(MissingSamples, match="covariance/cat/00000000"):
        next(load_batches(dataset, shown, workers=0))


def test_a_store_of_files_provides_no_images(tmp_path: Path) -> None:
    """Neither copies nor a record: the error says how to name the images."""
    values = {"cls": np.zeros((2, 3), np.float32)}
    store = featstore.from_arrays(tmp_path / "s", values, ["a", "b"], teacher=None)
    with pytest.raises(ConfigError, match="pictures"):
        images_of(store)


def test_labels_of_the_teacher(place: Path) -> None:
    """The largest stored logit of every image, with the names that the teacher states, in place of the source's."""
    store = featstore.open(place / "store")
    settings = DataConfig(labels="teacher", labelled=["*"], holdout=0.2)
    samples = joined.join_data(images_of(store), store, settings, "logits").samples
    logits = store.gather("logits", samples.rows)[:, 0]
    assert samples.labels.tolist() == logits.argmax(1).tolist()
    assert samples.class_names == pseudo.CLASSES
    assert any("agreement" in note for note in samples.notes)


def test_fields_that_give_no_labels(place: Path, tmp_path: Path) -> None:
    """A field that is not there; names of classes that are more than its numbers."""
    store = featstore.open(place / "store")
    settings = DataConfig(labels="teacher", labelled=["*"], holdout=0.2)
    with pytest.raises(ConfigError, match="logits"):
        joined.join_data(images_of(store), store, settings, "cls")
    odd = pseudo.extract(place, "odd", teacher={"model_args": {"class_names": ["a", "b", "c"]}})
    with pytest.raises(ConfigError, match=r"2 numbers.*3 classes"):
        joined.join_data(images_of(odd), odd, settings, "logits")


@pytest.mark.slow
def test_a_run_without_any_image(place: Path, tmp_path: Path) -> None:
    """From the store alone, as another team would do it, then measured on real images that the run never saw."""
    shutil.copytree(place / "store", tmp_path / "received")
    (run,) = distill.run(
        tmp_path / "received",
        field="logits",
        out=tmp_path / "out",
        student={"name": "test_resnet", "image_size": 32, "pretrained": False},
        methods=["kd"],
        kd={"target": "field", "weight": 9.0},
        data={"labels": "teacher", "labelled": ["*"], "holdout": 0.2},
        seeds=[0],
        train={
            "epochs": 2,
            "min_epoch_steps": 0,
            "warmup_epochs": 0,
            "labelled_batch": 8,
            "workers": 0,
        },
        trackers=[],
        report=False,
        progress=False,
    )
    assert 0 <= run.score <= 1
    for part in ("train", "test"):
        for number, name in enumerate(pseudo.CLASSES):
            for row in range(6):
                path = tmp_path / "real" / part / name / f"{row}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 20 * row + number).save(path)
    measured: dict[str, Any] = distill.evaluate(
        run,
        tmp_path / "real",
        store="none",
        data={"labelled": ["train/*"]},
        workers=0,
        progress=False,
    )
    assert measured["num_images"] == 12
