"""Students of texts: hashed n-grams, rows of translations, pairs, retrieval, and a run of both phases."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import distill
import featstore
from distill.config import DataConfig, StudentConfig
from distill.data import joined
from distill.data.joined import JoinedData
from distill.data.rules import TextRule
from distill.data.schedule import CANONICAL, Request
from distill.data.texts import TextDataset, Translations
from distill.export.finished import read_finished_run
from distill.losses.contrast import symmetric_info_nce
from distill.measures.retrieval import between_languages, mean_recall_at_1, recall
from distill.student.hashed_text import ngrams
from distill.student.model import build_student
from featstore.errors import ConfigError, MissingSamples
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig
from featstore.extraction.run import run as extract
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from tests import texts

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

SMALL = {"buckets": 512, "embed": 8, "hidden": 16, "width": 8, "length": 64}
STUDENT = StudentConfig(name="hashed_text", model_args=SMALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 texts in two languages, and a store of the English ones."""
    folder = tmp_path_factory.mktemp("texts")
    texts.write(folder / "texts.jsonl", texts.rows(72))
    extract(
        ExtractConfig(
            source=SourceConfig(kind="text", path=str(folder / "texts.jsonl"), languages=["en"]),
            teacher=TeacherConfig(
                library="onnx",
                name=str(texts.write_teacher(folder / "teacher.onnx")),
                tokenizer=str(texts.write_vocabulary(folder / "vocab.txt")),
            ),
            store=StoreConfig(path=str(folder / "store"), fields=["pooled"], shard_s=0),
            workers=0,
        ),
        progress=False,
    )
    return folder


def prepare(place: Path, *, table: str = "texts.jsonl", **settings: Any) -> JoinedData:
    values = {
        "labelled": [],
        "unlabelled": ["train/*"],
        "test": ["test/*"],
        "taught_by": "en",
        **settings,
    }
    source = open_source(SourceConfig(kind="text", path=str(place / table)))
    return joined.join_data(source, featstore.open(place / "store"), DataConfig(**values), "pooled")


def test_ngrams_and_their_rows() -> None:
    """Marked words and all their n-grams, in any script; rows are the same everywhere; what is too long is cut."""
    assert ngrams("\uff21b \u72d7", 2) == [
        *("<ab>", "<", "a", "b", ">", "<a", "ab", "b>"),
        *("<\u72d7>", "<", "\u72d7", ">", "<\u72d7", "\u72d7>"),
    ]
    model: Any = build_student(STUDENT, 0).model
    rows = model.encode("ab")
    assert rows[:12].tolist() == [445, 335, 110, 495, 251, 149, 454, 492, 33, 6, 445, 0]
    assert model.encode("x " * 100).shape == (64,)
    assert (model.encode("") == 0).all()


def test_a_text_student() -> None:
    """Its feature is the mean of the rows through the layers, padding left out; with classes it ends in one Linear."""
    torch.manual_seed(0)
    student = build_student(STUDENT, 3)
    model: Any = student.model
    rows = torch.from_numpy(np.stack([model.encode("dog"), model.encode("red dog runs")]))
    out = student(rows)
    known = rows[0][rows[0] > 0]
    expected = model.layers(model.table.weight[known.long()].mean(0))
    torch.testing.assert_close(out.features[0], expected)
    torch.testing.assert_close(out.logits, model.classifier(out.features))
    assert (student.width, student.num_classes, tuple(out.map.shape)) == (8, 3, (2, 8, 1, 1))
    assert build_student(STUDENT, 0).num_classes == 0
    with pytest.raises(ConfigError, match="buckets"):
        build_student(StudentConfig(name="hashed_text", model_args={"buckets": 0}), 0)


def test_a_translation_is_taught_by_the_row_that_the_teacher_read(place: Path) -> None:
    """Both languages get the English row; without ``taught_by`` texts that are not stored are an error."""
    data = prepare(place)
    samples = data.samples
    assert isinstance(data.rule, TextRule)
    assert len(samples.ids) == 144
    for sample_id, stored in zip(samples.ids, samples.stored_ids, strict=True):
        assert stored == sample_id.replace(".xx", ".en")
    with pytest.raises(MissingSamples, match=r"\.xx"):
        prepare(place, taught_by="")
    with pytest.raises(ConfigError, match="fr"):
        prepare(place, taught_by="fr")


def test_texts_that_have_changed_or_lack_a_translation(place: Path) -> None:
    """Named by id, before training."""
    table = texts.rows(72)
    texts.write(place / "changed.jsonl", [{**table[2], "text": "cat"}, *table[:2], *table[3:]])
    with pytest.raises(MissingSamples, match=r"train/001\.en"):
        prepare(place, table="changed.jsonl")
    texts.write(place / "alone.jsonl", [*table[:2], *table[3:]])
    with pytest.raises(MissingSamples, match=r"train/001\.xx"):
        prepare(place, table="alone.jsonl")


