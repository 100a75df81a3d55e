"""What other packages keep of tars: the shard index of wids, and the Parquet metadata of img2dataset.

    pip install --target WIDS --no-deps 'webdataset<0.3'              the last releases that have wids
    python benchmarks/listing_peers.py --wids WIDS --samples 1000000

The tars of ``listing.py``. A shard index is made as ``widsindex create`` makes it (every tar is read once for its
number of samples and its MD5), without its copy of each tar to /tmp; a start reads it and one sample. img2dataset
writes its Parquet files beside the tars while it downloads, so making them costs nothing of its own: files of its
schema are written here, and a start reads all keys. Seconds, CPU seconds and memory are those of a process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._measure import print_table
from benchmarks.listing import write_tars

MEASURED = """
import json, os, sys, time
from pathlib import Path
folder, index = Path(sys.argv[1]), sys.argv[2]
{imports}
def resident():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])
before, start, cpu = resident(), time.perf_counter(), time.process_time()
{work}
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
print("FOUND", json.dumps([seconds, cpu, (resident() - before) / 1e6]))
"""
WIDS = "from wids import wids"
WIDS_MAKE = """
shards = [
    dict(url=str(tar), md5sum=wids.compute_file_md5sum(str(tar)), nsamples=wids.compute_num_samples(str(tar)),
         filesize=tar.stat().st_size)
    for tar in sorted(folder.glob("*.tar"))
]
Path(index).write_text(json.dumps(dict(__kind__="wids-shard-index-v1", wids_version=1, shardlist=shards)))
"""
WIDS_START = """
samples = wids.ShardListDataset(index, localname=lambda url: url, transformations=[])
samples[len(samples) // 2]["__key__"]
"""
PARQUET_START = """
keys = pyarrow.dataset.dataset(index).to_table(columns=["key"])
"""


def measure(imports: str, work: str, folder: Path, index: Path, wids: str) -> list[float]:
    """Seconds, CPU seconds and megabytes of some work in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED.format(imports=imports, work=work), str(folder), str(index)],
        env=os.environ | {"PYTHONPATH": wids}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: list[float] = json.loads(done.stdout.rpartition("FOUND ")[2])
    return found


def write_parquet(folder: Path, samples: int, per_tar: int) -> None:
    """Write metadata as img2dataset 1.47 does, one file per tar."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for tar in range(samples // per_tar):
        keys = [f"{tar:05d}{row:04d}" for row in range(per_tar)]
        table = {
            "url": [f"https://example.org/images/{key}.jpg" for key in keys],
            "key": keys,
            "status": ["success"] * per_tar,
            "error_message": pa.array([None] * per_tar, pa.string()),
            **{name: [256] * per_tar for name in ("width", "height")},
            **{name: [512] * per_tar for name in ("original_width", "original_height")},
            "sha256": [f"{key:0>64}" for key in keys],
        }
        pq.write_table(pa.table(table), folder / f"{tar:05d}.parquet")


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=10**6)
    parser.add_argument("--per_tar", type=int, default=10_000)
    parser.add_argument("--wids", default="", help="folder that wids was installed into")
    parser.add_argument("--csv", type=Path, help="also write the table there")
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder, index, tables = (
            Path(text) / "tars",
            Path(text) / "index.json",
            Path(text) / "tables",
        )
        write_tars(folder, chosen.samples, chosen.per_tar)
        write_parquet(tables, chosen.samples, chosen.per_tar)
        for name, imports, work, kept in (
            ("wids, make the index", WIDS, WIDS_MAKE, index),
            ("wids, start and read one sample", WIDS, WIDS_START, index),
            ("Parquet, read all keys", "import pyarrow.dataset", PARQUET_START, tables),
        ):
            found = measure(imports, work, folder, kept, chosen.wids)
            files = kept.iterdir() if kept.is_dir() else [kept]
            size = sum(path.stat().st_size for path in files) / 1e6
            rows.append((name, *(f"{value:.2f}" for value in found), f"{size:.2f}"))
    head = ("", "seconds", "CPU, s", "memory, MB", "files, MB")
    print_table(f"{chosen.samples:,} samples, {chosen.per_tar:,} per tar", head, rows, chosen.csv)


if __name__ == "__main__":
    main()
