"""The ``featstore`` command: look at stores without a teacher, without torch."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featstore import __version__
from featstore.errors import FeatstoreError
from featstore.reader import FeatureStore

SHOWN = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 fine, 1 found wanting, 2 error)."""
    parser = argparse.ArgumentParser(
        prog="featstore", description="Look after stores of vision foundation model features."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect",
        help="say what a store holds and whether it is complete",
        description="Say what a store holds: teacher, views, fields, counts, skipped images. Exit status 1 if shards "
        "are still missing.",
    )
    inspect.add_argument("store", type=Path, help="folder of the store")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    try:
        return _inspect(arguments.store, as_json=arguments.json)
    except FeatstoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        sys.stderr.close()
        return 0


def _inspect(path: Path, *, as_json: bool) -> int:
    store = FeatureStore.open(path, allow_incomplete=True)
    summary = summarise(store)
    print(json.dumps(summary, indent=2) if as_json else "\n".join(_lines(summary)))
    return 0 if store.complete else 1


def summarise(store: FeatureStore) -> dict[str, Any]:
    """What ``inspect`` says, as plain JSON values; reads the ledger and the small columns, not the features."""
    manifest = store.manifest
    invalid = store.invalid_rows()
    done = sum(len(manifest.shard_range(shard)) for shard in store.shards)
    entries = [store.entry(shard) for shard in store.shards]
    seconds = Counter[str]()
    for entry in entries:
        seconds.update(entry.seconds)
    return {
        "path": str(store.path),
        "uuid": manifest.uuid,
        "fingerprint": manifest.fingerprint,
        "created": manifest.created,
        "format_version": manifest.format_version,
        "complete": store.complete,
        "shards": [len(store.shards), manifest.num_shards],
        "rows": manifest.num_rows,
        "rows_done": done,
        "rows_valid": int(store.valid.sum()),
        "rows_labelled": int((store.labels >= 0).sum()),
        "classes": len(manifest.source.class_names),
        "bytes": sum(item.bytes for entry in entries for item in entry.objects.values()),
        "teacher": manifest.teacher.model_dump(mode="json"),
        "preprocessing": manifest.preprocessing.model_dump(mode="json"),
        "views": [str(view) for view in manifest.views.views],
        "fields": {name: spec.model_dump(mode="json") for name, spec in manifest.fields.items()},
        "source": {"kind": manifest.source.kind, "uri": manifest.source.uri},
        "seconds": {name: round(value, 1) for name, value in sorted(seconds.items())},
        "invalid": [item.model_dump(mode="json") for item in invalid],
    }


def _lines(summary: dict[str, Any]) -> list[str]:
    teacher = summary["teacher"]
    state = "complete" if summary["complete"] else "INCOMPLETE: run extract.py again to go on"
    done, total = summary["shards"]
    lines = [
        f"store        {summary['path']} (format {summary['format_version']}, {summary['created']})",
        f"fingerprint  {summary['fingerprint']}",
        f"state        {state}; {done} of {total} shards, {summary['bytes']:,} bytes",
        f"teacher      {teacher['library']} {teacher['name']} {teacher['tag']}".rstrip()
        + f", {teacher['precision']}, weights {teacher['weights_sha256'][:12]}",
        f"licence      {teacher['licence'] or 'not stated'}",
        f"source       {summary['source']['kind']} {summary['source']['uri']}",
        f"rows         {summary['rows']:,}; {summary['rows_valid']:,} valid, {summary['rows_labelled']:,} with a label "
        f"({summary['classes']} classes)",
        f"views        {len(summary['views'])}: {'; '.join(summary['views'])}",
    ]
    for name, spec in summary["fields"].items():
        shape = " x ".join(str(size) for size in spec["shape"])
        lines.append(f"field        {name}: {shape} {spec['dtype']}, {spec['meaning']}")
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in summary["seconds"].items())
    lines.append(f"spent        {spent or 'nothing yet'}")
    lines += [
        f"skipped      {item['sample_id']}: {item['reason']}" for item in summary["invalid"][:SHOWN]
    ]
    if len(summary["invalid"]) > SHOWN:
        lines.append(
            f"skipped      ... and {len(summary['invalid']) - SHOWN} more (--json lists all)"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
