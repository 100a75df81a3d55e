"""The ``featstore`` command: what it says, its exit status, and what it does not import."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from featstore import __version__
from featstore.cli import SHOWN, main
from featstore.ledger import entry_path
from tests.featstore.stores import make_columns, make_manifest, write_store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 rows in three shards, one of them invalid."""
    manifest = make_manifest()
    columns = make_columns(manifest, invalid=[5])
    path = tmp_path_factory.mktemp("whole") / "s"
    return write_store(path, manifest, columns, reasons={5: "empty file (0 bytes)"})


@pytest.fixture
def part(whole: Path, tmp_path: Path) -> Path:
    """The same with one shard missing."""
    path = shutil.copytree(whole, tmp_path / "part")
    entry_path(path, 1).unlink()
    return path


def test_a_complete_store(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0; the text names teacher, views, fields, counts and what was skipped."""
    assert main(["inspect", str(whole)]) == 0
    text = capsys.readouterr().out
    for part in (
        str(whole),
        "state        complete; 3 of 3 shards",
        "teacher      timm formula, fp32, weights abababababab",
        "licence      not stated",
        "source       folder somewhere",
        "rows         20; 19 valid",
        "views        2: canonical; seeded 0",
        "field        cls: 6 float16, test",
        "field        grid2: 2 x 2 x 3 float32, test",
        "folder/5.png: empty file (0 bytes)",
    ):
        assert part in text, part


def test_an_incomplete_store(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, and the text says how to go on."""
    assert main(["inspect", str(part)]) == 1
    assert "INCOMPLETE: run extract.py again to go on; 2 of 3 shards" in capsys.readouterr().out


def test_json(whole: Path, part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object with the same facts; the status is that of the text."""
    assert main(["inspect", str(whole), "--json"]) == 0
    summary: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert summary["complete"] is True
    assert summary["shards"] == [3, 3]
    assert (summary["rows"], summary["rows_done"], summary["rows_valid"]) == (20, 20, 19)
    assert summary["invalid"] == [
        {"row": 5, "sample_id": "ääfolder/5.png", "reason": "empty file (0 bytes)"}
    ]
    on_disk = sum(file.stat().st_size for file in whole.rglob("c/**/*") if file.is_file())
    assert summary["bytes"] == on_disk
    assert summary["fields"]["grid2"]["shape"] == [2, 2, 3]
    assert summary["seconds"]["load"] == 1.5
    assert main(["inspect", str(part), "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["complete"] is False
    assert (summary["rows"], summary["rows_done"], summary["rows_valid"]) == (20, 12, 12 - 1)


def test_long_lists_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text shows some of the skipped images and counts the rest; --json has them all."""
    manifest = make_manifest(num_rows=30, shard_rows=16)
    columns = make_columns(manifest, invalid=range(30))
    path = write_store(tmp_path / "s", manifest, columns, reasons=dict.fromkeys(range(30), "bad"))
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert text.count(": bad\n") == SHOWN
    assert f"and {30 - SHOWN} more (--json lists all)" in text
    main(["inspect", str(path), "--json"])
    assert len(json.loads(capsys.readouterr().out)["invalid"]) == 30


def test_errors_are_status_2(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No store, a damaged one, a wrong command: one line on stderr, nothing on stdout."""
    damaged = shutil.copytree(whole, tmp_path / "damaged")
    entry_path(damaged, 0).write_bytes(b"{}")
    for path, message in ((tmp_path / "no", "no such folder"), (damaged, "not a ledger entry")):
        assert main(["inspect", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert message in err
    for wrong in ([], ["inspekt"], ["inspect"], ["inspect", str(whole), "--yaml"]):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Both end with status 0."""
    for argument, text in (("--version", __version__), ("--help", "inspect")):
        with pytest.raises(SystemExit) as caught:
            main([argument])
        assert caught.value.code == 0
        assert text in capsys.readouterr().out
