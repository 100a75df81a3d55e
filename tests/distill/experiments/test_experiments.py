"""Experiments: the file, the rows it asks for, runs that are shared, interrupted or failed, tuning, workers."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.evaluation.predictions import read_predictions as read_predictions
from distill.experiments import command
from distill.experiments.cli import main, parse
from distill.experiments.cost import ExperimentCost, store_cost
from distill.experiments.plan import Planner, baseline_of, rows_of
from distill.experiments.pool import Failure, OnProgress
from distill.experiments.runs_to_do import RunsToDo
from distill.experiments.spec import read_experiment
from distill.experiments.table import cost_lines
from distill.experiments.tune import DIVERGED, choose_try
from distill.experiments.worker import RunWorker
from featstore import FeatureStore
from featstore.errors import ConfigError, StoreBusy
from featstore.files.locks import LOCK_NAME, FileLock
from tests.distill.conftest import MakeConfig
from tests.distill.pool_work import alive, children, wait_for

ROOT = Path(__file__).resolve().parents[3]

RECIPES = ROOT / "pipelines" / "recipes"
FILES = [
    path
    for path in sorted(
        {*RECIPES.glob("**/experiment*.yaml"), *RECIPES.glob("**/experiments/*.yaml")}
    )
    if path.name != "recipe.yaml"
]
"""Experiments that come with the project; the recipe.yaml beside some is what they have in common."""

Write = Callable[..., Path]


@pytest.fixture
def write(make_config: MakeConfig, tmp_path: Path) -> Write:
    """Writes recipe.yaml (two or three steps per run) and, beside it, an experiment file."""
    values = make_config(train__epochs=1, data__cache_mb=8).plain()
    names = ("store", "source", "data", "student", "methods", "train", "eval", "trackers")
    recipe = {name: values[name] for name in names} | {"report": False}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def make(text: str, *, head: str = "recipe: recipe.yaml\nout: ./out\n") -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_text(head + text)
        return path

    return make


def start(path: Path, **options: Any) -> int:
    """The command, in this process."""
    return main(path, jobs=1, **options)


def todo_of(path: Path, **flags: Any) -> RunsToDo:
    experiment = read_experiment(path, flags)
    return RunsToDo(experiment, Planner(experiment))


def results(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((path.parent / "out" / "results.json").read_text())
    return values


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [0]", r"experiment.yaml:3"),
        ("seeds: [0, 0]", r":3.*\b0\b.*\b0\b"),
        ("out: x", r":3.*\b2\b"),
        ("variants: [labels]", ":3"),
        ("variants: {a/b: {}}", r":3.*variants.a/b"),
        ("variants:\n  kd:\n    kd.weigth: 1", r":5.*kd.weigth.*kd.weight"),
        ("variants:\n  kd: {kd: {weight: 1}, kd.weight: 2}", r":4.*kd.weight"),
        ("variants:\n  kd: {seeds: [1]}", r":4.*variants.kd.seeds"),
        ("variants:\n  kd: {search: [{kd.weight: 1}]}", r":4.*variants.kd.search"),
        ("grid:\n  train.lr: 3", r":4.*grid.train.lr.*\b3\b"),
        ("grid:\n  train.lr: [1, 1]", r":4.*grid.train.lr"),
        ("grid:\n  data.test: [a/b]", r":4.*grid.data.test.*'a/b'"),
        ("grid: {methods: [kd]}", r":3.*grid.methods"),
        ("tune: {budget: some}", r":3.*tune.budget.*'some'"),
        ("tune: {budget: 2}", r"variants.customkd.search.*\b0\b.*\b2\b"),
        ("recipe: [", r"not valid YAML"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_by_file_and_line(write: Write, text: str, message: str) -> None:
    """What was found, what was expected, and where."""
    head = "" if text.startswith("recipe") else "recipe: recipe.yaml\nout: ./out\n"
    with pytest.raises(ConfigError, match=message):
        read_experiment(write(text, head=head))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels: {methods: [labels]}\n  z: {train.lr: fast}", r":5.*train.lr.*fast.*\bz\b"),
        ("z: {train: {epochs: 0}}", r":4.*--train.epochs 0\b.*\bz\b"),
        ("z: {methods: [labels, kd]}", ":4"),
        ("z: {store: nowhere}", r"nowhere"),
        ("labels: {methods: [labels]}\nbaseline: kd", "'kd'"),
    ],
)  # fmt: skip
def test_every_row_is_checked_before_any_is_started(
    write: Write, text: str, message: str, tmp_path: Path
) -> None:
    """A wrong value in the last row, and nothing was written."""
    with pytest.raises(Exception, match=message):
        start(write(f"variants:\n  {text}\n"))
    assert not (tmp_path / "out").exists()


def test_the_data_are_checked_before_any_run_is_started(write: Write, tmp_path: Path) -> None:
    """More labels per class than there are, in the last row."""
    path = write("grid: {data.labels_per_class: [4, 400]}")
    with pytest.raises(ConfigError, match=r"labels_per_class=400.*\b0\b"):
        start(path)
    assert not list((tmp_path / "out").rglob("seed*"))


def test_rows_are_variants_times_grid(write: Write, tmp_path: Path) -> None:
    """Names, settings, order of precedence (recipe, variant, grid, flags), and the baseline in the same cell."""
    path = write(
        "variants:\n  a: {methods: [labels], train.lr: 1e-2}\n  b: {methods: [kd], train: {lr: 0.1}}\n"
        "grid:\n  data.labels_per_class: [1, 4]\n  train: {slow: {epochs: 2}, fast: {lr: 1}}\nbaseline: a\n"
    )
    experiment = read_experiment(path, {"train.warmup_epochs": 0, "seeds": [7]})
    rows = rows_of(experiment)
    assert [row.name for row in rows[:4]] == [
        "a,labels_per_class=1,train=slow", "a,labels_per_class=1,train=fast",
        "a,labels_per_class=4,train=slow", "a,labels_per_class=4,train=fast",
    ]  # fmt: skip
    planner = Planner(experiment)
    configs = [planner.run(row, 7).config for row in rows]
    assert [config.train.lr for config in configs] == [0.01, 1, 0.01, 1, 0.1, 1, 0.1, 1]
    assert [config.data.labels_per_class for config in configs] == [1, 1, 4, 4] * 2
    assert configs[0].seeds == [7]
    run = planner.run(rows[-1], 7)
    assert run.folder == tmp_path / "out" / rows[-1].name / "kd" / "seed7"
    pairs = baseline_of(experiment, rows)
    assert pairs == {f"b{row.name[1:]}": row.name for row in rows[:4]}
    whole = dataclasses.replace(experiment, baseline=rows[0].name)
    assert set(baseline_of(whole, rows).values()) == {rows[0].name}
    with pytest.raises(ConfigError, match=r"--train.lr.*:4"):
        read_experiment(path, {"train.lr": 1})


def test_without_variants_every_method_of_the_recipe_is_a_row(write: Write) -> None:
    """A recipe that distill.py runs is an experiment as it stands."""
    experiment = read_experiment(write(""), {"methods": ["labels", "kd"]})
    assert [row.name for row in rows_of(experiment)] == ["labels", "kd"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(RECIPES).as_posix())
def test_every_experiment_that_comes_along_is_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipe is there, every setting is known, and every row can be made; the store need not be there."""
    experiment = read_experiment(path)
    planner = Planner(experiment)
    monkeypatch.setattr(planner, "_fingerprint", lambda store: "0" * 64)
    rows = rows_of(experiment)
    assert len({run.key for run in (planner.run(row, 0) for row in rows)}) > 1
    baseline_of(experiment, rows)


