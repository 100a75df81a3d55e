"""Task keypoints: points that follow every view, losses and measures by formulas, files that do not fit, a run."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from distill.commands.config import EvaluateConfig
from distill.commands.evaluate import run as evaluate
from distill.commands.train import run
from distill.config import DataConfig, DistillConfig
from distill.data.targets import Array, in_view
from distill.methods import METHODS
from distill.methods.assist import AssistConfig, assistive, ridge, smoothed
from distill.register import options_of
from distill.tasks.keypoint_targets import Points
from distill.tasks.keypoints import Keypoints, KeypointsConfig, area_under_curve, mean_loss
from distill.tasks.tables import by_sample, read_points
from featstore.errors import ConfigError
from featstore.format.views import View, ViewSet, cut
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from featstore.sources.load import Frame, ViewRule
from tests.distill.conftest import MakeConfig
from tests.distill.stores import write_store
from tests.distill.tasks.test_drawing import check_drawn

FLIP = np.array([1, 0, 2])
SIDES = st.integers(20, 90)


def in_image(points_S2: Array, frame: Frame) -> Array:
    """The inverse of ``in_view``."""
    left, upper, right, lower = frame.box
    points = points_S2 * (-1, 1) if frame.mirrored else points_S2
    found: Array = (points + 0.5) * (right - left, lower - upper) + (left, upper)
    return found


@settings(deadline=None, max_examples=60)
@given(
    image=st.tuples(SIDES, SIDES),
    size=st.sampled_from([(32, 32), (24, 40)]),
    number=st.integers(-1, 20),
    mirrored=st.booleans(),
    crop=st.sampled_from([(1.0, "center"), (0.875, "center"), (0.9, "squash")]),
    share=st.tuples(st.floats(0.02, 0.98), st.floats(0.02, 0.98)),
)
def test_points_follow_every_view(
    image: Any, size: Any, number: int, mirrored: bool, crop: Any, share: Any
) -> None:
    """A ramp that is cut like the image has, at the place of a point in the view, the point's own coordinates."""
    rule = ViewRule(ViewSet(seed=3), (16, 16), crop[0], crop[1], "bilinear")
    view = View(
        kind="canonical" if number < 0 else "seeded", number=max(number, 0), mirrored=mirrored
    )
    frame = rule.frame(image, view, sample_id="a", size=size)
    left, upper, right, lower = frame.box
    point = np.array([left + share[0] * (right - left), upper + share[1] * (lower - upper)])
    (found,) = in_view(point[None], frame)
    np.testing.assert_allclose(in_image(found[None], frame)[0], point, atol=1e-3)
    height, width = image
    ramps = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5))
    x, y = ((found + 0.5) * (size[1], size[0]) - 0.5).tolist()
    if not (1 <= x <= size[1] - 2 and 1 <= y <= size[0] - 2):
        return  # Pillow's filter is cut at the border
    for axis, ramp in enumerate(ramps):
        shown = np.asarray(
            cut(
                Image.fromarray(ramp.astype(np.float32)),
                frame.box,
                size=size,
                interpolation="bilinear",
                mirrored=mirrored,
            )
        )
        column, row = int(x), int(y)
        a, b = x - column, y - row
        cells = shown[row : row + 2, column : column + 2].astype(np.float64)
        value = np.array([1 - b, b]) @ cells @ np.array([1 - a, a])
        # Pillow's filter has steps of its own at edges of the box; half a source pixel covers them.
        assert abs(value - point[axis]) < 0.6


def test_mirrored_points_change_places() -> None:
    """The left eye of a mirrored image is the right one; twice mirrored is the image."""
    points = np.array([[[2.0, 5.0], [8.0, 5.0], [5.0, np.nan]]])
    plain, mirrored = (
        Frame((10, 10), (0.0, 0.0, 10.0, 10.0), flag, (5, 5)) for flag in (False, True)
    )
    targets = Points(points, FLIP)
    one, other = targets.of(0, plain), targets.of(0, mirrored)
    np.testing.assert_allclose(one[:2], [[-0.3, 0], [0.3, 0]], atol=1e-6)
    np.testing.assert_allclose(other[:2], one[:2], atol=1e-6)  # a symmetric face
    assert np.isnan(one[2]).all()
    assert np.isnan(other[2]).all()
    np.testing.assert_allclose(one[3], [10, 10])
    lopsided = Points(points + np.array([1, 0]), FLIP).of(0, mirrored)
    np.testing.assert_allclose(lopsided[:2], [[-0.4, 0], [0.2, 0]], atol=1e-6)


