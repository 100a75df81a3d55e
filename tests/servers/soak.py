"""Send stores through a bad network until so many faults were injected; everything must arrive.

    python -m tests.servers.soak 1000 [SEED]

Each round draws a store (container, shards, fields), pushes it to an S3-compatible server, pulls
it back, pulls it from nginx and reads it in place, every time through a proxy with another plan of faults. Prints the
faults by kind. Ends with an error at the first byte that is not what it was, with the seed of its round.
"""

import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from featstore import FeatureStore
from featstore.format.manifest import Manifest
from featstore.reading.cached.cache import CacheConfig
from featstore.sharing.pull import pull
from featstore.sharing.push import push
from tests.featstore.stores import field, make_columns, make_manifest, write_store
from tests.featstore.travel import KINDS, QUICK, check_named, check_same, files_of
from tests.servers import faults
from tests.servers.faults import Fault, Plan
from tests.servers.proxy import serve_proxy
from tests.servers.s3 import S3, serve_s3
from tests.servers.web import Web, serve_folder


def draw_manifest(chance: random.Random) -> Manifest:
    """A small store of many objects; every third as tars."""
    manifest = make_manifest(
        num_rows=chance.randrange(20, 120),
        shard_rows=chance.choice([2, 3, 8]),
        views=chance.choice([1, 3]),
        fields={"cls": field(chance.choice([3, 400])), "grid": field(2, 2, 3, dtype="float32")},
        labels=chance.random() < 0.5,
    )
    return manifest.model_copy(update={"container": chance.choice(["zarr", "zarr", "webdataset"])})


def draw_plan(chance: random.Random) -> Plan:
    """At most two faults for one object, so that no fair number of attempts is used up."""
    most = chance.choice([1, 2])
    return Plan(
        seed=chance.randrange(2**32),
        share=chance.uniform(0.1, 0.9),
        kinds=KINDS,
        most=most,
        only=faults.anything if most == 1 else is_no_head,
    )


def is_no_head(method: str, target: str) -> bool:
    """Everything but the two files that are read together, as one."""
    return not target.endswith(("/manifest.json", "/complete.json"))


def go_round(folder: Path, s3: S3, web: Web, chance: random.Random) -> list[Fault]:
    """One store, four journeys; returns the faults that they met."""
    manifest = draw_manifest(chance)
    columns = make_columns(manifest, seed=chance.randrange(2**32))
    store = write_store(folder / "store", manifest, columns)
    s3.create()
    jobs = chance.choice([1, 4, 16])
    injected: list[Fault] = []

    # A fault of the upload and one of the read-back may both hit one object: one of each.
    with serve_proxy(
        s3.endpoint, Plan(seed=chance.randrange(2**32), share=0.5, kinds=KINDS, most=1)
    ) as proxy:
        os.environ.update(s3.environment(proxy.url))
        check_named(proxy.injected, push(store, f"{s3.url}/store", jobs=jobs, retry=QUICK))
    assert s3.files("store") == files_of(store)
    injected += proxy.injected
    with serve_proxy(s3.endpoint, draw_plan(chance)) as proxy:
        os.environ.update(s3.environment(proxy.url))
        report = pull(f"{s3.url}/store", folder / "from s3", jobs=jobs, retry=QUICK)
        check_named(proxy.injected, report)
    check_same(folder / "from s3", store)
    injected += proxy.injected
    with serve_proxy(web.share(store, f"{s3.bucket}-pulled"), draw_plan(chance)) as proxy:
        check_named(proxy.injected, pull(proxy.url, folder / "from web", jobs=jobs, retry=QUICK))
    check_same(folder / "from web", store)
    injected += proxy.injected
    with serve_proxy(web.share(store, f"{s3.bucket}-read"), draw_plan(chance)) as proxy:
        config = CacheConfig(folder=folder / "cache", retry=QUICK, jobs=jobs)
        found = FeatureStore.open(proxy.url, cache=config)
        order = np.random.default_rng(chance.randrange(2**32)).permutation(manifest.num_rows)
        for rows in np.array_split(order, 4):
            for name in manifest.fields:
                np.testing.assert_array_equal(
                    found.gather(name, rows), columns[f"fields/{name}"][rows]
                )
    injected += proxy.injected
    return injected


def main(wanted: int, seed: int) -> None:
    """Rounds until ``wanted`` faults were injected."""
    kinds: Counter[str] = Counter()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, serve_s3(Path(name)) as endpoint:
        (Path(name) / "nginx").mkdir()
        with serve_folder(Path(name) / "nginx") as web:
            rounds = 0
            while kinds.total() < wanted:
                folder = Path(name) / f"round-{rounds}"
                folder.mkdir()
                s3 = S3(endpoint, f"seed-{seed + rounds}")  # names are part of the plans
                try:
                    injected = go_round(folder, s3, web, random.Random(seed + rounds))
                except BaseException:
                    print(f"round {rounds}: python -m tests.servers.soak 1 {seed + rounds}")
                    raise
                kinds.update(fault.kind for fault in injected)
                rounds += 1
                print(
                    f"round {rounds}: {kinds.total():,} faults, {time.perf_counter() - start:.0f} s",
                    flush=True,
                )
    print(f"nothing lost; {', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
