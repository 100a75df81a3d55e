"""Students of point clouds, method pointdistiller on cells and on patches, and a run of both phases."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import distill
import featstore
from distill.config import DataConfig, StudentConfig
from distill.data import joined
from distill.data.joined import JoinedData
from distill.data.points import PointDataset
from distill.data.rules import PointRule, rule_from_description
from distill.data.schedule import CANONICAL, Request
from distill.export.finished import read_finished_run
from distill.student.model import build_student
from distill.student.pillars import OFFSETS, Pillars, group, teacher
from featstore.errors import ConfigError, MissingSamples
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from featstore.sources.points import prepare_points
from tests import points
from tests.distill.bench import Bench

STUDENT: dict[str, Any] = {"name": "pillars", "model_args": {**points.MODEL, "width": 3}}
PLAIN = {"columns": 3, "most_points": 20, "grid": (5, 4), "bounds": None}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clouds of three shapes, and a store of them."""
    folder = tmp_path_factory.mktemp("points")
    points.extract(points.write_clouds(folder / "clouds"), folder / "store")
    return folder


def inputs(*names: str) -> Tensor:
    """Prepared clouds, e.g. of "ball 3"."""
    record = Pillars(**points.MODEL).points
    clouds = [points.cloud(shape, int(number)) for shape, number in map(str.split, names)]
    return torch.from_numpy(np.stack([prepare_points(cloud, record) for cloud in clouds]))


def test_group_by_hand() -> None:
    """Two clouds on a grid of 2 x 2: cells, counts, and what is added to each point."""
    nan = float("nan")
    clouds = torch.tensor([
        [[-1.0, -1, 0], [-0.5, -0.5, 0.5], [1, 1, 1]],
        [[0.5, -1, 0], [nan, nan, nan], [nan, nan, nan]],
    ])  # fmt: skip
    found = group(clouds, (2, 2))
    assert found.cells.tolist() == [0, 3, 4 + 1]
    assert found.counts.tolist() == [2, 1, 1]
    assert found.pillar.tolist() == [0, 0, 1, 2]
    assert found.points.shape == (4, 3 + OFFSETS)
    # From the centre of the cell (-.5, -.5), from the mean point (-.75, -.75, .25), and log 2.
    expected = torch.tensor([-1, -1, 0, -0.5, -0.5, -0.25, -0.25, -0.25, np.log(2)])
    torch.testing.assert_close(found.points[0], expected.float())


def test_a_cloud_does_not_depend_on_the_others_nor_on_the_order_of_its_points() -> None:
    """In eval mode, alone or in a batch, with points and padding in any order."""
    model = Pillars(3, **points.MODEL).eval()
    clouds = inputs("ball 3", "line 20", "plate 1")
    together = model(clouds)
    for row in range(3):
        torch.testing.assert_close(model(clouds[row : row + 1])[0], together[row])
    shuffled = clouds[:, torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(model(shuffled), together, rtol=1e-4, atol=1e-5)


def test_the_teacher_is_the_student_and_its_cells() -> None:
    """Same weights, same vectors; features of cells are those of the map at their coordinates."""
    torch.manual_seed(0)
    frozen = teacher(num_classes=3, **points.MODEL).eval()
    student = Pillars(3, **points.MODEL).eval()
    student.load_state_dict(frozen.state_dict())
    clouds = inputs("ball 3", "line 20")
    given = frozen(clouds)
    last = student.forward_features(clouds)
    torch.testing.assert_close(given["logits"], student(clouds))
    torch.testing.assert_close(given["pooled"], student.forward_head(last, pre_logits=True))
    for row in range(2):
        coords = given["voxel_coords"][row].long()
        expected = last[row, :, coords[:, 1], coords[:, 2]].T
        torch.testing.assert_close(given["voxel_features"][row], expected)
        assert given["voxel_counts"][row].sum() == (~clouds[row, :, 0].isnan()).sum()
    assert "logits" not in teacher(**points.MODEL).eval()(clouds)


def prepare(place: Path, **settings: Any) -> JoinedData:
    source = open_source(SourceConfig(kind="points", path=str(place / "clouds")))
    values = {"labelled": ["train/*"], "unlabelled": [], "test": ["test/*"], **settings}
    return joined.join_data(source, featstore.open(place / "store"), DataConfig(**values), "pooled")


def test_batches_of_clouds(place: Path) -> None:
    """The student's input is the teacher's; a strong copy is turned about z: heights and distances stay."""
    data = prepare(place)
    student = build_student(StudentConfig(**STUDENT), 3)
    dataset = data.dataset(student)
    assert isinstance(dataset, PointDataset)
    first = data.samples.ids.index("train/ball/003.npy")
    batch = dataset.__getitems__([Request(first, CANONICAL, 5, False, strong) for strong in (0, 1)])
    plain, strong = batch.pixels
    torch.testing.assert_close(plain, inputs("ball 3")[0], equal_nan=True)
    assert not torch.equal(plain.nan_to_num(), strong.nan_to_num())
    torch.testing.assert_close(strong[:, 2], plain[:, 2], equal_nan=True)
    inside = (strong[:, :2].abs() < 1).all(1)
    torch.testing.assert_close(strong[inside, :2].norm(dim=1), plain[inside, :2].norm(dim=1))
    rule = data.rule
    assert isinstance(rule, PointRule)
    described = json.loads(json.dumps(rule.describe()))
    again = rule_from_description(described)
    assert isinstance(again, PointRule)
    assert again.record == rule.record


@pytest.mark.parametrize(
    ("student", "shown"),
    [
        ({"name": "wide_resnet28_2"}, "pillars"),
        ({"name": "hashed_text"}, "texts"),
        ({"name": "pillars", "model_args": {**points.MODEL, "grid": [4, 4]}}, r"grid \(4, 4\)"),
        ({"name": "pillars", "model_args": {**points.MODEL, "most_points": 8}}, "most_points 8"),
        ({"name": "pillars", "model_args": {"width": 0}}, "width"),
        ({"name": "pillars", "pretrained": True}, "pretrained"),
    ],
)
def test_students_that_do_not_fit(place: Path, student: dict[str, Any], shown: str) -> None:
    """Of images or texts, or with another input than the teacher's."""
    with pytest.raises(ConfigError, match=shown):
        prepare(place).dataset(build_student(StudentConfig(**student), 3))


def settings(place: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "store": place / "store",
        "source": {"kind": "points", "path": str(place / "clouds")},
        "student": STUDENT,
        "methods": ["pointdistiller"],
        "pointdistiller": {"field": "voxel_features", "queries": 6, "neighbours": 4},
        "field": "pooled",
        "out": out,
        "data": {"labelled": ["train/*"], "unlabelled": [], "test": ["test/*"]},
        "train": {"epochs": 2, "min_epoch_steps": 0, "workers": 0, "labelled_batch": 8},
        **changes,
    }


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["frozen", "trained"])
def test_both_phases(place: Path, tmp_path: Path, adapter: str) -> None:
    """A student of clouds is distilled from the cells, measured, loaded and measured again; it is not exported."""
    options = {"field": "voxel_features", "queries": 6, "neighbours": 4, "adapter": adapter}
    run = distill.run(**settings(place, tmp_path, pointdistiller=options))[0]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    graph = [line["loss/graph"] for line in lines if "loss/graph" in line]
    assert graph
    assert all(np.isfinite(value) and value > 0 for value in graph)
    measured = json.loads((run.folder / "evaluation.json").read_text())
    assert 0 <= measured["top1"] <= 1
    model = distill.load_student(run)
    assert model(inputs("ball 3")).shape == (1, 3)
    assert distill.evaluate(run)["top1"] == measured["top1"]
    with pytest.raises(ConfigError, match="load_student"):
        distill.export_student(run)
    with pytest.raises(ConfigError, match="load_student"):
        _ = read_finished_run(run.folder).rule