def test_points_outside_the_view_are_unknown() -> None:
    """Of the image, and of a crop of it."""
    points = np.array([[[-1.0, 5.0], [4.0, 4.0], [9.0, 9.0]]])
    targets = Points(points, np.arange(3))
    assert np.isnan(targets.of(0, Frame((10, 10), (0, 0, 10, 10), False, (5, 5)))[:, 0]).tolist() == [
        True, False, False, False,
    ]  # fmt: skip
    assert np.isnan(targets.of(0, Frame((10, 10), (0, 0, 5, 5), False, (5, 5)))[:, 0]).tolist() == [
        True, False, True, False,
    ]  # fmt: skip


def test_losses_by_hand() -> None:
    """Each at a small and a large error; unknown coordinates count for nothing; none known is zero with a gradient."""
    wrong = torch.tensor([[[0.02, 0.1], [9.0, 9.0]]], requires_grad=True)
    known = torch.tensor([[[True, True], [False, False]]])
    offset = 0.04 - 0.04 * math.log(1 + 0.04 / 0.008)
    expected = {
        "l1": (0.02 + 0.1) / 2,
        "l2": (0.0004 + 0.01) / 2,
        "smooth_l1": (0.015 + 0.095) / 2,
        "wing": (0.04 * math.log(1 + 0.02 / 0.008) + 0.1 - offset) / 2,
    }
    for name, value in expected.items():
        options = KeypointsConfig(loss=name)  # type: ignore[arg-type]
        assert mean_loss(wrong, known, options).item() == pytest.approx(value, rel=1e-5)
        nothing = mean_loss(wrong, torch.zeros_like(known), options)
        nothing.backward()
        assert nothing.item() == 0
    assert area_under_curve(np.array([0.0, 0.05, 1.0]), 0.1) == pytest.approx(1.5 / 3, abs=1e-3)


def write_points(images: Path, path: Path, skip: str = "") -> Path:
    """The corners of the bright patch of every image (see draw_images): two points, and their middle."""
    corners = {"left": (8, 2), "right": (8, 16), "top": (1, 9)}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "one_x", "one_y", "two_x", "two_y", "mid_x", "mid_y"])
        for name in sorted(images.rglob("*.png")):
            row, column = corners[name.parent.name]
            cells = [column, row, column + 6, row + 6, column + 3, "" if row == 1 else row + 3]
            if not skip or skip not in name.as_posix():
                writer.writerow([name.relative_to(images).as_posix(), *cells])
    return path


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    """Each is refused with the file, the column or the id."""
    path = tmp_path / "points.csv"

    def read(text: str) -> Any:
        path.write_text(text)
        return read_points(path, "--keypoints.points")

    names, rows, points = read("id,x0,y0,x1,y1\na.png,1,2,,4\n")
    assert (names, points) == (["a.png"], ["0", "1"])
    np.testing.assert_array_equal(rows, [[[1, 2], [np.nan, 4]]])
    for text, values in (
        ("id,x0,y0,x1\na,1,2,3\n", "x1"),
        ("id,x0,y1\na,1,2\n", "x0, y1"),
        ("id,x0,y0,x0,y0\na,1,2,3,4\n", "x0"),
        ("id,x0,y0\na,1,far\n", "far"),
        ("id,x0,y0\na,1\n", r"row 2.*\b2\b.*\b3\b"),
        ("id,x0,y0\na,1,2,3\n", r"row 2.*\b4\b.*\b3\b"),
        ("id\na\n", "points.csv"),
    ):
        with pytest.raises(ConfigError, match=values):
            read(text)
    with pytest.raises(ConfigError, match="gone"):
        read_points(tmp_path / "gone.csv", "--keypoints.points")
    for names, values in ((["a", "a"], r"\ba\b"), (["z", "y"], "z")):
        with pytest.raises(ConfigError, match=values):
            by_sample(names, np.zeros((2, 1, 2)), ["a", "b"], "--keypoints.points")
    np.save(tmp_path / "p.npy", np.arange(12.0).reshape(2, 3, 2))
    (tmp_path / "p.txt").write_text("a\nb\n")
    assert read_points(tmp_path / "p.npy", "")[1].shape == (2, 3, 2)
    (tmp_path / "p.txt").write_text("a\n")
    with pytest.raises(ConfigError, match=r"\(2, 3, 2\).*\b1\b"):
        read_points(tmp_path / "p.npy", "")


