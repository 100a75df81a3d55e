"""Run phase two: every method with every seed over one store, then a comparison of the runs."""

import dataclasses
import math
import shlex
import time
from pathlib import Path

from distill.config import DistillConfig

LARGE = 50e6
"""Parameters of a student above which a user is warned."""


def run(config: DistillConfig) -> list[dict[str, object]]:
    """Run every method with every seed, then compare them. Returns one record per run.

    Raises:
        FeatstoreError: something the user can mend; the same command resumes a run that was stopped.
    """
    from distill.data import joined
    from distill.data.images import default_source, open_images
    from distill.measures import score
    from distill.measures.advice import advice
    from distill.methods import METHODS
    from distill.register import options_of
    from distill.reports import report
    from distill.student.model import build_student
    from distill.tasks import TASKS, build_task, resolve
    from distill.training import loop
    from distill.training.saved_student import snippet
    from featstore.errors import command
    from featstore.reading.store import FeatureStore

    until = time.monotonic() + 60 * (config.train.time_limit or math.inf)
    accelerator = loop.make_accelerator(config)
    say = accelerator.print

    # Checked against each other before any training: task, methods, store, field, views, images, labels.
    store = FeatureStore.open(config.store)
    config = dataclasses.replace(config, source=default_source(config.source, store))
    source = open_images(config.source, store)
    config = resolve(config, source, store)
    kinds = [METHODS[name] for name in config.methods]
    TASKS[config.task].check(
        kinds, [options_of(config, name) for name in config.methods], config.partner
    )
    data = joined.prepare(
        source,
        store,
        config.data,
        config.field,
        weight=config.teacher_weight,
        teachers=config.teachers,
        grid_field=config.grid_field,
    )
    task = build_task(config, data)
    student = build_student(config.student, task.num_outputs)
    say(f"task      {task.name}; methods: {', '.join(config.methods)}")
    say(
        f"store     {store.address}, {store.num_rows:,} rows, field {config.field} by "
        f"{store.manifest.teacher_of(config.field).name}"
    )
    parameters = sum(p.numel() for p in student.parameters())
    say(f"student   {config.student.name}, {parameters:,} parameters")
    say(f"out       {config.out}")
    notes = data.samples.notes + student.notes
    if parameters > LARGE:
        notes.append(
            f"--student.name {config.student.name} has {parameters / 1e6:.0f} million parameters: not a small student; "
            "it trains slowly and may not fit an edge device"
        )
    draw = report.page_hook(config, say)

    records = []
    for seed in config.seeds:
        part = task.split(seed)
        probe = task.probe(part, seed)
        for note in [*notes, *part.notes]:
            say(f"note: {note}")
        notes = []
        counts = {
            "labelled": part.labelled,
            "unlabelled": part.unlabelled,
            "test" if task.supervised else "held-out": part.test,
        }
        shown = ", ".join(f"{len(rows):,} {name}" for name, rows in counts.items() if len(rows))
        say(f"seed {seed}    {shown} images")
        for method in config.methods:
            # Trained: the student and projections. Frozen: the stored features. See distill/methods/.
            record = loop.run(
                config, data, probe, method=method, seed=seed, on_finish=draw, until=until
            )
            how = "finished before" if record.get("skipped") else f"{record['seconds']:.1f} s"
            measure, value = score.score_of(record)
            say(
                f"  {record['method']:<10} {score.part_of(record)} {measure.label} {measure.text(value)}   ({how})"
            )
            records.append(record)

    if accelerator.is_main_process:
        files = report.write(Path(config.out), records, page=config.report, say=say)
        best = score.best(records)
        folder = Path(config.out).absolute() / best["method"] / f"seed{best['seed']}"
        say(f"\n{report.table(records)}\n")
        for note in advice(records):
            say(f"note: {note}")
        say(
            "files: "
            + ", ".join(str(path) for path in files)
            + f", and a folder for each run, e.g. {folder}"
        )
        say(f"\n{snippet(folder, student, config.student)}\n")
        say(f"next: {command('evaluate')} --model {shlex.quote(str(folder))}")
    accelerator.end_training()
    return records
