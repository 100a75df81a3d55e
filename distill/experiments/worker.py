"""Train one run after another in one process, with stores, images and probes kept in memory between them."""

import contextlib
import dataclasses
import hashlib
import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState

from distill.config import DistillConfig, PhotometricConfig
from distill.data import joined
from distill.data.images import default_source, open_images
from distill.data.joined import JoinedData
from distill.data.samples import Split
from distill.data.schedule import CANONICAL, make_epoch_plan
from distill.experiments.plan import PlannedRun
from distill.experiments.pool import OnProgress, Slot
from distill.measures.linear_probe import LinearProbe
from distill.methods import METHODS
from distill.methods.base import Needs
from distill.partners import PARTNERS
from distill.register import options_of
from distill.reports.report import page_hook
from distill.tasks import Task, build_task
from distill.training import checkpoint, loop
from featstore import FeatureStore
from featstore.errors import FeatstoreError

OUTPUT_NAME = "output.txt"  # in a run's folder: what it printed

COLOURS = tuple(item.name for item in dataclasses.fields(PhotometricConfig))
"""Settings of the data that change pictures after they were decoded and cut."""
LATER = (
    "fold",
    "group",
    "labels_per_class",
    "label_seed",
    "validation",
    "validation_share",
    "strong",
    "cache_mb",
    *COLOURS,
)
"""Settings of the data that decide neither which images are joined nor which views are in use."""


