"""Shards written into a bucket: objects sent one after another, and some at a time, through a slow network.

    python benchmarks/bucket_uploads.py                                        about two minutes
    python benchmarks/bucket_uploads.py --latency_ms 0 100 --turns 9

Writes shards of 4,096 rows of 1,024 float16 and their small columns to the S3 server of the tests, through a proxy that
holds each request for the latency and for its bytes over the rate. A figure is the speed over that of one object at a
time, of the same turn: median (smallest - largest).
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks._measure import Spread, print_table
from featstore.writing import bucket as bucket_module
from featstore.writing.bucket import BucketStore
from featstore.writing.claims import Claims
from featstore.writing.fill import fill
from featstore.writing.shard import Shard, text_column
from tests.featstore.stores import field, make_manifest
from tests.servers import faults
from tests.servers.background import listening
from tests.servers.proxy import Message, Proxy
from tests.servers.s3 import S3, serve_s3

WIDTH, SHARD_ROWS, SHARDS = 1024, 4096, 4


class SlowNetwork(Proxy):
    """Passes requests on after a while.

    Attributes:
        latency_s: seconds that each request waits.
        rate: bytes of a request per second.
    """

    latency_s = 0.0
    rate = 100e6

    async def _ask(self, request: Message, method: str) -> Message:
        await asyncio.sleep(self.latency_s + len(request.body) / self.rate)
        return await super()._ask(request, method)


def make_shards(claims: Claims, first: int) -> Iterator[Shard]:
    """Shards of random vectors."""
    generator = np.random.default_rng(0)
    for number in chain([first], iter(claims.claim_next, None)):
        values = generator.standard_normal((SHARD_ROWS, 1, WIDTH), dtype=np.float32)
        columns = {
            "sample_id": text_column([f"{number}/{row}.png" for row in range(SHARD_ROWS)]),
            "content_sha256": np.zeros((SHARD_ROWS, 32), np.uint8),
            "valid": np.ones(SHARD_ROWS, np.bool_),
            "fields/cls": values.astype(np.float16),
        }
        yield Shard(number, columns, [None] * SHARD_ROWS, {})


def seconds(url: str, uploads: int) -> float:
    """Seconds to write all shards of a new store."""
    bucket_module.UPLOADS = uploads
    fields = {"cls": field(WIDTH)}
    rows = SHARDS * SHARD_ROWS
    manifest = make_manifest(
        num_rows=rows, shard_rows=SHARD_ROWS, views=1, fields=fields, labels=False
    )
    with BucketStore(url) as bucket:
        bucket.begin(manifest, {})
        start = time.perf_counter()
        fill(bucket, make_shards, lease_s=600)
        return time.perf_counter() - start


def main() -> None:
    """Measure every latency and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latency_ms", type=float, nargs="+", default=[0, 30, 100])
    parser.add_argument("--uploads", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as work, serve_s3(Path(work)) as endpoint:
        bucket = S3(endpoint, "benchmark")
        bucket.create()
        os.environ.update(bucket.environment())
        with listening(SlowNetwork(endpoint, faults.NONE), "slow network") as network:
            os.environ["AWS_ENDPOINT_URL"] = network.url
            for latency_ms in arguments.latency_ms:
                network.latency_s = latency_ms / 1000
                found: dict[int, list[float]] = {count: [] for count in arguments.uploads}
                alone = []
                for turn in range(arguments.turns):
                    base = seconds(f"{bucket.url}/{latency_ms}/{turn}/1", 1)
                    alone.append(base)
                    for count in arguments.uploads:
                        spent = seconds(f"{bucket.url}/{latency_ms}/{turn}/{count}", count)
                        found[count].append(base / spent)
                ratios = [str(Spread.of(found[count])) for count in arguments.uploads]
                rows.append((f"{latency_ms:g} ms", f"{min(alone):.2f} s", *ratios))
    head = ("latency", "one at a time", *(f"{count} at a time" for count in arguments.uploads))
    print_table(f"{SHARDS} shards of {SHARD_ROWS * WIDTH * 2 / 1e6:.1f} MB", head, rows)


if __name__ == "__main__":
    main()
