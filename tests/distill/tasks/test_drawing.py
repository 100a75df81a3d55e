"""Pictures of targets and outputs on the page of a run."""

import csv
from pathlib import Path

import torch
from PIL import Image

from distill.evaluation.evaluate import typical
from distill.tasks.drawing import DOT_PX, dots, enlarge, paint, palette


def check_drawn(folder: Path, images: int) -> None:
    """The hardest images of a run, and some at random, are drawn, target and output side by side, on the page too."""
    for table in ("hardest.csv", "typical.csv"):
        with (folder / "report" / table).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["drawn"] for row in rows] == ["yes"] * images
        for row in rows:
            with Image.open(folder / "report" / row["image"]) as picture:
                assert picture.width == 2 * picture.height
    page = (folder / "report.html").read_text()
    assert "(left)" in page
    assert "Typical images" in page


def test_typical_images_are_drawn_at_random() -> None:
    """Each once, the same again; all where there are few."""
    found = typical(1000)
    assert len({*found.tolist()}) == 24
    assert found.tolist() == typical(1000).tolist()
    assert found.max() > 500
    assert typical(3).tolist() == [0, 1, 2]


def test_masks_inside_others_stay_visible() -> None:
    """Half of a mask's own colour, over that of the larger mask below it; other pixels stay."""
    masks = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    masks[0, 0, 2:4, 2:4] = True
    masks[0, 1, :, :6] = True
    colours = palette(2)
    found = paint(torch.full((1, 3, 8, 8), 100, dtype=torch.uint8), masks)[0].float()
    large = 50 + colours[1] / 2
    assert torch.equal(found[:, 0, 0], large.round())
    assert torch.equal(found[:, 2, 2], (large / 2 + colours[0] / 2).round())
    assert found[:, 0, 7].tolist() == [100, 100, 100]


def test_points_outside_are_left_out() -> None:
    """One square for the point inside; none for unknown ones and those on or beyond the edge."""
    points = torch.tensor([[[0.0, 0.25], [torch.nan, 0.0], [0.5, 0.0], [-0.7, 0.0]]])
    found = dots(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), points)[0, 0]
    rows, columns = found.nonzero().unbind(1)
    assert len(rows) == DOT_PX**2
    assert (rows.float().mean(), columns.float().mean()) == (12, 8)


def test_small_pictures_are_enlarged() -> None:
    """By a whole number; large ones stay."""
    assert enlarge(torch.zeros(1, 3, 64, 32)).shape == (1, 3, 128, 64)
    assert enlarge(torch.zeros(1, 3, 200, 300)).shape == (1, 3, 200, 300)
