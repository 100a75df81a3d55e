"""``featstore convert``."""

import argparse

from featstore.cli import arguments as cli
from featstore.derive.convert import convert

DESCRIPTION = """\
Write the rows of a store in the other container, with another codec, or in shards of another size. Rows are equal bit
by bit, and so is the fingerprint. Run the same command again to resume.

  featstore convert STORE OUT --container webdataset
  featstore convert STORE OUT --codec bitshuffle
"""

ARGUMENTS = {
    "store": cli.STORE,
    "out": cli.OUT,
    "--container": cli.choice("of the new store (default: as before)", cli.CONTAINERS),
    "--codec": cli.choice(
        "of its fields; other than raw in zarr only (default: as before)", cli.CODECS
    ),
    "--shard-rows": cli.value("rows of its shards (default: as before)", cli.positive),
}


def run(arguments: argparse.Namespace) -> int:
    """Write a store in another container."""
    out, options = arguments.out, cli.picked(arguments, "container", "codec", "shard_rows")
    with cli.bar(arguments, " shards") as progress:
        manifest = convert(arguments.store, out, **options, progress=progress)
    values = cli.made(out, manifest, container=manifest.container, shards=manifest.num_shards)
    line = (
        f"{out}: {manifest.num_rows:,} rows in {manifest.num_shards:,} {manifest.container} shards, "
        f"fingerprint {manifest.fingerprint[:16]}, as before"
    )
    return cli.show(arguments, values, [line])
