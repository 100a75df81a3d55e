"""kd towards stored logits: the loss by hand, images that need no row, and fields that do not fit."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featstore
from distill.commands.train import prepare_runs, run
from distill.config import DistillConfig, TeacherConfig
from distill.data.pictures import Batch
from distill.methods.logits import KD
from featstore.errors import ConfigError, MissingSamples
from featstore.format.manifest_records import PreprocessingRecord, TeacherRecord
from featstore.sources.decode import DECODE_RULE
from tests.conftest import ROOT
from tests.distill.bench import Bench
from tests.distill.conftest import MakeConfig
from tests.distill.stores import CLASSES

TRANSFER = "train/*/00[0-5].png"
PRIVATE = "train/*/00[6-9].png"


def soft_labels(
    folder: Path,
    images: Path,
    *,
    classes: list[str] | None = None,
    width: int = 3,
    kind: str = "logits",
) -> Path:
    """A store of a team's logits for the transfer images alone."""
    paths = sorted(images.glob(TRANSFER))
    values = np.random.default_rng(0).normal(size=(len(paths), width)).astype(np.float32)
    if kind != "logits":
        values = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    teacher = TeacherRecord(
        library="external",
        name="team",
        weights_sha256="0" * 64,
        precision="fp32",
        preprocessing=PreprocessingRecord(
            size=(32, 32),
            crop_pct=1.0,
            crop_mode="center",
            interpolation="bicubic",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            decode=DECODE_RULE,
        ),
        model_args={} if classes is None else {"class_names": classes},
    )
    out = folder / f"{kind}{width}"
    featstore.from_arrays(
        out,
        {"logits": np.log(values) if kind == "log" else values},
        [path.relative_to(images).as_posix() for path in paths],
        teacher=teacher,  # type: ignore[arg-type]
        content_sha256=lambda name: hashlib.sha256((images / name).read_bytes()).digest(),
    )
    return out


def kd_config(make_config: MakeConfig, store: Path, **changes: Any) -> DistillConfig:
    """Private labelled images, a shared transfer set, test images: only the transfer set has rows."""
    config = make_config(
        store=str(store),
        field="logits",
        methods=["kd"],
        data__labelled=[PRIVATE],
        data__labels_per_class=0,
        data__unlabelled=[TRANSFER],
        data__stored="unlabelled",
        kd__target="field",
    )
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize("stored", ["all", "unlabelled"])
def test_the_loss_by_hand(
    make_config: MakeConfig, images: Path, tmp_path: Path, stored: Any
) -> None:
    """T^2 KL(softmax(z / T) || softmax(own / T)), equal for logits and their log-probabilities."""
    config = make_config(
        store=str(soft_labels(tmp_path, images)),
        field="logits",
        methods=["kd"],
        data__labelled=[TRANSFER],
        data__labels_per_class=2,
        data__unlabelled=[TRANSFER],
        data__test=["train/*/00[45].png"],
        data__stored=stored,
        kd__target="field",
        kd__temperature=2.0,
        kd__weight=3.0,
    )
    bench = Bench(config, "kd")
    method, output = bench.method, bench.output()
    assert isinstance(method, KD)
    target = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [4, 2, 0], [1, 1, 1]])

    def term(values: torch.Tensor) -> float:
        batch: Batch = dataclasses.replace(bench.batch, teacher=values)
        return float(method.loss(output, batch, bench.student)["logits"].detach())

    first = 3 if stored == "unlabelled" else 0  # three labelled images come first
    own = output.logits[first:].detach().double().numpy() / 2
    p = np.exp(target[first:].double().numpy() / 2)
    p, q = p / p.sum(1, keepdims=True), np.exp(own) / np.exp(own).sum(1, keepdims=True)
    expected = 3 * 4 * (p * np.log(p / q)).sum(1).mean()
    assert term(target) == pytest.approx(expected, rel=1e-5)
    assert term(target.log_softmax(1)) == pytest.approx(expected, rel=1e-5)
    assert term(target.softmax(1)) != pytest.approx(expected, rel=1e-2)  # why they are refused


