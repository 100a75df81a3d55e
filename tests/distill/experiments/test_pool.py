"""Worker processes: what they are given, what happens when one dies, and that none outlives the command."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill.experiments import machine
from distill.experiments.pool import Event, Failure, Pool, PoolError, Slot, work_here
from tests.distill.pool_work import alive, make_nothing, make_work, wait_for

ROOT = Path(__file__).resolve().parents[3]


def outcome(events: list[Event]) -> dict[int, Any]:
    return {event.item: event.value for event in events if event.kind in ("done", "failed")}


def test_workers_stay_and_a_death_takes_one_item_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six items, two workers: a failure and a death are told, a new process takes the slot, the rest is done."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    before = dict(os.environ)
    items = [("add", 0), ("fail", "no"), ("die", 2), ("add", 3), ("add", 4), ("add", 5)]
    events: list[Event] = []
    with Pool(make_work, [Slot(0, 3, "7"), Slot(1, 3, "7")]) as pool:
        pool.run(items, events.append)
        found = outcome(events)
        assert found[1] == Failure("ValueError", "no")
        assert found[2].kind == "WorkerDied"
        assert "SIGKILL" in found[2].message
        assert [found[number]["value"] for number in (0, 3, 4, 5)] == [0, 3, 4, 5]
        assert {(found[number]["threads"], found[number]["device"]) for number in (0, 3)} == {
            ("3", "7")
        }
        assert {event.item for event in events if event.kind == "started"} == set(range(6))
        assert "progress" in {event.kind for event in events}
        # The same processes take further items.
        again: list[Event] = []
        pool.run([("add", 1)], again.append)
        assert outcome(again)[0]["done"] > 1
        pids = {value["pid"] for value in found.values() if isinstance(value, dict)}
    assert len(pids) <= 3
    assert not any(alive(pid) for pid in pids)
    assert dict(os.environ) == before


def test_a_worker_that_cannot_start_is_an_error() -> None:
    """Not an endless row of new ones."""
    with Pool(make_nothing, [Slot(0, 1)]) as pool, pytest.raises(PoolError, match=r"\b3\b"):
        pool.run([("add", 1)], lambda event: None)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_the_command(tmp_path: Path, number: signal.Signals) -> None:
    """Killed, the parent takes its workers along; interrupted (Ctrl-C goes to all), it stops them in silence."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.distill.pool_work", str(tmp_path)],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    files = [tmp_path / "a", tmp_path / "b"]
    assert wait_for(lambda: all(path.exists() and path.read_text() for path in files))
    pids = [int(path.read_text()) for path in files]
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.kill()
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert wait_for(lambda: not any(alive(pid) for pid in pids))
    assert "Traceback" not in stderr


def test_in_this_process_a_failure_is_told_too() -> None:
    """One at a time needs no further process."""
    events: list[Event] = []
    work_here(lambda item, tell: 1 / item, [1, 0], events.append)
    assert outcome(events) == {0: 1.0, 1: Failure("ZeroDivisionError", "division by zero")}


def test_seats_share_cores_memory_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run per GPU; without any, as many as cores and memory allow; never more than runs; --jobs N is taken."""
    assert machine.cores() >= 1
    assert machine.free_memory() > 0
    monkeypatch.setattr(machine, "cores", lambda: 16)
    monkeypatch.setattr(machine, "free_memory", lambda: 10 * 2**30)
    assert [seat.device for seat in machine.slots(0, 99, gpus=["2", "5"])] == ["2", "5"]
    assert [seat.device for seat in machine.slots(3, 99, gpus=["2", "5"])] == ["2", "5", "2"]
    assert len(machine.slots(0, 99)) == 10 * 2**30 // machine.RUN_BYTES
    assert len(machine.slots(0, 99, run_bytes=5 * 2**30)) == 2
    assert machine.slots(0, 4, run_bytes=1) == [Slot(number, 4) for number in range(4)]
    assert len(machine.slots(5, 99, run_bytes=9 * 2**30)) == 5
