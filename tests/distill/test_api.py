"""The public functions, the command, and methods of the user's own."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import distill
import featstore
from distill.cli import COMMANDS, main
from distill.config import DistillConfig
from distill.methods import METHODS
from distill.register import options_of
from featstore import FeatureStore
from featstore.cli.schema import given
from featstore.errors import ConfigError
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from tests.distill.stores import draw_images, write_store

PLUGIN = '''
"""A method of a user: cross entropy, and the cosine to the stored feature."""

from dataclasses import dataclass

import distill
import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Options:
    """Mine."""

    weight: float = 1.0
    """Weight of the term."""


class Mine(distill.Method):
    """Cosine distance."""

    Options = Options

    def student_sides(self):
        return {"mine": distill.Side(nn.Linear(self.setup.student_width, self.setup.features.width))}

    def loss(self, output, batch, student):
        ce = nn.functional.cross_entropy(output.logits.float(), batch.labels, ignore_index=-1)
        cosine = 1 - nn.functional.cosine_similarity(output.projected["mine"], batch.teacher).mean()
        return {"ce": ce, "cosine": self.options.weight * cosine}


distill.register_method("mine", Mine)
'''

QUICK: dict[str, Any] = {
    "data": {
        "labels_per_class": 4,
        "labelled": "train/*",
        "unlabelled": "train/*",
        "test": "test/*",
    },
    "student": {"name": "test_convnext", "image_size": 32, "pretrained": False},
    "seeds": 0,
    "train": {
        "epochs": 1,
        "min_epoch_steps": 0,
        "warmup_epochs": 0,
        "labelled_batch": 4,
        "unlabelled_batch": 8,
        "workers": 0,
    },
    "trackers": [],
    "report": False,
}


@pytest.fixture
def plugin(tmp_path: Path) -> Any:
    path = tmp_path / "my_methods.py"
    path.write_text(PLUGIN)
    yield path
    METHODS.pop("mine", None)
    sys.modules.pop("distill_plugin_my_methods", None)


def test_train_load_measure(
    store: FeatureStore, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain arguments, a list of runs with a table; the same call again resumes; the student is a plain model."""
    asked: dict[str, Any] = {
        **QUICK,
        "methods": ["labels", "kd"],
        "kd": {"weight": 2},
        "out": tmp_path / "o",
    }
    runs = distill.run(store, images, progress=False, **asked)
    assert [(run.method, run.seed) for run in runs] == [("labels", 0), ("kd", 0)]
    assert "kd" in runs.table()
    assert runs.best.score == max(run.score for run in runs)
    assert runs[1].record["contract"]["kd"] == {
        "weight": 2.0,
        "temperature": 4.0,
        "target": "probe",
    }
    assert capsys.readouterr().out == ""
    again = distill.run(store, images, progress=False, **asked)
    assert all(run.record["skipped"] for run in again)
    model = distill.load_student(runs[1])
    assert not model.training
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    measured = distill.evaluate(
        runs[1], images, store=store, workers=0, data=QUICK["data"], progress=False
    )
    assert measured["top1"] == pytest.approx(runs[1].record["top1"])


def test_callbacks_follow_the_training(store: FeatureStore, images: Path, tmp_path: Path) -> None:
    """Every line of metrics.jsonl, then the record; an error of one ends the run, which resumes."""
    seen: list[dict[str, Any]] = []

    def fails_once(values: dict[str, Any]) -> None:
        seen.append(values)
        if len(seen) == 1:
            raise KeyError("mine")

    asked: dict[str, Any] = {**QUICK, "methods": "labels", "out": tmp_path / "o", "progress": False}
    with pytest.raises(KeyError, match="mine"):
        distill.run(store, images, callbacks=[fails_once], **asked)
    (run,) = distill.run(store, images, callbacks=[fails_once], **asked)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    own = {"method": "labels", "seed": 0}
    assert seen[1:-1] == [own | line for line in lines]
    assert seen[-1]["score"] == run.record["score"]


