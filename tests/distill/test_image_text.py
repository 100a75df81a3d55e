"""Students of images and of texts in one space: retrieval by hand, and from captioned photographs to a measurement."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import distill
import featstore
from distill.commands.image_text import SpaceVectors, measure
from featstore.errors import ConfigError
from tests import images, texts
from tests.conftest import ROOT

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")


def embedded(rows: list[list[float]], names: str, languages: str = "") -> SpaceVectors:
    """Samples of images with names of one letter."""
    return SpaceVectors(
        torch.tensor(rows), np.array(list(names)), np.array(list(languages) or [""] * len(rows))
    )


def test_recall_by_hand() -> None:
    """Images a, b, c and texts of a, a, b, and of one that is not measured; c has no text and is left out."""
    pictures = embedded([[1, 0], [0, 1], [1, 1]], "abc")
    words = embedded([[1, 0.1], [0, 1], [0.1, 1], [1, 0]], "aabz", "eefe")
    found = measure((pictures, pictures), (words, words.part(words.languages == "e")))
    assert (found["num_images"], found["num_texts"]) == (2, 3)
    assert {way: value["recall_at_1"] for way, value in found["image_text"].items()} == {
        "e -> image": 0.5, "image -> e": 1.0, "f -> image": 1.0, "image -> f": 1.0,
        "stored e -> image": 0.5, "image -> stored e": 1.0, "stored e -> stored e": 1.0,
    }  # fmt: skip


def test_nothing_in_common() -> None:
    """Other images, or another width."""
    pictures, words = embedded([[1, 0]], "a"), embedded([[1, 0]], "b")
    with pytest.raises(ConfigError, match="column image"):
        measure((pictures, pictures), (words, words))
    wide = embedded([[1, 0, 0]], "a")
    with pytest.raises(ConfigError, match=r"3 dimensions.* 2 dimensions"):
        measure((pictures, pictures), (wide, wide))


def script(*words: object) -> None:
    """Run scripts/flickr8k_photos.py."""
    file = ROOT / "scripts" / "flickr8k_photos.py"
    done = subprocess.run(
        [sys.executable, str(file), *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def captioned_photographs(folder: Path) -> Path:
    """40 photographs, of which 10 are of the part test, with five captions each, as Flickr8k-CN has them."""
    names = [f"{number:03d}_ab" for number in range(40)]
    (folder / "photos").mkdir(parents=True)
    for number, name in enumerate(names):
        (folder / "photos" / f"{name}.jpg").write_bytes(
            images.encode(np.roll(images.gradient(), number, axis=1), "JPEG")
        )
    table = texts.rows(200)
    for language, files in {
        "en": ["enc.caption"],
        "xx": ["zhb.caption", "zhmtest.captions"],
    }.items():
        rows = [row["text"] for row in table if row["language"] == language]
        lines = [
            f"{names[at // 5]}.jpg#{language}#{at % 5} {text}\n" for at, text in enumerate(rows)
        ]
        for name in files:
            (folder / f"flickr8k{name}.txt.gz").write_bytes(gzip.compress("".join(lines).encode()))
    test = "\n".join(names[::4])
    (folder / "flickr8ktest.txt.gz").write_bytes(gzip.compress(test.encode()))
    return folder


@pytest.mark.slow
def test_from_photographs_to_a_measurement(tmp_path: Path) -> None:
    """The script's table and targets, a student of each kind, and both in one space."""
    given, data = captioned_photographs(tmp_path / "given"), tmp_path / "data"
    pacs = tmp_path / "pacs" / "photo"
    for name in ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"):
        (pacs / "train" / name).mkdir(parents=True)
        shutil.copy(given / "photos" / "001_ab.jpg", pacs / "train" / name)
    script("table", given / "photos", given, data, "--pacs", pacs)
    classes = [json.loads(line) for line in (data / "classes.jsonl").read_text().splitlines()]
    assert len(classes) == 300 + 7 * 4 * 2
    assert classes[300]["id"] == "classes/dog#0.en"
    assert classes[300]["label"] == "dog"
    assert len(list((data / "photos" / "classes").glob("*/001_ab.jpg"))) == 7
    rows = [json.loads(line) for line in (data / "texts.jsonl").read_text().splitlines()]
    assert len(rows) == 400
    assert rows[0] == {
        "id": "test/000_ab#0.en", "language": "en", "text": texts.rows(1)[0]["text"], "pair": "000_ab#0",
        "image": "test/000_ab.jpg",
    }  # fmt: skip
    words = featstore.extract(
        data / "texts.jsonl",
        source={"kind": "text", "languages": ["en"]},
        teacher={
            "library": "onnx",
            "name": str(texts.write_teacher(tmp_path / "teacher.onnx")),
            "tokenizer": str(texts.write_vocabulary(tmp_path / "vocab.txt")),
        },
        out=tmp_path / "texts",
        fields=["pooled"],
        workers=0,
        progress=False,
    )
    script("targets", data / "texts.jsonl", tmp_path / "texts", tmp_path / "images")
    store = featstore.open(tmp_path / "images")
    assert (store.num_rows, len(store.manifest.views)) == (40, 16)
    members = words.rows_of([f"test/000_ab#{number}.en" for number in range(5)])
    own = np.asarray(words.gather("pooled", members), np.float32)[:, 0]
    expected = (own / np.linalg.norm(own, axis=1, keepdims=True)).mean(0)
    found = store.gather("captions", store.rows_of(["test/000_ab.jpg"]))[0]
    np.testing.assert_allclose(found, np.tile(expected, (16, 1)), rtol=1e-5)

    common: dict[str, Any] = {
        "task": "none", "methods": ["fitnet"], "seeds": 0, "trackers": [], "report": False, "progress": False,
        "train": {"epochs": 2, "min_epoch_steps": 0, "workers": 0, "unlabelled_batch": 16},
    }  # fmt: skip
    parts = {"unlabelled": ["train/*"], "test": ["test/*"]}
    small = {"buckets": 512, "embed": 8, "hidden": 16, "width": 8, "length": 64}
    reader = distill.run(
        tmp_path / "texts", data / "texts.jsonl", student={"name": "hashed_text", "model_args": small},
        field="pooled", out=tmp_path / "read", data={**parts, "taught_by": "en"}, **common,
    ).best  # fmt: skip
    viewer = distill.run(
        store, data / "photos", student={"name": "test_convnext", "image_size": 32, "pretrained": False},
        field="captions", out=tmp_path / "view", data=parts, fitnet={"contrast": 1.0}, **common,
    ).best  # fmt: skip
    measured = distill.evaluate(viewer, texts=str(reader.folder), workers=0)
    assert (measured["num_images"], measured["num_texts"]) == (10, 100)
    assert set(measured["image_text"]) == {
        "en -> image", "image -> en", "zh -> image", "image -> zh", "stored en -> image", "image -> stored en",
        "stored en -> stored en",
    }  # fmt: skip
    assert all(
        0 <= value["recall_at_1"] <= value["recall_at_10"] <= 1
        for value in measured["image_text"].values()
    )
    assert json.loads((viewer.folder / "image_text.json").read_text()) == measured
    for number, row in enumerate(
        rows
    ):  # without the column, a text is one of the images of its class
        row["label"] = "test" if number % 2 else "none"
        del row["image"]
    texts.write(data / "texts.jsonl", rows)
    measured = distill.evaluate(viewer, texts=str(reader.folder), workers=0)
    assert (measured["num_images"], measured["num_texts"]) == (10, 50)
    assert set(measured["image_text"]) == {"zh -> image", "image -> zh"}
    with pytest.raises(ConfigError, match="--texts"):
        distill.evaluate(viewer, texts=str(reader.folder), backbone=True)
