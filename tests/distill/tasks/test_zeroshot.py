"""Task zeroshot and method vlm_ood: embeddings in the teacher's space, classified by texts, also of unseen classes."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

from distill.commands.config import EvaluateConfig
from distill.commands.evaluate import run as evaluate
from distill.commands.train import run
from distill.config import DataConfig, DistillConfig, StudentConfig
from distill.data import joined
from distill.evaluation.embedding import HEAD, EmbeddingHead
from distill.export.config import ExportConfig
from distill.export.edge import export_run
from distill.losses import IGNORE
from distill.methods.base import Output
from distill.methods.vlm_ood import VLMOOD, Embedding, VLMOODConfig
from distill.register import options_of
from distill.tasks import build_task
from distill.tasks.zeroshot import mean_per_class
from featstore import FeatureStore, text_table
from featstore.errors import ConfigError
from featstore.format.text_table import TextTable
from featstore.sources import open_source
from tests.distill.bench import Bench
from tests.distill.conftest import MakeConfig
from tests.distill.stores import CLASSES, WIDTH


@pytest.fixture(scope="session")
def texts(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The store with class means as texts."""
    return text_table(store, tmp_path_factory.mktemp("texts") / "s", field="cls", progress=False)


@pytest.fixture
def make(make_config: MakeConfig, texts: FeatureStore) -> Any:
    """Settings of a short run that never trains on class "top"."""

    def make(**changes: Any) -> DistillConfig:
        base = {
            "store": str(texts.path),
            "task": "zeroshot",
            "data": DataConfig(labelled=["train/*"], test=["test/*"]),
            "zeroshot__unseen": ["top"],
            "methods": ["vlm_ood"],
        }
        return make_config(**{**base, **changes})

    return make


@pytest.mark.slow
def test_a_student_that_meets_a_new_class(make: Any, texts: FeatureStore, capsys: Any) -> None:
    """No image of the unseen class trains; a plain classifier of all classes and the embedding head come out."""
    config = make(methods=["labels", "embedding", "vlm_ood"], train__epochs=3, report=True)
    records: Any = run(config)
    assert "num_classes=3" in capsys.readouterr().out
    for record in records:
        assert (record["num_labelled"], record["num_test"]) == (24, 12)
        names = [item["name"] for item in record["measures"]]
        assert names[:4] == ["zeroshot", "seen", "unseen", "all_classes"]
        assert record["reference"]["label"] == "teacher, zero-shot"
        assert any("stand-in" in note for note in record["notes"])
    folder = Path(config.out) / "vlm_ood" / "seed0"
    model = timm.create_model(
        "test_convnext", num_classes=3, checkpoint_path=str(folder / "student.safetensors")
    ).eval()
    described = json.loads((folder / "config.json").read_text())
    assert described["label_names"] == list(CLASSES)
    # The classifier answers what the embedding head and the texts answer.
    head = EmbeddingHead.from_bytes((folder / HEAD).read_bytes())
    table = TextTable.from_tensors(texts.artefact("texts.classes"))
    pictures = torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        feature = model.forward_head(model.forward_features(pictures), pre_logits=True)
        logits = model(pictures)
    embedding = head(feature)
    assert embedding.shape == (64, WIDTH)
    cosine = F.normalize(embedding, dim=1) @ torch.from_numpy(table.embedding).T
    torch.testing.assert_close(
        F.normalize(logits, dim=1), F.normalize(cosine, dim=1), atol=1e-4, rtol=1e-4
    )
    kept = json.loads((folder / "evaluation.json").read_text())
    again: Any = evaluate(EvaluateConfig(model=str(folder), workers=0))
    assert again["unseen"] == pytest.approx(kept["unseen"])
    assert again["teacher"] == pytest.approx(kept["teacher"])
    assert run(config)[0]["skipped"]


@pytest.mark.slow
def test_the_export_has_the_texts_folded_in(make: Any) -> None:
    """ONNX of the finished student has an output per class and is measured by the score of the task."""
    import onnxruntime

    config = make(train__epochs=1)
    (record,) = run(config)
    folder = Path(config.out) / "vlm_ood" / "seed0"
    found = export_run(ExportConfig(model=str(folder), formats=["onnx"], workers=0), say=print)
    assert found["task"] == "zeroshot"
    (path,) = (folder / "export").glob("*.onnx")
    session = onnxruntime.InferenceSession(str(path))
    assert session.get_outputs()[0].shape[1] == len(CLASSES)
    text = json.dumps(found)
    assert "zeroshot" in text
    assert record["score"]["name"] == "zeroshot"  # type: ignore[index]


def test_without_unseen_classes_all_count(make: Any) -> None:
    """The score is then the accuracy among all classes."""
    (record,) = run(make(zeroshot__unseen=[], train__epochs=1))
    values = {item["name"]: item["value"] for item in record["measures"]}  # type: ignore[attr-defined]
    assert "unseen" not in values
    assert values["zeroshot"] == values["all_classes"] == values["seen"]


def test_finishing_a_student_leaves_it_and_the_random_state_alone(make: Any) -> None:
    """Measuring between epochs changes neither the weights nor what training draws next."""
    config = make()
    source, store = open_source(config.source), FeatureStore.open(config.store)
    task = build_task(config, joined.join_data(source, store, config.data, config.field))
    student = task.student()
    before, state = copy.deepcopy(student.state_dict()), torch.random.get_rng_state()
    done, head = task.finished(student)
    assert (done.num_classes, student.num_classes) == (3, WIDTH)
    assert head is not None
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_mean_per_class_by_hand() -> None:
    """Each class counts once, however many images it has; other texts are no answers."""
    logits = torch.tensor([[1.0, 0, 9], [0, 1, 9], [1, 0, 9], [1, 0, 9], [0, 0, 1]])
    labels = torch.tensor([0, 1, 1, 1, 2])
    two = torch.tensor([True, True, False])
    assert mean_per_class(logits, labels, two) == pytest.approx((1 + 1 / 3) / 2)
    assert mean_per_class(logits, labels, torch.ones(3, dtype=torch.bool)) == pytest.approx(1 / 3)


