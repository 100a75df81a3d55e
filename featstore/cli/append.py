"""``featstore append``."""

import argparse

from featstore.cli.arguments import DUPLICATES, STORE, bar, made, show, store_folder, value
from featstore.derive.append import append

DESCRIPTION = """\
Append the rows of a store of new images to a finished store of the same teachers, views and fields. Old rows keep
number, bytes and values; the manifest records the earlier version. Processes that have the store open keep reading the
old version. Run the same command again to resume. To extract new images directly into a store: featstore
extract --append true.
"""

ARGUMENTS = {
    "store": {**STORE, "help": "folder of the store that grows"},
    "new": value("folder of the store of new images; it is kept", store_folder),
    "--duplicates": DUPLICATES,
}


def run(arguments: argparse.Namespace) -> int:
    """Append rows to a store."""
    store = arguments.store
    with bar(arguments, " shards") as progress:
        found = append(store, arguments.new, duplicates=arguments.duplicates, progress=progress)
    manifest = found.manifest
    values = made(store, manifest, version=manifest.version, added=found.rows, notes=found.notes)
    now = f"version {manifest.version}, {manifest.num_rows:,} rows"
    result = f"{now}, {found.rows:,} of them added" if found.rows else f"nothing to add; {now}"
    notes = [f"note         {note}" for note in found.notes]
    return show(arguments, values, [*notes, f"{store}: {result}"])
