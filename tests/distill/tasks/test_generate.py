"""Task ``generate``: pairs from the store, its numbers, the router, and a run of both phases."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import distill
import featstore
from distill.commands.train import prepare_runs
from distill.config import DataConfig, DistillConfig, StudentConfig
from distill.data.schedule import CANONICAL, Request
from distill.tasks import build_task
from distill.tasks.generate import Generate, GenerateConfig
from featstore.errors import ConfigError, SourceError
from featstore.format.pseudo_samples import split_condition
from featstore.sources.config import SourceConfig
from tests import noise
from tests.distill.tasks.test_drawing import check_drawn

MODEL: dict[str, Any] = {"classes": 3, "size": 8, "width": 4}
ROUTED = {**MODEL, "students": [{"where": [0, 2]}, {"where": [1]}]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 24 sampled pictures of three classes."""
    folder = tmp_path_factory.mktemp("generate")
    noise.extract(folder)
    return folder


def settings(place: Path, **changed: Any) -> DistillConfig:
    values: dict[str, Any] = {
        "store": str(place / "store"),
        "field": "sample",
        "source": SourceConfig(kind="store"),
        "task": "generate",
        "data": DataConfig(labelled=["*"], test=[], holdout=0.25),
        "student": StudentConfig(name="one_step", model_args=ROUTED),
        "methods": ["labels"],
    }
    return DistillConfig(**{**values, **changed})


def task_of(config: DistillConfig) -> Generate:
    """The task joined to its store."""
    config, data = prepare_runs(config)
    task = build_task(config, data)
    assert isinstance(task, Generate)
    return task


def test_pairs_are_those_of_the_store(place: Path) -> None:
    """Noise, class and picture of a sample: drawn from its id, and the stored row."""
    task = task_of(settings(place))
    dataset = task.data.dataset(task.student())
    found = dataset.__getitems__([Request(row, CANONICAL, 0, True) for row in (1, 20)])
    assert not found.problems
    assert found.targets is not None
    drawn = [noise.record().draw(task.data.samples.ids[row])[-192:] for row in (1, 20)]
    pixels = np.stack([np.frombuffer(data, np.uint8).reshape(8, 8, 3) for data in drawn])
    assert (found.pixels.permute(0, 2, 3, 1).numpy() == pixels).all()
    stored = featstore.open(place / "store").gather("sample", [1, 20])[:, 0].astype(np.float32)
    torch.testing.assert_close(found.targets[:, :-1], torch.from_numpy(stored))
    maker = task.data.maker(task.student(), torch.device("cpu"))
    assert found.targets[:, -1].tolist() == [0, 2]
    assert split_condition(maker.normalise(found.pixels))[1].tolist() == [0, 2]


def test_numbers_by_hand(place: Path) -> None:
    """Smooth L1 with beta 0.5 of differences 0.1 and 1: (0.01 / 2 / 0.5 + 1 - 0.25) / 2."""
    task = task_of(settings(place, options={"generate": GenerateConfig(beta=0.5)}))
    targets = torch.tensor([[0.0, 0.0, 1.0]])
    numbers = task.numbers(torch.tensor([[0.1, -1.0]]), targets)
    assert numbers["smooth_l1"] == pytest.approx((0.01 + 0.75) / 2)
    assert task.errors(torch.tensor([[0.1, -1.0]]), targets) == pytest.approx([0.55])
    assert task.measures[0].name == "smooth_l1"
    assert not task.measures[0].higher_is_better


def test_a_student_without_samples_is_refused(place: Path) -> None:
    """Before training: names the student and the counts; so are a wrong size and a wrong number of classes."""
    data = DataConfig(labelled=["noise/cat/*", "noise/fox/*"], test=[], holdout=0.25)
    config = settings(place, data=data)
    for model_args, named in (
        (ROUTED, r"student 1.*\[10, 0\]"),
        ({**MODEL, "size": 12}, "144"),
        ({**MODEL, "classes": 4}, "classes 4"),
    ):
        student = StudentConfig(name="one_step", model_args=model_args)
        task = task_of(dataclasses.replace(config, student=student))
        with pytest.raises(ConfigError, match=named):
            task.begin(task.student(), task.split(0), None)


def test_what_changes_the_noise_is_refused(place: Path) -> None:
    """Changes of colour; photographs in place of pseudo-samples."""
    with pytest.raises(ConfigError, match="blur"):
        task_of(settings(place, data=DataConfig(labelled=["*"], test=[], holdout=0.25, blur=0.5)))
    with pytest.raises(ConfigError, match=r"generate\.classifier"):
        GenerateConfig(images="x")


