"""All tasks by name, and which one a command means. A new one is a class in a file, and a line here."""

import dataclasses
from typing import Any

import numpy as np

from distill.config import DataConfig, DistillConfig
from distill.data.joined import JoinedData
from distill.tasks.base import Task
from distill.tasks.classify import Classify
from distill.tasks.none import Backbone, without_labels
from featstore import FeatureStore
from featstore.errors import ConfigError, shorten
from featstore.sources.base import NO_LABEL, Source, matches

__all__ = ["TASKS", "Task", "build_task", "resolve"]

TASKS: dict[str, type[Task]] = {"none": Backbone, "classify": Classify}

CHOOSES_LABELS = ("labelled", "labels_per_class", "validation", "holdout", "group")
"""Settings of the data by which a user says which images have labels that count."""


def resolve(config: DistillConfig, source: Source, store: FeatureStore) -> DistillConfig:
    """Fill in what follows from the data: the task, its methods, and which images take part.

    ``auto`` means ``classify`` if the user chose images by label or the default patterns find labelled ones, and
    ``none`` otherwise.

    Raises:
        ConfigError: no such task; or settings that need labels where the task has none.
    """
    if config.task == "auto":
        name = "classify" if _means_labels(config.data, source, store) else "none"
        config = dataclasses.replace(config, task=name)
    return settle(config)


def settle(config: DistillConfig) -> DistillConfig:
    """Fill in the methods and the images of the task that a config names.

    Raises:
        ConfigError: no such task; or settings that need labels where the task has none.
    """
    name = config.task
    if name not in TASKS:
        raise ConfigError(f"--task {name}: no such task. Tasks: auto, {shorten(list(TASKS))}.")
    data = config.data
    if not TASKS[name].supervised:
        said = [
            f"--data.{item} {getattr(data, item)}"
            for item in ("labels_per_class", "validation")
            if getattr(data, item)
        ]
        if config.train.finetune_epochs:
            said.append(f"--train.finetune_epochs {config.train.finetune_epochs}")
        if said:
            raise ConfigError(f"--task {name}: trains without labels; leave out {', '.join(said)}.")
        data = without_labels(data)
    elif not data.labelled or not (data.test or data.holdout):
        part = "test" if data.labelled else "labelled"
        raise ConfigError(
            f"--task {name}: --data.{part} is empty. Name images with labels (or --data.holdout 0.2), or use --task "
            "none, which needs no label."
        )
    methods: Any = config.methods or list(TASKS[name].methods)
    return dataclasses.replace(config, task=name, data=data, methods=methods)


def build_task(config: DistillConfig, data: JoinedData) -> Task:
    """The task of a resolved config."""
    return TASKS["classify" if config.task == "auto" else config.task](config, data)


def _means_labels(data: DataConfig, source: Source, store: FeatureStore) -> bool:
    default = DataConfig()
    if not data.labelled:
        return False
    chosen = [name for name in CHOOSES_LABELS if hasattr(data, name)]
    if any(getattr(data, name) != getattr(default, name) for name in chosen):
        return True
    labels = source.labels if source.labels is not None else store.labels
    if source.labels_refused:
        return False
    if not (np.asarray(labels) != NO_LABEL).any():
        return False
    return all(
        any(matches(sample_id, patterns) for sample_id in source.sample_ids)
        for patterns in (data.labelled, data.test)
    )
