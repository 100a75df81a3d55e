"""Search among the sizes of trained slimmable students, by their loss without labels and under limits; no training.

The loss is that of ``autodistil`` on images of the training part, against what is stored of the teacher. The best size
is written as an ordinary model, with the settings of its run.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from distill.config import DistillConfig, StudentConfig
from distill.data.joined import JoinedData, few
from distill.data.schedule import Indices
from distill.evaluation.evaluate import Viewer
from distill.measures.score import Measure
from distill.methods.autodistil import (
    AutoDistil,
    AutoDistilConfig,
    check_student,
    relation_loss,
    slimmable,
)
from distill.register import config_of, options_of, resolved
from distill.reports.tables import write_csv
from distill.search.bench import Bench
from distill.search.config import SearchConfig
from distill.search.found import Found, cells, described, limits, over
from distill.search.judge import Values, kendall
from distill.student.model import Student, build_student
from distill.student.slimmable import Size
from distill.tasks import Task
from distill.training.run_settings import read_settings, write_settings
from distill.training.saved_student import load_exported, save_student
from featstore.display.text import columns, count
from featstore.errors import ConfigError, command
from featstore.files.atomic import write_json

METHOD = "autodistil"
BEST = "student"  # folder of the best student
SHOWN = 10
Say = Callable[[str], None]


def settings_of(folder: str) -> DistillConfig:
    """The settings of a run of method autodistil."""
    values = read_settings(Path(folder))
    if values is None or values["methods"] != [METHOD]:
        raise ConfigError(
            f"--slices {folder}: expected folders of finished runs of method {METHOD}, such as "
            f"outputs/distill/{METHOD}/seed0."
        )
    return config_of(values)


class Sizes:
    """One trained slimmable student in front of some images."""

    def __init__(self, folder: str, bench: Bench, chosen: Indices) -> None:
        self.name = folder
        self.student, _ = load_exported(Path(folder))
        self.student.to(bench.device)
        self.config = settings_of(folder)
        self.options: AutoDistilConfig = options_of(self.config, METHOD)
        AutoDistil.check(self.options, self.config, bench.data)
        fields = [bench.data.field(name) for name in self.options.fields]
        check_student(self.student, bench.data.store.manifest, self.options)
        self.model = slimmable(self.student)
        column = np.full((len(chosen), 1), bench.data.features.reference)
        self._stored = [field.read(chosen, column)[:, 0].to(bench.device) for field in fields]
        pixels = bench.pictures(self.student, chosen)
        self._inputs = bench.data.maker(self.student, bench.device).normalise(pixels)

    @torch.no_grad()
    def loss(self, size: Size) -> float:
        """The loss of a size, without its weight."""
        mask = self.model.token_mask(self._inputs)
        found = relation_loss(self.model.qkv(size, self._inputs), self._stored, self.options, mask)
        return float(found)

    def student_config(self, size: Size) -> StudentConfig:
        """The ordinary model of a size."""
        return dataclasses.replace(
            self.config.student, name=self.model.plain_name, model_args=self.model.plain_args(size)
        )

    def slice(self, size: Size) -> Student:
        found = build_student(self.student_config(size), self.student.num_classes)
        found.library_model.load_state_dict(self.model.slices(size))
        return found


@dataclasses.dataclass(frozen=True)
class Slice(Found):
    """A size that fits, and the student that it is a slice of."""

    sizes: Sizes
    size: Size
    measured: dict[str, float] = dataclasses.field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """A line of search.csv."""
        return {"run": self.sizes.name, **super().row(), **self.measured}


def run(
    config: SearchConfig, bench: Bench, task: Task, accelerator: Accelerator, say: Say = print
) -> list[Slice]:
    """Rank all sizes that fit, write the files and the best student, and print what was found.

    Raises:
        ConfigError: no size fits, or a folder is no run of method autodistil.
    """
    part = task.split(config.seed)
    chosen = few(np.union1d(part.labelled, part.unlabelled), config.probe.images, config.seed)
    students = [Sizes(folder, bench, chosen) for folder in config.slices]
    total = sum(len(item.model.sizes) for item in students)
    supers = count(len(students), "slimmable student", "slimmable students")
    say(f"space     {count(total, 'size')} of {supers}")
    say(f"limit     {limits(config.limit)}")
    found = _rank(config, bench, students)
    largest = max(found, key=lambda item: (item.cost.parameters, item.cost.macs))
    found = _measured(config, task, accelerator, found)
    out, best = Path(config.out), found[0]
    names = list(dict.fromkeys(name for item in found for name in item.row()))
    write_csv(out / "search.csv", [item.row() for item in found], names)
    settings = {"settings": dataclasses.asdict(config), "student": dataclasses.asdict(best.student)}
    write_json(out / "search.json", {**settings, "found": best.row()})
    save_student(out / BEST, best.sizes.slice(best.size), config=best.student, task=task)
    write_settings(
        out / BEST, resolved(dataclasses.replace(best.sizes.config, student=best.student))
    )
    shown = [*found[:SHOWN], *(item for item in found[SHOWN:] if item.text == largest.text)]
    say(f"\n{columns(cells(shown, 'minus loss'))}\n")
    for note in _notes(found, largest, task.measures[0]):
        say(f"note: {note}")
    say(f"files: {out / 'search.csv'}, {out / 'search.json'}, {out / BEST}")
    say(f"\nnext: {command('evaluate')} --model {out / BEST}")
    return found


def _rank(config: SearchConfig, bench: Bench, students: Sequence[Sizes]) -> list[Slice]:
    every = [(item, size) for item in students for size in item.model.sizes]
    found, refused = [], []
    for sizes, size in tqdm(every, desc="search", unit="size", disable=None, leave=False):
        student = sizes.student_config(size)
        cost = bench.cost(student)
        if config.limit.latency_ms and over(cost, config.limit) <= 1:
            cost = dataclasses.replace(cost, latency_ms=bench.latency_ms(student))
        if over(cost, config.limit) <= 1:
            text = f"{sizes.name} {size}" if len(students) > 1 else str(size)
            found.append(Slice(text, student, -sizes.loss(size), cost, sizes, size))
        else:
            refused.append(cost)
    if not found:
        smallest = min(refused, key=lambda cost: (over(cost, config.limit), cost.macs))
        raise ConfigError(
            f"--limit: no size fits. The smallest has {described(smallest)}; the limit is {limits(config.limit)}."
        )
    return sorted(found, key=lambda item: (-item.score, item.cost.macs))


def _measured(
    config: SearchConfig, task: Task, accelerator: Accelerator, found: list[Slice]
) -> list[Slice]:
    """The students, some of them with the task's numbers on the test part."""
    assert isinstance(task.data, JoinedData)
    by_size = sorted(range(len(found)), key=lambda n: (found[n].cost.parameters, found[n].size))
    spread = np.linspace(0, len(found) - 1, min(config.measure, len(found))).round().astype(int)
    places = dict.fromkeys([0, *(by_size[n] for n in spread)]) if config.measure else {}
    settings = found[0].sizes.config.eval
    viewer = Viewer(data=task.data, settings=settings, workers=0, accelerator=accelerator)
    part = task.split(config.seed)
    for place in tqdm(places, desc="measure", disable=None, leave=False):
        student = found[place].sizes.slice(found[place].size).to(accelerator.device)
        probe = task.probe(part, config.seed)
        result = task.measure(viewer, student, part, seed=config.seed, probe=probe).result
        numbers = {item.name: result[item.name] for item in task.measures if item.name in result}
        found[place] = dataclasses.replace(found[place], measured=numbers)
    return found


def _notes(found: Sequence[Slice], largest: Slice, measure: Measure) -> list[str]:
    """What to make of the ranking: beside it, that by the number of parameters."""
    place = [item.text for item in found].index(largest.text) + 1
    notes = [
        f"the largest size that fits is {largest.text}, number {place} of {len(found)}; Kendall's tau of loss and "
        f"parameters is {kendall(*_ranks(found)):.2f}"
    ]
    known = [item for item in found if item.measured]
    if len(known) > 1:
        reached = np.array([measure.rank(item.measured[measure.name]) for item in known])
        by_loss, by_size = (kendall(values, reached) for values in _ranks(known))
        notes.append(
            f"Kendall's tau with {measure.label} of {len(known)} measured sizes: {by_loss:.2f} by the loss, "
            f"{by_size:.2f} by the number of parameters"
        )
    return notes


def _ranks(found: Sequence[Slice]) -> tuple[Values, Values]:
    """Score and number of parameters."""
    return (
        np.array([item.score for item in found]),
        np.array([float(item.cost.parameters) for item in found]),
    )
