"""kill -9 at any moment: the resumed store is the uninterrupted one, byte by byte, and nothing is left lying about.

Children are forked, so that a kill costs milliseconds and not a new start of torch.
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from featstore import FeatureStore, atomic, writer
from tests.featstore.formula import FormulaTeacher, make_config, run
from tests.featstore.processes import die_at, fork, wait
from tests.featstore.stores import leftovers, snapshot


@pytest.fixture(scope="module")
def straight(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Files of a store that nobody interrupted: 7 shards, the last one short."""
    path = tmp_path_factory.mktemp("straight") / "s"
    summary = run(make_config(image_folder, path))
    assert summary.written == summary.rows == 26
    assert not leftovers(path)
    return snapshot(path)


@pytest.mark.slow
def test_kills_at_random_moments(
    image_folder: Path, straight: dict[str, Any], tmp_path: Path
) -> None:
    """30 kills in all, several on the way to one store and during its creation; each store ends up equal."""
    generator = random.Random(0)
    kills = stores = 0
    start = time.perf_counter()
    run(make_config(image_folder, tmp_path / "timing"))
    whole_s = time.perf_counter() - start
    while kills < 30:
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
        assert snapshot(path) == straight
        assert not leftovers(path)
        stores += 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "step"),
    [
        # Files are written by mkstemp, write, fsync, rename, fsync of the folder; stores by mkdtemp, then a rename.
        (atomic.os, "fsync", 17),
        (atomic.Path, "replace", 11),
        (atomic.tempfile, "mkstemp", 11),
        (writer, "write_entry", 2),
        (writer, "sync_folder", 1),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_kill_at_each_step_of_a_write(
    image_folder: Path,
    straight: dict[str, Any],
    tmp_path: Path,
    module: Any,
    name: str,
    step: int,
) -> None:
    """Between the system calls of a commit; every ``step``-th call of a run is tried until none is left.

    A shard has 7 files (6 objects and its entry), so 2 x 7 fsyncs: steps without a common factor hit each kind of file.
    """
    call = 0
    while True:
        path = tmp_path / str(call) / "s"
        path.parent.mkdir()
        config = make_config(image_folder, path)

        def work(config: Any = config, call: int = call) -> None:
            die_at(module, name, call)
            run(config)

        status = wait(fork(work))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if (path / "manifest.json").exists():
            check_committed(path, straight)
        run(config)
        assert snapshot(path) == straight
        assert not leftovers(path)
        call += step
    assert call > 0, "the function was never called: the test kills nobody"


def check_committed(path: Path, straight: dict[str, Any]) -> None:
    """Every committed shard of an interrupted store is whole and true."""
    store = FeatureStore.open(path, allow_incomplete=True)
    for shard in store.shards:
        for name in store.entry(shard).objects:
            assert (path / name).read_bytes() == straight[name]


def test_a_kill_costs_the_shards_in_flight_only(image_folder: Path, tmp_path: Path) -> None:
    """A resumed run does not touch what was committed, and reports what it did itself."""
    path = tmp_path / "s"
    config = make_config(image_folder, path)

    def work() -> None:
        die_at(writer, "write_entry", 3)
        run(config)

    assert wait(fork(work)) == -signal.SIGKILL
    store = FeatureStore.open(path, allow_incomplete=True)
    assert store.shards == [0, 1, 2]
    files = [path / name for shard in store.shards for name in store.entry(shard).objects]
    before = {file: file.stat().st_mtime_ns for file in files}
    summary = run(config)
    assert summary.written == 26 - 3 * 4
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_leftovers_of_other_stores_are_not_touched(image_folder: Path, tmp_path: Path) -> None:
    """Beside a store called s, only unfinished stores called s are removed."""
    mine, others = tmp_path / ".partial-s-abc_1234", tmp_path / ".partial-s-x-abc_1234"
    mine.mkdir()
    others.mkdir()
    (mine / "manifest.json").write_bytes(b"{}")
    run(make_config(image_folder, tmp_path / "s"))
    assert not mine.exists()
    assert others.exists()


def test_an_interrupt_is_like_a_kill(
    image_folder: Path, straight: dict[str, Any], tmp_path: Path
) -> None:
    """Ctrl-C ends a run with KeyboardInterrupt, keeps what is committed, and the run can go on."""
    calls = []

    def interrupt(images: torch.Tensor, cls: torch.Tensor) -> None:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt

    config = make_config(image_folder, tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        run(config, FormulaTeacher("float16", interrupt))
    kept = FeatureStore.open(tmp_path / "s", allow_incomplete=True).shards
    assert kept == [0, 1]
    run(config)
    assert snapshot(tmp_path / "s") == straight
