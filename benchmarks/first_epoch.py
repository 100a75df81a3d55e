"""The first epoch from a URL while a GPU works: whole shuffle, shuffle by shards, and that without fetching ahead.

    python benchmarks/first_epoch.py --rate_mb 10 --pause_ms 50                               about five minutes

A store of 64 shards of 2 MB on the S3 server of the tests, behind a network with a rate; each batch of 256 rows is
followed by a pause, as a GPU's step is for this process. Every epoch is read with an empty cache, the orders in turn.
Figures: median (smallest - largest) of the turns.
"""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import remote
from benchmarks._measure import Spread, print_table
from featstore import FeatureStore
from featstore.reading.cached.cache import CacheConfig
from tests.servers import faults
from tests.servers.background import listening
from tests.servers.proxy import Message, Proxy

SHARD_ROWS, SHARDS = 1024, 64
CASES = {"rows": "rows", "shards, nothing ahead": "shards", "shards": "shards"}


class SlowNetwork(Proxy):
    """Passes answers on at a rate, in bytes per second for all of them together."""

    rate = 30e6

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream, faults.NONE)
        self._line = asyncio.Lock()

    async def _ask(self, request: Message, method: str) -> Message:
        answer = await super()._ask(request, method)
        async with self._line:
            await asyncio.sleep(len(answer.body) / self.rate)
        return answer


def epoch(url: str, cache: Path, name: str, pause_s: float) -> tuple[float, float, float]:
    """Seconds of an epoch, of its first batch, and of waiting for the other batches."""
    store = FeatureStore.open(url, cache=CacheConfig(folder=cache))
    if "nothing" in name:
        store.fetch_ahead = lambda fields, rows: None  # type: ignore[method-assign]
    loader = store.loader(["cls"], batch_size=256, shuffle=CASES[name], seed=1)
    start, waits = time.perf_counter(), []
    since = start
    for _ in loader:
        waits.append(time.perf_counter() - since)
        time.sleep(pause_s)
        since = time.perf_counter()
    return time.perf_counter() - start, waits[0], sum(waits[1:])


def main() -> None:
    """Measure the orders in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pause_ms", type=float, default=30)
    parser.add_argument("--rate_mb", type=float, default=30, help="of the network, MB/s")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="also write the table there")
    chosen = parser.parse_args()
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CASES}
    remote.SHARD_ROWS, SlowNetwork.rate = SHARD_ROWS, chosen.rate_mb * 1e6
    with tempfile.TemporaryDirectory() as text, ExitStack() as stack:
        work = Path(text)
        remote.write(work / "store", SHARD_ROWS * SHARDS)
        url = stack.enter_context(remote.s3_server(work / "store", work))
        network = stack.enter_context(
            listening(SlowNetwork(os.environ["AWS_ENDPOINT_URL"]), "slow")
        )
        os.environ["AWS_ENDPOINT_URL"] = network.url
        for turn in range(chosen.turns):
            for number, name in enumerate(CASES):
                cache = work / f"cache{turn}{number}"
                times[name].append(epoch(url, cache, name, chosen.pause_ms / 1000))
                shutil.rmtree(cache)
    rows = []
    for name, found in times.items():
        spreads = [Spread.of(list(part)) for part in zip(*found, strict=True)]
        pairs = zip(found, times["rows"], strict=True)
        rows.append(
            (name, *map(str, [*spreads, Spread.of([one[0] / base[0] for one, base in pairs])]))
        )
    head = ("shuffle", "epoch, s", "first batch, s", "waiting for the others, s", "epoch over rows")
    print_table(
        f"{SHARDS} shards, {chosen.rate_mb:g} MB/s, pauses of {chosen.pause_ms:g} ms",
        head,
        rows,
        chosen.csv,
    )


if __name__ == "__main__":
    main()