def refused(config: DistillConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        run(config)
    assert not Path(config.out).exists()
    return str(caught.value)


def test_texts_that_do_not_fit(make: Any, store: FeatureStore, tmp_path: Path) -> None:
    """Another width, other classes, no table, several: each an error before training that names what was found."""
    assert "text-table" in refused(make(store=str(store.path)))
    other = text_table(
        store,
        tmp_path / "other",
        field="cls",
        names=["left", "cat"],
        array=np.eye(2, WIDTH),
        progress=False,
    )
    message = refused(make(store=str(other.path)))
    assert "right" in message
    assert "cat" in message
    wide = text_table(
        other.path,
        tmp_path / "wide",
        name="wide",
        field="pixels",
        names=CLASSES,
        array=np.eye(3, 192),
        progress=False,
    )
    assert "texts.classes, texts.wide" in refused(make(store=str(wide.path)))
    message = refused(make(store=str(wide.path), zeroshot__table="wide"))
    assert "192" in message
    assert str(WIDTH) in message


def test_settings_that_do_not_fit(make: Any, images: Path) -> None:
    """A class that is not there; nothing left to train on; methods that need a classifier; another tap."""
    assert "bottom" in refused(make(zeroshot__unseen=["bottom"]))
    assert "unseen" in refused(make(zeroshot__unseen=["*"]))
    assert "KD" in refused(make(methods=["kd"]))
    assert "pooled" in refused(make(student=StudentConfig(name="test_convnext", feature="pooled")))
    with pytest.raises(ConfigError, match="zeroshot"):
        run(make(task="classify"))


def method_of(make: Any, **changes: Any) -> tuple[VLMOOD, Any]:
    """The method, and five images of which three are labelled."""
    config = make(**changes)
    bench = Bench(config, "labels")
    source, store = open_source(config.source), FeatureStore.open(config.store)
    task = build_task(config, joined.join_data(source, store, config.data, config.field))
    setup = dataclasses.replace(bench.setup, student=task.student(), split=task.split(0))
    return VLMOOD(setup, options_of(config, "vlm_ood")), bench.batch


def output_of(embedding: torch.Tensor) -> Output:
    return Output(embedding, embedding, {}, embedding[:, :, None, None])


def test_a_student_that_is_the_teacher(make: Any) -> None:
    """mse and vlalign are zero, also of another length; with mse alone neither labels nor texts matter."""
    method, batch = method_of(make)
    terms = method.loss(output_of(2 * batch.teacher), batch, method.setup.student)
    assert set(terms) == {"ce", "mse", "cst", "vlalign"}
    assert float(terms["mse"]) == pytest.approx(0, abs=1e-6)
    assert float(terms["vlalign"]) == pytest.approx(0, abs=1e-6)
    alone, batch = method_of(make, vlm_ood__cls=0.0, vlm_ood__cst=0.0, vlm_ood__vlalign=0.0)
    same = Embedding(alone.setup, options_of(make(), "embedding"))
    own = torch.randn(5, WIDTH)
    value = alone.loss(output_of(own), batch, alone.setup.student)
    hidden = dataclasses.replace(batch, labels=torch.full((5,), IGNORE))
    other = alone.loss(output_of(own), hidden, alone.setup.student)
    assert sum(map(float, value.values())) == sum(map(float, other.values()))
    assert set(value) == {"ce", "mse"}
    assert float(value["ce"]) == 0
    assert same.loss(output_of(own), batch, alone.setup.student)["mse"] == value["mse"]


def test_alignment_without_images_that_the_teacher_gets_wrong(make: Any) -> None:
    """Only labelled images are left out; unseen classes are neither answers nor texts."""
    method, batch = method_of(make, vlm_ood__align_correct=True)
    assert len(method.near) == 2
    texts = method.classes.texts_KD
    target = torch.stack([texts[0], texts[0], texts[2], texts[0], texts[1]])
    batch = dataclasses.replace(
        batch, teacher=target
    )  # 0 is right, 1 is wrong, 2 is of the unseen class
    own = torch.randn(5, WIDTH)
    kept = [0, 3, 4]
    plain, _ = method_of(make)
    part = dataclasses.replace(batch, teacher=target[kept], labels=batch.labels[kept])
    expected = plain.loss(output_of(own[kept]), part, plain.setup.student)["vlalign"]
    found = method.loss(output_of(own), batch, method.setup.student)["vlalign"]
    torch.testing.assert_close(found, expected)


def test_captions_of_the_images(make: Any, texts: FeatureStore) -> None:
    """A field of the width of the space; a caption is that of the image's own row."""
    method, batch = method_of(make, vlm_ood__caption_field="cls", vlm_ood__caption=1.0)
    rows = method.setup.samples.rows[batch.indices.numpy()]
    expected = torch.from_numpy(texts.gather("cls", rows, views=[0])[:, 0].astype(np.float32))
    torch.testing.assert_close(method._captions(batch), expected)
    assert "caption" in method.loss(output_of(expected), batch, method.setup.student)
    with pytest.raises(ConfigError, match="pixels"):
        method_of(make, vlm_ood__caption_field="pixels", vlm_ood__caption=1.0)
    with pytest.raises(ConfigError, match="caption_field"):
        VLMOODConfig(caption=1.0)
    with pytest.raises(ConfigError, match="0"):
        VLMOODConfig(cls=0, mse=0, cst=0, vlalign=0)
