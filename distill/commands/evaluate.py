"""Measure the student of a finished run, on its own images or on others."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config import DataConfig, DistillConfig, EvaluateConfig
from featstore.errors import ConfigError, FeatstoreError
from featstore.sources.config import SourceConfig

if TYPE_CHECKING:
    from distill.data.joined import Data
    from distill.evaluation.evaluate import Viewer
    from distill.student.model import Student

ALONE = "none"
"""Value of ``--store`` that measures the student without a store."""


def run(config: EvaluateConfig) -> dict[str, object]:
    """Load a student and measure it. Returns what is also written as JSON.

    Source, store and parts are those of the run itself where the settings name none.

    Raises:
        FeatstoreError: something the user can mend.
    """
    from distill.data import joined
    from distill.data.images import open_images
    from distill.data.pictures import rule_from_description
    from distill.evaluation import backbone
    from distill.evaluation.evaluate import Viewer, check_classes, evaluate
    from distill.training.run_folder import lock
    from distill.training.saved_student import load_exported, store_fingerprints
    from featstore.extraction.accelerator import start_accelerator
    from featstore.files.atomic import write_json

    accelerator = start_accelerator()
    say = accelerator.print

    folder = Path(config.model)
    student, described = load_exported(folder)
    task_name = described.get("task", "classify")
    rule = rule_from_description(described["input"]["region"])
    own = settings_of(folder)
    given = dataclasses.replace(config, **_taken_over(config, own))
    assert given.source is not None
    settings = given.data or DataConfig()
    store = open_store(given.store, required=bool(config.store), say=say)
    source = open_images(given.source, store)
    say(f"model     {folder.absolute()}, {described['architecture']}, task {task_name}")
    say(f"source    {source.uri}, {len(source):,} images")
    own_images = config.source is None and own is not None
    as_backbone = config.backbone or (task_name == "none" and not own_images)
    named = config.data is not None
    if as_backbone and not named:
        settings = backbone.all_images(settings)
    data: joined.Data
    if store is not None:
        data = joined_data = joined.prepare(
            source, store, settings, given.field or "cls", teachers=given.teachers
        )
        say(f"store     {store.address}")
        if joined_data.fingerprints != store_fingerprints(described):
            say(
                "note: these are not the stores the student was trained from; the agreement is with their teachers"
            )
    else:
        data = joined.prepare_without_store(source, settings, rule)
    viewer = Viewer(
        data=data,
        settings=given.eval,
        workers=given.workers,
        accelerator=accelerator,
        rule=rule,
    )
    student.to(accelerator.device)
    for note in data.samples.notes + student.notes:
        say(f"note: {note}")

    # Nothing is trained but a k-NN and linear probes on fixed features.
    out = Path(given.out or folder / "reevaluation.json")
    main = accelerator.is_main_process
    with lock(out.with_name(f".{out.name}.lock"), str(out.absolute()), enabled=main):
        if as_backbone:
            part = backbone.labelled_split(data, seed=given.seed, named=named)
            result = backbone.measure_backbone(viewer, student, part, seed=given.seed)
        elif task_name != "classify":
            result = _measure_task(own, data, viewer, student, given, described)
        else:
            check_classes(data.samples, described["label_names"], given.model)
            part = data.split(given.seed)
            for note in part.notes:
                say(f"note: {note}")
            probe = None
            if isinstance(data, joined.JoinedData):
                probe = data.fit_probe(part, most=given.eval.probe_rows, seed=given.seed)
            result = evaluate(viewer, student, part, seed=given.seed, probe=probe).result
        if main:
            write_json(out, result)
    for line in lines(result):
        say(line)
    say(f"\n{result['num_images']:,} images measured; written to {out.absolute()}")
    accelerator.end_training()
    return result


def _measure_task(
    own: DistillConfig | None,
    data: "Data",
    viewer: "Viewer",
    student: "Student",
    given: EvaluateConfig,
    described: dict[str, Any],
) -> dict[str, Any]:
    """The numbers of a task other than classify, with the run's own options.

    Raises:
        ConfigError: the run's settings are not at hand; or a backbone is to be measured without its store.
    """
    from distill.data.joined import JoinedData
    from distill.tasks import build_task

    name, names = described["task"], described["label_names"]
    if own is None or (name == "none" and not isinstance(data, JoinedData)):
        raise ConfigError(
            f"--model {Path(given.model).absolute()}: a student of task {name} is measured by its config.yaml and, as "
            "a backbone, against its feature store, which is not at hand. Give --store, or --source of images with "
            "labels and --backbone true."
        )
    source = given.source or own.source
    task = build_task(dataclasses.replace(own, data=given.data or own.data, source=source), data)
    task.check_names(names, given.model)
    viewer = dataclasses.replace(viewer, data=task.data)
    part = task.split(given.seed)
    return task.measure(viewer, student, part, seed=given.seed, probe=None).result


def settings_of(folder: Path) -> DistillConfig | None:
    """The settings that a student was trained with; None if its folder holds none.

    Raises:
        ConfigError: they are damaged.
    """
    from distill.register import config_of
    from distill.training.run_settings import read_settings

    values = read_settings(folder)
    try:
        return None if values is None else config_of(values)
    except TypeError as error:
        raise ConfigError(f"{(folder / 'config.yaml').absolute()}: {error}") from None


def _taken_over(config: EvaluateConfig, own: DistillConfig | None) -> dict[str, Any]:
    """Settings taken over from the run where the user gave none."""
    found: dict[str, Any] = {}
    source = config.source
    if own is None:
        if source is None:
            raise ConfigError(
                f"--model {Path(config.model).absolute()}: has no config.yaml that says which images it was trained "
                "on; give them, --source.kind folder --source.path PHOTOS."
            )
        return found
    if source is None:
        found["source"] = own.source
        found["data"] = config.data or own.data
        found["store"] = config.store or own.store
    elif source == SourceConfig(path=source.path) and source.path:
        # A path alone: the run's own kind of source in another place.
        kind = own.source.kind if own.source.kind != "digits" else "folder"
        found["source"] = dataclasses.replace(own.source, kind=kind, path=source.path)
    found["field"] = config.field or own.field
    if found.get("store") == own.store or not config.teachers:
        found["teachers"] = config.teachers or (own.teachers if source is None else [])
    return found


def open_store(address: str, *, required: bool, say: Any) -> Any:
    """The feature store; None if there is none, which is an error only where the user named it."""
    from featstore import FeatureStore

    if address in ("", ALONE):
        return None
    try:
        return FeatureStore.open(address)
    except FeatstoreError as error:
        if required:
            raise
        say(f"note: the student is measured without its feature store: {error}")
        return None


def lines(result: dict[str, Any]) -> list[str]:
    """The numbers of a measurement as text."""
    found = [
        f"{name:<28} {value:.4f}" for name, value in result.items() if isinstance(value, float)
    ]
    found += [
        f"{shots + ' labels per class':<28} {values['mean']:.4f} +- {values['std']:.4f}"
        for shots, values in result.get("few_shot", {}).items()
    ]
    teacher = result.get("teacher", {})
    found += [
        f"teacher {name:<20} {value:.4f}"
        for name, value in teacher.items()
        if isinstance(value, float)
    ]
    found += [
        f"teacher {shots + ' labels per class':<20} {values['mean']:.4f} +- {values['std']:.4f}"
        for shots, values in teacher.get("few_shot", {}).items()
    ]
    found += [
        f"corrupted {name:<18} {value:.4f}"
        for name, value in result.get("corruptions", {}).get("mean", {}).items()
    ]
    return found
