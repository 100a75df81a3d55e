"""Run phase two: every method with every seed over one store, then a comparison of the runs."""

import dataclasses
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config import DistillConfig
from featstore.errors import command

if TYPE_CHECKING:
    from distill.data.joined import JoinedData
    from distill.data.samples import Split
    from distill.student.model import Student
    from distill.tasks import Task
    from distill.training.loop import Callback

LARGE = 50e6  # parameters of a student above which a user is warned
MANY_PASSES = 10  # over one view of an image, from which on more views are advised

Say = Callable[[str], None]


def run(config: DistillConfig, callbacks: "Sequence[Callback]" = ()) -> list[dict[str, object]]:
    """Run every method with every seed, then compare them. Returns one record per run.

    Args:
        callbacks: Functions to call while students train, see ``distill.run``.

    Raises:
        FeatstoreError: something the user can mend; the same command resumes a run that was stopped.
    """
    from distill.experiments import auto
    from distill.register import AUTO
    from distill.tasks import build_task
    from distill.training.launch import make_accelerator

    until = time.monotonic() + 60 * (config.train.time_limit or math.inf)
    accelerator = make_accelerator(config)
    say = accelerator.print
    config, data = prepare_runs(config)
    task = build_task(config, data)
    data = task.data  # type: ignore[assignment]  # joined, with the targets of the task
    student = task.student()
    notes = describe_runs(config, data, task, student, say)
    chosen_by = None
    if config.methods == [AUTO]:
        config, chosen_by = auto.choose_candidate(config, data, accelerator, until=until, say=say)
    records = train_all(
        config, data, task, notes, until=until, chosen_by=chosen_by, callbacks=callbacks, say=say
    )
    if accelerator.is_main_process:
        write_comparison(config, records, task.finished(student)[0], say)
    accelerator.end_training()
    return records


def prepare_runs(config: DistillConfig) -> "tuple[DistillConfig, JoinedData]":
    """Check task, methods, store, field, views, images and labels against each other, before any training."""
    from distill.data import joined
    from distill.data.images import default_source, open_images
    from distill.methods import METHODS
    from distill.partners import PARTNERS
    from distill.register import AUTO, options_of
    from distill.tasks import TASKS, resolve
    from distill.training.run_parts import check_stored
    from featstore.reading.store import FeatureStore

    store = FeatureStore.open(config.store)
    config = dataclasses.replace(config, source=default_source(config.source, store))
    source = open_images(config.source, store)
    config = resolve(config, source, store)
    named = [name for name in config.methods if name != AUTO]
    partner = PARTNERS.get(config.partner)
    TASKS[config.task].check(
        [METHODS[name] for name in named],
        [options_of(config, name) for name in named],
        config.partner if partner is not None and partner.labels else "none",
    )
    check_stored(config, config.methods)
    data = joined.join_run(config, source, store)
    for name in named:
        METHODS[name].check(options_of(config, name), config, data)
    return config, data


def describe_runs(
    config: DistillConfig, data: "JoinedData", task: "Task", student: "Student", say: Say
) -> list[str]:
    """Print what is trained from what. Returns notes on data and student."""
    store, parameters = data.store, student.num_parameters
    say(f"task      {task.name}; methods: {', '.join(config.methods)}")
    say(
        f"store     {store.address}, {store.num_rows:,} rows, field {config.field} by "
        f"{store.manifest.teacher_of(config.field).name}"
    )
    say(f"student   {config.student.title}, {parameters:,} parameters")
    say(f"out       {config.out}")
    notes = data.samples.notes + student.notes
    if parameters > LARGE:
        notes.append(
            f"student {config.student.title}: {parameters / 1e6:.0f} million parameters: not a small student; "
            "it trains slowly and may not fit an edge device"
        )
    return notes


