"""Console table, results.csv and pages of finished runs."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.measures.score import Record, measures_of, part_of, reference_of, score_of
from featstore.display.text import columns
from featstore.errors import command
from featstore.files.atomic import write_bytes, write_json

if TYPE_CHECKING:
    from distill.config import DistillConfig
    from distill.reports.run_files import Row
    from distill.training.results import TrainedRun
    from featstore.display.parts import Page

COLUMNS = (
    "teacher_probe_top1", "seconds", "steps", "num_labelled", "num_unlabelled", "num_test", "peak_memory_mb",
)  # fmt: skip
"""Columns of results.csv after method, seed and the measures."""

PAGE = "report.html"

Say = Callable[[str], None]


def runs_table(records: Sequence[Record]) -> str:
    """Mean and deviation of the score and mean seconds of every method; what the score is compared with at the end."""
    methods: dict[str, list[Record]] = {}
    references: dict[str, dict[int, float]] = {}
    for record in records:
        methods.setdefault(record["method"], []).append(record)
        if found := reference_of(record):
            references.setdefault(found[0], {})[record["seed"]] = found[1]
    measure = score_of(records[0])[0]
    part = part_of(records[0])
    unit = " %" if measure.percent else ""
    rows = [("method", "runs", f"{part} {measure.label}{unit}", "seconds per run")]
    for method, group in methods.items():
        values = [score_of(record)[1] for record in group]
        seconds = statistics.fmean(record["seconds"] for record in group)
        rows.append((method, str(len(group)), measure.spread(values), f"{seconds:.1f}"))
    for label, by_seed in references.items():
        rows.append((label, str(len(by_seed)), measure.spread([*by_seed.values()]), "-"))
    return columns(rows)


def write_command_results(
    out: Path, records: list[dict[str, Any]], *, page: bool = True, say: Say = print
) -> list[Path]:
    """Write results.json and results.csv of a command's runs, and the page that compares all runs in its folder.

    Args:
        page: Also draw the page; if that fails, a warning is printed and the other files are written.

    Returns:
        Paths of the files.
    """
    from distill.reports.tables import write_csv

    write_json(out / "results.json", records)
    measured = [{measure.name: value for measure, value in measures_of(run)} for run in records]
    names = dict.fromkeys(name for values in measured for name in values)
    rows = [{**run, **values} for run, values in zip(records, measured, strict=True)]
    write_csv(out / "results.csv", rows, ["method", "seed", *names, *COLUMNS])
    files = [out / "results.json", out / "results.csv"]
    if page:
        try:
            files.append(draw_comparison(out))
        except Exception as error:  # no error of drawing may fail the runs
            say(_undrawn(out, error, out))
    return files


def page_hook(config: "DistillConfig", say: Say = print) -> "Callable[[TrainedRun], None] | None":
    """The function that draws a finished run's page; None if no page is wanted.

    Runs on the validation part, made to choose settings, get no page.
    """
    if not config.report or config.eval.part != "test":
        return None
    return lambda run: write_run(run, say=say)


def write_run(run: "TrainedRun", *, say: Say = print) -> None:
    """Write the data of a run's page, and draw it; called by one process, after run.json was written.

    Args:
        say: prints a warning if the page cannot be drawn; the run does not fail.
    """
    folder = run.folder
    try:
        from distill.reports import page_data

        page_data.write_page_data(
            folder, run.data, run.test, run.evaluation, run.customise, run.device
        )
        draw_run(folder)
    except Exception as error:
        say(_undrawn(folder, error, folder.parent.parent))


def draw_run(folder: Path) -> Path:
    """Draw the page of one run from its folder, with its data as CSV and JSON below ``report/``.

    Args:
        folder: OUT/METHOD/seedK; it is compared with OUT/labels/seedK if that is finished.

    Returns:
        The page.

    Raises:
        ConfigError: the folder is not that of a finished run.
    """
    from distill.reports import run_page
    from distill.reports.run_files import BASELINE, find_baseline, read_run

    run, beside = read_run(folder), folder.parent.parent / BASELINE / folder.name
    others = [read_run(beside)] if (beside / "run.json").is_file() else []
    return _write_page(folder, *run_page.build_run_page(run, find_baseline(run, others)))


def draw_comparison(out: Path) -> Path:
    """Draw the page that compares all finished runs below a folder. Returns its path.

    Raises:
        ConfigError: there is none, or one cannot be read.
    """
    from distill.reports import compare_page
    from distill.reports.run_files import find_runs

    return _write_page(out, *compare_page.build_compare_page(find_runs(out), out))


def rebuild(out: Path) -> list[Path]:
    """Draw the pages of all finished runs below a folder, and the page that compares them, from their files.

    Raises:
        ConfigError: there is no run, or one cannot be read.
    """
    from distill.reports import run_page
    from distill.reports.run_files import find_baseline, find_runs

    runs = find_runs(out)
    pages = [
        _write_page(run.folder, *run_page.build_run_page(run, find_baseline(run, runs)))
        for run in runs
    ]
    return [*pages, draw_comparison(out)]


def _write_page(folder: Path, page: "Page", shown: "dict[str, list[Row]]") -> Path:
    from distill.reports.run_files import REPORT
    from distill.reports.tables import write_csv
    from featstore.display.render import render

    for name, rows in shown.items():
        write_csv(folder / REPORT / f"{name}.csv", rows)
    summary = {tile.label: f"{tile.value} ({tile.note})" for tile in page.tiles}
    write_json(
        folder / REPORT / "report.json",
        {"title": page.title, "finding": page.finding, "summary": summary, **shown},
    )
    write_bytes(folder / PAGE, render(page).encode())
    return folder / PAGE


def _undrawn(where: Path, error: Exception, out: Path) -> str:
    return (
        f"warning: the page of {where} could not be drawn ({type(error).__name__}: {error}). The results are written; "
        f"retry with: {command('report')} --out {out}"
    )