def test_images_without_a_row_train_and_are_measured(
    make_config: MakeConfig, images: Path, tmp_path: Path
) -> None:
    """Labels of the private images, soft labels of the others; the same run without --data.stored names the images."""
    store = soft_labels(tmp_path, images)
    config = kd_config(make_config, store, methods=["labels", "kd"], report=True)
    records = run(config)
    assert [record["num_labelled"] for record in records] == [12, 12]
    assert "teacher_probe_top1" not in records[1]
    assert records[1]["reference"] is None
    lines = (Path(config.out) / "kd" / "seed0" / "metrics.jsonl").read_text().splitlines()
    assert any("loss/logits" in json.loads(line) for line in lines)
    stored = dataclasses.replace(config.data, stored="all")
    with pytest.raises(MissingSamples, match="test/left"):
        run(dataclasses.replace(config, data=stored))
    other = dataclasses.replace(config.data, unlabelled=["train/*"])
    with pytest.raises(MissingSamples, match="train/left/006"):  # unlabelled images need a row
        run(dataclasses.replace(config, data=other))


def test_copies_of_test_images_without_a_row_do_not_train(
    make_config: MakeConfig, images: Path, tmp_path: Path
) -> None:
    """Their bytes are compared as well."""
    config = kd_config(make_config, soft_labels(tmp_path, images))
    _, data = prepare_runs(config)
    assert data.samples.hashes is not None
    assert data.samples.hashes.any(axis=1).all()
    test, labelled = data.samples.groups["test"], data.samples.groups["labelled"]
    data.samples.hashes[labelled[0]] = data.samples.hashes[test[0]]
    assert len(data.split(0).labelled) == len(labelled) - 1


@pytest.mark.parametrize(
    ("team", "changes", "words"),
    [
        ({"width": 4}, {}, ["4", "3", "left"]),
        ({"classes": ["right", "left", "top"]}, {}, ["right", "left"]),
        ({"kind": "probabilities"}, {}, ["probabilities"]),
        ({}, {"methods": ["labels", "fitnet"]}, ["fitnet", "unlabelled"]),
        ({}, {"partner": "freematch"}, ["freematch"]),
        ({}, {"teachers": "the same"}, ["2 teachers"]),
    ],
)
def test_what_does_not_fit(
    make_config: MakeConfig,
    images: Path,
    tmp_path: Path,
    team: dict[str, Any],
    changes: dict[str, Any],
    words: list[str],
) -> None:
    """Other numbers or orders of classes, probabilities, and methods that read all rows, before any training."""
    path = soft_labels(tmp_path, images, **team)
    if "teachers" in changes:
        changes = {"teachers": [TeacherConfig(store=str(path), field="logits")]}
    config = kd_config(make_config, path, **changes)
    with pytest.raises(ConfigError) as caught:
        run(config)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not Path(config.out).exists()


def test_equal_class_names_fit(make_config: MakeConfig, images: Path, tmp_path: Path) -> None:
    """Class names in the manifest that are those of the labels."""
    prepare_runs(kd_config(make_config, soft_labels(tmp_path, images, classes=list(CLASSES))))


@pytest.mark.slow
def test_rounds_of_teams(images: Path, store: featstore.FeatureStore, tmp_path: Path) -> None:
    """scripts/knfu.py: two teams, two rounds; each learns from its own column; the second call resumes."""
    script, out = ROOT / "scripts" / "knfu.py", tmp_path / "out"
    command = [sys.executable, str(script), str(images), str(store.path), str(out)]
    command += [
        "--teams",
        "2",
        "--rounds",
        "2",
        "--seeds",
        "0",
        "--team-images",
        "6",
        "--test-images",
        "4",
    ]
    command += ["--transfer", "8", "--steps", "4", "--batch", "2", "--dirichlet", "5"]
    command += ["--rules", "uniform", "knfu:0", "knfu:10"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    table = (out / "alma.csv").read_text().splitlines()
    rows = {line.split(",")[0]: line.split(",")[2:] for line in table[1:]}
    assert rows.keys() == {"first", "uniform", "knfu:0", "knfu:10"}
    assert rows["knfu:0"] == rows["uniform"]
    here = out / "seed0" / "knfu_10" / "round1"
    described = json.loads((here / "team1" / "kd" / "seed0" / "config.json").read_text())
    assert described["teacher"]["field"] == "fused.team1_logits"
    fused = featstore.open(here / "fused")
    assert fused.num_rows == 8
    assert fused.manifest.teacher_of("fused.team0_logits").model_args["class_names"] == list(
        CLASSES
    )
