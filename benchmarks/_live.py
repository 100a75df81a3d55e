"""A live teacher in the place of stored features. Here, because ``distill`` never imports a teacher."""

# S samples, k views, D width of all teachers' vectors together, g side of a patch grid

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from distill.config import DistillConfig
from distill.data.feature_norm import FeatureNorm
from distill.data.joined import JoinedData
from distill.data.pictures import PictureCache, ViewDataset, load_batches
from distill.data.rules import rule_of
from distill.data.samples import Samples, Split
from distill.data.schedule import Indices, Request, ViewPicker, make_epoch_plan
from distill.data.stored_features import Features, Grid
from distill.options import Norm
from distill.register import options_of
from featstore import FeatureStore
from featstore.extraction.config import TeacherConfig
from featstore.extraction.teachers import Teacher, build_teacher
from featstore.format.views import View, ViewSet
from featstore.sources.config import require
from featstore.sources.load import ViewRule

TOLERANCE = {"float32": 1e-4, "float16": 1e-3, "bfloat16": 8e-3, "int8": 2e-2}
"""Of every loss, relative and absolute, between stored features of a type and live ones. float32: how images are
batched changes the last bits. The others are four times the rounding in units of a channel's standard deviation, 2^-12,
2^-9 and 0.5 %: a squared error counts it twice, and some steps of training carry it on."""
TOLERATED_STEPS = 6
"""Steps that the tolerance holds for. Training makes any difference grow, the last bits of a number too."""
BATCH = 256  # most pictures that a teacher is shown at a time


@dataclass
class Spent:
    """What a live teacher has cost."""

    images: int = 0  # forward passes
    teacher_s: float = 0.0  # seconds of these
    pictures_s: float = 0.0  # seconds of reading, decoding and cutting its pictures, in line


class LiveTeacher:
    """Computes from the images' bytes what a store would be asked for.

    Args:
        teacher: frozen; gives the fields that it will be asked for.
        samples: the images that take part.
        rule: which regions it sees; columns are those of ``rule.views``.
        cache: of its own pictures, if there is one.
    """

    def __init__(
        self,
        teacher: Teacher,
        samples: Samples,
        rule: ViewRule,
        *,
        cache: PictureCache | None = None,
    ) -> None:
        self.teacher = teacher
        self.pictures = ViewDataset(samples, rule, size=rule.size, cache=cache)
        self.spent = Spent()

    def __call__(self, field: str, indices: Indices, columns: Indices) -> Tensor:
        """A field of each (sample, column) pair: (n,), (n,) -> (n, *shape) float32 on the CPU."""
        pairs = zip(indices.tolist(), columns.tolist(), strict=True)
        requests = [Request(index, column, 0, False) for index, column in pairs]
        batches = [requests[start : start + BATCH] for start in range(0, len(requests), BATCH)]
        parts = []
        began = time.perf_counter()
        for pictures in load_batches(self.pictures, batches, workers=0):
            loaded = time.perf_counter()
            # Cloned, because tensors of inference mode take no part in training.
            parts.append(self.teacher.features(pictures.pixels)[field].float().cpu().clone())
            ended = time.perf_counter()
            self.spent.images += len(pictures.pixels)
            self.spent.pictures_s += loaded - began
            self.spent.teacher_s += ended - loaded
            began = ended
        return torch.cat(parts)


class LiveFeatures(Features):
    """Stands for ``Features``: each teacher in the place of its store.

    Args:
        stored: what would be read; says which fields, and how the teachers are weighted.
        live: one for each of its teachers.
    """

    def __init__(self, stored: Features, live: Sequence[LiveTeacher]) -> None:
        first, *others = stored.teachers
        super().__init__(
            first.store, first.field, stored._samples, weight=first.weight, others=others
        )
        self.stored = stored
        self.live = live

    def _read(self, indices: Indices, columns: Indices) -> Tensor:
        grid = np.broadcast_to(columns, (len(indices), columns.shape[-1]))
        samples = np.repeat(indices, grid.shape[1])
        parts = [
            live(stored.field, samples, grid.reshape(-1))
            for live, stored in zip(self.live, self.teachers, strict=True)
        ]
        return torch.cat(parts, dim=1).reshape(*grid.shape, -1)


class LiveInTraining(LiveFeatures):
    """The teacher computes what training asks for; the reference view and the statistics come from the store."""

    def take(self, indices: Indices, columns: Indices | None = None) -> Tensor:
        """See ``Features.take``."""
        return self.stored.take(indices) if columns is None else super().take(indices, columns)

    def norm(self, kind: Norm, indices: Indices, columns: Sequence[int]) -> FeatureNorm:
        """See ``Features.norm``."""
        return self.stored.norm(kind, indices, columns)


class LiveGrid(Grid):
    """Stands for ``Grid``."""

    def __init__(self, stored: Grid, samples: Samples, live: LiveTeacher) -> None:
        super().__init__(stored.store, stored.field, samples)
        self.live = live

    def take(self, indices: Indices, columns: Indices | None = None) -> Tensor:
        """See ``Grid.take``."""
        chosen = np.full(len(indices), self.reference) if columns is None else columns
        return self.live(self.field, indices, chosen)


