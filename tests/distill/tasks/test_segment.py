"""Task segment: masks follow the view, masks that do not fit are named, measures by hand, a run with its own head."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import distill
from distill.commands.config import EvaluateConfig
from distill.commands.evaluate import run as evaluate
from distill.commands.train import run
from distill.config import DataConfig
from distill.tasks.segment import Segment, SegmentConfig
from distill.tasks.segment_parts import Masks, open_masks
from featstore.errors import ConfigError, SourceError
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from featstore.sources.load import Frame
from tests.distill.conftest import MakeConfig
from tests.distill.resume import check_resume
from tests.distill.tasks.test_drawing import check_drawn


def write_masks(images: Path, folder: Path, skip: str = " ") -> Path:
    """The bright patch of every image of draw_images is class 1, one row of the background has none."""
    corners = {"left": (8, 2), "right": (8, 16), "top": (1, 9)}
    for path in sorted(images.rglob("*.png")):
        if skip in path.as_posix():
            continue
        row, column = corners[path.parent.name]
        mask = np.zeros((20, 24), np.uint8)
        mask[row : row + 6, column : column + 6] = 1
        mask[19] = 255
        place = folder / path.relative_to(images)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(place)
    return folder


@pytest.fixture
def masks_of(tmp_path: Path) -> Any:
    """Masks from one array."""

    def make(array: Any, mode: str = "L") -> Masks:
        folder = tmp_path / "one"
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.asarray(array, np.uint8)).convert(mode).save(folder / "a.png")
        source = open_source(SourceConfig(kind="folder", path=str(folder), labels_from="none"))
        return Masks(source, np.array([0, -1]), classes=3, ignore=255)

    return make


def test_masks_follow_the_view(masks_of: Any) -> None:
    """A crop, nearest pixels when enlarged, a mirror; without a mask all pixels are ignored."""
    masks = masks_of([[0, 1, 2, 255], [1, 1, 2, 2]])
    plain = Frame((2, 4), (1.0, 0.0, 3.0, 2.0), False, (4, 4))
    np.testing.assert_array_equal(
        masks.of(0, plain), [[1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 2, 2]]
    )
    whole = Frame((2, 4), (0.0, 0.0, 4.0, 2.0), True, (2, 4))
    np.testing.assert_array_equal(masks.of(0, whole), [[255, 2, 1, 0], [2, 2, 1, 1]])
    assert (masks.of(1, whole) == 255).all()
    assert masks.known.tolist() == [True, False]


@pytest.mark.parametrize(
    ("array", "mode", "values"),
    [
        ([[0, 1, 2], [0, 0, 0]], "L", r"3 x 2.*4 x 2"),
        ([[0, 1, 2, 9], [0, 0, 0, 0]], "L", r"\b9\b.*0 to 2"),
        ([[0, 1, 2, 2], [0, 0, 0, 0]], "RGB", "RGB"),
    ],
)
def test_masks_that_do_not_fit(masks_of: Any, array: Any, mode: str, values: str) -> None:
    """Size, value and mode, each with the mask's name."""
    with pytest.raises(SourceError, match=rf"a\.png.*{values}"):
        masks_of(array, mode).of(0, Frame((2, 4), (0.0, 0.0, 4.0, 2.0), False, (2, 4)))


def test_masks_beside_the_images(tmp_path: Path) -> None:
    """As a member of a tar, and as a file whose ending takes the place of the image's."""
    image, mask = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.zeros((2, 4, 3), np.uint8)).save(image, "JPEG")
    Image.fromarray(np.array([[0, 1, 1, 0]] * 2, np.uint8)).save(mask, "PNG")
    members = {"a.jpg": image, "a.seg.png": mask, "b.jpg": image}
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(content.getvalue())
            tar.addfile(item, io.BytesIO(content.getvalue()))
    (tmp_path / "folder").mkdir()
    for name, content in {"a.jpg": image, "a_mask.png": mask, "b.jpg": image}.items():
        (tmp_path / "folder" / name).write_bytes(content.getvalue())
    tars = SourceConfig(kind="tars", path=str(tmp_path / "0.tar"), image_member="jpg")
    folder = SourceConfig(kind="folder", path=str(tmp_path / "folder"), include=["*.jpg"])
    frame = Frame((2, 4), (0.0, 0.0, 4.0, 2.0), False, (2, 4))
    for config, member in ((tars, "seg.png"), (folder, "_mask.png")):
        samples: Any = SimpleNamespace(ids=list(open_source(config).sample_ids))
        masks = open_masks(config, samples, folder="", member=member, classes=2, ignore=255)
        assert masks.known.tolist() == [True, False]
        np.testing.assert_array_equal(masks.of(0, frame), [[0, 1, 1, 0]] * 2)


