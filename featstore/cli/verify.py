"""``featstore verify``."""

import argparse
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from featstore.cli import arguments as cli
from featstore.display.text import columns, format_bytes
from featstore.errors import ConfigError, command, printable, shorten
from featstore.format.manifest import read_manifest
from featstore.maintenance import signing
from featstore.maintenance import verify as library
from featstore.maintenance.signing import Signed
from featstore.maintenance.verify import VerifyReport
from featstore.sharing.verify_url import verify_url
from featstore.sources.config import SourceConfig

if TYPE_CHECKING:
    from featstore.extraction.recompute import Recomputed

SHOWN = 20

DESCRIPTION = """\
Check a store. Nothing is changed. Exit status 1 if anything is wrong.

  featstore verify STORE
      every byte against its checksum; names, types and sizes against the manifest; features finite, labels within
      the classes, ids unique. Damage is named by shard, column, rows and file. A damaged pulled store is repaired by
      the same featstore pull, a published one by featstore push, your own by featstore extract --repair.
  featstore verify s3://bucket/prefix [--sample 1000]
      every byte of a published store against its checksums, or a sample of blocks; nothing is written to disk
  featstore verify STORE --public-key KEY.pub
      also the signature: whether the owner of this key signed exactly these files
  featstore verify STORE --recompute 32 --source.path IMAGES --weights MODEL.safetensors
      also the features: runs the store's teacher again on 32 random images of your copy (needs torch)
"""


ARGUMENTS = {
    "store": cli.STORE_OR_URL,
    "--sample": cli.value(
        "check N random blocks only; takes the same time for any size of store",
        cli.positive,
        metavar="N",
    ),
    "--seed": cli.value("seed of --sample and --recompute (default: 0)", int, default=0),
    "--workers": cli.value("threads that read (default: 2)", cli.positive, default=2),
    "--public-key": cli.value(
        "check the signature with this key; get it from its owner, not from where the store is",
        Path,
        metavar="KEY.pub",
    ),
    "--recompute": cli.value(
        "run the teacher again on the images of N random rows and compare",
        cli.positive,
        metavar="N",
    ),
    "--weights": cli.repeated(
        "of --recompute: local weights instead of those of the hub; for transformers, onnx and run the folder or file "
        "of the model; one per teacher",
        "[TEACHER=]FILE",
    ),
    "--source.path": cli.value(
        "of --recompute: your copy of the images, as for featstore extract",
        dest="source_path",
        default="",
        metavar="PATH",
    ),
    "--source.kind": cli.choice(
        "of --recompute (default: the kind that the store was made from)",
        ("folder", "tars", "hf", "digits"),
        dest="source_kind",
    ),
    "--source.image_column": cli.value(
        "of --recompute, with --source.kind hf (default: image)",
        dest="image_column",
        default="image",
        metavar="NAME",
    ),
    **cli.CLIENT,
}


def run(arguments: argparse.Namespace) -> int:
    """Check a store."""
    unit = " blocks" if arguments.sample else " shards"
    url = arguments.store if isinstance(arguments.store, str) else ""
    if url and (arguments.public_key or arguments.recompute):
        raise ConfigError(
            f"{url}: --public-key and --recompute need a copy: featstore pull {shlex.quote(str(url))} STORE"
        )
    with cli.bar(arguments, unit) as progress:
        sampling = {**cli.picked(arguments, "sample", "seed"), "progress": progress}
        report = (
            verify_url(url, **sampling, jobs=4 * arguments.workers, **cli.client_of(arguments))
            if url
            else library.verify(arguments.store, **sampling, workers=arguments.workers)
        )
    signed = None
    if arguments.public_key is not None:
        signed = signing.check_signature(arguments.store, arguments.public_key)
    recomputed = _recompute(arguments) if arguments.recompute else None
    values = report_json(report)
    values["signature"] = None if signed is None else {"sound": signed.sound, **asdict(signed)}
    values["recomputed"] = None if recomputed is None else _recomputed_json(recomputed)
    found, verdict = report_lines(report), verdict_of(report)
    if signed is not None:
        found += signature_lines(signed)
        verdict += "" if signed.sound else "; the signature does not hold"
    if recomputed is not None:
        found += recomputed_lines(recomputed)
        verdict += "" if recomputed.sound else "; the features are not those of the teacher"
    cli.show(arguments, values, [*found, f"verdict    {verdict}"])
    sound = report.sound and report.complete
    sound = sound and (signed is None or signed.sound)
    return 0 if sound and (recomputed is None or recomputed.sound) else 1


def _recompute(arguments: argparse.Namespace) -> "Recomputed":
    kind = arguments.source_kind or read_manifest(arguments.store).source.kind
    if kind not in ("folder", "tars", "hf", "digits"):
        raise ConfigError(
            f"{arguments.store}: made from a source of kind {kind!r}. Give the kind of your copy of the images: "
            "--source.kind folder, tars, hf or digits."
        )
    source = SourceConfig(
        kind=cast(Any, kind),
        path=arguments.source_path,
        labels_from="none",
        image_column=arguments.image_column,
    )
    try:
        from featstore.extraction.recompute import recompute
    except ImportError as error:
        raise ConfigError(
            f"--recompute runs the teacher, for which a package is missing ({error}): "
            "pip install 'featstore-distill[distill]'"
        ) from None
    weights = {}
    for item in arguments.weights:
        name, _, path = item.rpartition("=")
        weights[name] = path
    with cli.bar(arguments, " images") as progress:
        return recompute(
            arguments.store,
            source=source,
            rows=arguments.recompute,
            seed=arguments.seed,
            weights=weights,
            progress=progress,
        )


