"""All tasks by name, and which one a command means. A new one is a class in a file, and a line here."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.config import DataConfig, DistillConfig
from distill.tasks.base import Task
from distill.tasks.classify import Classify
from distill.tasks.generate import Generate
from distill.tasks.keypoints import Keypoints
from distill.tasks.multilabel import MultiLabel
from distill.tasks.none import Backbone
from distill.tasks.promptable import Promptable
from distill.tasks.segment import Segment
from distill.tasks.zeroshot import ZeroShot
from featstore import FeatureStore
from featstore.cli.schema import given
from featstore.errors import ConfigError, shorten
from featstore.sources.base import NO_LABEL, Source, matches

if TYPE_CHECKING:
    from distill.data.joined import Data

__all__ = ["TASKS", "Task", "build_task", "resolve"]

TASKS: dict[str, type[Task]] = {
    "none": Backbone,
    "classify": Classify,
    "multilabel": MultiLabel,
    "keypoints": Keypoints,
    "segment": Segment,
    "zeroshot": ZeroShot,
    "promptable": Promptable,
    "generate": Generate,
}

CHOOSES_LABELS = ("labelled", "labels", "labels_per_class", "validation", "holdout", "group")
"""Settings of the data by which a user says which images have labels that count."""


def resolve(config: DistillConfig, source: Source, store: FeatureStore) -> DistillConfig:
    """Fill in what follows from the data: the task, its methods, and which images take part.

    ``auto`` means ``classify`` if the user chose images by label or the default patterns find labelled ones, and
    ``none`` otherwise. ``classify`` means ``multilabel`` where images have several labels.

    Raises:
        ConfigError: no such task; or settings that need labels where the task has none.
    """
    if config.task == "auto":
        name = "classify" if _means_labels(config.data, source, store) else "none"
        config = dataclasses.replace(config, task=name)
    if config.task == "classify" and source.label_sets is not None:
        config = dataclasses.replace(config, task="multilabel")
    return settle(config)


def settle(config: DistillConfig) -> DistillConfig:
    """Fill in the methods and the images of the task that a config names."""
    name = config.task
    if name not in TASKS:
        raise ConfigError(f"--task {name}: no such task. Tasks: auto, {shorten(list(TASKS))}.")
    task = TASKS[name]
    if config.train.finetune_epochs and not task.supervised:
        raise ConfigError(
            f"--task {name}: trains without labels; leave out --train.finetune_epochs {config.train.finetune_epochs}."
        )
    methods: Any = config.methods or list(task.methods)
    return dataclasses.replace(config, task=name, data=task.settings(config.data), methods=methods)


def build_task(config: DistillConfig, data: Data) -> Task:
    """The task of a resolved config."""
    name = "classify" if config.task == "auto" else config.task
    return TASKS[name](config, data, config.options.get(name))


def _means_labels(data: DataConfig, source: Source, store: FeatureStore) -> bool:
    default = DataConfig()
    if not data.labelled:
        return False
    chosen = [name for name in CHOOSES_LABELS if hasattr(data, name)]
    if given(data).intersection(chosen) or any(
        getattr(data, name) != getattr(default, name) for name in chosen
    ):
        return True
    labels = source.labels if source.labels is not None else store.labels
    if source.labels_refused:
        return False
    if source.label_sets is None and not (np.asarray(labels) != NO_LABEL).any():
        return False
    return all(
        any(matches(sample_id, patterns) for sample_id in source.sample_ids)
        for patterns in (data.labelled, data.test)
    )