def test_flags_hold_for_all_rows() -> None:
    """--NAME VALUE and --NAME=VALUE, as values; what has none is refused."""
    known = parse(
        ["--config", "e.yaml", "--jobs", "auto", "--seeds", "[0]", "--only", "a", "--store=x"]
    )
    assert (known["jobs"], known["only"], known["path"]) == (0, ["a"], Path("e.yaml"))
    assert {name: node.plain() for name, node in known["flags"].items()} == {
        "seeds": [0],
        "store": "x",
    }
    with pytest.raises(ConfigError, match=r"--train.lr.*--NAME VALUE"):
        parse(["--config", "e.yaml", "--train.lr"])


# -- runs --------------------------------------------------------------------------------------------------------------

TABLE = """
seeds: [0, 1]
baseline: labels
variants:
  labels: {methods: [labels]}
  again: {methods: [labels], train.log_every: 7}
  boom: {methods: [kd], train.lr: 1e30, train.epochs: 3}
  kd: {methods: [kd]}
"""


@pytest.mark.slow
def test_from_file_to_table(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal settings are trained once, a run that diverges is recorded and the others go on, and a second start finds
    all that is finished and tries the failed ones again."""
    path = write(TABLE)
    out = path.parent / "out"
    assert start(path, dry_run=True) == 0
    assert "0 runs are finished, 0 begun, 6 new; 2 more are the same" in capsys.readouterr().out
    assert not out.exists()
    assert start(path) == 1
    said = capsys.readouterr()
    assert said.out.count("FAILED, TrainingDiverged") == 2
    assert "failed: boom seed 1: TrainingDiverged" in said.err
    assert "trained once for all of these rows: labels, again." in said.out
    assert "2 pairs are weak evidence" in said.out
    assert "teacher, paid once: 48 images x 3 views" in said.out
    assert "students trained from it: 4 runs" in said.out
    assert not (out / "again").exists()
    rows = {row["row"]: row for row in results(path)["rows"]}
    assert [run["state"] for run in rows["boom"]["runs"]] == ["failed", "failed"]
    assert rows["boom"]["comparison"] is rows["again"]["comparison"] is None
    compared = rows["kd"]["comparison"]
    top1 = {name: [run["top1"] for run in rows[name]["runs"]] for name in ("labels", "kd")}
    assert rows["again"]["mean"] == rows["labels"]["mean"] == pytest.approx(sum(top1["labels"]) / 2)
    gains = [ours - theirs for ours, theirs in zip(top1["kd"], top1["labels"], strict=True)]
    assert compared["test"]["mean"] == pytest.approx(sum(gains) / 2)
    assert compared["test"]["count"] == 2
    assert compared["p_holm"] == compared["test"]["p"]
    # The images behind the accuracies: 12 test images.
    counts = [
        compared["images"][seed]["only"] - compared["images"][seed]["only_baseline"]
        for seed in "01"
    ]
    assert counts == pytest.approx([12 * gain for gain in gains])
    with (out / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["row"], line["seed"], line["state"]) for line in lines[2:6]] == [
        ("again", "0", "finished"), ("again", "1", "finished"), ("boom", "0", "failed"), ("boom", "1", "failed"),
    ]  # fmt: skip
    assert (out / "table.md").read_text().startswith("| row | runs | test top-1 % |")
    first = (out / "kd" / "kd" / "seed0" / "run.json").stat().st_mtime_ns
    assert start(path, only=["boom"]) == 1
    said = capsys.readouterr()
    assert "[2/2] boom seed 1: FAILED" in said.out
    assert (out / "kd" / "kd" / "seed0" / "run.json").stat().st_mtime_ns == first
    with pytest.raises(ConfigError, match="--only bo"):
        start(path, only=["bo"])
    with pytest.raises(ConfigError, match=r"train.sched"):
        start(path, flags={"train.weight_decay": 0.5, "train.sched": "none"})


@pytest.mark.slow
def test_an_interrupted_experiment_goes_on(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the second run: the first is in the table, the second goes on from its checkpoint, and ends as if
    nothing had happened."""
    text = "seeds: [0]\nvariants: {labels: {methods: [labels]}, kd: {methods: [kd]}}\n"
    flags = {"train.epochs": 2, "train.warmup_epochs": 0}
    path = write(text)
    start(path, flags={**flags, "out": str(path.parent / "straight")}, only=["kd"])

    class Stopped(RunWorker):
        def __call__(self, run: Any, tell: OnProgress) -> dict[str, Any]:
            def stop(step: float) -> None:
                if run.method == "kd" and step == 4:
                    raise KeyboardInterrupt
                tell(step)

            return super().__call__(run, stop)

    with monkeypatch.context() as patched:
        patched.setattr(command, "make_worker", Stopped)
        with pytest.raises(KeyboardInterrupt):
            start(path, flags=flags)
    states = {row["row"]: [run["state"] for run in row["runs"]] for row in results(path)["rows"]}
    assert states == {"labels": ["finished"], "kd": ["missing"]}
    capsys.readouterr()
    assert start(path, flags=flags) == 0
    assert "1 runs are finished, 1 begun, 0 new" in capsys.readouterr().out
    printed = (path.parent / "out" / "kd" / "kd" / "seed0" / "output.txt").read_text()
    assert "at step 3 of 6" in printed
    for name in ("student.safetensors", "metrics.jsonl", "evaluation.json"):
        straight = path.parent / "straight" / "kd" / "kd" / "seed0" / name
        assert (
            path.parent / "out" / "kd" / "kd" / "seed0" / name
        ).read_bytes() == straight.read_bytes()


def test_two_starts_at_once_are_refused(write: Write) -> None:
    """They would write the same folders; the second says who is there."""
    path = write("seeds: [0]\nvariants: {labels: {methods: [labels]}}\n")
    lock = FileLock(path.parent / "out" / LOCK_NAME)
    lock.path.parent.mkdir()
    assert lock.acquire(shared=False, timeout_s=0)
    with pytest.raises(StoreBusy, match=rf"{os.getpid()}"):
        start(path)
    lock.release()


@pytest.mark.slow
def test_runs_share_what_is_read_and_decoded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are joined once for all rows, decoded once for all runs, and a probe is fitted once for all methods."""
    path = write(
        "seeds: [0]\nvariants: {labels: {methods: [labels]}, kd: {methods: [kd]}, "
        "fewer: {methods: [kd], data.labels_per_class: 2}}\n"
    )
    from distill.data import joined
    from distill.data.join_samples import join_samples
    from featstore.sources import load as data

    count = {"join": 0, "decode": 0, "probe": 0}

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(joined, "join_samples", counted("join", join_samples))
    monkeypatch.setattr(data, "decode", counted("decode", data.decode))
    monkeypatch.setattr(joined, "fit_probe", counted("probe", joined.fit_probe))
    assert start(path) == 0
    assert count["join"] == 1
    assert count["probe"] == 2
    # Three views of 36 training images at most, and the canonical view of 12 test images.
    assert count["decode"] <= 3 * 36 + 2 * 12


# -- tuning ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_settings_are_chosen_on_validation_images(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """No test image is looked at before the choice; a try that diverges has lost; the choice is kept."""
    path = write(
        "seeds: [1]\ntune: {budget: 2, validation: 2}\nvariants:\n"
        "  kd: {methods: [kd], search: [{train.lr: 1e30, train.epochs: 3}, {train.lr: 1e-3}]}\n"
    )
    out = path.parent / "out"
    assert start(path) == 0
    said = capsys.readouterr().out
    assert "FAILED, TrainingDiverged" in said
    assert "{'train.lr': '1e-3'}" in said
    tuned = json.loads((out / "tuned.json").read_text())["kd"]
    assert (tuned["chosen"], tuned["validation"], tuned["seeds"]) == (1, 2, [0])
    assert tuned["tries"][0]["scores"] == []
    tried = read_predictions(out / "tune" / "kd" / "1" / "kd" / "seed0")
    final = read_predictions(out / "kd" / "kd" / "seed1")
    assert tried is not None
    assert final is not None
    assert len(tried.ids) == 6
    assert all(name.startswith("train/") for name in tried.ids)
    assert all(name.startswith("test/") for name in final.ids)
    record = json.loads((out / "kd" / "kd" / "seed1" / "run.json").read_text())
    assert record["contract"]["train"]["lr"] == 1e-3
    assert record["contract"]["data"]["validation"] == 0
    assert start(path) == 0
    assert "nothing is left to do" in capsys.readouterr().out


def test_the_best_mean_wins_and_ties_go_to_the_first(write: Write) -> None:
    """Over the tuning seeds; any failure but divergence leaves the choice open."""
    path = write(
        "tune: {budget: at most 3, seeds: [0, 1], validation: 2}\nvariants:\n"
        "  a: {methods: [kd], search: [{kd.weight: 1}, {kd.weight: 2}, {kd.weight: 3}]}\n  b: {methods: [labels]}\n"
    )
    todo = todo_of(path)
    row, tries = todo.rows[0], todo.tries["a"]
    assert todo.tries["b"] == []
    assert [run.config.options["kd"].weight for run in todo.tuning()] == [1, 1, 2, 2, 3, 3]
    assert {run.config.eval.part for run in todo.tuning()} == {"validation"}
    assert {run.method for run in todo.finals()} == {"labels"}

    def decided(*scores: float | str) -> Any:
        keys = [run.key for group in tries for run in group]
        values: list[Any] = [
            Failure(score, "why") if isinstance(score, str) else {"top1": score} for score in scores
        ]
        return choose_try(row, tries, dict(zip(keys, values, strict=True)))

    assert decided(0.5, 0.5, 0.4, 0.7, 0.9, 0.1).chosen == 1
    assert decided(0.5, 0.5, 0.4, 0.6, 0.9, 0.1).chosen == 0
    assert decided(DIVERGED, 0.5, 0.9, DIVERGED, 0.1, 0.1).chosen == 2
    assert decided(*[DIVERGED] * 6).kind == "NotTuned"
    assert decided(0.5, 0.5, 0.5, 0.5, 0.5, "WorkerDied").kind == "NotTuned"


def test_tuning_needs_a_validation_part(write: Write) -> None:
    """Without one it would look at the test part."""
    path = write("tune: {budget: 1}\nvariants: {a: {methods: [kd], search: [{kd.weight: 1}]}}\n")
    with pytest.raises(ConfigError, match=r"tune.validation"):
        todo_of(path)


# -- cost --------------------------------------------------------------------------------------------------------------


def test_cost_of_a_store_is_the_sum_of_its_ledger(store: FeatureStore) -> None:
    """Images, views, bytes and seconds; one view of one image costs its share of the teacher's time."""
    cost = store_cost(store)
    entries = [store.entry(shard) for shard in store.shards]
    assert (cost.images, cost.views) == (48, 3)
    assert cost.bytes == sum(item.bytes for entry in entries for item in entry.objects.values())
    timed = dataclasses.replace(cost, seconds={"teacher": 14.4, "load": 3.0})
    assert timed.teacher_s == pytest.approx(0.1)
    for hours, lines in (
        (2.0, 3),
        (0.0, 2),
        (None, 2),
    ):  # runs that read no features need no live teacher
        total = ExperimentCost([timed], runs=1, hours=1, teacher_images=10, live_hours=hours)
        assert len(cost_lines(total)) == lines


# -- several processes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_at_a_time_killed_and_started_again(write: Write) -> None:
    """kill -9 of the command leaves no worker behind. What a worker had finished, and what this process then goes on
    with, are the very students of one process that was never stopped."""
    path = write(
        "seeds: [0]\nvariants: {labels: {methods: [labels]}, kd: {methods: [kd], train.epochs: 30}}\n"
    )
    start(path, flags={"out": str(path.parent / "one")})
    folders = {name: path.parent / "out" / name / name / "seed0" for name in ("labels", "kd")}
    with subprocess.Popen(
        [sys.executable, "pipelines/experiments.py", "--config", str(path), "--jobs", "2"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    ) as process:
        halfway = (folders["labels"] / "run.json", folders["kd"] / "checkpoint.pt")
        begun = wait_for(lambda: all(file.exists() for file in halfway), seconds=240)
        workers = children(process.pid)
        process.kill()
    assert begun
    assert len(workers) >= 2
    assert wait_for(lambda: not any(alive(pid) for pid in workers))
    assert start(path) == 0
    for name, folder in folders.items():
        for file in ("student.safetensors", "evaluation.json", "metrics.jsonl"):
            straight = path.parent / "one" / name / name / "seed0" / file
            assert (folder / file).read_bytes() == straight.read_bytes(), (name, file)
