"""Run phase one: settings and images -> a store, resumed, repaired or appended to.

    run(config)     what ``pipelines/extract.py``, ``featstore extract`` and ``featstore.extract`` call

Torch and the teacher's library are imported inside the functions, so that a wrong flag fails at once.
"""

import dataclasses
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.errors import ConfigError, ManifestMismatch
from featstore.extraction.config import ExtractConfig
from featstore.places.local import LocalPlace
from featstore.places.open_place import is_url, open_place
from featstore.sources.config import check_path

if TYPE_CHECKING:
    from accelerate import Accelerator

    from featstore.extraction.new_images import Growth
    from featstore.extraction.shards import ExtractionSummary
    from featstore.extraction.teachers import Teacher
    from featstore.format.manifest import Manifest
    from featstore.sources import Source
    from featstore.writing.bucket import BucketStore

FEW_IMAGES = 10_000  # up to which a user is told that crops help


def run(config: ExtractConfig, *, progress: bool = True) -> None:
    """Plan, extract, report.

    Args:
        progress: Print the plan and the summary, and show a progress bar.

    Raises:
        FeatstoreError: something the user can mend; nothing half-made is left behind.
    """
    main = os.environ.get("RANK", "0") == "0"
    if progress and main:  # at once: importing torch and listing images take their time
        teacher = " ".join([config.teacher.name, config.teacher.tag]).strip()
        images = config.source.path or config.source.kind
        print(f"extract   {teacher} of {images} into {config.store.path}", flush=True)
    check_path(config.source)
    with _opened(config) as (config, bucket):
        _run(config, bucket, progress=progress)


@contextmanager
def _opened(config: ExtractConfig) -> "Iterator[tuple[ExtractConfig, BucketStore | None]]":
    """Open the bucket of a store at a URL, and let its local copy take the place of the store in the settings."""
    path = config.store.path
    if not is_url(path):
        yield config, None
        return
    place = open_place(path)
    if isinstance(place, LocalPlace):  # file://
        store = dataclasses.replace(config.store, path=str(place.folder))
        yield dataclasses.replace(config, store=store), None
        return
    from featstore.reading.cached.published_store import url_in_errors
    from featstore.writing.bucket import MOST_PUT_MB, BucketStore

    for given, name in ((config.append, "append"), (config.repair, "repair")):
        if given:
            raise ConfigError(f"--{name}: not at a URL. {_on_a_copy(path, name)}")
    if config.store.shard_mb > MOST_PUT_MB:
        raise ConfigError(
            f"--store.shard_mb {config.store.shard_mb}: at a URL an object is written in one request, of at most "
            f"{MOST_PUT_MB} MB."
        )
    with BucketStore(path) as bucket, url_in_errors(bucket.url, bucket.folder):
        bucket.mirror()
        store = dataclasses.replace(config.store, path=str(bucket.folder))
        yield dataclasses.replace(config, store=store), bucket


def _run(config: ExtractConfig, bucket: "BucketStore | None", *, progress: bool) -> None:
    from featstore.errors import command
    from featstore.extraction import new_images
    from featstore.extraction.accelerator import start_accelerator
    from featstore.extraction.teachers import check_teacher
    from featstore.sources import open_source

    accelerator = start_accelerator(workers=config.workers)
    say = accelerator.print if progress else _print_nothing

    check_teacher(config.teacher, fields=config.store.fields, texts=config.of_texts)
    source = open_source(config.source)
    say(f"{'texts ' if config.of_texts else 'images'}    {len(source):,} in {source.uri}")
    for note in source.notes:
        say(f"note: {note}")
    if config.repair:
        if accelerator.is_main_process and Path(config.store.path).exists():
            _repair(config, source, say)
        accelerator.wait_for_everyone()
    if not config.append:
        source = new_images.in_stored_order(
            source, Path(config.store.path), bucket.url if bucket else ""
        )
        summary = fill_store(config, source, accelerator, bucket=bucket, progress=progress)
        if summary is not None:
            summary.check(config.max_invalid_share)
            say(
                f"next: {command('distill')} {shlex.join(_next_flags(config, source, summary.store))}"
            )
        return
    with new_images.growing(config, source, accelerator) as growth:
        if growth is None:
            say(f"nothing new: {config.store.path} has all {len(source):,} images")
            return
        say(f"new       {len(growth.source):,} of {len(source):,} images")
        summary = fill_store(
            growth.config, growth.source, accelerator, growth=growth, progress=progress
        )
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


