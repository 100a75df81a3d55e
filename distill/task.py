"""What all runs of one command share: the checked store, the joined images, the views in use, the teacher's probe."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from distill.config import DataConfig, EvalConfig
from distill.data import BatchMaker, Features, ViewDataset, ViewRule
from distill.diagnostics import thin_out, top1
from distill.join import Samples, Split, join, split
from distill.probe import LinearProbe, fit_probe
from distill.sampler import Indices, allowed_columns
from distill.student import Student
from featstore import FeatureStore
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
    """

    store: FeatureStore | None
    samples: Samples
    features: Features | None
    rule: ViewRule
    columns: list[int]
    data: DataConfig

    def split(self, seed: int) -> Split:
        """The parts of one run."""
        return split(self.samples, self.data, seed)

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

    def dataset(
        self,
        student: Student,
        *,
        jitter: float = 0.0,
        cache_mb: int = 0,
        rule: ViewRule | None = None,
    ) -> ViewDataset:
        """Pictures at the student's size; ``rule`` replaces the task's."""
        return ViewDataset(
            self.samples,
            rule or self.rule,
            size=student.input_size,
            jitter=jitter,
            cache_mb=cache_mb,
        )

    def maker(self, student: Student, device: torch.device, *, with_features: bool) -> BatchMaker:
        """Batches with the student's normalisation."""
        return BatchMaker(
            self.samples,
            self.features if with_features else None,
            mean=student.mean,
            std=student.std,
            device=device,
        )


def prepare(source: Source, store: FeatureStore, data: DataConfig, field: str) -> Task:
    """Check the settings against the store and join images and rows, before anything is trained.

    Raises:
        ConfigError: patterns or fields that match nothing, or no labels.
        MissingSamples: images that the store does not hold.
        ViewMismatch: views that the store does not hold.
    """
    columns = allowed_columns(store.manifest.views, data)
    samples = join(source, store, data)
    return Task(
        store,
        samples,
        Features(store, field, samples),
        ViewRule.of_store(store, field),
        columns,
        data,
    )


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
