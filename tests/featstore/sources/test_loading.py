"""Loading processes: fewer where shared memory or open files are short, and an error where one is lost; both phases."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from featstore import FeatureStore
from featstore.errors import SourceError
from featstore.sources import loading
from tests.conftest import ROOT
from tests.featstore.formula import make_config, run
from tests.featstore.stores import snapshot

MB = 2**20


@pytest.fixture(autouse=True)
def _fresh_notes() -> None:
    loading._print_once.cache_clear()


@pytest.mark.parametrize(
    ("free_mb", "batch_mb", "expected"), [(64, 1, 4), (64, 10, 1), (64, 20, 0), (10_000, 100, 4)]
)
def test_workers_fit_into_shared_memory(
    free_mb: int,
    batch_mb: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """(workers x batches ahead + 2) batches must fit into nine tenths of what is free; the note names both."""
    monkeypatch.setattr(loading, "free_shared_memory", lambda: free_mb * MB)
    assert loading.fit_workers(4, batch_bytes=batch_mb * MB) == expected
    told = capsys.readouterr().err
    assert bool(told) == (expected < 4)
    assert (f"using {expected}" in told) == (expected < 4)


def test_processes_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of one machine use the same shared memory."""
    monkeypatch.setattr(loading, "free_shared_memory", lambda: 64 * MB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loading.fit_workers(4, batch_bytes=MB) == 4
    assert loading.fit_workers(4, batch_bytes=2 * MB) == 2


def test_workers_fit_into_open_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit that cannot be raised lowers the number; one that can is raised."""
    monkeypatch.setattr(loading, "free_files", lambda wanted: 40)
    assert loading.fit_workers(4, batch_bytes=1) == 2
    assert "ulimit -n" in capsys.readouterr().err
    monkeypatch.undo()
    code = """
import resource
from featstore.sources.loading import fit_workers
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (48, hard))
print(fit_workers(8, batch_bytes=1), resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 48)
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
print(fit_workers(8, batch_bytes=1))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split()[:2] == ["8", "True"]
    assert int(done.stdout.split()[2]) < 3


def test_extraction_goes_on_without_workers(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With shared memory for not even one batch, images are decoded in the main process: the same store."""
    run(make_config(image_folder, tmp_path / "inline"))
    monkeypatch.setattr(loading, "free_shared_memory", lambda: 0)
    run(make_config(image_folder, tmp_path / "small", workers=2))
    assert snapshot(tmp_path / "inline") == snapshot(tmp_path / "small")


class Lost(Dataset[Any]):
    """A loading process that ends, or that never hands over anything."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.how == "killed":
            os._exit(9)
        import time

        time.sleep(60)
        return torch.zeros(1)


@pytest.mark.parametrize("how", ["killed", "hangs"])
@pytest.mark.slow
def test_a_lost_process_is_an_error(how: str) -> None:
    """It ended, or it handed over nothing for the time-out: one sentence with advice, and no hang."""
    loader = DataLoader(Lost(how), num_workers=1, timeout=3)
    with pytest.raises(SourceError, match=r"--workers"):
        next(loading.guarded(loader))


def test_other_errors_pass() -> None:
    """An error that is none of a loading process stays what it is."""

    def broken() -> Any:
        yield 1
        raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match="of another kind"):
        list(loading.guarded(broken()))


@pytest.mark.slow
@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 64, reason="the limit is lower already"
)
def test_extraction_with_few_open_files(image_folder: Path, tmp_path: Path) -> None:
    """At ``ulimit -n 48`` with loading processes asked for: a finished store, and a note."""
    command = f"""
import resource, sys
from tests.featstore.formula import make_config, run
import torch, accelerate
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
run(make_config({str(image_folder)!r}, __import__("pathlib").Path({str(tmp_path / "s")!r}), workers=4))
"""
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "ulimit -n" in done.stderr
    assert FeatureStore.open(tmp_path / "s").valid.all()
