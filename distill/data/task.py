"""What all runs of one command share: the checked store, the joined images, the views in use, the teacher's probe."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

from distill.config import DataConfig, EvalConfig, TeacherConfig
from distill.data.pictures import BatchMaker, Changes, PictureCache, ViewDataset, ViewRule
from distill.data.samples import Samples, Split, join, match_views, split
from distill.data.schedule import Indices, ViewPicker, allowed_columns
from distill.data.stored_features import Features, Grid, StoredField, check_vector, reference_column
from distill.measures.feature_similarity import thin_out, top1
from distill.measures.linear_probe import LinearProbe, fit_probe
from distill.student.model import Student
from featstore import FeatureStore
from featstore.errors import ConfigError
from featstore.sources.base import Source


@dataclass(frozen=True)
class Task:
    """Images with labels, and, with a store, what the teacher says of them.

    Attributes:
        store: the feature store; None to measure a student alone.
        samples: the images that take part.
        features: their stored features; None without a store.
        rule: how the teacher's regions are cut.
        columns: of the view axis that training picks from.
        data: the settings behind it.
        grid_field: the store's field with patch grids; "" takes the largest when a method needs one.
        caches: decoded views by the megabytes they may take, see ``cache``.
    """

    store: FeatureStore | None
    samples: Samples
    features: Features | None
    rule: ViewRule
    columns: list[int]
    data: DataConfig
    grid_field: str = ""
    caches: dict[int, PictureCache] = dataclasses.field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        """Their stored patch grids, of the teacher that made the vectors.

        Raises:
            ConfigError: the store has none, or not the one that was asked for.
        """
        assert self.store is not None
        assert self.features is not None
        teacher = self.store.manifest.fields[self.features.field].teacher
        return Grid(self.store, self.grid_field, self.samples, teacher=teacher)

    @property
    def fingerprints(self) -> list[str]:
        """Of the store, then of the further teachers' stores; see ``Manifest.fingerprint``."""
        assert self.features is not None
        return [teacher.store.fingerprint for teacher in self.features.teachers]

    def split(self, seed: int, *, measured: Literal["test", "validation"] = "test") -> Split:
        """The parts of one run.

        Args:
            seed: of the run.
            measured: what takes the place of the test part.

        Raises:
            ConfigError: see ``join.split``; or there is no validation part.
        """
        part = split(self.samples, self.data, seed)
        if measured == "test":
            return part
        if not len(part.validation):
            raise ConfigError(
                "--eval.part validation needs --data.validation: images per class that are held out for it."
            )
        return dataclasses.replace(part, test=part.validation)

    def fit_probe(self, part: Split, *, most: int, seed: int) -> LinearProbe:
        """Fit a linear probe on the stored features of the labelled part (reference view)."""
        assert self.features is not None
        chosen = few(part.labelled, most, seed)
        feature = self.features.take(chosen).numpy()
        return fit_probe(feature, self.samples.labels[chosen], num_classes=self.samples.num_classes)

    def probe_top1(self, probe: LinearProbe, part: Split) -> float:
        """Accuracy of that probe on the test part: what the teacher itself reaches with the same labels."""
        assert self.features is not None
        logits = torch.from_numpy(probe.logits(self.features.take(part.test).numpy()))
        return top1(logits, torch.from_numpy(self.samples.labels[part.test]))

    def picker(self, seed: int) -> ViewPicker:
        """Which of the views in use is shown in which pass of one run."""
        return ViewPicker(self.columns, self.samples.stored_ids, seed=seed)

    def cache(self, megabytes: int) -> PictureCache:
        """Decoded views that all runs over this task share, as far as they load in one process."""
        return self.caches.setdefault(megabytes, PictureCache(megabytes))

    def dataset(
        self,
        student: Student,
        *,
        changes: Changes | None = None,
        cache: PictureCache | None = None,
        rule: ViewRule | None = None,
    ) -> ViewDataset:
        """Pictures at the student's size; ``rule`` replaces the task's."""
        return ViewDataset(
            self.samples,
            rule or self.rule,
            size=student.input_size,
            changes=changes,
            cache=cache,
        )

    def maker(
        self, student: Student, device: torch.device, *, vector: bool = False, grid: bool = False
    ) -> BatchMaker:
        """Batches with the student's normalisation, and what is stored of the images."""
        return BatchMaker(
            self.samples,
            self.features if vector else None,
            self.grid if grid else None,
            mean=student.mean,
            std=student.std,
            device=device,
        )


