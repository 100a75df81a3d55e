"""Starting on many samples in tars: the first listing, and later starts from the kept one.

    python benchmarks/listing.py                                     10^5 and 10^6 samples, about five minutes
    python benchmarks/listing.py --samples 10000000 --per_tar 10000 --turns 1

Tars whose images have no bytes; all are links to one file, because ids begin with the name of the tar: listing reads
headers, here from memory, so a disk or a network adds its time. Every start is a process of its own: ``open_source``
and the hash of all ids, as at the start of phase one. CPU is that of the process; memory is what it grew by, and the
part of it that is no file, which processes of one machine do not share.
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

from benchmarks._measure import Spread, print_table

START = """
import json, sys, time
from pathlib import Path
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from featstore.format.ids import ids_sha256

def resident():
    total, shared = (4096 * int(word) for word in Path("/proc/self/statm").read_text().split()[1:3])
    return total, total - shared

before, start, cpu = resident(), time.perf_counter(), time.process_time()
source = open_source(SourceConfig(kind="tars", path=sys.argv[1]))
ids_sha256(source.sample_ids)
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
grown = [now - then for now, then in zip(resident(), before)]
print(json.dumps([seconds, cpu, *grown, len(source)]))
"""


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", nargs="+", type=int, default=[10**5, 10**6])
    parser.add_argument("--per_tar", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where tars go (default: a temporary folder)")
    parser.add_argument("--csv", type=Path, help="also write the table there")
    return parser.parse_args()


def write_tars(folder: Path, samples: int, per_tar: int) -> None:
    """Write one tar, and links to it."""
    import numpy as np

    from featstore.files.tar_headers import END, headers

    folder.mkdir()
    names = [f"{row:09d}.jpg" for row in range(per_tar)]
    first = folder / "000000.tar"
    first.write_bytes(headers(names, np.zeros(per_tar, np.int64), 0).tobytes() + END)
    for tar in range(1, samples // per_tar):
        (folder / f"{tar:06d}.tar").hardlink_to(first)


def start(folder: Path, cache: Path) -> list[float]:
    """Open the tars in a process of its own."""
    environment = os.environ | {"FEATSTORE_CACHE": str(cache), "PYTHONPATH": sys.path[0]}
    done = subprocess.run(
        [sys.executable, "-c", START, str(folder)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: list[float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure every number of samples."""
    chosen = options()
    head = (
        "samples", "first start, s", "CPU, s", "later start, s", "CPU, s", "later over first", "memory, later, MB",
        "of it no file, MB", "kept file, MB",
    )  # fmt: skip
    rows = []
    for samples in chosen.samples:
        with tempfile.TemporaryDirectory(dir=chosen.dir) as text:
            folder = Path(text) / "tars"
            write_tars(folder, samples, chosen.per_tar)
            firsts, laters = [], []
            for turn in range(chosen.turns):
                cache = Path(text) / f"cache{turn}"
                firsts.append(start(folder, cache))
                laters.append(start(folder, cache))
            kept = sum(path.stat().st_size for path in (cache / "listings").iterdir())
        assert {found[4] for found in firsts + laters} == {samples}
        times = [
            Spread.of([found[at] for found in part]) for part in (firsts, laters) for at in (0, 1)
        ]
        pairs = zip(firsts, laters, strict=True)
        ratio = Spread.of([later[0] / first[0] for first, later in pairs])
        memory = [laters[-1][2], laters[-1][3], kept]
        cells = [*map(str, [*times, ratio]), *(f"{value / 1e6:.0f}" for value in memory)]
        rows.append((f"{samples:,}", *cells))
    print_table(f"Tars of {chosen.per_tar:,} samples; {chosen.turns} turns", head, rows, chosen.csv)


if __name__ == "__main__":
    main()