def test_translations_and_batches(place: Path) -> None:
    """The strong copy of a text is its translation; pairs of a part are found in both directions."""
    data = prepare(place)
    samples = data.samples
    student = build_student(STUDENT, 0)
    dataset = data.dataset(student)
    assert isinstance(dataset, TextDataset)
    first = samples.ids.index("train/001.en")
    requests = [Request(first, CANONICAL, 0, False, strong) for strong in (0, 1)]
    batch = dataset.__getitems__(requests)
    model: Any = student.model
    shown = [model.encode(row["text"]) for row in texts.rows(72)[2:4]]
    assert batch.pixels.numpy().tolist() == np.stack(shown).tolist()
    assert batch.requests[:, 3].tolist() == [0, 1]
    test = samples.groups["test"]
    found = Translations(samples).between(test)
    assert sorted(found) == [("en", "xx"), ("xx", "en")]
    for (language, other), rows in found.items():
        assert len(rows) == 12
        ids = [[samples.ids[test[row]] for row in pair] for pair in rows.tolist()]
        assert all(a.replace(f".{language}", f".{other}") == b for a, b in ids)


def test_students_of_the_other_kind(place: Path) -> None:
    """A student of images is refused for texts."""
    with pytest.raises(ConfigError, match="hashed_text"):
        prepare(place).dataset(build_student(StudentConfig(name="wide_resnet28_2"), 0))


def test_symmetric_info_nce() -> None:
    """By hand; rows of the same pair are no negatives."""
    one, other = torch.eye(3)[:2], torch.tensor([[1.0, 0, 0], [0, 3, 0]])
    apart = torch.zeros(2, 2, dtype=torch.bool)
    expected = F.cross_entropy(torch.tensor([[2.0, 0]]), torch.tensor([0]))
    found = symmetric_info_nce(one, other, apart, temperature=0.5)
    torch.testing.assert_close(found, expected)
    assert float(symmetric_info_nce(one, other, ~apart, temperature=0.5)) == 0
    with pytest.raises(ValueError, match="symmetric_info_nce"):
        symmetric_info_nce(one, other, apart[:1], temperature=0.5)


def test_recall_between_languages() -> None:
    """By hand: the right item is first, second and last."""
    items = torch.eye(4)
    queries = torch.tensor([[1.0, 0, 0, 0], [2, 1, 0, 0], [4, 3, 1, 2], [0, 0, 0, 1]])
    assert recall(queries, items) == {"recall_at_1": 0.5, "recall_at_5": 1.0, "recall_at_10": 1.0}
    right = torch.eye(4, dtype=torch.bool)
    right[2, 0] = True  # the nearest of query 2 is right, too
    assert recall(queries, items, right)["recall_at_1"] == 0.75
    own = torch.eye(4, dtype=torch.bool)
    assert recall(queries, items, own, ~own & (torch.arange(4) > 0))["recall_at_1"] == 0.75
    features = torch.cat([queries, items])
    pairs = {("en", "xx"): np.array([[row, row + 4] for row in range(4)])}
    found = between_languages(features, features.flip(0), features.flip(0), pairs)
    assert found["en -> xx"]["recall_at_1"] == 0.5
    assert sorted(found) == ["en -> stored xx", "en -> xx"]
    assert mean_recall_at_1(found) == {"translation_recall_at_1": 0.5}
    assert mean_recall_at_1({}) == {}


def settings(place: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "store": place / "store",
        "images": place / "texts.jsonl",
        "student": {"name": "hashed_text", "model_args": SMALL},
        "methods": ["fitnet"],
        "task": "none",
        "field": "pooled",
        "out": out,
        "data": {"unlabelled": ["train/*"], "test": ["test/*"], "taught_by": "en"},
        "train": {"epochs": 2, "min_epoch_steps": 0, "workers": 0, "unlabelled_batch": 16},
        **changes,
    }


@pytest.mark.slow
def test_both_phases(place: Path, tmp_path: Path) -> None:
    """Distilled against stored English, both languages are measured; the student loads and encodes; no export."""
    run = distill.run(**settings(place, tmp_path, partner="pairs", pairs={"share": 0.5}))[0]
    measured = json.loads((run.folder / "evaluation.json").read_text())
    assert set(measured["translations"]) == {
        "en -> xx", "xx -> en", "en -> stored xx", "xx -> stored en",
    }  # fmt: skip
    assert 0 <= measured["translation_recall_at_1"] <= 1
    model: Any = distill.load_student(run)
    rows = torch.from_numpy(model.encode("red dog"))[None]
    assert model(rows).shape == (1, 8)
    assert distill.evaluate(run)["translations"] == measured["translations"]
    with pytest.raises(ConfigError, match="load_student"):
        distill.export_student(run)
    with pytest.raises(ConfigError, match="load_student"):
        _ = read_finished_run(run.folder).rule


def test_pairs_without_pairs(place: Path, tmp_path: Path) -> None:
    """One language, or a share that leaves none: an error before training. Partners of classes stay refused."""
    one = {"unlabelled": ["train/*.en"], "test": ["test/*"], "taught_by": "en"}
    with pytest.raises(ConfigError, match="pair"):
        distill.run(**settings(place, tmp_path / "a", partner="pairs", data=one))
    with pytest.raises(ConfigError, match="share 0"):
        distill.run(**settings(place, tmp_path / "b", partner="pairs", pairs={"share": 0.0}))
    with pytest.raises(ConfigError, match="fixmatch"):
        distill.run(**settings(place, tmp_path / "c", partner="fixmatch"))