@pytest.fixture(scope="module")
def classifier(place: Path) -> Path:
    """A run of task classify on the noise itself."""
    runs = distill.run(
        place / "store",
        task="classify",
        field="sample",
        source={"kind": "store"},
        data={"labelled": ["*"], "unlabelled": [], "test": [], "holdout": 0.25},
        student={
            "name": "resnet10t",
            "pretrained": False,
            "image_size": 32,
            "model_args": {"stem_width": 8, "channels": [8, 8, 8, 8]},
        },
        methods=["labels"],
        seeds=[0],
        train={"epochs": 1, "min_epoch_steps": 0, "warmup_epochs": 0, "labelled_batch": 8, "workers": 0},
        trackers=[],
        report=False,
        progress=False,
        out=place / "classifier",
    )  # fmt: skip
    return runs[0].folder


@pytest.mark.slow
def test_a_run(place: Path, classifier: Path) -> None:
    """Two students in one run: its error falls, distances and accuracies are recorded, the page draws pairs."""
    pytest.importorskip("plotly")
    runs = distill.run(
        place / "store",
        task="generate",
        field="sample",
        source={"kind": "store"},
        data={"labelled": ["*"], "unlabelled": [], "test": [], "holdout": 0.25},
        student={"name": "one_step", "model_args": ROUTED},
        generate={"classifier": str(classifier)},
        seeds=[0],
        train={"epochs": 20, "epoch_steps": 10, "labelled_batch": 18, "lr": 5e-3, "workers": 0},
        trackers=[],
        progress=False,
        out=place / "runs",
    )
    folder = runs[0].folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/smooth_l1"] for line in lines if "loss/smooth_l1" in line]
    assert losses[-1] < 0.5 * losses[0], losses
    record = json.loads((folder / "run.json").read_text())
    assert [item["name"] for item in record["measures"]] == [
        "frechet_distance", "classified", "smooth_l1",
    ]  # fmt: skip
    assert record["score"]["value"] > 0
    assert (folder / "report" / "images" / "01.jpg").is_file()
    again = distill.evaluate(folder, workers=0, progress=False)
    assert again["frechet_distance"] == pytest.approx(record["score"]["value"], rel=1e-4)
    loaded = distill.load_student(folder)
    assert loaded(torch.zeros(2, 3, 8, 8)).shape == (2, 64)
    check_drawn(folder, record["num_test"])
    check_onnx(folder, loaded)


def check_onnx(folder: Path, model: torch.nn.Module) -> None:
    """The exported graph draws the same pictures for every class, each from the student that the router chooses."""
    ort = pytest.importorskip("onnxruntime")
    distill.export_student(folder, out=folder / "exported", formats=["onnx"], progress=False)
    session = ort.InferenceSession(str(folder / "exported" / "model.onnx"))
    noise_B3HW = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    noise_B3HW[:, 1] = torch.arange(3.0)[:, None, None]
    noise_B3HW[:, 2] = 0
    (found,) = session.run(None, {session.get_inputs()[0].name: noise_B3HW.numpy()})
    with torch.no_grad():
        expected = model(noise_B3HW)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-2  # the class decides


def test_a_classifier_of_other_classes(place: Path, classifier: Path) -> None:
    """Refused, naming both."""
    config = settings(place, options={"generate": GenerateConfig(classifier=str(classifier))})
    described = json.loads((classifier / "config.json").read_text())
    assert described["label_names"] == ["cat", "dog", "fox"]
    assert task_of(config).measures[0].name == "frechet_distance"
    with pytest.raises(ConfigError, match="nowhere"):
        task_of(settings(place, options={"generate": GenerateConfig(classifier="nowhere")}))


def test_distances_to_real_images(place: Path, classifier: Path, tmp_path: Path) -> None:
    """Of the teacher's pictures themselves: 0 to their own files, for the student as for the teacher."""
    pictures = torch.rand(6, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for number, picture in enumerate(pictures):
        grey = ((picture + 1) * 127.5).round().to(torch.uint8).view(8, 8).numpy()
        Image.fromarray(grey).save(tmp_path / f"{number}.png")
    chosen = GenerateConfig(classifier=str(classifier), images=str(tmp_path))
    task = task_of(settings(place, options={"generate": chosen}))
    numbers = task.numbers(pictures, torch.cat([pictures, torch.zeros(6, 1)], 1))
    assert numbers["frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert numbers["teacher"]["frechet_distance"] == numbers["frechet_distance"]
    assert task.record(numbers)["reference"]["value"] == numbers["frechet_distance"]
    other = task.numbers(-pictures, torch.cat([pictures, torch.zeros(6, 1)], 1))
    assert other["frechet_distance"] > 10 * numbers["frechet_distance"]


def test_real_images_that_are_not_there(place: Path, classifier: Path) -> None:
    """Said before training, not after the first epoch."""
    chosen = GenerateConfig(classifier=str(classifier), images=str(place / "no images"))
    task = task_of(settings(place, options={"generate": chosen}))
    with pytest.raises(SourceError, match="no images"):
        task.begin(task.student(), task.split(0), None)
