"""Measure the student of a finished run, on its own images or on others."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.commands.config import EvaluateConfig
from distill.config import DataConfig, DistillConfig
from featstore.cli.schema import recorded
from featstore.errors import ConfigError, FeatstoreError
from featstore.sources.config import SourceConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.data.joined import Data
    from distill.evaluation.evaluate import Viewer
    from distill.student.model import Student

ALONE = "none"  # value of ``--store`` that measures the student without a store


def run(config: EvaluateConfig) -> dict[str, object]:
    """Load a student and measure it. Returns what is also written as JSON.

    Source, store and parts are those of the run itself where the settings name none.

    Raises:
        FeatstoreError: something the user can mend.
    """
    from distill.training.run_folder import lock
    from featstore.extraction.accelerator import start_accelerator
    from featstore.files.atomic import write_json

    accelerator = start_accelerator()
    say, main = accelerator.print, accelerator.is_main_process
    measure = (_with_texts if config.texts else _alone)(config, accelerator)
    name = "image_text.json" if config.texts else "reevaluation.json"
    out = Path(config.out or Path(config.model) / name)
    with lock(out.with_name(f".{out.name}.lock"), str(out.absolute()), enabled=main):
        result = measure()
        if main:
            write_json(out, result)
    for line in evaluation_lines(result):
        say(line)
    say(f"\n{result['num_images']:,} images measured; written to {out.absolute()}")
    accelerator.end_training()
    return result


Measure = Callable[[], dict[str, Any]]


def _with_texts(config: EvaluateConfig, accelerator: "Accelerator") -> Measure:
    """The measurement of a student of images together with one of texts."""
    from distill.commands import image_text

    embed = partial(image_text.embed, accelerator=accelerator, workers=config.workers)
    texts = embed(Path(config.texts), flag="--texts")
    images = embed(Path(config.model), flag="--model", by_class=texts[0].by_class)
    return partial(image_text.measure, images, texts)


def _alone(config: EvaluateConfig, accelerator: "Accelerator") -> Measure:
    """The measurement of one student."""
    from distill.training.saved_student import load_exported

    say, folder = accelerator.print, Path(config.model)
    student, described = load_exported(folder)
    say(f"model     {folder.absolute()}, {described['architecture']}, task {task_of(described)}")
    own = settings_of(folder)
    given = dataclasses.replace(config, **_taken_over(config, own))
    own_images = config.source is None and own is not None
    as_backbone = config.backbone or (task_of(described) == "none" and not own_images)
    named = config.data is not None
    viewer = _viewer(
        given, own, described, accelerator, as_backbone and not named, bool(config.store)
    )
    student.to(accelerator.device)
    for note in viewer.data.samples.notes + student.notes:
        say(f"note: {note}")
    if as_backbone:
        return partial(_measure_backbone, viewer, student, seed=given.seed, named=named)
    if task_of(described) == "classify":
        return partial(_measure_classifier, viewer, student, given, described)
    return partial(_measure_task, own, viewer.data, viewer, student, given, described)


def task_of(described: dict[str, Any]) -> str:
    """Task of a student's config.json; older files name none."""
    return str(described.get("task", "classify"))


def _viewer(
    given: EvaluateConfig,
    own: DistillConfig | None,
    described: dict[str, Any],
    accelerator: "Accelerator",
    all_images: bool,
    store_required: bool,
) -> "Viewer":
    """Open the images, join them to the store if there is one, and print what is measured."""
    from distill.data import joined
    from distill.data.images import open_images
    from distill.data.rules import rule_from_description
    from distill.evaluation import backbone
    from distill.evaluation.evaluate import Viewer
    from distill.training.saved_student import store_fingerprints

    say = accelerator.print
    assert given.source is not None
    settings = given.data or DataConfig()
    if all_images:
        settings = backbone.all_images(settings)
    rule = rule_from_description(described["input"]["region"])
    store = open_store(given.store, required=store_required, say=say)
    source = open_images(given.source, store)
    say(f"source    {source.uri}, {len(source):,} images")
    data: Data
    if store is None:
        data = joined.prepare_without_store(source, settings, rule)
    else:
        same = own is not None and given.store == own.store
        data = joined_data = joined.join_data(
            source,
            store,
            settings,
            given.field or "cls",
            weight=own.teacher_weight if own is not None and same else 1.0,
            teachers=given.teachers,
            grid_field=own.grid_field if own is not None and same else "",
        )
        say(f"store     {store.address}")
        if joined_data.fingerprints != store_fingerprints(described):
            say(
                "note: these are not the stores the student was trained from; the agreement is with their teachers"
            )
    return Viewer(
        data=data,
        settings=given.eval,
        workers=given.workers,
        accelerator=accelerator,
        rule=rule,
    )


