"""How well the scores of untrained students rank what they reach when trained: Kendall's tau, regret of the pick."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.config import StudentConfig
from distill.measures.score import Measure
from distill.reports.run_files import ReportedRun, find_runs
from distill.reports.tables import write_csv, write_page
from distill.search.bench import Bench
from distill.search.config import SearchConfig
from distill.search.found import Cost
from distill.search.scores import SCORES
from featstore.cli.schema import build_config
from featstore.display.text import columns, count
from featstore.errors import ConfigError

FEWEST = 3
"""Students that are needed for a rank correlation."""
Values = npt.NDArray[np.float64]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """One student with its finished runs.

    Attributes:
        name: Of its first run's folder.
        reached: Score of the task, by seed.
        cost: Parameters and multiply-adds.
        scores: By name: one for every draw of initial weights, or why there is none.
    """

    name: str
    reached: list[float]
    cost: Cost
    scores: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """A line of students.csv."""
        named = {
            name: statistics.fmean(found)
            for name, found in self.scores.items()
            if isinstance(found, list)
        }
        return {
            "row": self.name, "seeds": len(self.reached), "reached": statistics.fmean(self.reached),
            "deviation": statistics.stdev(self.reached) if len(self.reached) > 1 else "",
            "parameters": self.cost.parameters, "macs": self.cost.macs,
            **{name: named.get(name, "") for name in SCORES if name not in ("parameters", "macs")},
        }  # fmt: skip


def run(config: SearchConfig, bench: Bench, say: Say = print) -> list[dict[str, Any]]:
    """Score the students of finished runs with every score, and compare. Returns one row per score."""
    runs = find_runs(Path(config.against), "--against")
    measures = {item.score for item in runs}
    if len(measures) > 1:
        raise ConfigError(
            f"--against {config.against}: its runs are judged by {', '.join(sorted(m.name for m in measures))}; "
            "expected one of them."
        )
    (measure,) = measures
    groups: dict[str, list[ReportedRun]] = {}
    for item in runs:
        groups.setdefault(json.dumps(item.settings["student"], sort_keys=True), []).append(item)
    if len(groups) < FEWEST:
        raise ConfigError(
            f"--against {config.against}: {count(len(groups), 'student')}; a comparison needs {FEWEST} or more."
        )
    students = [_trained(bench, members) for members in groups.values()]
    rows = [compare(students, name, measure, bins=config.bins) for name in SCORES]
    _report(config, students, rows, measure, say)
    return rows


def _trained(bench: Bench, runs: Sequence[ReportedRun]) -> Trained:
    student = build_config(StudentConfig, runs[0].settings["student"])
    # Only the architecture counts.
    student = dataclasses.replace(student, pretrained=False, weights="", freeze=False)
    cost = bench.cost(student)
    scores = bench.scores(student, cost.macs, list(SCORES))
    return Trained(runs[0].name, [item.value for item in runs], cost, scores)


def compare(
    students: Sequence[Trained], name: str, measure: Measure, *, bins: int
) -> dict[str, Any]:
    """One score against what the students reached.

    Args:
        bins: Bins of equally many students, by parameters.

    Returns:
        score, students (that have the score), tau, tau_low and tau_high (of single draws), tau_bins (mean within bins),
        regret and regret_bins (mean within bins); nan where it is not defined.
    """
    known = [item for item in students if isinstance(item.scores[name], list)]
    known.sort(key=lambda item: item.cost.parameters)
    reached = np.array([measure.rank(statistics.fmean(item.reached)) for item in known])
    draws = np.array([item.scores[name] for item in known]).reshape(len(known), -1)
    score = draws.mean(axis=1)
    single = [kendall(draw, reached) for draw in draws.T]
    parts = [part for part in np.array_split(np.arange(len(known)), bins) if len(part)]
    return {
        "score": name,
        "students": len(known),
        "tau": kendall(score, reached),
        "tau_low": min(single, default=np.nan),
        "tau_high": max(single, default=np.nan),
        "tau_bins": _mean([kendall(score[part], reached[part]) for part in parts]),
        "regret": regret(score, reached),
        "regret_bins": _mean([regret(score[part], reached[part]) for part in parts]),
    }


def kendall(score: Values, reached: Values) -> float:
    """Kendall's tau-b; nan for fewer than two values, or where all of one side are equal."""
    from scipy.stats import kendalltau

    if len(set(score)) < 2 or len(set(reached)) < 2:
        return float("nan")
    return float(kendalltau(score, reached).statistic)


def regret(score: Values, reached: Values) -> float:
    """How far the student with the best score is below the best one; of equal scores the mean."""
    if not len(score):
        return float("nan")
    return float(reached.max() - reached[score == score.max()].mean())


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _report(
    config: SearchConfig,
    students: Sequence[Trained],
    rows: Sequence[dict[str, Any]],
    measure: Measure,
    say: Say,
) -> None:
    """Write the tables and print them."""
    out = Path(config.out)
    ordered = sorted(students, key=lambda item: -measure.rank(statistics.fmean(item.reached)))
    write_csv(out / "students.csv", [item.row() for item in ordered])
    write_csv(out / "scores.csv", rows)
    table = cells(rows, measure)
    notes = [
        f"{count(len(students), 'student')} of {config.against}, judged by {measure.label}",
        f"{count(config.bins, 'bin')} of equally many students by parameters",
        f"{config.probe.init} weights, {count(config.probe.draws, 'draw')}, {config.probe.images} images",
        "tau: Kendall's rank correlation with what the students reached; in brackets of single draws of weights",
        f"regret: {measure.label} of the best student minus that of the student with the best score",
    ]
    spreads = [statistics.stdev(item.reached) ** 2 for item in students if len(item.reached) > 1]
    if spreads:
        noise = measure.spread([statistics.fmean(spreads) ** 0.5])
        notes.append(f"{measure.label} of one student varies between seeds by {noise} (deviation)")
    write_page(out / "scores.md", table, notes)
    say(f"\n{columns(table)}\n")
    say("\n".join(notes))
    say(f"files: {out / 'scores.csv'}, {out / 'scores.md'}, {out / 'students.csv'}")


def cells(rows: Sequence[dict[str, Any]], measure: Measure) -> list[list[str]]:
    """The printed table."""
    head = ["score", "students", "tau", "tau within bins", "regret", "regret within bins"]
    lines = []
    for row in rows:
        spread = f" [{row['tau_low']:.2f}, {row['tau_high']:.2f}]"
        points = [measure.signed(row[name]).lstrip("+") for name in ("regret", "regret_bins")]
        tau = f"{row['tau']:.2f}" + (spread if row["tau_low"] < row["tau_high"] else "")
        lines.append([row["score"], str(row["students"]), tau, f"{row['tau_bins']:.2f}", *points])
    return [head, *lines]