def prepare(
    source: Source,
    store: FeatureStore,
    data: DataConfig,
    field: str,
    *,
    weight: float = 1.0,
    teachers: Sequence[TeacherConfig] = (),
    grid_field: str = "",
) -> Task:
    """Check the settings against the stores and join images and rows, before anything is trained.

    Args:
        source: of the images.
        store: of the first teacher, which decides the views and the regions that the student is shown.
        data: which images, and which views of them.
        field: of that store.
        weight: of the first teacher among all.
        teachers: further ones.
        grid_field: of the first store; "" takes the largest grid when a method needs one.

    Raises:
        ConfigError: patterns or fields that match nothing, or no labels.
        MissingSamples: images that a store does not hold, or of which it holds other bytes.
        ViewMismatch: views that a store does not hold.
    """
    columns = allowed_columns(store.manifest.views, data)
    stores = [FeatureStore.open(teacher.store) for teacher in teachers]
    for other, teacher in zip(stores, teachers, strict=True):
        check_vector(other, teacher.field, f"--teachers: field {teacher.field}")
    samples = join(source, store, data, stores)
    read = sorted({*columns, reference_column(store)})
    others = [
        StoredField(
            other,
            teacher.field,
            samples.other_rows[number],
            match_views(store, other, read, samples, number),
            teacher.weight,
        )
        for number, (other, teacher) in enumerate(zip(stores, teachers, strict=True))
    ]
    rule = ViewRule.of_store(store, field)
    samples.notes.extend(region_notes(rule, others))
    features = Features(store, field, samples, weight=weight, others=others)
    return Task(store, samples, features, rule, columns, data, grid_field)


def region_notes(rule: ViewRule, others: Sequence[StoredField]) -> list[str]:
    """Say which further teachers cut the canonical region otherwise than the one that the student follows."""
    notes = []
    for other in others:
        theirs = ViewRule.of_store(other.store, other.field)
        ours = (rule.size, rule.crop_pct, rule.crop_mode)
        found = (theirs.size, theirs.crop_pct, theirs.crop_mode)
        if ours != found:
            notes.append(
                f"{other.store.address}: its teacher cuts the canonical view as (size, crop_pct, crop_mode) {found}, "
                f"the first store's as {ours}; the student is shown the first store's region"
            )
    return notes


def prepare_without_store(source: Source, data: DataConfig, rule: ViewRule) -> Task:
    """Join nothing: images and the source's own labels, to measure a student where no store is at hand.

    Raises:
        ConfigError: patterns that match nothing, or no labels.
    """
    return Task(None, join(source, None, data), None, rule, [], data)


def few(members: Indices, most: int, seed: int) -> Indices:
    """At most ``most`` of the members, by a seed alone."""
    chosen: Indices = members[thin_out(len(members), most, seed=seed).numpy()]
    return chosen


class Probes:
    """The teacher's probe of every seed, fitted once however many methods use it."""

    def __init__(self, task: Task, settings: EvalConfig) -> None:
        self._fit: Any = lru_cache(maxsize=None)(
            lambda seed: task.fit_probe(task.split(seed), most=settings.probe_rows, seed=seed)
        )

    def __call__(self, seed: int) -> LinearProbe:
        """The probe of one seed."""
        probe: LinearProbe = self._fit(seed)
        return probe