def _measure_backbone(
    viewer: "Viewer", student: "Student", *, seed: int, named: bool
) -> dict[str, Any]:
    """The numbers of a student's features on images with labels."""
    from distill.evaluation import backbone

    part = backbone.labelled_split(viewer.data, seed=seed, named=named)
    return backbone.measure_backbone(viewer, student, part, seed=seed)


def _measure_classifier(
    viewer: "Viewer", student: "Student", given: EvaluateConfig, described: dict[str, Any]
) -> dict[str, Any]:
    """The numbers of a classifier on the test part."""
    from distill.data.joined import JoinedData
    from distill.evaluation.evaluate import check_classes, evaluate

    data = viewer.data
    check_classes(data.samples, described["label_names"], given.model)
    part = data.split(given.seed)
    for note in part.notes:
        viewer.accelerator.print(f"note: {note}")
    probe = None
    if isinstance(data, JoinedData) and data.has_probe(part):
        probe = data.fit_probe(part, most=given.eval.probe_rows, seed=given.seed)
    return evaluate(viewer, student, part, seed=given.seed, probe=probe).result


def _measure_task(
    own: DistillConfig | None,
    data: "Data",
    viewer: "Viewer",
    student: "Student",
    given: EvaluateConfig,
    described: dict[str, Any],
) -> dict[str, Any]:
    """The numbers of a task other than classify, with the run's own options."""
    from distill.data.joined import JoinedData
    from distill.tasks import build_task

    name, names = described["task"], described["label_names"]
    if own is None or (name == "none" and not isinstance(data, JoinedData)):
        raise ConfigError(
            f"--model {Path(given.model).absolute()}: a student of task {name} is measured by its config.yaml and, as "
            "a backbone, against its feature store, which was not given. Give --store, or --source of images with "
            "labels and --backbone true."
        )
    source = given.source or own.source
    task = build_task(dataclasses.replace(own, data=given.data or own.data, source=source), data)
    task.check_names(names, given.model)
    viewer = dataclasses.replace(viewer, data=task.data)
    part = task.split(given.seed)
    return task.measure(viewer, student, part, seed=given.seed, probe=None).result


def settings_of(folder: Path) -> DistillConfig | None:
    """The settings that a student was trained with; None if its folder holds none."""
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
    elif _path_alone(source):
        # A path alone: the run's own kind of source in another place, all of its images. A run without labels says
        # nothing of theirs.
        made = own.source.kind in ("digits", "store", "synthetic")  # not files of a folder
        kind = "folder" if made else own.source.kind
        labels = own.source.labels_from if own.source.labels_from != "none" else source.labels_from
        found["source"] = dataclasses.replace(
            own.source, kind=kind, path=source.path, labels_from=labels, include=source.include, samples=0, first_seed=0
        )  # fmt: skip
    found["field"] = config.field or own.field
    if found.get("store") == own.store or not config.teachers:
        found["teachers"] = config.teachers or (own.teachers if source is None else [])
    return found


def _path_alone(source: SourceConfig) -> bool:
    """Whether the user named a place of images and nothing else of them."""
    named = recorded(source)
    if named is not None and named != {"path"}:
        return False
    return bool(source.path) and source == SourceConfig(path=source.path)


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


def evaluation_lines(result: dict[str, Any]) -> list[str]:
    """The numbers of a measurement as text."""
    found = [
        f"{name:<28} {value:.4f}" for name, value in result.items() if isinstance(value, float)
    ]
    found += [
        f"{shots + ' labels per class':<28} {values['mean']:.4f} +- {values['std']:.4f}"
        for shots, values in result.get("few_shot", {}).items()
    ]
    found += [
        f"{way:<28} " + "  ".join(f"{name} {value:.4f}" for name, value in recalls.items())
        for way, recalls in result.get("image_text", {}).items()
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
