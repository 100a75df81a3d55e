"""The table over runs, and pages as the commands make them: at the end of a run, of a command, and again later."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from distill.commands.config import ReportConfig
from distill.commands.report import run as report_main
from distill.commands.train import run as distill_main
from distill.reports import page_data, report, run_page
from featstore.errors import ConfigError
from tests.distill.conftest import MakeConfig
from tests.distill.finished import finished_run


def record(method: str, seed: int, top1: float, seconds: float) -> dict[str, object]:
    return {
        "method": method,
        "seed": seed,
        "top1": top1,
        "teacher_probe_top1": 0.9,
        "seconds": seconds,
    }


def test_the_table_gives_means_and_sample_deviations(tmp_path: Path) -> None:
    """0.5 and 0.7: 60.0 +- 14.1; a single run has no deviation."""
    records = [
        record("labels", 0, 0.5, 1),
        record("labels", 1, 0.7, 3),
        record("customkd", 0, 0.8, 2),
    ]
    lines = report.runs_table(records).splitlines()
    assert lines[2].split() == ["labels", "2", "60.0", "+-", "14.1", "2.0"]
    assert lines[3].split() == ["customkd", "1", "80.0", "2.0"]
    assert lines[4].startswith("teacher's linear probe  2     90.0 +- 0.0")
    files = report.write_command_results(tmp_path, records, page=False)
    assert [path.name for path in files] == ["results.json", "results.csv"]
    assert json.loads((tmp_path / "results.json").read_text()) == records
    rows = (tmp_path / "results.csv").read_text().splitlines()
    assert rows[0].startswith("method,seed,top1")
    assert rows[1].startswith("labels,0,0.5,0.9,1")


@pytest.mark.slow
def test_runs_leave_pages_behind(
    make_config: MakeConfig,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A real command: pages with thumbnails and three feature maps; drawn again from the folders alone, they are equal.

    A page that cannot be drawn is a warning, and the run and its numbers are there.
    """
    config = make_config(methods=["labels", "customkd"], train__epochs=1, report=True)
    distill_main(config)
    out = Path(config.out)
    assert str(out / "report.html") in capsys.readouterr().out
    folder = out / "customkd" / "seed0"
    with (folder / "report" / "feature_map.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert len(points) == 12
    assert {"teacher_x", "customised_x", "student_y"} <= points[0].keys()
    with (out / "labels" / "seed0" / "report" / "feature_map.csv").open(newline="") as file:
        assert "customised_x" not in next(csv.DictReader(file))
    assert len(list((folder / "report" / "images").glob("*.jpg"))) == 12
    stores = json.loads((folder / "report" / "extraction.json").read_text())["stores"]
    assert stores[0]["rows"] == 48

    pages = {path: path.read_bytes() for path in out.rglob("report.html")}
    assert len(pages) == 3
    elsewhere = tmp_path / "moved"
    shutil.copytree(out, elsewhere)
    for path in elsewhere.rglob("report.html"):
        path.unlink()
    drawn = report_main(ReportConfig(out=str(elsewhere)))
    assert {path.relative_to(elsewhere) for path in drawn} == {
        path.relative_to(out) for path in pages
    }
    for path, content in pages.items():
        assert (elsewhere / path.relative_to(out)).read_bytes() == content, path

    def broken(*args: object) -> None:
        raise RuntimeError("no ink")

    capsys.readouterr()
    monkeypatch.setattr(page_data, "write_page_data", broken)
    again = make_config(methods=["labels"], train__epochs=1, report=True, out=str(tmp_path / "b"))
    (found,) = distill_main(again)
    text = capsys.readouterr().out
    assert "warning: the page of" in text
    assert "RuntimeError: no ink" in text
    assert f"python pipelines/report.py --out {again.out}" in text
    saved = json.loads((Path(again.out) / "labels" / "seed0" / "run.json").read_text())
    assert saved["top1"] == found["top1"]


def test_a_comparison_that_cannot_be_drawn_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is written, the page is not."""
    said: list[str] = []
    finished_run(tmp_path, extras=False)
    files = report.write_command_results(
        tmp_path / "empty", [record("labels", 0, 0.5, 1)], say=said.append
    )
    assert len(files) == 2
    assert "holds no finished run" in said[0]
    monkeypatch.setattr(run_page, "build_run_page", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # asked for by name, it is an error
        report.draw_run(tmp_path / "customkd" / "seed0")


def test_the_command_refuses_a_folder_without_runs(tmp_path: Path) -> None:
    """One sentence; the default recipe names the embedded default."""
    with pytest.raises(ConfigError, match=r"--out.*METHOD/seedK"):
        report_main(ReportConfig(out=str(tmp_path)))
    with pytest.raises(ConfigError, match="--out"):
        ReportConfig(out="")