@pytest.fixture
def make_points(make_config: MakeConfig, images: Path, tmp_path: Path) -> Any:
    """Settings of a run over mirrored and seeded views."""
    source = SourceConfig(kind="folder", path=str(images), labels_from="none")
    store = write_store(tmp_path / "mirrored", open_source(source), mirrored=True)
    table = write_points(images, tmp_path / "points.csv", skip="train/left/00")

    def make(points: Path = table, **options: Any) -> Any:
        given = {"points": str(points), "flip": [1, 0, 2], "normalise": ["one", "two"], **options}
        return make_config(
            task="keypoints",
            source=source,
            store=str(store.path),
            data=DataConfig(mirror=True, unlabelled=["train/*"]),
            methods=["fitnet"],
            options={"keypoints": KeypointsConfig(**given)},
            train__epochs=2,
            train__lr=3e-3,
        )

    return make


def test_a_run(make_points: Any) -> None:
    """Better than the mean position; images without points train the method alone; the numbers come back."""

    config = dataclasses.replace(make_points(), report=True)
    (record,) = run(config)
    assert (record["num_labelled"], record["num_unlabelled"], record["num_test"]) == (26, 10, 12)
    assert record["score"]["name"] == "nme"  # type: ignore[index]
    folder = Path(config.out) / "fitnet" / "seed0"
    kept = json.loads((folder / "evaluation.json").read_text())
    assert set(kept["per_point"]) == {"one", "two", "mid"}
    # The middle of "top" is unknown, and the crop cuts off a corner of "right".
    assert kept["known_points"] == pytest.approx(1 - 8 / 36)
    check_drawn(folder, 12)
    assert "NME" in (folder / "report.html").read_text()
    again = evaluate(EvaluateConfig(model=str(folder), workers=0))
    assert again["nme"] == pytest.approx(kept["nme"], rel=1e-5)


def test_wrong_options(make_points: Any, tmp_path: Path) -> None:
    """Before anything is trained."""
    for options, values in (
        ({"normalise": ["one", "nose"]}, "nose"),
        ({"flip": [1, 0]}, r"\b2\b.*\b3\b"),
        ({"flip": []}, r"--data\.mirror"),
        ({"points": ""}, r"--keypoints\.points"),
    ):
        with pytest.raises(ConfigError, match=values):
            run(make_points(**options))
    with pytest.raises(ConfigError, match=r"\[0, 0\]"):
        KeypointsConfig(flip=[0, 0])


def test_the_first_outputs_are_the_mean_points(make_points: Any) -> None:
    """With a learning rate of almost nothing they stay there; a layer that was loaded is left as it is."""
    config = dataclasses.replace(
        make_points(), methods=["labels"], data=DataConfig(mirror=True, views="canonical")
    )
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, lr=1e-12, epochs=1)
    )
    run(config)
    folder = Path(config.out) / "labels" / "seed0"
    state = load_file(folder / "student.safetensors")
    bias = state["head.fc.bias"].reshape(-1, 2)
    assert state["head.fc.weight"].abs().max() < 1e-6
    student = dataclasses.replace(config.student, weights=str(folder))
    again = dataclasses.replace(config, student=student, out=config.out + "-again")
    run(again)
    other = load_file(Path(again.out) / "labels" / "seed0" / "student.safetensors")
    torch.testing.assert_close(other["head.fc.bias"], state["head.fc.bias"], atol=1e-6, rtol=0)
    assert bias[1, 1] > bias[0, 1]  # the second corner lies below the first
    assert bias[:2].abs().max() < 0.5