def test_wrong_names_are_named(store: FeatureStore, images: Path) -> None:
    """Of settings, methods and folders; before anything is read."""
    with pytest.raises(ConfigError, match=r"--train\.epoch\b.*--train\.epochs"):
        distill.run(store, images, train={"epoch": 3})
    with pytest.raises(ConfigError, match=r"customdk.*customkd"):
        distill.run(store, images, methods="customdk")
    with pytest.raises(ConfigError, match="nowhere"):
        distill.load_student("nowhere")


@pytest.mark.parametrize(
    ("call", "weight", "epochs"),
    [
        ({"images": "PHOTOS"}, 10, 30),
        ({"images": "PHOTOS", "kd": {"weight": 2.0}, "train": {"epochs": 3}}, 2, 3),
        ({"images": "digits"}, 1, 10),
    ],
)
def test_a_call_has_the_settings_of_the_command(
    call: dict[str, Any], weight: float, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of one's own take the recipe that ``distill run`` takes, and the digits theirs."""
    seen: list[DistillConfig] = []

    def train(config: DistillConfig, _: object) -> list[dict[str, Any]]:
        seen.append(config)
        return []

    monkeypatch.setattr("distill.commands.train.run", train)
    distill.run("store", **call)
    (config,) = seen
    assert options_of(config, "kd").weight == weight
    assert config.train.epochs == epochs
    assert config.student.pretrained == ("auto" if call["images"] == "PHOTOS" else False)
    assert "pretrained" not in given(config.student)


@pytest.mark.slow
def test_a_method_of_the_users_own(
    plugin: Path, store: FeatureStore, images: Path, tmp_path: Path
) -> None:
    """Registered by a file; its options work in a call, in a recipe and as flags, and are part of the contract."""
    runs = distill.run(
        store,
        images,
        out=tmp_path / "o",
        methods="mine",
        mine={"weight": 3},
        plugins=str(plugin),
        **QUICK,
    )
    assert runs[0].record["contract"]["mine"] == {"weight": 3.0}
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps({**QUICK, "plugins": "./my_methods.py", "methods": "mine", "store": str(store.path),
                                  "source": {"kind": "folder", "path": str(images)}}))  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "distill", "run", "--config", str(recipe), "--mine.weight", "2", "--out",
         str(tmp_path / "flags")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "flags" / "mine" / "seed0" / "run.json").read_text())
    assert record["contract"]["mine"] == {"weight": 2.0}
    wrong = ["run", "--config", str(recipe), "--mine.wieght", "2"]
    with pytest.raises(SystemExit):
        main(wrong)


def test_names_that_are_taken(plugin: Path) -> None:
    """Methods, partners and settings keep their names; a file that fails says so."""
    from distill.methods.logits import KD

    class Other(KD):
        pass

    for name in ("kd", "dann", "train", "not a name"):
        with pytest.raises(ConfigError, match=name):
            distill.register_method(name, Other)

    class Empty(distill.Method):
        pass

    with pytest.raises(ConfigError, match=r"empty.*terms.*loss.*Empty"):
        distill.register_method("empty", Empty)
    plugin.write_text("import nothing_of_the_kind")
    with pytest.raises(ConfigError, match=r"my_methods.py.*nothing_of_the_kind"):
        distill.run("s", "i", plugins=str(plugin))
    with pytest.raises(ConfigError, match=r"absent.py"):
        distill.run("s", "i", plugins="absent.py")


