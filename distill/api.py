"""The public functions of ``distill``: train, measure, export and compare students.

Use them as ``distill.run(...)``. Arguments have the names of the settings; what has no argument of its own is given as
``**settings``, a section as a dictionary: ``train={"epochs": 5}``, ``kd={"weight": 2}``. A run that was stopped resumes
when the same function is called again with the same arguments. Command ``distill`` does the same from a shell.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from featstore.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from featstore import FeatureStore

    Folder: TypeAlias = str | os.PathLike[str]
    Store: TypeAlias = str | os.PathLike[str] | FeatureStore


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Its files: student.safetensors, evaluation.json, report.html and others.
        record: Its numbers, as in run.json.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def method(self) -> str:
        """Name of the method, with that of the partner if there is one."""
        return str(self.record["method"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.record["seed"])

    @property
    def score(self) -> float:
        """The number that counts, e.g. test accuracy from 0 to 1."""
        from distill.measures.score import score_of

        return score_of(self.record)[1]


class Runs(list[Run]):
    """Finished runs, in the order in which they were made."""

    def table(self) -> str:
        """Mean and deviation of every method as text."""
        from distill.reports.report import runs_table

        return runs_table([run.record for run in self])

    @property
    def best(self) -> Run:
        """The run with the best score."""
        from distill.measures.score import best

        record = best([run.record for run in self])
        return next(run for run in self if run.record is record)


def run(
    store: Store | None = None,
    images: Folder | None = None,
    *,
    out: Folder | None = None,
    student: str | Mapping[str, Any] | None = None,
    methods: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
    recipe: Folder | None = None,
    progress: bool = True,
    callbacks: Sequence[Callable[[dict[str, Any]], None]] = (),
    **settings: Any,
) -> Runs:
    """Train one student for every method and seed from a feature store and its images. Resumes runs that were begun.

    Args:
        store: Feature store, its folder or its URL. Default: that of the recipe, or ``outputs/store``.
        images: Folder of images, WebDataset tars, a saved Hugging Face data set, or ``"digits"``.
        out: Folder of the results: OUT/METHOD/seedK. Default: ``outputs/distill``.
        student: timm's model name, or the settings of section ``student``. Default: mobilenetv3_small_100; any model of
            timm starts from its pretrained weights, where there are some (``{"pretrained": False}``: from random ones).
        methods: Names of methods. Default: labels and customkd.
        seeds: One run of each method per seed. Default: 0.
        recipe: YAML file with settings that hold where no argument is given; ``"digits"`` is the one of the package.
            Default: that of ``distill run``, for images of your own ``distill/recipes/own_images.yaml``.
        progress: Show what is done.
        callbacks: Functions that get a dictionary while a student trains: every line of its metrics.jsonl (``step``,
            ``epoch``, ``loss/...``, the score) with ``method`` and ``seed``, and its record at the end, which alone
            has ``score``. Called in the main process. An exception ends the run; the next call resumes it.
        settings: Any other setting or section by name; ``distill run --help all`` describes them.

    Returns:
        The runs, with ``.table()`` and ``.best``.

    Raises:
        ConfigError: A setting is unknown, out of range, or does not fit the data.
        StoreError: The store is missing, incomplete or damaged.
        MissingSamples: Images are not in the store.

    Examples:
        Two methods, one seed::

            runs = distill.run("stores/photos", "photos/", student="mobilenetv3_small_100", methods=["customkd", "kd"],
                               data={"holdout": 0.2}, seeds=0)
            print(runs.table())
            model = distill.load_student(runs.best)
    """
    from distill.commands.train import run as train
    from distill.config import RECIPES, DistillConfig
    from distill.register import kinds
    from featstore.cli.schema import build_config

    values = dict(settings)
    values |= _given(out=out and os.fspath(out), methods=methods, seeds=seeds)
    values |= _given(store=_address(store), student=_named(student))
    if images is not None:
        values["source"] = {**_source(images), **dict(values.get("source", {}))}
    digits = recipe == "digits" or (recipe is None and images == "digits")
    ours = RECIPES / "distill.yaml" if digits else RECIPES.parent / "own_images.yaml"
    theirs = None if digits or recipe is None else Path(recipe)
    config = build_config(
        DistillConfig,
        values,
        kinds(values.get("plugins") or ()),
        recipe=theirs or ours,
        recipe_is_default=theirs is None,
    )
    with _quiet(not progress):
        records = train(config, callbacks)
    return Runs(
        Run(Path(config.out) / str(record["method"]) / f"seed{record['seed']}", dict(record))
        for record in records
    )


def evaluate(
    model: Folder | Run,
    images: Folder | None = None,
    *,
    store: Store | None = None,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Measure a trained student on the test part of any images.

    Args:
        model: A run, or its folder.
        images: As for ``run``.
        store: For the agreement with the teacher; without one the student is measured alone.
        progress: Show what is done.
        settings: Any other setting or section by name; ``distill evaluate --help all`` describes them.

    Returns:
        The numbers, as in evaluation.json.

    Raises:
        ConfigError: The folder is not that of a run, or a setting does not fit.
    """
    from distill.commands.config import EvaluateConfig
    from distill.commands.evaluate import run as measure
    from featstore.cli.schema import build_config

    values = {**settings, "model": _folder(model), **_given(store=_address(store))}
    if images is not None:
        # The kind is detected, so that a path alone names another place of the run's own kind.
        named = {"kind": "digits"} if images == "digits" else {"path": os.fspath(images)}
        values["source"] = {**named, **dict(values.get("source", {}))}
    config = build_config(EvaluateConfig, values)
    with _quiet(not progress):
        return measure(config)


