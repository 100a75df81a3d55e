"""Choose a row's settings: every setting is trained and measured on a validation part; the best mean is chosen."""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.experiments.plan import PlannedRun, Row
from distill.experiments.pool import Failure
from distill.experiments.spec import TUNE
from distill.measures.score import TOP1, Measure, score_of
from featstore.cli.schema import Settings
from featstore.errors import ConfigError
from featstore.files.atomic import write_json

NAME = "tuned.json"
DIVERGED = "TrainingDiverged"
"""A setting that fails with this error ranks last; after any other failure nothing is chosen."""

Result = dict[str, Any] | Failure  # a run's record, or why there is none


@dataclass(frozen=True)
class Try:
    """One setting that was tried."""

    settings: dict[str, Any]  # by dotted name
    # score on the validation part for every seed; empty if one of its runs diverged
    scores: list[float]
    # of its runs, which are those of other runs as soon as anything that matters changes
    keys: list[str]
    error: str = ""  # why there is no score

    @property
    def mean(self) -> float:
        """Over the seeds; not a number if there is no score."""
        return statistics.fmean(self.scores) if self.scores else math.nan


@dataclass(frozen=True)
class TunedSettings:
    """The chosen settings of one row."""

    chosen: int  # number of the winning try; of equal ones the first
    tries: list[Try]  # all of them
    validation: int  # images per class that decided
    seeds: list[int]  # of the tries
    measure: Measure = TOP1  # the score


def choose_try(
    row: Row, tries: Sequence[Sequence[PlannedRun]], results: Mapping[str, Result]
) -> TunedSettings | Failure:
    """Compare the tries of a row.

    Args:
        tries: the runs of each setting, one per seed.
        results: of all of them, by their keys.

    Returns:
        The choice; a failure if a try failed for another reason than the settings, or if all diverged.
    """
    found, measure = [], TOP1
    for settings, group in zip(row.search, tries, strict=True):
        records: list[dict[str, Any]] = []
        error = ""
        for run in group:
            result = results[run.key]
            if not isinstance(result, Failure):
                records.append(result)
            elif result.kind == DIVERGED:
                error = result.message
            else:
                return Failure(
                    "NotTuned", f"settings are not chosen, because {run.label}: {result.message}"
                )
        scores = [] if error else [score_of(record) for record in records]
        measure = scores[0][0] if scores else measure
        keys = [run.key for run in group]
        found.append(Try(_plain(settings), [value for _, value in scores], keys, error))
    best = max(range(len(found)), key=lambda number: rank(measure, found[number]))
    if not found[best].scores:
        return Failure("NotTuned", f"all {len(found)} settings diverged; {found[best].error}")
    held_out = tries[0][0].config.data.validation
    return TunedSettings(best, found, held_out, [run.seed for run in tries[0]], measure)


def rank(measure: Measure, tried: Try) -> float:
    """Sort key: larger is better; without a score, below all others."""
    return measure.rank(tried.mean) if tried.scores else -math.inf


def read_choices(out: Path) -> dict[str, TunedSettings]:
    """Read tuned.json: settings by name of the row; empty without the file."""
    path = out / NAME
    try:
        values = json.loads(path.read_bytes())
        return {
            name: TunedSettings(
                **{
                    **entry,
                    "tries": [_try_of(item) for item in entry["tries"]],
                    "measure": Measure(**entry["measure"]) if "measure" in entry else TOP1,
                }
            )
            for name, entry in values.items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: not a record of chosen settings ({error}). Delete it; it is made again from the runs in "
            f"{out / TUNE}."
        ) from None


def write_choices(out: Path, choices: Mapping[str, TunedSettings]) -> None:
    write_json(out / NAME, {name: dataclasses.asdict(choice) for name, choice in choices.items()})


def is_current(choice: TunedSettings | None, tries: Sequence[Sequence[PlannedRun]]) -> bool:
    """Whether a stored choice was made among exactly these runs."""
    return choice is not None and [item.keys for item in choice.tries] == [
        [run.key for run in group] for group in tries
    ]


def _try_of(values: Mapping[str, Any]) -> Try:
    """A try as tuned.json holds it; versions before 0.3 called the scores top1."""
    return Try(**{"scores" if name == "top1" else name: item for name, item in values.items()})


def _plain(settings: Settings) -> dict[str, Any]:
    return {name: node.plain() for name, node in settings.items()}