def report_json(report: VerifyReport) -> dict[str, Any]:
    """Return a report as plain JSON values."""
    return {
        "path": str(report.path),
        "fingerprint": report.fingerprint,
        "sound": report.sound,
        "complete": report.complete,
        "sampled": report.sampled,
        "shards": [report.shards, report.num_shards],
        "missing_shards": list(report.missing),
        "blocks": report.blocks,
        "bytes": report.bytes,
        "damaged_shards": report.damaged_shards,
        "damages": [
            {
                **asdict(item),
                "rows": None if item.rows is None else [item.rows.start, item.rows.stop],
                "advice": item.advice,
            }
            for item in report.damages
        ],
        "foreign_files": report.foreign,
        "leftovers": report.leftovers,
        "notes": report.notes,
    }


def report_lines(report: VerifyReport) -> list[str]:
    """Return a report as lines of text, without the verdict."""
    scope = "a sample of blocks" if report.sampled else "everything"
    found = [
        f"store      {report.path} ({report.rows:,} rows, {report.num_shards:,} shards)",
        f"checked    {scope}: {report.blocks:,} blocks, {format_bytes(report.bytes)}, in {report.shards:,} shards",
    ]
    found += [f"damaged    {damage}" for damage in report.damages]
    if report.missing:
        found.append(
            f"missing    {len(report.missing):,} shards were not extracted: {shorten(report.missing)}; run "
            f"{command('extract')}"
        )
    elif not report.marked and report.sound:
        found.append(
            f"unmarked   every shard is there, but the store is not marked as complete; run {command('extract')}"
        )
    if report.foreign:
        found.append(
            f"foreign    {len(report.foreign):,} files do not belong to the store: {shorten(report.foreign)}"
        )
    if report.leftovers:
        found.append(
            f"leftover   {len(report.leftovers):,} temporary files of a killed run: {shorten(report.leftovers)}; "
            "the next run deletes them"
        )
    found += [f"note       {note}" for note in report.notes]
    return found


def verdict_of(report: VerifyReport) -> str:
    """Return the result of a report in one line."""
    if not report.sound:
        shards = report.damaged_shards
        which = f" in {len(shards):,} shards: {shorten(shards, 20)}" if shards else ""
        return f"DAMAGED: {len(report.damages):,} problems{which}"
    state = "complete" if report.complete else "INCOMPLETE"
    if not report.sampled:
        return f"sound, {state}"
    return (
        f"the sample is sound, {state}; damage of {report.likely_share:.2%} of all blocks would have been found "
        "with 95 % probability"
    )


def signature_lines(signed: Signed) -> list[str]:
    """Return the result of a signature check as lines of text."""
    if signed.sound:
        return [
            f"signature  GOOD: {signed.files:,} files, signed as {signed.name!r}, digest {signed.digest}",
            f"key        sha256 {signed.key}",
        ]
    found = [f"signature  BAD: {signed.problem}"] if signed.problem else []
    for what, names in (
        ("not as signed", signed.changed),
        ("signed, but missing", signed.missing),
        ("not signed", signed.unsigned),
    ):
        if names:
            found.append(f"signature  BAD: {len(names):,} files {what}: {shorten(names, SHOWN)}")
    return [*found, f"key        sha256 {signed.key}"]


def recomputed_lines(found: "Recomputed") -> list[str]:
    """Return the comparison with the teacher as lines of text."""
    rows = [
        ("field", "rows", "max abs error", "relative L2", "worst cosine", "tolerance", "verdict")
    ]
    rows += [
        (
            item.field,
            f"{item.rows:,}",
            f"{item.max_abs:.2e}",
            f"{item.relative_l2:.2e}",
            f"{item.cosine:.7f}",
            f"{item.tolerance:.2e}",
            "equal" if item.sound else "DIFFERS",
        )
        for item in found.fields
    ]
    out = [
        f"recompute  {found.rows:,} images; the source has {found.in_source:,} of {found.valid:,} valid rows"
    ]
    out += [f"           {line}" for line in columns(rows).splitlines()]
    for item in found.fields:
        if item.problem:
            out.append(f"DIFFERS    {item.field}: {item.problem}")
        elif not item.sound:
            out.append(f"DIFFERS    {item.field}: largest in {printable(item.worst)}")
    for what, names in (
        ("image differs from the extracted one", found.other_content),
        ("cannot be used here", found.unusable),
    ):
        if names:
            out.append(f"DIFFERS    {len(names):,} samples, {what}: {shorten(names, SHOWN)}")
    out += [f"skipped    {name}: {reason}" for name, reason in sorted(found.skipped.items())]
    return out


def _recomputed_json(found: "Recomputed") -> dict[str, Any]:
    values = asdict(found)
    del values["path"]
    values["fields"] = [{"sound": item.sound, **asdict(item)} for item in found.fields]
    return {"sound": found.sound, **values}