class RunWorker:
    """Train runs; keep stores, joined images, decoded pictures and the teacher's probes for the next run.

    Args:
        slot: what the runs may use.
    """

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self._stores: dict[str, FeatureStore] = {}
        self._sources: dict[str, Any] = {}
        self._data: dict[str, JoinedData] = {}
        self._splits: dict[str, Split] = {}
        self._probes: dict[str, LinearProbe | None] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self.notes: dict[str, None] = {}
        """Notes on data and students, in the order in which ``check`` found them."""
        torch.set_num_threads(slot.threads)

    def __call__(self, run: PlannedRun, tell: OnProgress) -> dict[str, Any]:
        """Train, export and measure one student. What it prints goes to a file in its folder.

        Raises:
            FeatstoreError: as ``train.run``.
        """
        with _printed_to(run.folder / OUTPUT_NAME):
            try:
                data = self.data(run.config)
                config = self._with_workers(run.config, data)
                _forget_last_run()
                return loop.run(
                    config,
                    data,
                    self._probe(run.config, data),
                    method=run.method,
                    seed=run.seed,
                    on_step=tell,
                    on_finish=page_hook(config),
                )
            except FeatstoreError:
                raise
            except Exception:
                traceback.print_exc()
                raise

    def check(self, run: PlannedRun) -> int:
        """Check settings, data, student and checkpoint before a run starts. Returns its optimiser steps.

        Raises:
            FeatstoreError: the data, the student or the checkpoint in its folder do not fit the settings.
        """
        config = run.config
        data = self.data(config)
        part = self._split(config, data)
        self._input_size(build_task(config, data), run.seed)
        self.notes |= dict.fromkeys([*data.samples.notes, *part.notes])
        needs = needs_of(config)
        if needs.grid:
            _ = data.grid
        checkpoint.load_checkpoint(run.folder, run.contract)
        plan = make_epoch_plan(
            config.train,
            num_labelled=len(part.labelled),
            num_unlabelled=len(part.unlabelled),
            use_unlabelled=needs.unlabelled,
            processes=1,
        )
        return plan.steps_per_epoch * config.train.epochs

    def data(self, config: DistillConfig) -> JoinedData:
        """The joined images of a run; joined once for all runs that differ in other settings only."""
        values = dataclasses.asdict(config)
        asked = {name: values[name] for name in ("source", "store", "field", "teachers")}
        asked |= {name: values[name] for name in ("teacher_weight", "grid_field")}
        asked |= {name: value for name, value in values["data"].items() if name not in LATER}
        key = json.dumps(asked)
        if key not in self._data:
            self._data[key] = self._share_pictures(self._prepare(config))
        found = self._data[key]
        for other in self._data.values():
            if other.caches is not found.caches:
                other.caches.clear()  # memory holds the pictures of one set of images
        return dataclasses.replace(found, settings=config.data)

    def _prepare(self, config: DistillConfig) -> JoinedData:
        if config.store not in self._stores:
            self._stores[config.store] = FeatureStore.open(config.store)
        store = self._stores[config.store]
        images = default_source(config.source, store)
        source = json.dumps(dataclasses.asdict(images))
        if images.kind == "store" and not images.path:
            source = config.store
        if source not in self._sources:
            self._sources[source] = open_images(images, store)
        return joined.join_run(config, self._sources[source], store)

    def _share_pictures(self, new: JoinedData) -> JoinedData:
        """Reuse the decoded pictures of data with the same images and regions."""
        for known in self._data.values():
            same = known.samples.source is new.samples.source
            if same and known.rule == new.rule and known.samples.ids == new.samples.ids:
                return dataclasses.replace(new, caches=known.caches)
        return new

    def _split(self, config: DistillConfig, data: JoinedData) -> Split:
        key = json.dumps(
            [
                config.task,
                dataclasses.asdict(config.data),
                config.seeds,
                config.eval.part,
                id(data.samples),
            ]
        )
        if key not in self._splits:
            self._splits[key] = build_task(config, data).split(
                config.seeds[0], measured=config.eval.part
            )
        return self._splits[key]

    def _probe(self, config: DistillConfig, data: JoinedData) -> LinearProbe | None:
        """The teacher's probe on the labelled part, fitted once however many methods use it."""
        part = self._split(config, data)
        most, seed = config.eval.probe_rows, config.seeds[0]
        members = hashlib.sha256(part.labelled.tobytes()).hexdigest()
        key = json.dumps([config.task, members, most, seed, id(data.features)])
        if key not in self._probes:
            self._probes[key] = build_task(config, data).probe(part, seed)
        return self._probes[key]

    def _input_size(self, task: Task, seed: int) -> tuple[int, int]:
        """(H, W) of the student's input; building it once checks its name and its weights."""
        config = task.config.student
        values = [task.name, task.num_outputs, dataclasses.asdict(config)]
        key = json.dumps([*values, seed if "{seed}" in config.weights else 0], default=str)
        if key not in self._sizes:
            student = task.student(seed)
            self.notes |= dict.fromkeys(student.notes)
            self._sizes[key] = student.input_size
        return self._sizes[key]

    def _with_workers(self, config: DistillConfig, data: JoinedData) -> DistillConfig:
        """Choose the number of loading processes: 0 where pictures come from memory, else at most the number of cores.

        The number never changes a result. Pictures that are loaded in this process stay for the next run.
        """
        partner = PARTNERS.get(config.partner)
        coloured = any(getattr(config.data, name) for name in COLOURS)
        changed = coloured or (
            partner is not None and partner.strong_views(options_of(config, config.partner)) > 0
        )
        height, width = self._input_size(build_task(config, data), config.seeds[0])
        views = len({*data.columns, CANONICAL})
        held = len(data.samples.ids) * views * height * width * 3
        fits = held <= config.data.cache_mb * 2**20
        most = 0 if fits and not changed else max(0, self.slot.threads - 1)
        workers = min(config.train.workers, most)
        return dataclasses.replace(config, train=dataclasses.replace(config.train, workers=workers))


def needs_of(config: DistillConfig) -> Needs:
    """What the run's method and its partner ask of the data."""
    needs = METHODS[config.methods[0]].needs(options_of(config, config.methods[0]))
    partner = PARTNERS.get(config.partner)
    return needs if partner is None else needs | partner.needs(options_of(config, config.partner))


def _forget_last_run() -> None:
    """Reset what accelerate and torch keep between two runs of one process."""
    # accelerate keeps one state per process and refuses another precision until it is reset.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # Linux: the largest memory so far, which the run's record names, starts again from here.
    with contextlib.suppress(OSError), Path("/proc/self/clear_refs").open("w") as file:
        file.write("5")


@contextlib.contextmanager
def _printed_to(path: Path) -> Iterator[None]:
    """Append printed output to a file. Progress bars are off, because a file is no terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield
    if not path.stat().st_size:
        path.unlink()
