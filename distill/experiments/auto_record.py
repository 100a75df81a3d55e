"""What ``--methods '[auto]'`` tried and why it chose: OUT/auto/auto.json, OUT/auto.csv, and the summary in run.json."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.experiments.tune import Try, rank
from distill.measures.score import Measure
from distill.reports.tables import write_csv
from featstore.errors import ConfigError
from featstore.files.atomic import write_json

FORMAT_VERSION = 1


@dataclass
class Round:
    """One round."""

    steps: int  # optimiser steps of every run
    tries: dict[str, Try] = field(default_factory=dict)  # results by name of the candidate

    def known(self, name: str, keys: Sequence[str]) -> Try | None:
        """The result of a candidate, if it is that of exactly these runs."""
        found = self.tries.get(name)
        return found if found is not None and found.keys == list(keys) else None


@dataclass
class AutoRecord:
    """All that was tried."""

    budget: str  # as the user gave it
    held_out: int  # number of images that were measured in each run
    measure: Measure  # score of the task
    rounds: list[Round] = field(default_factory=list)  # those that have begun
    seconds: float = 0.0  # time of all tries
    # seconds of a step, and of everything else in a run; None for a budget in steps
    speed: tuple[float, float] | None = None
    chosen: str = ""  # name of the candidate; "" before the end

    @classmethod
    def read(cls, out: Path, budget: str, held_out: int, measure: Measure) -> "AutoRecord":
        """What was tried with this budget before; a new record if there is none."""
        path = out / "auto" / "auto.json"
        fresh = cls(budget, held_out, measure)
        try:
            values = json.loads(path.read_bytes())
            if (values["budget"], values["held_out"]) != (budget, held_out):
                return fresh
            fresh.seconds, fresh.chosen = float(values["seconds"]), str(values["chosen"])
            fresh.speed = values["speed"] and tuple(values["speed"])
            for item in values["rounds"]:
                tries = {name: Try(**entry) for name, entry in item["tries"].items()}
                fresh.rounds.append(Round(int(item["steps"]), tries))
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ConfigError(
                f"{path.absolute()}: not a record of what was tried ({error}). Delete it: finished tries are read "
                "from their folders."
            ) from None
        return fresh

    def text(self, tried: Try) -> str:
        """Mean and deviation over the folds."""
        return self.measure.spread(tried.scores) + (" %" if self.measure.percent else "")

    def why(self) -> str:
        """The choice and its reason, in two sentences."""
        last = self.rounds[-1].tries
        best = last[self.chosen]
        settings = ", ".join(f"{name} {value}" for name, value in best.settings.items())
        said = (
            f"auto chose {self.chosen}{f' ({settings})' if settings else ''} of {len(self.rounds[0].tries)} candidates"
            f": {self.measure.label} {self.text(best)} on {self.held_out:,} held-out training images"
            f"{f' of each of {len(best.scores)} folds' if len(best.scores) > 1 else ''}, "
            f"{self.rounds[-1].steps:,} steps."
        )
        others = [
            (rank(self.measure, item), name) for name, item in last.items() if name != self.chosen
        ]
        if not others:
            return said
        second = last[max(others)[1]]
        ahead = self.measure.difference(best.mean - second.mean)
        return (
            f"{said} Next: {max(others)[1]}, {self.text(second)} ({ahead}{self._noise(best.mean)})."
        )

    def _noise(self, share: float) -> str:
        if not self.measure.percent or self.measure.name != "top1":
            return ""
        images = self.held_out * len(self.rounds[-1].tries[self.chosen].scores)
        error = math.sqrt(max(share * (1 - share), 1e-9) / images)
        return f"; standard error of one value {100 * error:.1f} points"

    def summary(self) -> dict[str, Any]:
        """What run.json holds of the choice."""
        return {
            "chosen": self.chosen,
            "why": self.why(),
            "budget": self.budget,
            "held_out": self.held_out,
            "seconds": round(self.seconds, 1),
            "rounds": [
                {"steps": item.steps, "scores": {name: tried.scores for name, tried in item.tries.items()}}
                for item in self.rounds
            ],
        }  # fmt: skip

    def write(self, out: Path) -> None:
        """Write auto.json, from which a later start resumes, and the table auto.csv."""
        values = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        write_json(out / "auto" / "auto.json", values)
        rows = [
            {
                "round": number,
                "candidate": name,
                "settings": json.dumps(tried.settings),
                "steps": item.steps,
                "folds": len(tried.keys),
                self.measure.name: tried.mean if tried.scores else "",
                "scores": json.dumps(tried.scores),
                "chosen": "yes" if name == self.chosen and item is self.rounds[-1] else "",
                "error": tried.error,
            }
            for number, item in enumerate(self.rounds, 1)
            for name, tried in item.tries.items()
        ]
        write_csv(out / "auto.csv", rows)