def _repair(config: ExtractConfig, source: "Source", say: Callable[[str], None]) -> None:
    """Remove damaged shards, and those with images that can be read now, so that they are made again."""
    from featstore.errors import shorten
    from featstore.extraction.new_images import in_stored_order
    from featstore.extraction.unreadable import remove_shards_readable_now
    from featstore.maintenance.verify import repair

    store = Path(config.store.path)
    shards = repair(store, workers=max(1, config.workers), say=say)
    say(f"repair    {len(shards)} damaged shards will be made again: {shorten(shards)}")
    shards, images = remove_shards_readable_now(store, in_stored_order(source, store))
    if shards:
        say(
            f"repair    {len(shards)} shards are made again for images that can be read now: {images}"
        )


def _next_flags(config: ExtractConfig, source: "Source", store: Path | str) -> list[str]:
    """Flags with which the second phase can start from here."""
    flags = ["--store", str(store)]
    fields = config.store.fields
    if "cls" not in fields:  # the field that phase two reads unless it is told another
        vectors = [name for name in ("pooled", "projected", "mean", "logits") if name in fields]
        flags += ["--field", (vectors or fields)[0]]
    if config.source.kind != "digits" and not (config.store.pictures or source.artefacts):
        flags += ["--source.kind", config.source.kind, "--source.path", config.source.path]
    if config.source.labels:
        flags += ["--source.labels", config.source.labels]
    if source.labels is not None and not any(
        name.startswith("test/") for name in source.sample_ids
    ):
        flags += ["--data.holdout", "0.2"]  # a folder of classes without a part to measure on
    return flags


def fill_store(
    config: ExtractConfig,
    source: "Source",
    accelerator: "Accelerator",
    growth: "Growth | None" = None,
    *,
    bucket: "BucketStore | None" = None,
    progress: bool = True,
) -> "ExtractionSummary | None":
    """Make a store of the images of a source, or resume it; None if that was a dry run.

    Args:
        growth: of the store that the rows are for, if they are for another one.
        bucket: The store, if it is in a bucket; ``config.store.path`` is then its local copy.
    """
    from featstore.extraction import dry_run, new_manifest, shards

    say = accelerator.print if progress else _print_nothing
    teacher = _load_teacher(config, source, accelerator, say)
    design = partial(
        new_manifest.design_store,
        config,
        source=source,
        teacher=teacher,
        like=growth.store if growth else None,
        measure=lambda views: dry_run.measure_rates(
            config, views=views, source=source, teacher=teacher, disk=bucket is None
        ),
    )
    made = new_manifest.agree(accelerator, design)
    manifest = made.manifest
    if growth is not None and accelerator.is_main_process:
        growth.check(manifest)
    for note in _view_notes(config, source) if made.new and growth is None else []:
        say(f"note: {note}")
    if accelerator.is_main_process:
        plan = dry_run.plan_run(
            config,
            manifest=manifest,
            source=source,
            teacher=teacher,
            processes=accelerator.num_processes,
            rates=made.rates,
            bucket=bucket,
        )
        store = bucket.url if bucket else config.store.path
        say("\n".join([*_setting_lines(config, teacher, manifest, store), *plan.lines()]))
    if config.dry_run:
        say("dry run: nothing was written")
        return None

    extract = partial(
        shards.run,
        config,
        source=source,
        teacher=teacher,
        accelerator=accelerator,
        bucket=bucket,
        progress=progress,
    )
    try:
        summary = extract(manifest=manifest, artefacts=made.artefacts)
    except ManifestMismatch:
        if not made.new:
            raise
        # Another job has created the store meanwhile; what was measured for it is used.
        summary = extract(manifest=new_manifest.agree(accelerator, design).manifest)

    say("\n".join(_result_lines(summary, bucket.url if bucket else "")))
    return summary


