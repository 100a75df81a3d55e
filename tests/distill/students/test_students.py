"""Which student: fronts, tables and the page, and the whole way of the command over two tiny students."""

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some

from distill.experiments.cost import ExperimentCost, StoreCost
from distill.experiments.spec import read_experiment
from distill.export.latency import Timing
from distill.measures.score import Measure
from distill.students import cli as command
from distill.students import page, tables
from distill.students.measure import MeasuredStudent, StudentComparison
from distill.students.pareto_front import front, steps
from featstore.display.text import columns
from featstore.errors import ConfigError
from tests.distill.conftest import MakeConfig

FILE = command.DEFAULT_RECIPE


def test_front_by_hand() -> None:
    """Cheaper or better than all others; equal points stand together."""
    costs, values = [1, 2, 2, 3, 4, 4], [0.5, 0.7, 0.6, 0.7, 0.9, 0.9]
    assert front(costs, values) == [True, True, False, False, True, True]
    assert steps(costs, values) == [(1, 0.5), (2, 0.5), (2, 0.7), (4, 0.7), (4, 0.9)]
    assert front([], []) == []


@given(some.lists(some.tuples(some.integers(0, 5), some.integers(0, 5)), min_size=1, max_size=9))
def test_front_holds(points: Sequence[tuple[int, int]]) -> None:
    """No point of the front is dominated, every other one is; the best and the cheapest are on it."""
    costs, values = [x for x, _ in points], [y for _, y in points]
    kept = [point for point, on in zip(points, front(costs, values), strict=True) if on]

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    assert not any(beats(one, other) for one in points for other in kept)
    assert all(point in kept or any(beats(one, point) for one in kept) for point in points)
    assert max(values) in [value for _, value in kept]
    assert min(costs) in [cost for cost, _ in kept]
    line = steps(costs, values)
    assert line == sorted(line)


def student(name: str, top1: Sequence[float], ms: float, size: int) -> MeasuredStudent:
    timings = [
        Timing(
            name, "ONNX Runtime", "fp32", batch, 1, 20, 60, ms * batch, ms * 1.5, ms * 0.9, ms * 1.2, ms, 1.0, 0.9, 1.1,
        )
        for batch in (1, 8)
    ]  # fmt: skip
    return MeasuredStudent(
        name, name, "scratch", dict(enumerate(top1)), 12.0, size // 4, 10**6, size, 7.5, timings
    )  # fmt: skip


def choice() -> StudentComparison:
    """Of three: the second is slower and worse than the first, and smaller than both."""
    found = [
        student("big", [0.9, 0.92], 2.0, 4_000_000),
        student("<b>small</b>", [0.8, 0.8], 3.0, 900_000),
        student("fast|er", [0.7], 0.5, 1_000_000),
    ]
    versions = {"onnxruntime": "1.0"}
    machine: dict[str, Any] = {"cpu": "a cpu", "architecture": "x", "cores": 2}
    machine |= {"load_average_1min": 0.1, "load_average_1min_after": 0.2}
    return StudentComparison(
        found, [True, False, True], [True, True, False], machine | {"versions": versions}, 20, ["lost"]
    )  # fmt: skip


def cost() -> ExperimentCost:
    return ExperimentCost(
        [StoreCost("a/store", 100, 2, 10**6, {"teacher": 30.0})], 5, 0.1, 1000, 0.2
    )


def test_tables_say_the_same(tmp_path: Path) -> None:
    """JSON, CSV and Markdown hold every student with its fronts; what the extraction cost is told once."""
    paths = tables.write_students_tables(tmp_path, choice(), cost())
    values = json.loads(paths[0].read_text())
    assert [item["on_latency_front"] for item in values["students"]] == [True, False, True]
    assert values["students"][0]["mean"] == pytest.approx(0.91)
    assert values["students"][0]["timings"][1]["batch"] == 8
    rows = list(csv.reader(paths[1].read_text().splitlines()))
    assert [row[:2] for row in rows[1:]] == [
        ["big", "latency and size"], ["<b>small</b>", "size"], ["fast|er", "latency"],
    ]  # fmt: skip
    assert rows[1][4] == "91.0 +- 1.4"
    assert rows[3][4] == "70.0"
    text = paths[2].read_text()
    assert "fast\\|er" in text
    assert "teacher, paid once: 100 images" in text
    assert "left out, without a finished run: lost" in text
    assert "front of accuracy and latency: fast|er (70.0%, 0.5 ms), big" in text
    assert len({line.count(" | ") for line in text.splitlines()[:1] + text.splitlines()[2:4]}) == 1
    assert "big" in columns(tables.student_cells(choice()))


def test_another_score_is_named(tmp_path: Path) -> None:
    """Of a task without classes, lower being better: labels, no percent, no accuracy anywhere."""
    measure = Measure("nme", "NME", percent=False, higher_is_better=False)
    other = dataclasses.replace(choice(), measure=measure)
    head, *rows = tables.student_cells(other)
    assert (head[4], rows[0][4]) == ("NME", "0.910 +- 0.014")
    values = json.loads(tables.write_students_tables(tmp_path, other, cost())[0].read_text())
    assert values["measure"]["name"] == "nme"
    assert "top1" not in values["students"][0]
    assert "ccuracy" not in tables.finding(other)
    found = page.build_students_page(other, cost())
    plot: Any = found.sections[0].blocks[0]
    assert min(plot.spec["data"][0]["y"]) >= 0.7
    assert "NME" in plot.title


