"""Read a finished run: settings, student, images and, where available, the store."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.config import DistillConfig
from distill.data import joined
from distill.data.images import open_images
from distill.data.joined import Data
from distill.data.rules import UncutRule, rule_from_description
from distill.data.samples import Split
from distill.evaluation.embedding import EmbeddingHead
from distill.register import config_of
from distill.student.files import CONFIG
from distill.student.model import Student
from distill.tasks import Task, build_task
from distill.training.run_record import RECORD, read_file, read_record
from distill.training.saved_student import load_exported, store_fingerprints, teachers_of
from featstore import FeatureStore
from featstore.errors import ConfigError, StoreNotFound
from featstore.sources.config import SourceConfig, source_of
from featstore.sources.load import ViewRule


@dataclass(frozen=True)
class FinishedRun:
    """A finished run."""

    folder: Path  # of the run
    config: DistillConfig  # that it was run with; ``methods`` and ``seeds`` hold its own one
    record: dict[str, Any]  # run.json
    evaluation: dict[str, Any]  # evaluation.json
    described: dict[str, Any]  # config.json
    student: Student  # the exported student, in eval mode

    @property
    def rule(self) -> ViewRule:
        """Which region of an image the student is shown."""
        rule = rule_from_description(self.described["input"]["region"])
        if isinstance(rule, UncutRule):
            raise ConfigError(
                f"--model {self.folder.absolute()}: export takes students of images; this one takes "
                f"{rule.describe()['view']}. Load it with distill.load_student."
            )
        return rule

    @property
    def label_names(self) -> list[str]:
        return list(self.described["label_names"])

    @property
    def embedding_head(self) -> EmbeddingHead | None:
        """Of a backbone; None where the student's outputs are classes, such as the texts of a zero-shot student.

        Raises:
            ConfigError: damaged.
        """
        name = self.described.get("embedding_head")
        if not name or self.label_names:
            return None
        return EmbeddingHead.from_bytes(read_file(self.folder, name, self.record))

    @property
    def teachers(self) -> list[dict[str, Any]]:
        """Teachers it was distilled from; none if its method uses no stored feature."""
        return teachers_of(self.described) if self.record.get("teacher_images", 1) else []

    @property
    def fingerprints(self) -> list[str]:
        """Of the teachers' stores."""
        return store_fingerprints(self.described)


@dataclass(frozen=True)
class RunData:
    """The images of a run, joined again."""

    images: Data  # images of the run, joined to its store if that was found
    part: Split  # the parts of the run
    missing: str  # why there is no store; "" if there is one
    task: Task  # of the run


def read_finished_run(folder: Path, *, flag: str = "--model") -> FinishedRun:
    """Read the folder of a finished run, which ``flag`` named."""
    where = f"{flag} {folder.absolute()}"
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{where}: is not the folder of a run, config.yaml is missing. Expected one that distill.py wrote, "
            "such as outputs/digits/distill/customkd/seed0."
        )
    record = read_record(folder)
    if record is None:
        raise ConfigError(
            f"{where}: the run is not finished, {RECORD} is missing. Start distill.py again to resume it."
        )
    try:
        settings = yaml.safe_load(read_file(folder, "config.yaml", record))
        evaluation = json.loads(read_file(folder, "evaluation.json", record))
        config = config_of(settings)
    except ConfigError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{where}: cannot be read ({error}).") from error
    read_file(folder, CONFIG, record)
    student, described = load_exported(folder)
    student.eval()
    return FinishedRun(folder, config, record, evaluation, described, student)


def open_data(run: FinishedRun, *, store: str = "", images: str = "") -> RunData:
    """Join the run's images again, and its store's rows where it can be found.

    Args:
        store: where its store is; "" looks where it was.
        images: where its images are; "" looks where they were.

    Raises:
        ConfigError: ``store`` is not the store that the student was distilled from, or other classes.
        SourceError: the images are not there.
    """
    config = run.config
    try:
        opened = FeatureStore.open(store or config.store)
        missing = _mismatch(opened, run)
        if missing and store:
            raise ConfigError(f"--store: {missing}")
    except StoreNotFound as error:
        if store:
            raise
        opened, missing = None, str(error)
    if images and config.source.kind == "store":
        source_config = SourceConfig(**source_of(images))
    else:
        source_config = dataclasses.replace(config.source, path=images or config.source.path)
    source = open_images(source_config, opened)
    if opened is not None and not missing:
        data: Data = joined.join_run(config, source, opened)
    else:
        data = joined.prepare_without_store(source, config.data, run.rule)
        if config.task == "none":
            raise ConfigError(
                f"--model {run.folder.absolute()}: a backbone is measured against the features of its store: {missing} "
                "Name it with --store."
            )
    task = build_task(dataclasses.replace(config, source=source_config), data)
    task.check_names(run.label_names, str(run.folder))
    return RunData(task.data, task.split(config.seeds[0]), missing, task)


def _mismatch(store: FeatureStore, run: FinishedRun) -> str:
    """Why a store is not the one that a student was distilled from; "" if it is."""
    expected = run.fingerprints[0] if run.fingerprints else ""
    if store.fingerprint == expected:
        return ""
    return (
        f"{store.address} has the fingerprint {store.fingerprint[:16]}, the student was distilled from "
        f"{expected[:16] or 'none'}. Give the run's own store with --store."
    )
