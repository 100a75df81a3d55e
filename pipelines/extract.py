"""Phase one: run a frozen teacher once over the images and write its features into a store.

    accelerate launch pipelines/extract.py                                     the embedded digits, about 30 s
    accelerate launch pipelines/extract.py --config recipe.yaml --dry_run      print the plan and stop
    accelerate launch pipelines/extract.py --config recipe.yaml                start, or go on where it stopped
    accelerate launch pipelines/extract.py --config recipe.yaml --repair       check, make damaged shards again

Several GPUs: accelerate launch --multi_gpu pipelines/extract.py ...
"""

import sys
from pathlib import Path

# A script's own folder comes first on sys.path; the packages lie one level higher, also when nothing is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from featstore.config import ExtractConfig
from pipelines._cli import run_main

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "digits" / "extract.yaml"


def main(config: ExtractConfig) -> None:
    """Plan, extract, report.

    Raises:
        FeatstoreError: something the user can mend; nothing half-made is left behind.
    """
    from featstore import design, extract
    from featstore.errors import shorten
    from featstore.processes import start_accelerator
    from featstore.sources import open_source
    from featstore.teachers import build_teacher
    from featstore.verify import repair
    from featstore.views import describe

    accelerator = start_accelerator()
    say = accelerator.print

    source = open_source(config.source)
    for note in source.notes:
        say(f"note: {note}")
    if config.repair:
        store = Path(config.store.path)
        if accelerator.is_main_process and store.exists():
            shards = repair(store, workers=max(1, config.workers), say=say)
            say(f"repair    {len(shards)} damaged shards will be made again: {shorten(shards)}")
        accelerator.wait_for_everyone()
    # Frozen: eval mode, no gradients. Nothing is trained in phase one.
    teacher = build_teacher(
        config.teacher,
        fields=config.store.fields,
        dtype=design.forward_dtype(config),
        precision=design.resolve_precision(config, accelerator.device),
        device=accelerator.device,
    )
    made = design.agree(
        accelerator, lambda: design.design_store(config, source=source, teacher=teacher)
    )
    manifest = made.manifest

    if accelerator.is_main_process:
        plan = extract.plan_run(
            config,
            manifest=manifest,
            source=source,
            teacher=teacher,
            processes=accelerator.num_processes,
        )
        name = " ".join([teacher.record.name, teacher.record.tag]).strip()
        say(f"teacher   {name}, {teacher.record.precision} on {teacher.device}")
        say(f"views     {len(manifest.views)}: {describe(manifest.views.views)}")
        say(f"store     {config.store.path}")
        say("\n".join(plan.lines()))
    if config.dry_run:
        say("dry run: nothing was written")
        return

    summary = extract.run(
        config,
        manifest=manifest,
        source=source,
        teacher=teacher,
        accelerator=accelerator,
        artefacts=made.artefacts,
    )

    rate = summary.written / summary.seconds
    say(
        f"\n{summary.rows:,} rows in {summary.store}, {summary.written:,} of them from this run in "
        f"{summary.seconds:.1f} s ({rate:.1f} images/s); {len(summary.invalid)} without a usable image"
    )
    for item in summary.invalid[:20]:
        say(f"  skipped {item.sample_id}: {item.reason}")
    if len(summary.invalid) > 20:
        say(f"  ... and {len(summary.invalid) - 20} more: featstore inspect {summary.store}")
    summary.check(config.max_invalid_share)
    images = f"--source.kind {config.source.kind} --source.path {config.source.path}"
    recipe = "" if config.source.kind == "digits" else f" --config RECIPE.yaml {images}"
    say(f"next: accelerate launch pipelines/distill.py{recipe} --store {summary.store}")


if __name__ == "__main__":
    run_main(main, ExtractConfig, default_recipe=DEFAULT_RECIPE)