def load_student(model: Folder | Run) -> nn.Module:
    """Load the trained student of a run: a plain timm model in eval mode, with the head of its task if it has one.

    Args:
        model: A run, or its folder.

    Returns:
        The model: timm's, or for a student of ``student.factory`` one whose attribute ``module`` is what the function
        returned. ``config.json`` in the folder says how pictures are prepared for it.

    Raises:
        ConfigError: The folder is not that of a run, or a file is damaged.
    """
    from distill.training.saved_student import load_exported

    student, _ = load_exported(Path(_folder(model)))
    return student.plain().eval()


def export_student(
    model: Folder | Run,
    *,
    out: Folder | None = None,
    formats: Sequence[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Export a trained student: timm folder, ONNX, int8, torch.export, ExecuTorch, model card.

    Args:
        model: A run, or its folder.
        out: Default: ``export`` in the folder of the run.
        formats: Default: all whose packages are installed.
        progress: Show what is done.
        settings: Any other setting or section by name; ``distill export --help all`` describes them.

    Returns:
        What was made and measured, as in export.json.

    Raises:
        ConfigError: The folder is not that of a finished run, or a setting does not fit.
    """
    from distill.commands.export import run as export
    from distill.export.config import ExportConfig
    from featstore.cli.schema import build_config

    values = {
        **settings,
        "model": _folder(model),
        **_given(out=out and os.fspath(out), formats=formats),
    }
    config = build_config(ExportConfig, values)
    with _quiet(not progress):
        return dict(export(config))


def compare_students(
    experiment: Folder,
    *,
    jobs: int = 0,
    rounds: int = 20,
    progress: bool = True,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Distil several students over one store and measure accuracy against latency and size.

    Args:
        experiment: YAML file whose rows are students (docs/students.md).
        jobs: Runs at a time; 0 chooses.
        rounds: Visits of every student when latency is measured.
        progress: Show what is done.
        settings: Settings for all rows by dotted name, e.g. ``store=...`` or ``**{"train.epochs": 3}``.

    Returns:
        One dictionary per student, the most accurate first, as in students.json.

    Raises:
        ConfigError: The file or a setting is wrong.
    """
    from distill.experiments.spec import read_experiment
    from distill.students.cli import main

    path = Path(experiment)
    with _quiet(not progress):
        main(path, jobs=jobs, rounds=rounds, flags=settings)
    out = Path(read_experiment(path, settings).out)
    students: list[dict[str, Any]] = json.loads((out / "students.json").read_bytes())["students"]
    return students


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _named(student: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    return (
        {"name": student}
        if isinstance(student, str)
        else None
        if student is None
        else dict(student)
    )


def _address(store: Store | None) -> str | None:
    if store is None or isinstance(store, str | os.PathLike):
        return None if store is None else os.fspath(store)
    return store.address


def _folder(model: Folder | Run) -> str:
    folder = model.folder if isinstance(model, Run) else Path(model)
    if not folder.is_dir():
        raise ConfigError(
            f"{folder.absolute()}: no such folder. Expected the folder of a run, such as OUT/kd/seed0."
        )
    return str(folder)


def _source(images: Folder) -> dict[str, Any]:
    from featstore.sources.config import source_of

    return source_of(images)


@contextlib.contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """Suppress printed output; errors are raised as usual."""
    if not wanted:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