def test_the_command_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` names all commands; each has its own; an unknown one is status 2."""
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert not caught.value.code
        assert "--" in capsys.readouterr().out
    assert main(["trian"]) == 2


def test_the_common_settings_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Those that each ``--help`` opens with; no more than people read, each with a text."""
    from distill.register import schema
    from featstore.cli.schema import Schema
    from featstore.cli.settings_help import print_help
    from featstore.extraction.config import ExtractConfig

    every: list[Schema[Any]] = [
        schema(),
        *(Schema(kind) for kind in (ExtractConfig, distill.EvaluateConfig, distill.ExportConfig)),
    ]
    for item in every:
        assert set(item.config_class.COMMON) <= item.leaves.keys()
        assert len(item.config_class.COMMON) <= 20
        print_help(item, ["all"], "x")
        shown = capsys.readouterr().out
        assert not re.search(r"\[[CISPM]\]|``|^  --.*\n      \(default", shown, re.M)


def test_help_and_mistakes_come_before_torch(tmp_path: Path) -> None:
    """Of every command and of the options of a method."""
    code = (
        "import sys\nfrom distill.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as error: status = error.code\n"
        "assert 'torch' not in sys.modules\nsys.exit(status)"
    )

    def start(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )

    assert start("run", "--help", "customkd").returncode == 0
    wrong = start("run", "--kd.wieght", "1")
    assert (wrong.returncode, "--kd.weight" in wrong.stderr) == (2, True)
    assert start("run", "--methods", "[customdk]").returncode == 2
    assert start("run", "--dann.gamma", "-1").returncode == 2


def test_all_is_what_is_public() -> None:
    """Every name can be had; no other."""
    assert all(getattr(distill, name) for name in distill.__all__)
    assert not hasattr(distill, "another")
    assert set(distill.__all__) <= set(dir(distill))


def test_a_store_from_arrays_and_a_list_of_ids_teach_a_student(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Features of another program, no content hash, unlabelled images chosen by ``featstore.select``."""
    source = open_source(SourceConfig(kind="folder", path=str(images)))
    generator = np.random.default_rng(0)
    features = {"cls": generator.standard_normal((len(source), 12), dtype=np.float32)}
    featstore.from_arrays(
        tmp_path / "mine",
        features,
        source.sample_ids,
        teacher="mine v1",
        preprocessing=32,
        labels=source.labels,
    )
    ids = tmp_path / "ids.txt"
    featstore.select(tmp_path / "mine", ids, diverse=6, where=["train/*"])
    runs = distill.run(
        tmp_path / "mine",
        images,
        out=tmp_path / "out",
        methods=["fitnet"],
        **{**QUICK, "data": {**QUICK["data"], "unlabelled": f"@{ids}"}},
    )
    assert len(runs) == 1
    assert capsys.readouterr().out.count("no content hash") == 1


@pytest.mark.slow
def test_experiments_with_a_plugin_in_worker_processes(
    plugin: Path, store: FeatureStore, images: Path, tmp_path: Path
) -> None:
    """Workers register the user's methods before they take the first run; options of it can be a grid."""
    settings = {**QUICK, "plugins": "./my_methods.py", "store": str(store.path), "methods": "mine"}
    settings["source"] = {"kind": "folder", "path": str(images)}
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    (tmp_path / "e.yaml").write_text(
        "recipe: recipe.yaml\nout: ./out\nseeds: [0]\ngrid: {mine.weight: [1, 2]}\n"
    )
    assert main(["experiments", "--config", str(tmp_path / "e.yaml"), "--jobs", "2"]) == 0
    found = sorted(path.parts[-4] for path in (tmp_path / "out").rglob("run.json"))
    assert found == ["mine,weight=1", "mine,weight=2"]


def test_a_plain_folder_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No recipe, no part named: the kind follows from the path, a part of every class is held out."""
    folder = draw_images(tmp_path / "my photos", per_class=10, test_per_class=0) / "train"
    source = open_source(SourceConfig(kind="folder", path=str(folder)))
    made = write_store(tmp_path / "my store", source)
    flags = ["--student.name", "test_convnext", "--student.image_size", "32", "--seeds", "0"]
    flags += ["--student.pretrained", "false"]
    flags += ["--train.epochs", "1", "--train.warmup_epochs", "0", "--train.workers", "0"]
    flags += ["--trackers", "[]", "--report", "false", "--out", str(tmp_path / "out")]
    images = ["--source.path", str(folder), "--data.holdout", "0.3", "--methods", "kd"]
    assert main(["run", "--store", str(made.path), *images, *flags]) == 0
    record = json.loads((tmp_path / "out" / "kd" / "seed0" / "run.json").read_text())
    assert record["num_labelled"] + record["num_test"] == 30
    assert record["num_test"] >= 3
    assert record["contract"]["data"]["holdout"] == 0.3
