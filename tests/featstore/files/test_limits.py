"""Cores and threads: what a container allows, what the user asked for, what the launcher made up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featstore.files import limits
from tests.conftest import ROOT

SCRIPT = """
import json, sys
sys.path.insert(0, {root!r})
from featstore.extraction.accelerator import start_accelerator
import torch
start_accelerator(workers=2)
print(f"threads {{torch.get_num_threads()}}\\n", end="")  # one write: two processes share the pipe
"""


@pytest.mark.parametrize(
    ("files", "affinity", "expected"),
    [
        ({}, 8, 8),
        ({"cpu.max": "max 100000"}, 8, 8),
        ({"cpu.max": "300000 100000"}, 8, 3),
        ({"cpu.max": "50000 100000"}, 8, 1),
        ({"cpu.max": "900000 100000"}, 8, 8),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 8, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4, 4),
    ],
)
def test_cores_of_a_container(
    files: dict[str, str],
    affinity: int,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The smaller of affinity and the quota of cgroup 1 or 2, at least one."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(limits, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
    assert limits.cores() == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1_024_000_000),
        ({"memory.max": "600000000", "memory.current": "100000000"}, 500_000_000),
        ({"memory.max": "max", "memory.current": "100000000"}, 1_024_000_000),
        ({"memory.max": "6", "memory.current": "100"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "600000000",
                "memory/memory.usage_in_bytes": "100000000",
            },
            500_000_000,
        ),
    ],
)
def test_memory_of_a_container(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smaller of what the machine has and what is left of the limit of cgroup 1 or 2."""
    for name, text in {**files, "meminfo": "MemFree: 5 kB\nMemAvailable:  1000000 kB\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(limits, "CGROUP", tmp_path)
    monkeypatch.setattr(limits, "PROC", tmp_path)
    assert limits.free_memory() == expected


@pytest.mark.parametrize(
    ("cores", "processes", "workers", "threads"),
    [
        (1, 1, 2, 1),
        (2, 1, 2, 2),
        (4, 1, 2, 4),
        (16, 1, 2, 14),
        (64, 4, 8, 14),
        (2, 4, 0, 1),
        (16, 1, 0, 16),
    ],
)
def test_cores_are_shared(
    cores: int, processes: int, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the processes of this machine; with many cores some are kept for loading processes."""
    monkeypatch.setattr(limits, "cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert limits.share_of_cores(workers) == threads


def test_threads_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a launcher any number is the user's; a launcher's 1 is the user's only if the launcher was given it."""
    for name in [
        name for name in os.environ if name.startswith("ACCELERATE_") or name == "LOCAL_RANK"
    ]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert limits.asked_threads() is None
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert limits.asked_threads() == 1
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert limits.asked_threads() == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "variables", "threads"),
    [
        ([], {}, None),
        (["--num_cpu_threads_per_process", "1"], {}, 1),
        (["--num_cpu_threads_per_process", "3"], {}, 3),
        ([], {"OMP_NUM_THREADS": "1"}, 1),
    ],
)
def test_threads_under_the_launcher(
    options: list[str], variables: dict[str, str], threads: int | None, tmp_path: Path
) -> None:
    """``accelerate launch`` sets one thread when nothing is said; torch then uses the cores that are there."""
    (tmp_path / "script.py").write_text(SCRIPT.format(root=str(ROOT)))
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options, str(tmp_path / "script.py")],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"threads {threads or limits.share_of_cores(2)}" in done.stdout


@pytest.mark.slow
def test_two_processes_share_the_cores(tmp_path: Path) -> None:
    """torchrun sets one thread for each of two processes; each gets its share."""
    (tmp_path / "script.py").write_text(SCRIPT.format(root=str(ROOT)))
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "script.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count(f"threads {max(1, limits.cores() // 2)}") == 2
