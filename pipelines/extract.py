"""Phase one: run a frozen teacher once over the images and write its features into a store.

    accelerate launch pipelines/extract.py                                     the embedded digits, about 30 s
    accelerate launch pipelines/extract.py --config recipe.yaml --dry_run      print the plan and stop
    accelerate launch pipelines/extract.py --config recipe.yaml                start, or go on where it stopped
    accelerate launch pipelines/extract.py --config recipe.yaml --repair       check, make damaged shards again
    accelerate launch pipelines/extract.py --config recipe.yaml --append true  more images: add those that are new

Several GPUs: accelerate launch --multi_gpu pipelines/extract.py ...
"""

import sys
from pathlib import Path

# A script's own folder comes first on sys.path; the packages lie one level higher, also when nothing is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from typing import TYPE_CHECKING

from featstore.extraction.config import ExtractConfig
from pipelines._cli import run_main

if TYPE_CHECKING:
    from accelerate import Accelerator

    from featstore.extraction.new_images import Growth
    from featstore.extraction.shards import Summary
    from featstore.sources import Source

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "digits" / "extract.yaml"


def main(config: ExtractConfig) -> None:
    """Plan, extract, report.

    Raises:
        FeatstoreError: something the user can mend; nothing half-made is left behind.
    """
    from featstore.errors import shorten
    from featstore.extraction import new_images as grow
    from featstore.extraction.accelerator import start_accelerator
    from featstore.maintenance.verify import repair
    from featstore.sources import open_source

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
    if not config.append:
        source = grow.in_stored_order(source, Path(config.store.path))
        summary = fill(config, source, accelerator)
        if summary is not None:
            summary.check(config.max_invalid_share)
            images = f"--source.kind {config.source.kind} --source.path {config.source.path}"
            recipe = "" if config.source.kind == "digits" else f" --config RECIPE.yaml {images}"
            say(f"next: accelerate launch pipelines/distill.py{recipe} --store {summary.store}")
        return
    with grow.growing(config, source, accelerator) as growth:
        if growth is None:
            say(f"nothing new: {config.store.path} has all {len(source):,} images")
            return
        say(f"new       {len(growth.source):,} of {len(source):,} images")
        summary = fill(growth.config, growth.source, accelerator, growth=growth)
        if summary is None:
            return
        summary.check(config.max_invalid_share)
        if accelerator.is_main_process:
            done = growth.finish()
            say(
                f"{done.rows:,} rows added: {config.store.path} is version {done.manifest.version}, "
                f"{done.manifest.num_rows:,} rows"
            )
        accelerator.wait_for_everyone()


def fill(
    config: ExtractConfig,
    source: "Source",
    accelerator: "Accelerator",
    growth: "Growth | None" = None,
) -> "Summary | None":
    """Make a store of the images of a source, or go on with it; None if that was a dry run.

    Args:
        config: the settings.
        source: the images.
        accelerator: this process among the others.
        growth: of the store that the rows are for, if they are for another one.
    """
    from featstore.extraction import new_manifest as design
    from featstore.extraction import shards as extract
    from featstore.extraction.teachers import build_teacher
    from featstore.format.views import describe

    say = accelerator.print
    # Frozen: eval mode, no gradients. Nothing is trained in phase one.
    teacher = build_teacher(
        config.teacher,
        fields=config.store.fields,
        dtype=design.forward_dtype(config),
        precision=design.resolve_precision(config, accelerator.device),
        device=accelerator.device,
    )
    made = design.agree(
        accelerator,
        lambda: design.design_store(
            config, source=source, teacher=teacher, like=growth.store if growth else None
        ),
    )
    manifest = made.manifest
    if growth is not None and accelerator.is_main_process:
        growth.check(manifest)

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
        return None

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
    return summary


if __name__ == "__main__":
    run_main(main, ExtractConfig, default_recipe=DEFAULT_RECIPE)
