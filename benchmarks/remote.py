"""Random batches from a store at a URL, in the first epoch and in the second, beside a local copy of it.

    python benchmarks/remote.py                        S3 (moto) and, where nginx is installed, http; about two minutes
    python benchmarks/remote.py --rows 131072 --repeats 9 --servers http

Vectors of 1024 float16 (2 KB a row), batches of 256 rows in a fully shuffled order, the worst one for a cache: the
first batch touches every shard.

Epoch 1: each repeat has an empty cache and reads in turn the local copy, all files by the client alone (``obstore``, as
many at a time), the URL, and the local copy again. A figure is seconds over the mean of the two local epochs of that
repeat: median (smallest - largest). Epoch 2 and later ones: batches from the URL, whose cache is filled, and from the
local copy in rotation; a figure is rows per second over those of the local copy. Servers run on this machine and share
its processors with the reader: what they give is the upper limit of epoch 1, and a real network has another one.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import os

import numpy as np

from benchmarks._measure import (
    Spread,
    batch_memory,
    fitted,
    print_table,
    seconds_in_turn,
    speed_ratio,
)
from featstore import FeatureStore
from featstore.display.text import format_bytes
from featstore.format.ledger import mark_complete, read_entry
from featstore.places.base import FileSink
from featstore.places.open_place import open_place
from featstore.reading.cached.cache import CacheConfig
from featstore.reading.shuffling import BatchSampler, Order
from tests.featstore.stores import field, make_manifest
from tests.servers.s3 import S3, serve_s3
from tests.servers.web import INSTALL, nginx, serve_folder

WIDTH, BATCH, SHARD_ROWS = 1024, 256, 4096
SLICES = 20


def write(folder: Path, rows: int) -> FeatureStore:
    """A store of random vectors."""
    from featstore.containers import make_backend
    from featstore.writing.commit import commit, open_or_create
    from featstore.writing.shard import Shard, text_column

    manifest = make_manifest(
        num_rows=rows, shard_rows=SHARD_ROWS, views=1, fields={"cls": field(WIDTH)}, labels=False
    )
    open_or_create(folder, manifest)
    backend = make_backend(folder, manifest)
    generator = np.random.default_rng(0)
    for shard in range(manifest.num_shards):
        span = manifest.shard_range(shard)
        values = generator.standard_normal((len(span), 1, WIDTH), dtype=np.float32)
        columns = {
            "sample_id": text_column([f"{row}.png" for row in span]),
            "content_sha256": np.zeros((len(span), 32), np.uint8),
            "valid": np.ones(len(span), np.bool_),
            "fields/cls": values.astype(np.float16),
        }
        commit(backend, Shard(shard, columns, [None] * len(span), {}))
    mark_complete(folder, (read_entry(folder, shard) for shard in range(manifest.num_shards)))
    return FeatureStore.open(folder)


def epoch(store: FeatureStore, number: int) -> float:
    """Seconds of one epoch of random batches."""
    order = Order(num_rows=store.num_rows, seed=1, epoch=number)
    sampler = BatchSampler(order, batch_size=BATCH, drop_last=True)
    out = batch_memory((BATCH, 1, WIDTH), np.float16)
    start = time.perf_counter()
    for rows in sampler:
        store.gather("cls", rows, out=out)
    return time.perf_counter() - start


def download(url: str, names: list[str], folder: Path, jobs: int) -> float:
    """Seconds that the client alone takes to copy files."""
    place = open_place(url)
    folder.mkdir()

    def fetch(number: int) -> None:
        with (folder / str(number)).open("wb") as file:
            place.stream(names[number], FileSink(file), most_bytes=2**40)

    start = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(fetch, range(len(names))))
    return time.perf_counter() - start


@contextmanager
def s3_server(store: Path, work: Path) -> Iterator[str]:
    """Put a store on an S3 server; yields its URL."""
    with serve_s3(work) as endpoint:
        bucket = S3(endpoint, "benchmark")
        bucket.create()
        for path in sorted(store.rglob("*")):
            if path.is_file():
                bucket.put(f"store/{path.relative_to(store).as_posix()}", path.read_bytes())
        os.environ.update(bucket.environment())
        yield f"{bucket.url}/store"


@contextmanager
def http_server(store: Path, work: Path) -> Iterator[str]:
    """Serve a store by nginx; yields its URL."""
    with serve_folder(work) as running:
        yield running.share(store)


SERVERS: dict[str, Callable[[Path, Path], AbstractContextManager[str]]] = {
    "s3": s3_server,
    "http": http_server,
}


def first_epochs(url: str, local: FeatureStore, work: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each part over those of the local copy, by repeat."""
    names = [name for entry in local.entries() for name in entry.objects]
    found: dict[str, list[float]] = {}
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory(dir=work) as folder:
            config = CacheConfig(folder=Path(folder) / "cache")
            before = epoch(local, repeat)
            alone = download(url, names, Path(folder) / "copy", config.jobs)
            start = time.perf_counter()
            remote = FeatureStore.open(url, cache=config)
            opened = time.perf_counter() - start
            first = epoch(remote, repeat)
            again = epoch(remote, repeat)
            base = (before + epoch(local, repeat)) / 2
        for name, seconds in {
            "download by the client alone": alone,
            "URL, epoch 1, with opening": opened + first,
            "URL, epoch 1, over local copy and download": (opened + first) * base / (base + alone),
            "URL, epoch 2": again,
        }.items():
            found.setdefault(name, []).append(seconds / base)
    return found


def later_batches(url: str, local: FeatureStore, work: Path, repeats: int) -> Spread:
    """Speed of batches from a URL whose cache is filled, over that of the local copy."""
    remote = FeatureStore.open(url, cache=CacheConfig(folder=work / "cache"))
    cases = {}
    for name, store in (("local", local), ("remote", remote)):
        epoch(store, 0)
        cases[name] = fitted(reader(store), slices=SLICES)
    seconds = seconds_in_turn(cases, turns=repeats, slices=SLICES)
    return speed_ratio(seconds["remote"], seconds["local"])


def reader(store: FeatureStore) -> Callable[[int], object]:
    """A step that reads a batch of its number."""
    order = Order(num_rows=store.num_rows, seed=2)
    out = batch_memory((BATCH, 1, WIDTH), np.float16)
    batches = [*BatchSampler(order, batch_size=BATCH, drop_last=True)]
    return lambda number: store.gather("cls", batches[number % len(batches)], out=out)


def main() -> None:
    """Write a store, serve it, read it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--servers", nargs="+", choices=[*SERVERS], default=[*SERVERS])
    arguments = parser.parse_args()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="featstore-remote-")))
        local = write(work / "store", arguments.rows)
        size = sum(item.bytes for e in local.entries() for item in e.objects.values())
        print(f"{local.num_rows:,} rows, {format_bytes(size)} in {len(local.shards)} shards")
        for name in arguments.servers:
            if name == "http" and nginx() is None:
                print(f"\nhttp left out: {INSTALL}")
                continue
            folder = work / name
            folder.mkdir()
            url = stack.enter_context(SERVERS[name](work / "store", folder))
            first = first_epochs(url, local, folder, arguments.repeats)
            rows = [(what, Spread.of(ratios)) for what, ratios in first.items()]
            print_table(name, ("", "seconds, local copy = 1"), rows)
            later = later_batches(url, local, folder, arguments.repeats)
            print(f"later epochs, speed of the URL, local copy = 1: {later}")


if __name__ == "__main__":
    main()