def test_measures_by_hand() -> None:
    """Two images, one ignored pixel: IoU 2/3 and 3/4; a class that nobody knows is left out of the mean."""
    task = object.__new__(Segment)
    task.options = SegmentConfig(classes=["a", "b", "c"])
    truth = torch.tensor([[[0, 0, 1, 1]], [[1, 1, 0, 255]]])
    answers = torch.tensor([[[0, 0, 1, 1]], [[1, 0, 0, 1]]])
    logits = torch.nn.functional.one_hot(answers, 3).permute(0, 3, 1, 2).float()

    class Seen:
        pass

    seen: Any = Seen()
    seen.logits = logits
    (kept,) = task.take(seen, truth)
    found = task.numbers(kept)
    assert found["per_class_iou"] == {
        "a": pytest.approx(3 / 4),
        "b": pytest.approx(3 / 4),
        "c": None,
    }
    assert found["miou"] == pytest.approx(3 / 4)
    assert found["pixel_accuracy"] == pytest.approx(6 / 7)
    np.testing.assert_allclose(task.errors(kept), [0, 1 / 3])


@pytest.fixture
def make_segment(make_config: MakeConfig, images: Path, tmp_path: Path) -> Any:
    """Settings of a run; ten images have no mask."""
    folder = write_masks(images, tmp_path / "masks", skip="train/left/00")

    def make(masks: Path = folder, **changes: Any) -> Any:
        options = {"masks": str(masks), "classes": ["background", "patch"], "width": 16}
        return make_config(
            task="segment",
            data=DataConfig(unlabelled=["train/*"]),
            methods=["fitnet"],
            options={"segment": SegmentConfig(**{**options, **changes})},  # type: ignore[arg-type]
            student__name="test_efficientnet",
            train__epochs=3,
            train__lr=5e-3,
            train__checkpoint_every=2,
        )

    return make


@pytest.mark.slow
def test_a_run_with_its_own_head(make_segment: Any) -> None:
    """Backbone with plain keys, head beside it; resumed to the bit; loaded and measured again."""
    straight = make_segment()
    (record,) = run(dataclasses.replace(straight, report=True))
    assert (record["num_labelled"], record["num_unlabelled"], record["num_test"]) == (26, 10, 12)
    assert record["score"]["name"] == "miou"  # type: ignore[index]

    files = ("student.safetensors", "task_head.safetensors", "evaluation.json")
    check_resume(straight, "fitnet", after=5, files=files)
    folder = Path(straight.out) / "fitnet" / "seed0"
    plain = timm.create_model("test_efficientnet", num_classes=0).state_dict()
    assert load_file(folder / "student.safetensors").keys() == plain.keys()
    model = distill.load_student(folder)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 2, 32, 32)
    check_drawn(folder, 12)
    kept = json.loads((folder / "evaluation.json").read_text())
    assert evaluate(EvaluateConfig(model=str(folder), workers=0))["miou"] == pytest.approx(
        kept["miou"]
    )
    (folder / "task_head.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"task_head\.safetensors"):
        distill.load_student(folder)


def test_wrong_options(make_segment: Any, images: Path, tmp_path: Path) -> None:
    """Before anything is trained, with the mask or the setting."""
    wrong = write_masks(images, tmp_path / "wrong")
    Image.fromarray(np.full((20, 24), 7, np.uint8)).save(wrong / "test/top/000.png")
    wrongs: list[tuple[Path, dict[str, Any], str]] = [
        (wrong, {}, r"test/top/000\.png.*\b7\b"),
        (tmp_path / "masks", {"classes": []}, r"--segment\.classes"),
        (images / "train" / "left", {}, "no image has a mask"),
    ]
    for masks, changes, values in wrongs:
        with pytest.raises(ConfigError, match=values):
            run(make_segment(masks, **changes))
    with pytest.raises(ConfigError, match=r"--segment\.ignore 1"):
        SegmentConfig(classes=["a", "b"], ignore=1)
