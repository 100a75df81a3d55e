"""Texts that are in training and test: found by content, dropped from training, and reported for a store."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featstore
from distill.config import DataConfig
from distill.data.join_samples import join_samples
from distill.data.split_parts import split_parts
from featstore.cli.main import main
from featstore.format.ids import content_sha256
from featstore.sources import open_source
from featstore.sources.base import Source
from featstore.sources.config import SourceConfig

CODE = "if (!msg.sender.call.value(x)()) throw;"

TEXTS = {
    "train/0": (CODE, "bad"),
    "train/1": ("balances[to] += x;", "good"),
    "train/2": (f"  {CODE.upper()}\n\n", "bad"),
    "train/3": ("selfdestruct(owner);", "bad"),
    "test/0": (CODE, "bad"),
    "test/1": ("balances[to]   += x ;", "good"),
    "test/2": ("owner.transfer(1);", "good"),
}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Seven snippets: train/0 and train/2 are copies of test/0; train/1 has other words than test/1."""
    rows: list[dict[str, Any]] = [
        {"id": name, "text": text, "label": label} for name, (text, label) in TEXTS.items()
    ]
    path = tmp_path / "snippets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_source(SourceConfig(kind="text", path=str(path)))


def write_store(source: Source, folder: Path) -> featstore.FeatureStore:
    values = np.random.default_rng(0).normal(size=(len(source), 8)).astype(np.float32)
    texts = {name: source.read(row) for row, name in enumerate(source.sample_ids)}
    return featstore.from_arrays(
        folder / "store",
        {"pooled": values},
        source.sample_ids,
        teacher=None,
        content_sha256=lambda name: content_sha256(texts[name]),
    )


@pytest.mark.parametrize("stored", [False, True])
def test_copies_of_test_texts_do_not_train(source: Source, tmp_path: Path, stored: bool) -> None:
    """The same words train on one side only, with a store and without; white space and capitals do not hide a copy."""
    store = write_store(source, tmp_path) if stored else None
    config = DataConfig()
    samples = join_samples(source, store, config)
    part = split_parts(samples, config, 0)
    assert [samples.ids[index] for index in part.labelled] == ["train/1", "train/3"]
    assert any("train/0" in note and "train/2" in note for note in part.notes)


def test_copies_are_held_out_together(source: Source) -> None:
    """A held-out part takes all copies of a text."""
    config = DataConfig(labelled=["*"], holdout=0.5)
    samples = join_samples(source, None, config)
    for seed in range(4):
        part = split_parts(samples, DataConfig(labelled=["*"], holdout=0.5, fold=seed % 2), seed)

        held = {samples.ids[index] for index in part.test} & {"train/0", "train/2", "test/0"}
        assert len(held) in (0, 3)


def test_inspect_reports_the_leak(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, and the ids of test texts whose bytes are in training; as for images."""
    store = write_store(source, tmp_path)
    assert main(["inspect", str(store.path), "--duplicates", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["duplicates"]
    assert found["leak"]
    assert found["exact"] == [["train/0", "test/0"]]
    assert found["overlaps"][0]["exact"] == ["test/0"]
