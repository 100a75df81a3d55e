"""``distill search``: limits, files, resume, comparison with finished runs, and what is refused."""

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill import cli
from distill.config import RECIPES, DataConfig, DistillConfig, StudentConfig
from distill.measures.score import TOP1
from distill.register import kinds
from distill.search import search
from distill.search.bench import Bench
from distill.search.config import LimitConfig, ProbeConfig, SearchConfig
from distill.search.found import Cost
from distill.search.judge import Trained, compare, kendall, regret
from distill.search.probe import Probe
from distill.search.scores import SCORES
from featstore.cli.recipe import parse
from featstore.errors import ConfigError
from tests.conftest import ROOT
from tests.distill.conftest import MakeConfig

ARGS: dict[str, Any] = {
    "stem_width": 8,
    "layers": [1, 1, 1, {"range": [1, 2]}],
    "channels": {"one_of": [[8, 8, 8, 8], [8, 8, 8, 24]]},
}
SPACE = {"resnet": {"name": "resnet10t", "image_size": 32, "model_args": ARGS}}


@pytest.fixture
def settings(make_config: MakeConfig, tmp_path: Path) -> dict[str, Any]:
    """Of a search over the small store; four students, two of the teacher's width."""
    config = make_config()
    return {
        "store": config.store, "source": config.source, "data": config.data, "out": str(tmp_path / "search"),
        "space": SPACE, "probe": ProbeConfig(images=6),
    }  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_search_prints_the_costs(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Parameters and MACs stand beside every score, in the table and the files; the next command parses."""
    found = search.run(SearchConfig(**settings))
    assert len(found) == 4
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    text = capsys.readouterr().out
    for item in found:
        assert f"{item.cost.parameters:,}  " in text
        assert f"{item.cost.macs:,}" in text
    out = Path(settings["out"])
    assert [int(row["parameters"]) for row in rows(out / "search.csv")] == [
        item.cost.parameters for item in found
    ]
    assert json.loads((out / "search.json").read_text())["student"]["name"] == "resnet10t"
    words = shlex.split(text.split("next: ")[1])
    flags = words[next(n for n, word in enumerate(words) if word.startswith("--")) :]
    config = parse(DistillConfig, default_recipe=RECIPES / "distill.yaml", argv=flags, extend=kinds)
    assert config.student == found[0].student
    assert (config.source, config.data) == (settings["source"], settings["data"])


def test_resume(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A second search scores nothing again, also after its file was cut off; other settings do."""
    config = SearchConfig(**settings)
    first = search.run(config)
    path = Path(config.out) / search.SCORED
    *whole, last = path.read_text().splitlines()
    path.write_text("\n".join([*whole, last[:-9]]))
    scored: list[StudentConfig] = []
    scores = Bench.scores

    def counted(self: Bench, student: StudentConfig, *args: Any) -> Any:
        scored.append(student)
        return scores(self, student, *args)

    monkeypatch.setattr(Bench, "scores", counted)
    assert search.run(config) == first
    assert search.run(config) == first
    assert len(scored) == 1
    search.run(SearchConfig(**settings | {"score": "semantic_ours"}))
    assert len(scored) == 5
    text = path.read_text()
    for damaged in ("{}\n" + text, text.replace('"macs": ', '"macs": 1', 1)):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match=r"scored\.jsonl: line 1 "):
            search.run(config)