class LiveData(JoinedData):
    """Data that ask the teachers. Their runs say so in their contract, so that none is taken for one from a store."""

    features: LiveFeatures
    shown = "the stored views"

    @property
    def grid(self) -> Grid:
        """See ``JoinedData.grid``."""
        return LiveGrid(super().grid, self.samples, self.features.live[0])

    @property
    def fingerprints(self) -> list[str]:
        """See ``JoinedData.fingerprints``."""
        return [f"live teacher on {self.shown}, {found}" for found in super().fingerprints]


Live = TypeVar("Live", bound=LiveData)


def live_data(
    data: JoinedData,
    teachers: Sequence[Teacher],
    *,
    kind: type[Live],
    features: type[LiveFeatures] = LiveFeatures,
    rule: ViewRule | None = None,
    cache_mb: int = 0,
) -> Live:
    """Put teachers in the place of stores.

    Args:
        data: images joined to the teachers' stores.
        teachers: one for each store; the first gives the patch grids too.
        kind: of the new data.
        features: of the new data.
        rule: the regions that are shown, if they are not the store's.
        cache_mb: memory for each teacher's decoded pictures.
    """
    rule = rule or data.rule
    live = [
        LiveTeacher(
            teacher,
            data.samples,
            dataclasses.replace(rule_of(stored.store, stored.field), views=rule.views),
            cache=PictureCache(cache_mb),
        )
        for teacher, stored in zip(teachers, data.features.teachers, strict=True)
    ]
    parts = {item.name: getattr(data, item.name) for item in dataclasses.fields(data)}
    return kind(**{**parts, "features": features(data.features, live), "rule": rule})


class FreshPicker(ViewPicker):
    """Pass n over an image shows seeded crop number n.

    Args:
        columns: whose statistics stand for those of all crops.
        stored_ids: of the samples.
        seed: of the run.
        views: holds the crop of every pass.
    """

    def __init__(
        self, columns: Sequence[int], stored_ids: Sequence[str], *, seed: int, views: ViewSet
    ) -> None:
        super().__init__(columns, stored_ids, seed=seed)
        self._crops = {
            view.number: column
            for column, view in enumerate(views.views)
            if view.kind == "seeded" and not view.mirrored
        }

    def __call__(self, index: int, number: int) -> tuple[int, int]:
        """See ``ViewPicker``."""
        return self._crops[number], super().__call__(index, number)[1]


class FreshData(LiveData):
    """Shows each crop once."""

    shown = "fresh views"

    def picker(self, seed: int) -> ViewPicker:
        """See ``JoinedData.picker``."""
        return FreshPicker(self.columns, self.samples.stored_ids, seed=seed, views=self.rule.views)


def fresh_rule(rule: ViewRule, passes: int) -> ViewRule:
    """The store's views, then the crops of higher numbers up to that of the last pass."""
    stored = rule.views.views
    more = [View(kind="seeded", number=number) for number in range(passes)]
    views = (*stored, *(view for view in more if view not in stored))
    return dataclasses.replace(rule, views=rule.views.model_copy(update={"views": views}))


def steps_per_epoch(config: DistillConfig, part: Split) -> int:
    """Of a run, whatever its method."""
    return make_epoch_plan(
        config.train,
        num_labelled=len(part.labelled),
        num_unlabelled=len(part.unlabelled),
        use_unlabelled=True,
        processes=1,
    ).steps_per_epoch


def num_passes(config: DistillConfig, part: Split) -> int:
    """Most passes that a run makes over an image, in its steps or in all stages 1 together."""
    steps = config.train.epochs * steps_per_epoch(config, part)
    counts = [config.train.epochs * options_of(config, "customkd").stage1_epochs]
    counts.append(-(-steps * config.train.labelled_batch // len(part.labelled)))
    if len(part.unlabelled):
        counts.append(-(-steps * config.train.unlabelled_batch // len(part.unlabelled)))
    return max(counts)


def same_teacher(
    config: TeacherConfig, store: FeatureStore, fields: Sequence[str], device: torch.device
) -> Teacher:
    """Build the teacher that made the fields, giving float32. Raises ConfigError: the recipe names another one."""
    stored = store.manifest.teacher_of(fields[0])
    teacher = build_teacher(
        config, fields=fields, dtype="float32", precision=stored.precision, device=device
    )
    for name in ("weights_sha256", "preprocessing"):
        found, expected = getattr(teacher.record, name), getattr(stored, name)
        require(
            found == expected,
            f"{store.path}: its teacher's {name} is {expected}, that of --extract {found}. Give the recipe and the "
            "--teacher flags that the store was made with.",
        )
    return teacher


def logged_losses(folder: Path, *, steps: int | None = None) -> dict[str, list[float]]:
    """Every loss term that a run has logged, in order; with ``steps``, those of its first steps alone."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if steps is None or line["step"] <= steps]
    names = {name for line in kept for name in line if name.startswith(("loss/", "stage1/loss"))}
    return {name: [line[name] for line in kept if name in line] for name in sorted(names)}


def largest_difference(stored: dict[str, list[float]], live: dict[str, list[float]]) -> float:
    """Of any term at any step, over the larger of 1 and the live value, as ``TOLERANCE`` means it."""
    assert {name: len(found) for name, found in stored.items()} == {
        name: len(found) for name, found in live.items()
    }, "two runs that logged different things"
    return max(
        abs(a - b) / max(1.0, abs(b))
        for name, found in stored.items()
        for a, b in zip(found, live[name], strict=True)
    )
