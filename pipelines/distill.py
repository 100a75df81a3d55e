"""Phase two: train students from a feature store and images. The teacher is neither needed nor loaded.

    accelerate launch pipelines/distill.py                                    the embedded digits, 1 to 2 minutes
    accelerate launch pipelines/distill.py --config recipe.yaml               start, or go on where it stopped
    accelerate launch pipelines/distill.py --methods '[labels,customkd]' --seeds '[0,1,2]'

Several GPUs: accelerate launch --multi_gpu pipelines/distill.py ...
"""

import sys
from pathlib import Path

# This folder comes first on sys.path, and in it this very file would hide the package `distill`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.config import DistillConfig
from pipelines._cli import run_main

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "digits" / "distill.yaml"


def main(config: DistillConfig) -> list[dict[str, object]]:
    """Run every method with every seed, then compare them. Returns one record per run.

    Raises:
        FeatstoreError: something the user can mend; a run that was stopped goes on with the same command.
    """
    from distill.data import task
    from distill.export import snippet
    from distill.reports import report
    from distill.student.model import build_student
    from distill.training import loop as train
    from featstore import FeatureStore
    from featstore.sources import open_source

    accelerator = train.make_accelerator(config)
    say = accelerator.print

    # Checked against each other before any training: store, field, views, images, labels.
    store = FeatureStore.open(config.store)
    data = task.prepare(
        open_source(config.source),
        store,
        config.data,
        config.field,
        weight=config.teacher_weight,
        teachers=config.teachers,
        grid_field=config.grid_field,
    )
    student = build_student(config.student, data.samples.num_classes)
    say(
        f"store     {store.address}, {store.num_rows:,} rows, field {config.field} by "
        f"{store.manifest.teacher_of(config.field).name}"
    )
    say(
        f"student   {config.student.name}, {sum(p.numel() for p in student.parameters()):,} parameters"
    )
    say(f"out       {config.out}")
    notes = data.samples.notes + student.notes
    probes = task.Probes(data, config.eval)

    records = []
    for seed in config.seeds:
        part = data.split(seed)
        for note in [*notes, *part.notes]:
            say(f"note: {note}")
        notes = []
        say(
            f"seed {seed}    {len(part.labelled):,} labelled, {len(part.unlabelled):,} unlabelled, "
            f"{len(part.test):,} test images"
        )
        for method in config.methods:
            # Trained: the student and projections. Frozen: the stored features. See distill/methods/.
            record = train.run(config, data, probes(seed), method=method, seed=seed)
            how = "finished before" if record.get("skipped") else f"{record['seconds']:.1f} s"
            say(
                f"  {record['method']:<10} {config.eval.part} top-1 {100 * record['top1']:.1f} %   ({how})"
            )
            records.append(record)

    if accelerator.is_main_process:
        files = report.write(Path(config.out), records, page=config.report, say=say)
        best = max(records, key=lambda record: record["top1"])
        folder = Path(config.out) / best["method"] / f"seed{best['seed']}"
        say(f"\n{report.table(records)}\n")
        say(
            "files: "
            + ", ".join(str(path) for path in files)
            + f", and a folder for each run, e.g. {folder}"
        )
        say(f"\n{snippet(folder, student, config.student)}\n")
        say(
            f"next: accelerate launch pipelines/evaluate.py --model {folder} --store {config.store}"
        )
    accelerator.end_training()
    return records


if __name__ == "__main__":
    run_main(main, DistillConfig, default_recipe=DEFAULT_RECIPE)