def _load_teacher(
    config: ExtractConfig, source: "Source", accelerator: "Accelerator", say: Callable[[str], None]
) -> "Teacher":
    """The teacher, frozen: eval mode, no gradients. Nothing is trained in phase one."""
    from featstore.extraction import new_manifest
    from featstore.extraction.images import text_notes
    from featstore.extraction.teachers import build_teacher

    say(f"teacher   loading {config.teacher.name}")
    teacher = build_teacher(
        config.teacher,
        fields=config.store.fields,
        dtype=new_manifest.forward_dtype(config),
        precision=new_manifest.resolve_precision(config, accelerator.device),
        device=accelerator.device,
        texts=config.of_texts,
        batch_rows=config.batch_size,
    )
    for note in teacher.notes + text_notes(source, teacher):
        say(f"note: {note}")
    return teacher


def _view_notes(config: ExtractConfig, source: "Source") -> list[str]:
    """Say that crops would help the students of few images, before the teacher's time is spent."""
    views, images = config.views, ("folder", "tars", "hf")
    if views.seeded or config.source.kind not in images or len(source) > FEW_IMAGES:
        return []
    return [
        f"one view of each image. Training shows {len(source):,} images many times; with 4 or 8 crops of each, "
        "students of 2,020 photographs gained 6 to 7 points (docs/results/2026-11-30/views.md). A store cannot be "
        "given crops later: --views.seeded 4 now, at one more pass of the teacher each"
    ]


def _on_a_copy(url: str, flag: str) -> str:
    """How to change a store at a URL."""
    return (
        f"Change a copy: featstore pull {url} FOLDER; the same command with --{flag} --store.path FOLDER; featstore "
        f"push FOLDER {url} --replace. If the pull finds damage, extract into an empty FOLDER and push that."
    )


def _setting_lines(
    config: ExtractConfig, teacher: "Teacher", manifest: "Manifest", store: str
) -> list[str]:
    """What will run where, for the user."""
    import torch

    from featstore.files.limits import cores
    from featstore.format.views import describe_views

    name = " ".join([teacher.record.name, teacher.record.tag]).strip()
    return [
        f"teacher   {name}, {teacher.record.precision} on {teacher.device}",
        f"cores     {torch.get_num_threads()} threads for the teacher on {cores()} cores, {config.workers} loading "
        "processes",
        f"views     {len(manifest.views)}: {describe_views(manifest.views.views)}",
        f"store     {store}",
    ]


def _result_lines(summary: "ExtractionSummary", url: str) -> list[str]:
    """Rows and speed of a finished run, and the images that it could not use."""
    from featstore.sources.load import was_unreadable

    rate = summary.written / summary.seconds
    lines = [
        f"\n{summary.rows:,} rows in {summary.store}, {summary.written:,} of them from this run in "
        f"{summary.seconds:.1f} s ({rate:.1f} images/s); {len(summary.invalid)} without a usable image"
    ]
    lines += [f"  skipped {item.sample_id}: {item.reason}" for item in summary.invalid[:20]]
    if len(summary.invalid) > 20:
        where = shlex.quote(str(summary.store))
        lines.append(f"  ... and {len(summary.invalid) - 20} more: featstore inspect {where}")
    if unread := sum(was_unreadable(item.reason) for item in summary.invalid):
        advice = _on_a_copy(url, "repair") if url else "Run the same command with --repair."
        lines.append(f"  {unread} could not be read. Once they can be: {advice}")
    return lines


def _print_nothing(*_: object) -> None:
    """Take the place of ``print`` without progress."""
