"""Rows and runs of an experiment file. All of them are checked before the first run starts."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from distill.config import DistillConfig
from distill.experiments.spec import TUNE, Experiment
from distill.register import AUTO
from distill.tasks import settle
from distill.training import run_folder
from featstore import FeatureStore
from featstore.cli.schema import Settings
from featstore.cli.yaml_with_lines import Node
from featstore.errors import ConfigError, shorten

State = Literal["finished", "started", "new"]


@dataclass(frozen=True)
class Row:
    """One row of the table: a variant in one cell of the grid."""

    name: str  # VARIANT, or VARIANT,axis=choice,...; also the name of its folder
    variant: str  # name of the variant
    cell: dict[str, str]  # name of the choice by axis
    settings: Settings  # all of its settings, without those it searches over
    search: list[Settings]  # settings to try on top of them
    where: str  # file and line


@dataclass(frozen=True)
class PlannedRun:
    """One student to train. Rows with equal settings share a run."""

    config: DistillConfig  # with one method and one seed
    contract: run_folder.Contract  # all that decides its result, see ``run_folder.contract``
    label: str  # for lines and messages: ROW seed K

    @property
    def method(self) -> str:
        """Key of ``METHODS``."""
        return self.config.methods[0]

    @property
    def seed(self) -> int:
        return self.config.seeds[0]

    @property
    def folder(self) -> Path:
        """OUT/ROW/METHOD[+PARTNER]/seedK."""
        return run_folder.run_dir(self.config, self.method, self.seed)

    @property
    def key(self) -> str:
        """Equal for runs with equal results."""
        return run_folder.contract_hash(self.contract)

    @property
    def state(self) -> State:
        if (self.folder / "run.json").exists():
            return "finished"
        return "started" if (self.folder / run_folder.CHECKPOINT_NAME).exists() else "new"

    def record(self) -> dict[str, Any] | None:
        """The record of the finished run, or None.

        Raises:
            ConfigError: the folder holds a finished run with other settings.
        """
        return run_folder.read_finished(self.folder, self.contract)


class Planner:
    """Build runs from rows and settings. Opens every store once."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._fingerprint = cache(lambda path: FeatureStore.open(path).fingerprint)

    def run(
        self, row: Row, seed: int, tried: Settings | None = None, *, folder: str = ""
    ) -> PlannedRun:
        """One run of a row.

        Args:
            folder: of the row below OUT; "" for its name.

        Raises:
            ConfigError: the settings are not those of one run; names file and line.
            StoreError: a store is not there.
        """
        settings = {**row.settings, **(tried or {}), **self.experiment.flags}
        config = dataclasses.replace(
            self._make(settings, row),
            out=str(Path(self.experiment.out) / (folder or row.name)),
            seeds=[seed],
        )
        stores = [config.store, *(teacher.store for teacher in config.teachers)]
        fingerprints = [self._fingerprint(store) for store in stores]
        contract = run_folder.contract(config, config.methods[0], seed, fingerprints)
        return PlannedRun(config, contract, f"{folder or row.name} seed {seed}")

    def _make(self, settings: Settings, row: Row) -> DistillConfig:
        try:
            config = self.experiment.schema.build(settings)
        except ConfigError as error:
            raise ConfigError(f"{error} (row {row.name})") from None
        if len(config.methods) != 1:
            where = settings["methods"].where if "methods" in settings else row.where
            raise ConfigError(
                f"{where}: {row.name}: methods: found {config.methods}, expected exactly one. Give every variant "
                "its own: NAME: {methods: [METHOD]}."
            )
        if AUTO in config.methods:
            raise ConfigError(
                f"{row.where}: {row.name}: methods: [{AUTO}] chooses automatically; in an experiment, name methods and "
                "give their settings under search."
            )
        # Without a word about the task, the rows train classifiers.
        task = "classify" if config.task == "auto" else config.task
        return settle(dataclasses.replace(config, task=task))

    def tries(self, row: Row) -> list[list[PlannedRun]]:
        """The tuning runs of a row: for every setting of its search one run per tuning seed."""
        tune = self.experiment.tune
        if tune is None or not row.search:
            return []
        held_out = {"eval.part": Node("validation", row.where)}
        if tune.validation:
            held_out["data.validation"] = Node(tune.validation, row.where)
        found = [
            [
                self.run(row, seed, {**tried, **held_out}, folder=f"{TUNE}/{row.name}/{number}")
                for seed in tune.seeds
            ]
            for number, tried in enumerate(row.search)
        ]
        data = found[0][0].config.data
        if not data.validation and not data.validation_share:
            raise ConfigError(
                f"{self.experiment.path}: tune.validation: is missing. Settings are chosen on images that are held out "
                "of training, never on the test part: give a number of images per class."
            )
        return found


def rows_of(experiment: Experiment) -> list[Row]:
    """Every variant in every cell of the grid."""
    axes = [
        [(axis.name, name, settings) for name, settings in axis.choices.items()]
        for axis in experiment.grid
    ]
    found = []
    for name, variant in experiment.variants.items():
        for cell in itertools.product(*axes):
            settings = {**experiment.recipe, **variant.settings}
            for _, _, chosen in cell:
                settings |= chosen
            choices = {axis: choice for axis, choice, _ in cell}
            label = ",".join([name, *(f"{axis}={choice}" for axis, choice in choices.items())])
            found.append(Row(label, name, choices, settings, variant.search, variant.where))
    return found


def baseline_of(experiment: Experiment, rows: Sequence[Row]) -> dict[str, str]:
    """Row that each row is compared to: the baseline's row in the same cell, or the one row that is named."""
    name = experiment.baseline
    if not name:
        return {}
    if name in experiment.variants:
        cells = {json.dumps(row.cell): row.name for row in rows if row.variant == name}
        pairs = {row.name: cells[json.dumps(row.cell)] for row in rows}
    elif name in {row.name for row in rows}:
        pairs = {row.name: name for row in rows}
    else:
        raise ConfigError(
            f"{experiment.path}: baseline: found {name!r}, expected a variant "
            f"({shorten(list(experiment.variants))}) or a row ({shorten([row.name for row in rows])})."
        )
    return {row: other for row, other in pairs.items() if row != other}


def select_rows(experiment: Experiment, rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    """The rows of some variants, or some rows by their full names; all if none are named."""
    for name in only:
        if not any(name in (row.variant, row.name) for row in rows):
            raise ConfigError(
                f"--only {name}: {experiment.path} has no such variant or row. Variants: "
                f"{', '.join(experiment.variants)}; rows: {shorten([row.name for row in rows])}."
            )
    return [row for row in rows if not only or row.variant in only or row.name in only]


def unique(wanted: Sequence[PlannedRun]) -> dict[str, PlannedRun]:
    """One run for every contract, by its key: the finished one, else one with a checkpoint, else the first.

    Raises:
        ConfigError: a folder holds a finished run with other settings.
    """
    rank = {"finished": 0, "started": 1, "new": 2}
    chosen: dict[str, PlannedRun] = {}
    for run in wanted:
        known = chosen.get(run.key)
        if known is None or rank[run.state] < rank[known.state]:
            chosen[run.key] = run
    for run in chosen.values():
        run.record()
    return chosen


def in_order(found: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Seed by seed, so that an experiment that is stopped early can be compared."""
    return sorted(found, key=lambda run: run.seed)


def changed_settings(row: Row, experiment: Experiment) -> dict[str, Any]:
    """Settings of a row that differ from the recipe, as plain values by dotted name."""
    return {
        name: node.plain()
        for name, node in {**row.settings, **experiment.flags}.items()
        if experiment.recipe.get(name) is not node
    }
