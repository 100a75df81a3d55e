"""The doctor: findings have a state, failures have advice, and it leaves no trace and needs no network."""

import fcntl
import json
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featstore.cli.main import main
from featstore.errors import StoreWriteError
from featstore.planning import doctor
from featstore.planning.doctor import Check
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the hub, and the probe of the disk is small."""

    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(doctor.urllib.request, "urlopen", refuse)  # type: ignore[attr-defined]
    monkeypatch.setattr(doctor, "PROBE_BYTES", 2**20)


def of(name: str, path: Path) -> list[Check]:
    """Findings of one name."""
    return [check for check in doctor.examine(path) if check.name == name]


def test_a_machine_that_can_extract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0, a line for each thing, nothing left behind."""
    assert main(["doctor", "--path", str(tmp_path / "not" / "there")]) == 0
    text = capsys.readouterr().out
    for name in ("python", "packages", "processor", "memory", "open files", "disk speed", "hub"):
        assert f" {name} " in text, name
    assert "is not reachable" in text
    assert not list(tmp_path.iterdir())
    assert main(["doctor", "--path", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {item["state"] for item in found} <= {"ok", "warn"}
    assert all(item["advice"] for item in found if item["state"] != "ok")


@pytest.mark.slow
def test_it_needs_nothing_but_python() -> None:
    """What is missing is said, not stumbled over: the doctor itself imports no library."""
    code = (
        "import sys, featstore.planning.doctor\n"
        "print(sorted({'numpy', 'zarr', 'pydantic', 'torch', 'tqdm'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that every reader needs is a failure, one that a teacher needs a warning; others are only mentioned."""
    known = doctor._version
    missing = {"zarr", "timm", "wandb"}
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name in missing else known(name))
    found = of("packages", tmp_path)
    (failure,) = [check for check in found if check.state == "fail"]
    assert failure.found == "missing: zarr"
    assert "pip install" in failure.advice
    (warning,) = [check for check in found if check.state == "warn"]
    assert warning.found.endswith("without timm")
    assert "[distill]" in warning.advice
    assert any("wandb" in check.found for check in found if check.state == "ok")


def _no_rename(self: Path, target: Path) -> None:
    raise OSError(95, "Operation not supported")


def _no_map(*_: Any, **__: Any) -> None:
    raise OSError(19, "No such device")


def _no_lock(*_: Any) -> None:
    raise OSError(95, "Operation not supported")


@pytest.mark.parametrize(
    ("patch", "problem"),
    [
        (lambda m: m.setattr(Path, "replace", _no_rename), "does not replace"),
        (lambda m: m.setattr(doctor.mmap, "mmap", _no_map), "cannot be mapped"),  # type: ignore[attr-defined]
        (lambda m: m.setattr(fcntl, "flock", _no_lock), "flock does not lock"),
        (lambda m: m.setattr(fcntl, "flock", lambda *_: None), "flock does not lock"),
    ],
    ids=["rename", "mmap", "no flock", "flock that lies"],
)
def test_file_systems_that_cannot_hold_a_store(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    patch: Callable[[pytest.MonkeyPatch], None],
    problem: str,
) -> None:
    """What network file systems lack is a failure, also where the call claims to have worked."""
    patch(monkeypatch)
    found = of("file system", tmp_path)
    assert [check.state for check in found] == ["fail"]
    assert problem in found[0].found
    assert "local disk" in found[0].advice
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1: nothing can be extracted to where nothing can be written."""

    def refuse(*_: Any, **__: Any) -> None:
        raise StoreWriteError("cannot write there")

    monkeypatch.setattr(doctor, "measure_disk", refuse)
    assert main(["doctor", "--path", str(tmp_path)]) == 1
    assert "fail  disk" in capsys.readouterr().out


def test_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not reachable is a warning, an answer of any kind is ok, and offline mode is respected."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (found,) = of("hub", tmp_path)
    assert (found.state, "no route" in found.found) == ("warn", True)
    asked: list[str] = []

    def answer(request: Any, timeout: float) -> Any:
        asked.append(f"{request.method} {request.full_url}")
        raise urllib.error.HTTPError(request.full_url, 403, "no", {}, None)  # type: ignore[arg-type]

    monkeypatch.setattr(doctor.urllib.request, "urlopen", answer)  # type: ignore[attr-defined]
    (found,) = of("hub", tmp_path)
    assert found.state == "ok"
    assert asked == [f"HEAD {constants.ENDPOINT}"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (found,) = of("hub", tmp_path)
    assert found.state == "ok"
    assert "not asked" in found.found
    assert len(asked) == 1


def test_little_memory_and_few_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tight limits are warnings with the command that lifts them."""
    monkeypatch.setattr(doctor, "_read", lambda path: "1000" if "max_map_count" in path else "")
    monkeypatch.setattr(doctor, "free_memory", lambda: 500_000_000)
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (256, 256))  # type: ignore[attr-defined]
    (memory,), (files,), (maps,) = (
        of(name, tmp_path) for name in ("memory", "open files", "mappings")
    )
    assert (memory.state, memory.found) == ("warn", "500 MB available")
    assert (files.state, "ulimit -n" in files.advice) == ("warn", True)
    assert (maps.state, "vm.max_map_count" in maps.advice) == ("warn", True)