def test_methods_that_fit() -> None:
    """What imitates features, and what learns from targets alone; nothing that needs one class per image."""
    config = DistillConfig()
    fitting = {
        name
        for name, method in METHODS.items()
        if Keypoints.fits(method.needs(options_of(config, name)))
    }
    assert {"labels", "assist", "fitnet", "rkd", "at"} <= fitting
    assert not {"kd", "customkd", "simkd", "ofa"} & fitting


def test_the_error_is_measured_in_pixels(make_points: Any) -> None:
    """A view of 20 x 10 pixels: a shift by a tenth of the width is two pixels, by a tenth of the height one."""
    task = object.__new__(Keypoints)
    task.options = KeypointsConfig(normalise=["0", "1"])
    task.__dict__["table"] = ([], np.zeros((0, 2, 2)), ["0", "1"])
    targets = torch.tensor([[[-0.25, 0.0], [0.25, 0.0], [20.0, 10.0]]])
    outputs = torch.tensor([[-0.15, 0.0, 0.25, 0.1]])
    np.testing.assert_allclose(task.errors(outputs, targets), [(2 + 1) / 2 / 10], rtol=1e-6)


def test_the_assistive_loss_by_hand() -> None:
    """Closer than both teachers, between them, beyond both: values from the formulas."""
    options = AssistConfig()
    error, tough, tolerant = (
        torch.tensor(row) for row in ([0.1, 0.3, 0.9, 0.01], [0.2] * 4, [0.5] * 4)
    )
    expected = [
        6 * 0.1 - 0.45 * 0.1 - 0.40 * 0.4,
        6 * 0.3 + 1.9 * 0.1 - 0.40 * 0.2,
        2 * (0.81 + 1.5 - 0.25) + 1.9 * 0.7 + 1.8 * 0.4,
        6 * 0.01,
    ]
    torch.testing.assert_close(assistive(error, tough, tolerant, options), torch.tensor(expected))
    plain = assistive(error, tough, tolerant, AssistConfig(weight_assist=0.0))
    assert plain[0].item() == pytest.approx(0.6)


def test_the_tolerant_teacher_follows_the_shape() -> None:
    """Shapes of one mode with noise: the smoothed ones lose noise and keep the mode, outliers are clipped."""
    generator = np.random.default_rng(0)
    mode, strength = generator.standard_normal(12), generator.standard_normal((200, 1))
    clean = strength * mode
    noisy = clean + 0.1 * generator.standard_normal(clean.shape)
    found = smoothed(noisy, 0.9)
    assert np.square(found - clean).mean() < 0.3 * np.square(noisy - clean).mean()
    outlier = np.vstack([noisy, 50 * mode[None]])
    assert np.linalg.norm(smoothed(outlier, 0.9)[-1]) < 0.5 * np.linalg.norm(outlier[-1])
    weight, bias = ridge(strength, clean + 1, 1e-9)
    np.testing.assert_allclose(strength @ weight + bias, clean + 1, atol=1e-6)


def test_assist_trains_and_is_for_points_alone(make_points: Any, make_config: MakeConfig) -> None:
    """Its term takes the place of the task's; other tasks are refused."""
    config = make_points()
    config = dataclasses.replace(config, methods=["assist"], data=DataConfig(mirror=True))
    table = Path(config.options["keypoints"].points)
    table.write_text(
        table.read_text().replace(",,", ",3,").replace(",\n", ",4\n").replace(",\r", ",4\r")
    )
    run(config)
    folder = Path(config.out) / "assist" / "seed0"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line if name.startswith("loss/")}
    assert names == {"loss/points"}
    with pytest.raises(ConfigError, match=r"--methods assist.*classify"):
        run(make_config(methods=["assist"], out=config.out + "-other"))