def test_the_page_shows_both_fronts(tmp_path: Path) -> None:
    """Names from outside are text; both pictures mark who is on the front."""
    found = page.build_students_page(choice(), cost())
    plots: list[Any] = list(found.sections[0].blocks)
    assert [plot.title for plot in plots] == ["Accuracy against latency", "Accuracy against size"]
    for plot, on in zip(plots, (2, 2), strict=True):
        line, front_points, beaten = plot.spec["data"]
        assert (len(front_points["x"]), len(beaten["x"])) == (on, 1)
        assert set(front_points["x"]) <= set(line["x"])
    text = page.write_students_page(tmp_path, choice(), cost()).read_text()
    assert "<b>small</b>" not in text
    assert "Students compared" in text
    assert "3 students distilled from one feature store, seeds 0, 1" in text


def test_the_recipe_is_an_experiment() -> None:
    """Eight students, three seeds, one budget."""
    found = read_experiment(FILE)
    assert len(found.variants) == 8
    assert found.seeds == [0, 1, 2]
    names = [variant.settings["student.name"].plain() for variant in found.variants.values()]
    assert names == list(found.variants)
    rest = [
        {key: node.plain() for key, node in variant.settings.items() if key != "student.name"}
        for variant in found.variants.values()
    ]
    assert all(item == rest[0] for item in rest)


@pytest.mark.slow
def test_backbones_are_compared_by_their_neighbours(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Task none, one student of timm and one of torchvision's kind from a factory."""
    config = make_config()
    recipe = {
        "store": config.store, "source": {"kind": "folder", "path": config.source.path},
        "report": False, "trackers": [], "task": "none", "methods": ["fitnet"],
        "train": {"epochs": 1, "warmup_epochs": 0, "unlabelled_batch": 8, "workers": 0},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    factory = "tests.distill.student.test_factory:Plain"
    rows = (
        "  timm: {student: {name: test_convnext, image_size: 32}}\n"
        f"  own: {{student: {{factory: '{factory}', image_size: 32}}}}\n"
    )
    path = tmp_path / "students.yaml"
    path.write_text(f"recipe: recipe.yaml\nout: ./out\nseeds: [0]\nvariants:\n{rows}")
    assert command.main(path, jobs=1, batches=[1], threads=[1], rounds=2) == 0
    values = json.loads((tmp_path / "out" / "students.json").read_text())
    assert values["measure"]["name"] == "neighbour_agreement"
    assert {item["architecture"] for item in values["students"]} == {"test_convnext", "Plain"}


@pytest.mark.slow
def test_the_whole_way(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two students are trained, exported, measured in turn and drawn; started again, nothing is trained."""
    config = make_config(train__epochs=1, methods=["labels"])
    recipe = {
        "store": config.store, "source": {"kind": "folder", "path": config.source.path},
        "report": False, "trackers": [],
        "data": {"labelled": ["train/*"], "labels_per_class": 4, "unlabelled": ["train/*"], "test": ["test/*"]},
        "train": {"epochs": 1, "warmup_epochs": 0, "labelled_batch": 4, "unlabelled_batch": 8, "workers": 0},
        "methods": ["fitnet"],
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    path = tmp_path / "students.yaml"
    names = ("test_efficientnet", "test_convnext")
    rows = "\n".join(f"  {name}: {{student: {{name: {name}, image_size: 32}}}}" for name in names)
    path.write_text(f"recipe: recipe.yaml\nout: ./out\nseeds: [0]\nvariants:\n{rows}\n")
    assert command.main(path, dry_run=True) == 0
    assert not (tmp_path / "out").exists()
    few: dict[str, Any] = {"jobs": 1, "batches": [1], "threads": [1], "rounds": 2}
    assert command.main(path, **few) == 0
    values = json.loads((tmp_path / "out" / "students.json").read_text())
    assert {item["name"] for item in values["students"]} == set(names)
    assert any(item["on_latency_front"] for item in values["students"])
    assert all(len(item["timings"]) == 1 for item in values["students"])
    assert (tmp_path / "out" / "students.html").stat().st_size > 1e6
    assert sorted(item.stem for item in (tmp_path / "out" / "onnx").iterdir()) == sorted(names)
    assert "front of accuracy and latency" in capsys.readouterr().out


def test_arguments() -> None:
    """Options of its own, then settings of all rows; without a file the digits'."""
    found = command.parse(["--rounds", "3", "--threads", "1", "--train.lr", "0.01"])
    assert found["path"] == command.DEFAULT_RECIPE
    assert (found["rounds"], found["threads"], found["batches"]) == (3, [1], [1, 8])
    assert found["flags"]["train.lr"].plain() == 0.01
    with pytest.raises(SystemExit):
        command.parse(["--rounds", "0"])
    with pytest.raises(ConfigError, match="--NAME VALUE"):
        command.parse(["--train.lr"])