@pytest.mark.slow
@pytest.mark.parametrize("method", ["labels", "kd", "fitnet"])
def test_other_methods(place: Path, tmp_path: Path, method: str) -> None:
    """Methods on vectors and logits take clouds as they are."""
    run = distill.run(
        **settings(
            place,
            tmp_path,
            methods=[method],
            train={"epochs": 1, "min_epoch_steps": 0, "warmup_epochs": 0, "workers": 0},
        )
    )[0]
    assert (run.folder / "evaluation.json").is_file()


def test_what_the_method_refuses(place: Path, tmp_path: Path) -> None:
    """A field that is no record of cells, a map of another grid, and a store without a grid of patches."""
    cases: list[tuple[dict[str, Any], str]] = [
        ({"pointdistiller": {"field": "pooled"}}, "pooled"),
        ({"pointdistiller": {"field": "absent"}}, "absent"),
        ({"pointdistiller": {"field": "voxel_counts"}}, "voxel_counts"),
        ({"pointdistiller": {}}, "grid"),
        ({"pointdistiller": {"field": "voxel_features", "neighbours": 0}}, "neighbours 0"),
    ]
    for number, (changes, shown) in enumerate(cases):
        with pytest.raises(ConfigError, match=shown):
            distill.run(**settings(place, tmp_path / str(number), **changes))


def test_changed_and_broken_clouds(place: Path, tmp_path: Path) -> None:
    """A file whose bytes are not those that the teacher saw, and one that cannot be decoded any more: named by id."""
    clouds = points.write_clouds(tmp_path / "clouds")
    source = {"kind": "points", "path": str(clouds)}
    path = clouds / "train" / "plate" / "006.npy"
    np.save(path, points.cloud("ball", 1))
    with pytest.raises(MissingSamples, match=r"train/plate/006\.npy"):
        distill.run(**settings(place, tmp_path / "a", source=source))
    np.save(path, np.zeros((0, 3)))
    with pytest.raises((ConfigError, MissingSamples), match=r"train/plate/006\.npy"):
        distill.run(**settings(place, tmp_path / "b", source=source))


def test_patches_of_images(make_config: Any) -> None:
    """On a stored grid every patch is a place, its largest channel the importance; every parameter has a gradient."""
    for adapter in ("frozen", "trained"):
        config = make_config(
            pointdistiller__adapter=adapter, pointdistiller__queries=3, pointdistiller__neighbours=2
        )
        bench = Bench(config, "pointdistiller")
        output = bench.output()
        terms = bench.method.loss(output, bench.batch, bench.student)
        assert bench.batch.grid is not None
        places = bench.method.places  # type: ignore[attr-defined]
        torch.testing.assert_close(places.importance, bench.batch.grid.flatten(0, 2).amax(1))
        assert places.sizes == [bench.setup.grid.side**2] * 5  # type: ignore[union-attr]
        (terms["graph"] + output.logits.sum()).backward()
        assert all(part.grad is not None for part in bench.trainee.parameters())
        # A sample's patches change nothing in the graph of the others.
        changed = bench.batch.grid.clone()
        changed[4] += 3
        first = dataclasses.replace(bench.batch, grid=changed)
        before = bench.method.inputs(bench.batch), bench.method.places  # type: ignore[attr-defined]
        after = bench.method.inputs(first), bench.method.places  # type: ignore[attr-defined]
        assert torch.equal(
            before[1].features[: -places.sizes[0]], after[1].features[: -places.sizes[0]]
        )
