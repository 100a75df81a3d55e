"""Starting on many samples in tars: the first listing, and later starts from the kept one.

    python benchmarks/listing.py                                     10^5 and 10^6 samples, about ten minutes
    python benchmarks/listing.py --samples 20000 --turns 2

Tars of 1,000 samples whose images have 8 bytes, written for the purpose: listing reads headers only, so the size of
images matters to the disk alone. Every start is a process of its own: ``open_source``, with its check that all ids
are different; memory is what the process grew by until then.
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

PER_TAR = 1000

START = """
import json, sys, time
from pathlib import Path
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from featstore.format.ids import ids_sha256

def resident():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

before, start = resident(), time.perf_counter()
source = open_source(SourceConfig(kind="tars", path=sys.argv[1]))
opened = time.perf_counter() - start
grown = resident() - before
ids_sha256(source.sample_ids)
print(json.dumps([opened, time.perf_counter() - start - opened, grown, len(source)]))
"""


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", nargs="+", type=int, default=[10**5, 10**6])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where tars go (default: a temporary folder)")
    parser.add_argument("--csv", type=Path, help="also write the table there")
    return parser.parse_args()


def write_tars(folder: Path, samples: int) -> None:
    """Write tars of small members."""
    import numpy as np

    from featstore.files.tar_headers import END, headers

    folder.mkdir()
    for tar in range(-(-samples // PER_TAR)):
        count = min(PER_TAR, samples - tar * PER_TAR)
        names = [f"{tar * PER_TAR + row:09d}.jpg" for row in range(count)]
        blocks = np.zeros((count, 1024), np.uint8)
        blocks[:, :512] = headers(names, np.full(count, 8), 0)
        (folder / f"{tar:06d}.tar").write_bytes(blocks.tobytes() + END)


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
        "samples", "first start, s", "later start, s", "later over first", "hash of all ids, s", "memory, first, MB",
        "memory, later, MB", "kept file, MB",
    )  # fmt: skip
    rows = []
    for samples in chosen.samples:
        with tempfile.TemporaryDirectory(dir=chosen.dir) as text:
            folder = Path(text) / "tars"
            write_tars(folder, samples)
            firsts, laters = [], []
            for turn in range(chosen.turns):
                cache = Path(text) / f"cache{turn}"
                firsts.append(start(folder, cache))
                laters.append(start(folder, cache))
            kept = sum(path.stat().st_size for path in (cache / "listings").iterdir())
        assert {found[3] for found in firsts + laters} == {samples}
        pairs = zip(firsts, laters, strict=True)
        rows.append(
            (
                f"{samples:,}",
                str(Spread.of([found[0] for found in firsts])),
                str(Spread.of([found[0] for found in laters])),
                str(Spread.of([later[0] / first[0] for first, later in pairs])),
                str(Spread.of([found[1] for found in laters])),
                f"{firsts[-1][2] / 1e6:.0f}",
                f"{laters[-1][2] / 1e6:.0f}",
                f"{kept / 1e6:.0f}",
            )
        )
    print_table(f"Tars of {PER_TAR:,} samples; {chosen.turns} turns", head, rows, chosen.csv)


if __name__ == "__main__":
    main()
