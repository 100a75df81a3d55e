"""Pages of real runs of task none: no label, no class, no accuracy."""

import csv
import json
import re
from pathlib import Path

import pytest

from distill.commands.train import run as distill_main
from distill.reports.run_files import read_run
from tests.distill.conftest import MakeConfig


@pytest.mark.slow
def test_a_run_without_labels_has_pages(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Score and measures of the record, hardest images by cosine, maps of all images; no sentence about accuracy."""
    config = make_config(
        task="none",
        methods=["fitnet"],
        data__labels_per_class=0,
        data__labelled=[],
        data__test=[],
        data__unlabelled=["*"],
        train__epochs=2,
        report=True,
    )
    (record,) = distill_main(config)
    out = capsys.readouterr().out
    assert "could not be drawn" not in out
    assert "held-out same 10 nearest neighbours" in out
    folder = Path(config.out) / "fitnet" / "seed0"
    run = read_run(folder)
    assert run.score.name == "neighbour_agreement"
    assert run.part == "held-out"
    with (folder / "report" / "hardest.csv").open(newline="") as file:
        hardest = list(csv.DictReader(file))
    assert len(hardest) == min(24, record["num_test"])  # type: ignore[call-overload]
    losses = [float(row["loss"]) for row in hardest]
    assert losses == sorted(losses, reverse=True)
    with (folder / "report" / "feature_map.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert {"teacher_x", "student_y"} <= points[0].keys()
    assert "answer" not in points[0]
    for path in (folder / "report.html", Path(config.out) / "report.html"):
        page = re.sub(r'<script id="library".*?</script>', "", path.read_text(), flags=re.DOTALL)
        assert "nearest neighbours" in page
        for word in ("accuracy", "Confusion", "classifies"):
            assert word not in page, word
    assert json.loads((folder / "run.json").read_text())["measures"][1]["name"] in run.measures
