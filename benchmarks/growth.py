"""Does anything grow with the number of rows? Open, gather and sampled verification at 10^4, 10^6 and 10^8 rows.

    python benchmarks/growth.py                        about two minutes, 1 GB of disk at most
    python benchmarks/growth.py --rows 10000 1000000

The stores are synthetic and sparse: features are zeros that take no room on disk, every checksum is true. Each turn
opens every store anew and reads the same number of rows, spread over its whole length; figures are ratios to the
smallest store of the same turn. Memory is the growth of the process's private memory, each store in its own process.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import google_crc32c
import numpy as np

from featstore import FeatureStore
from featstore.containers import make_backend
from featstore.files.atomic import write_bytes
from featstore.format.fields import empty_columns
from featstore.format.ledger import (
    LEDGER_FOLDER,
    ObjectRecord,
    ShardRecord,
    mark_complete,
    write_entry,
)
from featstore.format.manifest import Manifest, new_manifest, write_manifest
from featstore.format.manifest_records import FieldRecord, SourceRecord, WorkRecord
from featstore.format.views import ViewSet
from featstore.maintenance.verify import verify

SHARD_ROWS = 131_072
WIDTH = 2048
"""Rows of one page, so that rows are equally far apart for the processor at any size of the store."""
BATCH = 256
HOT_ROWS = 2048
"""Rows that are read again and again; few enough for the page cache at any size of the store."""


def make_store(path: Path, num_rows: int) -> Path:
    """Write a complete store of zeros; equal shards share their checksums, so that 10^8 rows take seconds."""
    record = FieldRecord(shape=(WIDTH,), dtype="float16", dims=("channel",), meaning="zeros")
    manifest = new_manifest(
        teachers={},
        views=ViewSet(),
        fields={"cls": record},
        source=SourceRecord(
            kind="synthetic", uri="", num_samples=num_rows, ids_sha256="0" * 64, has_labels=False
        ),
        work=WorkRecord(shard_rows=SHARD_ROWS, batch_size=BATCH),
        created_by={},
    )
    path.mkdir(parents=True)
    backend = make_backend(path, manifest)
    backend.create()
    (path / LEDGER_FOLDER).mkdir()
    write_manifest(path, manifest)
    templates: dict[int, list[tuple[str, ObjectRecord, list[tuple[int, bytes]]]]] = {}
    entries = []
    for shard in range(manifest.num_shards):
        rows = manifest.shard_range(shard)
        if len(rows) not in templates:
            templates[len(rows)] = _encode(manifest, path, shard)
        objects = {}
        for (_, item, pieces), name in zip(
            templates[len(rows)], backend.object_names(shard), strict=True
        ):
            _write_sparse(path / name, item.bytes, pieces)
            objects[name] = item
        entry = ShardRecord(shard=shard, rows=(rows.start, rows.stop), objects=objects)
        write_entry(path, entry)
        entries.append(entry)
    mark_complete(path, entries)
    return path


def _encode(
    manifest: Manifest, path: Path, shard: int
) -> list[tuple[str, ObjectRecord, list[tuple[int, bytes]]]]:
    """Objects of one shard: name, record, and the pieces of their bytes that are not zero."""
    columns = empty_columns(manifest, shard)
    columns["valid"][:] = True
    out = []
    for item in make_backend(path, manifest).encode(shard, columns):
        file = path / ".partial-template"
        write_bytes(file, *item.parts)
        data = file.read_bytes()
        file.unlink()
        blocks = [data[i : i + item.block_bytes] for i in range(0, len(data), item.block_bytes)]
        crc = "".join(f"{google_crc32c.value(block):08x}" for block in blocks)
        record = ObjectRecord(bytes=len(data), block_bytes=item.block_bytes, crc32c=crc)
        page = 4096
        pieces = [
            (start, data[start : start + page])
            for start in range(0, len(data), page)
            if data.count(0, start, start + page) < len(data[start : start + page])
        ]
        out.append((item.name, record, pieces))
    return out


def _write_sparse(path: Path, size: int, pieces: list[tuple[int, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
        for start, data in pieces:
            file.seek(start)
            file.write(data)


def private_bytes() -> int:
    """Memory of this process that no file backs."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


def measure(path: Path, batches: int) -> dict[str, float]:
    """Open, touch and read one store; seconds, and bytes of memory."""
    before = private_bytes()
    start = time.perf_counter()
    store = FeatureStore.open(path)
    opened = time.perf_counter() - start
    hot = np.linspace(0, store.num_rows - 1, HOT_ROWS).astype(np.int64)
    out = np.empty((BATCH, 1, WIDTH), dtype=np.float16)
    generator = np.random.default_rng(0)
    start = time.perf_counter()
    store.gather("cls", hot)
    touched = time.perf_counter() - start
    wanted = [generator.choice(hot, BATCH) for _ in range(batches)]
    start = time.perf_counter()
    for rows in wanted:
        store.gather("cls", rows, out=out)
    gathered = (time.perf_counter() - start) / batches
    memory = private_bytes() - before
    start = time.perf_counter()
    report = verify(path, sample=64)
    checked = time.perf_counter() - start
    assert not report.damages, report.damages
    return {
        "open": opened,
        "first touch of 2,048 rows": touched,
        "gather": gathered,
        "verify --sample 64": checked,
        "memory": float(memory),
    }


def _in_child(path: Path, batches: int) -> dict[str, float]:
    """Measure in a fresh process, so that nothing of another store is counted."""
    command = [sys.executable, __file__, "--measure", str(path), "--batches", str(batches)]
    found: dict[str, float] = json.loads(subprocess.check_output(command, text=True))
    return found


def main() -> None:
    """Make the stores, measure them in turn, print ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**6, 10**8])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batches", type=int, default=500, help="batches of 256 rows per turn")
    parser.add_argument("--folder", type=Path, help="where the stores go; removed at the end")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.batches)))
        return
    folder = Path(tempfile.mkdtemp(prefix="growth-", dir=arguments.folder))
    try:
        paths = {}
        for rows in arguments.rows:
            start = time.perf_counter()
            paths[rows] = make_store(folder / str(rows), rows)
            print(f"{rows:,} rows written in {time.perf_counter() - start:.1f} s", flush=True)
        results: dict[int, list[dict[str, float]]] = {rows: [] for rows in paths}
        for _ in range(arguments.turns):
            for rows, path in paths.items():
                results[rows].append(_in_child(path, arguments.batches))
        _print(results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def _print(results: dict[int, list[dict[str, Any]]]) -> None:
    smallest = min(results)
    print(f"\nratio to {smallest:,} rows in the same turn: median (least - most); memory in MB")
    for key in next(iter(results.values()))[0]:
        for rows, turns in results.items():
            if key == "memory":
                shown = " ".join(f"{turn[key] / 1e6:.1f}" for turn in turns)
                print(f"  {key:26} {rows:>13,}  {shown}")
                continue
            pairs = zip(turns, results[smallest], strict=True)
            ratios = [turn[key] / base[key] for turn, base in pairs]
            middle = statistics.median(turn[key] for turn in turns)
            print(
                f"  {key:26} {rows:>13,}  {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} - {max(ratios):.2f})   {1e3 * middle:.3f} ms"
            )


if __name__ == "__main__":
    main()