def test_limits(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Students above a limit are left out, also above a measured latency."""
    found = search.run(SearchConfig(**settings))
    sizes = sorted(item.cost.parameters for item in found)
    limit = LimitConfig(parameters=sizes[1])
    fit = search.run(SearchConfig(**settings | {"limit": limit}))
    assert sorted(item.cost.parameters for item in fit) == sizes[:2]
    assert [item for item in found if item.cost.parameters <= sizes[1]] == fit
    monkeypatch.setattr(Bench, "latency_ms", lambda _, config: float(len(str(config.model_args))))
    most = min(len(str(item.student.model_args)) for item in found)
    fast = search.run(SearchConfig(**settings | {"limit": LimitConfig(latency_ms=most)}))
    assert {item.cost.latency_ms for item in fast} == {most}


@pytest.mark.slow
def test_latency_is_measured(settings: dict[str, Any]) -> None:
    """Of the student as ONNX, in this process."""
    space = {
        "one": {"name": "resnet10t", "image_size": 32, "model_args": {"channels": [8, 8, 8, 8]}}
    }
    given = settings | {"space": space, "limit": LimitConfig(latency_ms=1e4)}
    (found,) = search.run(SearchConfig(**given))
    assert found.cost.latency_ms is not None
    assert 0 < found.cost.latency_ms < 1e4


def test_no_student_fits(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is scored, with the smallest student and the limit; whether or not the space is small."""

    def fail(*_: Any) -> Any:
        raise AssertionError("scored")

    for name in ("scores", "latency_ms"):
        monkeypatch.setattr(Bench, name, fail)
    for tries in (100, 2):
        with pytest.raises(ConfigError, match=r"layers\.3=1 channels=\[8,8,8,8\].*1,000 MACs"):
            search.run(SearchConfig(**settings | {"limit": LimitConfig(macs=1000), "tries": tries}))


def test_what_cannot_be_built_or_scored(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Such students are left out and named; if it is all of them, the command ends."""
    found = search.run(SearchConfig(**settings | {"score": "semantic"}))
    assert {item.student.model_args["channels"][-1] for item in found} == {24}
    assert "2 students left out" in capsys.readouterr().out
    narrow = {"resnet": {**SPACE["resnet"], "model_args": {**ARGS, "channels": [8, 8, 8, 8]}}}
    with pytest.raises(ConfigError, match=r"8 channels.*24"):
        search.run(SearchConfig(**settings | {"score": "semantic", "space": narrow}))
    unknown = {"resnet": {**SPACE["resnet"], "model_args": {"no_such_argument": 1}}}
    with pytest.raises(ConfigError, match="no_such_argument"):
        search.run(SearchConfig(**settings | {"space": unknown}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"score": "relations"}, "semantic_ours"),
        ({"space": {}}, "against"),
        ({"tries": 0}, "tries"),
        ({"probe": {"images": 1}}, "images 1"),
        ({"limit": {"macs": -1}}, "macs"),
    ],
)
def test_bad_settings(changes: dict[str, Any], named: str) -> None:
    """Each is named before anything heavy is loaded."""
    sections = {"probe": ProbeConfig, "limit": LimitConfig}
    with pytest.raises(ConfigError, match=named):
        SearchConfig(
            **{"space": SPACE}
            | {n: sections[n](**v) if n in sections else v for n, v in changes.items()}
        )


def test_too_few_images(settings: dict[str, Any]) -> None:
    """Twelve labelled images are no batch of 64, nor a batch of all and a classifier."""
    with pytest.raises(ConfigError, match="only 12"):
        search.run(SearchConfig(**settings | {"probe": ProbeConfig(images=64)}))
    with pytest.raises(ConfigError, match="two classes"):
        search.run(SearchConfig(**settings | {"probe": ProbeConfig(images=12)}))


def test_without_labels(settings: dict[str, Any]) -> None:
    """The relation needs none; the semantic score says that it does."""
    settings |= {"data": DataConfig(labelled=[], unlabelled=["train/*"], test=["test/*"])}
    assert len(search.run(SearchConfig(**settings))) == 4
    with pytest.raises(ConfigError, match="label"):
        search.run(SearchConfig(**settings | {"score": "semantic_ours"}))


def test_the_probe_batch(settings: dict[str, Any], tmp_path: Path) -> None:
    """Written once and read again; a damaged file is named."""
    search.run(SearchConfig(**settings))
    (path,) = Path(settings["out"]).glob("probe-*.safetensors")
    probe = Probe.read(path)
    assert (len(probe.ids), probe.relations_BB.shape) == (6, (6, 6))
    assert all(item.startswith("train/") for item in probe.ids)
    assert probe.gradient_KD is not None
    assert probe.gradient_KD.shape == (3, 24)
    assert torch.allclose(probe.gradient_KD.sum(0), torch.zeros(24), atol=1e-5)
    probe.write(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    content = path.read_bytes()
    (Path(settings["out"]) / search.SCORED).unlink()
    flipped = bytearray(content)
    flipped[-1] ^= 1
    for damaged in (content[:-40], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=path.name):
            search.run(SearchConfig(**settings))


def trained(name: str, reached: list[float], parameters: int, score: Any) -> Trained:
    return Trained(name, reached, Cost(parameters, parameters), {"relation": score})


def test_comparison_by_hand() -> None:
    """Six students; within the two bins the score has one pair the wrong way round, over all two of fifteen."""
    students = [
        trained("a", [0.1], 10, [1.0, 4.0]),
        trained("b", [0.2], 11, [2.0, 1.0]),
        trained("c", [0.3, 0.5], 12, [4.0, 4.0]),
        trained("d", [0.5], 20, [5.0, 5.0]),
        trained("e", [0.6], 21, [7.0, 7.0]),
        trained("f", [0.7], 22, [6.0, 6.0]),
        trained("g", [0.9], 22, "no score"),
    ]
    found = compare(students, "relation", TOP1, bins=2)
    assert found["students"] == 6
    assert found["tau"] == pytest.approx((13 - 2) / 15)
    assert found["tau_bins"] == pytest.approx(1 / 3)
    assert found["regret"] == pytest.approx(0.1)
    assert found["regret_bins"] == pytest.approx(0.05)
    assert found["tau_low"] <= found["tau"] <= found["tau_high"]


def test_tau_and_regret() -> None:
    """Equal scores: no tau, and the mean of those that could be picked."""
    up, flat = np.arange(4.0), np.ones(4)
    assert (kendall(up, up), kendall(up, -up)) == (1, -1)
    assert np.isnan(kendall(flat, up))
    assert regret(flat, up) == 1.5
    assert regret(-up, up) == 3


@pytest.mark.slow
def test_scores_against_finished_runs(
    settings: dict[str, Any], make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three students are trained by the ordinary command, one with two seeds; every score is compared."""
    from distill.commands import train

    out = Path(settings["out"]).parent
    changes = {"train__epochs": 1, "methods": ["labels"]}
    for number, channels in enumerate(([8, 8, 8, 8], [8, 8, 8, 24], [16, 16, 16, 24])):
        args = {**ARGS, "layers": [1, 1, 1, 1], "channels": channels}
        student = StudentConfig(name="resnet10t", image_size=32, model_args=args)
        seeds = [0, 1] if number == 0 else [0]
        train.run(
            make_config(
                **changes, student=student, seeds=seeds, out=str(out / "runs" / str(number))
            )
        )
    given = settings | {"space": {}, "against": str(out / "runs"), "bins": 1}
    search.run(SearchConfig(**given))
    assert {row["score"]: row["students"] for row in rows(Path(given["out"]) / "scores.csv")} == {
        name: "2" if name in ("semantic", "diswot") else "3" for name in SCORES
    }
    students = rows(Path(given["out"]) / "students.csv")
    assert sorted(row["seeds"] for row in students) == ["1", "1", "2"]
    assert all(int(row["parameters"]) > 0 and int(row["macs"]) > 0 for row in students)
    assert "tau within bins" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="1 student"):
        search.run(SearchConfig(**given | {"against": str(out / "runs" / "0")}))


def test_recipes_parse() -> None:
    """Both searches; their spaces hold students, and the one of DisWOT those of its experiment."""
    from distill.experiments.plan import rows_of
    from distill.experiments.spec import read_experiment
    from distill.search.space import Space

    for path in (RECIPES / "search.yaml", ROOT / "pipelines/recipes/diswot/search.yaml"):
        config = parse(SearchConfig, default_recipe=path, argv=[])
        space = Space(config.space)
        assert space.size > config.tries
    experiment = read_experiment(ROOT / "pipelines/recipes/diswot/experiment.yaml")
    assert len(rows_of(experiment)) == 24
    choices = {tuple(space.student(item).model_args["channels"]) for item in space}
    named = experiment.grid[1].choices.values()
    assert {tuple(item["student.model_args.channels"].plain()) for item in named} == choices


def test_the_command_exists(capsys: pytest.CaptureFixture[str]) -> None:
    """``distill search --help`` shows its settings."""
    with pytest.raises(SystemExit):
        cli.main(["search", "--help"])
    assert "--limit.parameters" in capsys.readouterr().out