def train_all(
    config: DistillConfig,
    data: "JoinedData",
    task: "Task",
    notes: list[str],
    *,
    until: float,
    chosen_by: Mapping[str, Any] | None,
    callbacks: "Sequence[Callback]",
    say: Say,
) -> list[dict[str, Any]]:
    """Train every method with every seed. Returns one record per run."""
    from distill.measures import score
    from distill.reports import report
    from distill.training import loop

    draw = report.page_hook(config, say)
    records: list[dict[str, Any]] = []
    for seed in config.seeds:
        part = task.split(seed)
        probe = task.probe(part, seed)
        first = [*notes, *pass_notes(config, data, part)] if not records else []
        for note in [*first, *part.notes]:
            say(f"note: {note}")
        say(f"seed {seed}    {numbers(task, part)} images")
        for method in config.methods:
            # Trained: the student and projections. Frozen: the stored features. See distill/methods/.
            record = loop.run(
                config,
                data,
                probe,
                method=method,
                seed=seed,
                on_finish=draw,
                until=until,
                chosen_by=chosen_by,
                callbacks=callbacks,
            )
            how = "finished before" if record.get("skipped") else f"{record['seconds']:.1f} s"
            measure, value = score.score_of(record)
            say(
                f"  {record['method']:<10} {score.part_of(record)} {measure.label} {measure.text(value)}   ({how})"
            )
            records.append(record)
    return records


def pass_notes(config: DistillConfig, data: "JoinedData", part: "Split") -> list[str]:
    """Say how often few images are shown in an epoch, and that more views would help where one is shown many times."""
    from distill.data.rules import UncutRule
    from distill.data.schedule import make_epoch_plan

    train = config.train
    number, batch = max(
        (len(part.labelled), train.labelled_batch), (len(part.unlabelled), train.unlabelled_batch)
    )
    plan = make_epoch_plan(
        train,
        num_labelled=len(part.labelled),
        num_unlabelled=len(part.unlabelled),
        use_unlabelled=True,
        processes=1,
    )
    passes = plan.steps_per_epoch * batch / max(number, 1)  # of one epoch
    notes = []
    if plan.steps_per_epoch == train.min_epoch_steps and passes >= 2:
        notes.append(
            f"few images: an epoch is {plan.steps_per_epoch} steps, {passes:.0f} passes over {number:,} images. "
            "--train.min_epoch_steps 0 is one: quicker; with 280 photographs it was 4 points behind"
        )
    if (
        len(data.columns) == 1
        and not isinstance(data.rule, UncutRule)
        and train.epochs * passes >= MANY_PASSES
    ):
        stored = len(data.store.manifest.views) > 1
        more = "--data.views all" if stored else "extract with --views.seeded 4 or 8"
        notes.append(
            f"each image is shown {train.epochs * passes:.0f} times through one view. More views helped 2,020 "
            f"photographs by 5 to 7 points (docs/results/2026-11-30/views.md): {more}"
        )
    return notes


def numbers(task: "Task", part: "Split") -> str:
    """How many images play which part."""
    test = "test" if task.supervised else "held-out"
    counts = {"labelled": part.labelled, "unlabelled": part.unlabelled, test: part.test}
    return ", ".join(f"{len(rows):,} {name}" for name, rows in counts.items() if len(rows))


def write_comparison(
    config: DistillConfig, records: list[dict[str, Any]], student: "Student", say: Say
) -> None:
    """Write the tables and the page over all runs, and print what to do next."""
    from distill.measures import score
    from distill.measures.advice import advice
    from distill.reports import report
    from distill.training.saved_student import snippet

    files = report.write_command_results(Path(config.out), records, page=config.report, say=say)
    best = score.best(records)
    folder = Path(config.out).absolute() / best["method"] / f"seed{best['seed']}"
    say(f"\n{report.runs_table(records)}\n")
    for note in advice(records):
        say(f"note: {note}")
    say(f"files: {', '.join(map(str, files))}, and a folder for each run, e.g. {folder}")
    say(f"\n{snippet(folder, student, config.student)}\n")
    say(f"next: {command('evaluate')} --model {shlex.quote(str(folder))}")
