"""Kill and refuse jobs at random moments and at each of their steps; test_kill.py runs this in processes of its own.

    python -m tests.featstore.soak one|several|steps|refusals FOLDER [kills [jobs]]

Without torch in the process a fork costs 5 ms.
"""

import os
import random
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from featstore.errors import StoreWriteError
from featstore.format.ledger import read_complete
from featstore.format.manifest import Manifest
from featstore.writing.commit import open_or_create
from tests.featstore.jobs import (
    BROKEN,
    FULL,
    MANIFEST,
    Steps,
    check_committed,
    refuse,
    run_job,
)
from tests.featstore.processes import fork, wait
from tests.featstore.stores import field, leftovers, make_manifest, snapshot

SMALL = make_manifest(num_rows=3, shard_rows=2, views=1, fields={"cls": field(3)}, labels=False)
"""2 shards: every kind of step, and few of them."""


class Bench:
    """A place for stores, and what each of them must end up as."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.straight: dict[str, Any] = {}
        self.count = 0
        self.empty = folder / "empty"
        open_or_create(self.empty, manifest)
        self.straight = self.finish(self.new())

    def new(self, *, made: bool = False) -> Path:
        """Where the next store goes; with ``made`` it is there, empty."""
        self.count += 1
        path = self.folder / str(self.count) / "s"
        path.parent.mkdir(parents=True)
        if made:
            shutil.copytree(self.empty, path)
        return path

    def finish(self, path: Path) -> dict[str, Any]:
        """Complete a store and compare it, byte by byte."""
        run_job(path, self.manifest)
        assert read_complete(path, self.manifest.num_shards) is not None
        found = snapshot(path)
        assert found == (self.straight or found), path
        assert not leftovers(path), leftovers(path)
        shutil.rmtree(path.parent)
        return found


def kill(child: int) -> bool:
    """Kill a child, wherever it is; returns whether it was still at work. A child that failed is a failure."""
    os.kill(child, signal.SIGKILL)
    status = wait(child)
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def one(folder: Path, most: int) -> None:
    """Kill a job some times, also while it creates its store; then let it finish."""
    generator = random.Random(0)
    bench = Bench(folder, MANIFEST)
    kills = 0
    while kills < most:
        path = bench.new()
        for _ in range(generator.randrange(2, 8)):
            child = fork(lambda path=path: run_job(path))  # type: ignore[misc]
            time.sleep(generator.uniform(0, 0.1))
            kills += kill(child)
            check_committed(path, bench.straight)
        bench.finish(path)


def several(folder: Path, most: int, jobs: int) -> None:
    """Kill members of a crew that works on one store, and start them again; then let them finish."""
    generator = random.Random(jobs)
    bench = Bench(folder, MANIFEST)
    kills = 0

    def start(path: Path) -> int:
        first = generator.random()
        return fork(lambda: run_job(path, start=first, shard_s=0.01))

    while kills < most:
        path = bench.new()
        children = [start(path) for _ in range(jobs)]
        for _ in range(2 * jobs):
            time.sleep(generator.uniform(0, 0.1))
            victim = generator.randrange(jobs)
            kills += kill(children[victim])
            check_committed(path, bench.straight)
            children[victim] = start(path)
        assert [wait(child) for child in children] == [0] * jobs
        assert read_complete(path, MANIFEST.num_shards) is not None
        bench.finish(path)


def steps(folder: Path) -> None:
    """Kill a job before each of its steps: those that make a store, then those that fill one."""
    bench = Bench(folder, SMALL)
    for made, least in ((False, 20), (True, 60)):
        call = 0
        while True:
            path = bench.new(made=made)

            def work(path: Path = path, call: int = call) -> None:
                # To open a file changes nothing.
                happened = Steps(call, lambda: os.kill(os.getpid(), signal.SIGKILL))
                happened.patch(setattr, without=("open",))
                run_job(path, SMALL)

            status = wait(fork(work))
            assert status in (0, -signal.SIGKILL), status
            if status == 0 or (not made and (path / "manifest.json").exists()):
                break
            check_committed(path, bench.straight)
            bench.finish(path)
            call += 1
        assert call > least, "too few calls were tried: is one of them gone?"


def refusals(folder: Path) -> None:
    """Refuse each step of a job, once or from then on."""
    bench = Bench(folder, SMALL)
    for made, code, for_good in ((False, FULL, True), (True, FULL, True), (True, BROKEN, False)):
        call = refused = 0
        while True:
            path = bench.new(made=made)
            happened = Steps(call, refuse(code), for_good=for_good)
            with ExitStack() as undo:

                def patch(module: Any, name: str, value: Any, undo: ExitStack = undo) -> None:
                    undo.callback(setattr, module, name, getattr(module, name))
                    setattr(module, name, value)

                happened.patch(patch, without=("open",) if made and for_good else ())
                try:
                    run_job(path, SMALL)
                except StoreWriteError as error:
                    refused += 1
                    assert os.strerror(code) in str(error), error
                    assert ". " in str(error), error  # and what to do
            if not happened.reached or (not made and (path / "manifest.json").exists()):
                break
            check_committed(path, bench.straight)
            bench.finish(path)
            call += 2 if for_good and made else 1  # what fails later failed once already
        assert refused > 15, (code, refused, call)


if __name__ == "__main__":
    part, where, *numbers = sys.argv[1:]
    {"one": one, "several": several, "steps": steps, "refusals": refusals}[part](
        Path(where), *map(int, numbers)
    )
