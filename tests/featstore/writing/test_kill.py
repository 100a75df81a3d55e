"""kill -9 at any moment: the resumed store is the uninterrupted one, byte by byte, and nothing is left lying about.

Children are forked, so that a kill costs milliseconds and not a new start. FEATSTORE_KILLS sets how many there are at
random moments; 20000 are a soak of about an hour.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from featstore import FeatureStore
from featstore.writing import commit as writer
from tests.conftest import ROOT
from tests.featstore.formula import FormulaTeacher, make_config, run
from tests.featstore.jobs import run_job
from tests.featstore.processes import die_at, fork, wait
from tests.featstore.stores import leftovers, snapshot

KILLS = int(os.environ.get("FEATSTORE_KILLS", "200"))


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: where the moment is exact, fsync need not take time."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


def soak(name: str, folder: Path, *arguments: int) -> None:
    """Run a part of ``tests.featstore.soak`` in a process of its own: without torch a fork costs a sixth."""
    command = [sys.executable, "-m", "tests.featstore.soak", name, str(folder)]
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_one_job_is_killed_at_random_moments(tmp_path: Path) -> None:
    """Several kills on the way to each store, also during its creation: what is committed is true, and each ends up
    equal.
    """
    soak("one", tmp_path, KILLS // 2)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [2, 4])
def test_several_jobs_are_killed_at_random_moments(tmp_path: Path, jobs: int) -> None:
    """Independent jobs on one store, each killed at random and started again: the store of one job, nothing left."""
    soak("several", tmp_path, KILLS // 4, jobs)


@pytest.mark.slow
def test_a_kill_at_each_step(memory: Path) -> None:
    """Before every single call that changes the disk, from the creation of a store to its completion."""
    soak("steps", memory)


@pytest.mark.slow
def test_a_refusal_at_each_step(memory: Path) -> None:
    """A full, a broken and a read-only disk at every such call, once or from then on: a clear error, or none if the
    call was not needed; what is committed stays true, and the next job completes the store.
    """
    soak("refusals", memory)


@pytest.mark.slow
def test_extraction_is_killed_at_random_moments(image_folder: Path, tmp_path: Path) -> None:
    """The same with pictures, loader and teacher in the way: every store ends up equal."""
    generator = random.Random(0)
    kills = stores = 0
    start = time.perf_counter()
    run(make_config(image_folder, tmp_path / "straight"))
    whole_s = time.perf_counter() - start
    expected = snapshot(tmp_path / "straight")
    while kills < KILLS // 16:
        path = tmp_path / str(stores) / "s"
        path.parent.mkdir()
        config = make_config(image_folder, path)
        for _ in range(generator.randrange(2, 6)):
            child = fork(lambda config=config: run(config))  # type: ignore[misc]
            time.sleep(generator.uniform(0, whole_s / 2))
            os.kill(child, signal.SIGKILL)
            status = wait(child)
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
        run(config)
        assert snapshot(path) == expected
        assert not leftovers(path)
        stores += 1


@pytest.mark.slow
def test_loader_processes_die_with_their_run(image_folder: Path, tmp_path: Path) -> None:
    """A killed run's loader processes live on for seconds; the next run neither fails nor misses an image."""
    config = make_config(image_folder, tmp_path / "s", workers=1)

    def work() -> None:
        die_at(writer, "publish_shard", 2)
        run(config)

    assert wait(fork(work)) == -signal.SIGKILL
    assert run(make_config(image_folder, tmp_path / "s")).written == 26 - 2 * 4
    assert not leftovers(tmp_path / "s")


def test_a_kill_costs_the_shards_in_flight_only(image_folder: Path, tmp_path: Path) -> None:
    """A resumed run does not touch what was committed, and reports what it did itself."""
    path = tmp_path / "s"
    config = make_config(image_folder, path)

    def work() -> None:
        die_at(writer, "publish_shard", 3)
        run(config)

    assert wait(fork(work)) == -signal.SIGKILL
    store = FeatureStore.open(path, allow_incomplete=True)
    assert store.shards == [0, 1, 2]
    files = [path / name for shard in store.shards for name in store.entry(shard).objects]
    before = {file: file.stat().st_mtime_ns for file in files}
    summary = run(config)
    assert summary.written == 26 - 3 * 4
    assert before == {file: file.stat().st_mtime_ns for file in before}


@pytest.mark.slow
def test_a_kill_before_the_last_mark(tmp_path: Path) -> None:
    """All shards are there, but nobody has said so: the next job says so, and makes nothing."""
    path = tmp_path / "s"

    def work() -> None:
        die_at(writer, "mark_complete", 0)
        run_job(path)

    assert wait(fork(work)) == -signal.SIGKILL
    assert not (path / "ledger" / "complete.json").exists()
    assert run_job(path).rows == 0
    run_job(tmp_path / "straight")
    assert snapshot(path) == snapshot(tmp_path / "straight")


def test_leftovers_of_other_stores_are_not_touched(image_folder: Path, tmp_path: Path) -> None:
    """Beside a store called s, only unfinished stores called s are removed."""
    mine, others = tmp_path / ".partial-s-abc_1234", tmp_path / ".partial-s-x-abc_1234"
    mine.mkdir()
    others.mkdir()
    (mine / "manifest.json").write_bytes(b"{}")
    run(make_config(image_folder, tmp_path / "s"))
    assert not mine.exists()
    assert others.exists()


@pytest.mark.slow
def test_an_interrupt_is_like_a_kill(image_folder: Path, tmp_path: Path) -> None:
    """Ctrl-C ends a run with KeyboardInterrupt, keeps what is committed, and the run can go on."""
    calls = []

    def interrupt(images: torch.Tensor, cls: torch.Tensor) -> None:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt

    config = make_config(image_folder, tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        run(config, FormulaTeacher("float16", interrupt))
    assert not list((tmp_path / "s/leases").glob("*.json"))
    kept = FeatureStore.open(tmp_path / "s", allow_incomplete=True).shards
    assert kept == [0, 1]
    run(config)
    run(make_config(image_folder, tmp_path / "straight"))
    assert snapshot(tmp_path / "s") == snapshot(tmp_path / "straight")
