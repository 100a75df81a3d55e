"""The ``featstore`` command: what it says, its exit status, and what it does not import."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from featstore import FeatureStore
from featstore.cli import inspect
from featstore.cli.inspect import SHOWN
from featstore.cli.main import COMMANDS, main
from featstore.files import locks
from featstore.files import untrusted as plainfiles
from featstore.format.ledger import entry_path, remove_entries
from featstore.format.manifest import read_manifest
from featstore.format.version import __version__
from featstore.maintenance import list_and_delete as lifecycle
from featstore.planning import estimate as estimates
from featstore.reading import shards as reader
from tests.conftest import ROOT
from tests.featstore import golden
from tests.featstore.backend_tests import every_kind
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
    remove_entries(path, [1])
    return path


def test_a_complete_store(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0; the text names teacher, views, fields, counts and what was skipped."""
    assert main(["inspect", str(whole)]) == 0
    text = capsys.readouterr().out
    for part in (
        str(whole),
        "(format 1, zarr, ",
        "state        complete; 3 of 3 shards",
        "teacher      teacher: timm formula, fp32, weights abababababab",
        "licence not stated",
        "source       folder somewhere",
        "rows         20; 19 valid",
        "views        2: canonical; seeded 0",
        "field        cls: 6 float16, test, by teacher",
        "field        grid2: 2 x 2 x 3 float32, test",
        "folder/5.png: empty file (0 bytes)",
    ):
        assert part in text, part


def test_every_kind_of_field_is_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Encodings with their measured error, codecs, artefacts, and fields that no teacher made."""
    path = golden.write(tmp_path / "s", "zarr")
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    for part in (
        "codes_both: 4 float32, stored as int8 by channel_row: relative error 0, cosine 1.000000 ",
        "logits: 3 float16, largest of 10, formula",
        "points: 3 float16, up to 40 items a row",
        "packed: 6 float16, zstd, formula",
        "caption: 2 text, one for all views, formula\n",
        "artefact     prompts: ",
    ):
        assert part in text, part


def test_large_stores_are_not_counted(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From so many shards on, only the mark of a complete store is read; --counts reads the ledger all the same."""
    monkeypatch.setattr(inspect, "COUNTED_SHARDS", 3)
    with monkeypatch.context() as patch:
        patch.setattr(reader, "read_entry", lambda *_: pytest.fail("read the ledger"))
        assert main(["inspect", str(whole), "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)
        assert main(["inspect", str(whole)]) == 0
        assert "--counts reads the whole ledger" in capsys.readouterr().out
    assert (summary["rows_valid"], summary["invalid"], summary["seconds"]) == (19, None, None)
    assert main(["inspect", str(whole), "--json", "--counts"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["bytes"] == summary["bytes"] > 0
    assert counted["rows_valid"] == 19
    assert len(counted["invalid"]) == 1


def test_an_incomplete_store(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, and the text says how to go on."""
    assert main(["inspect", str(part)]) == 1
    assert "; 2 of 3 shards" in capsys.readouterr().out


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
    """Both end with status 0; help names every command and the exit statuses."""
    for arguments, texts in (
        (["--version"], [__version__]),
        (["--help"], [*COMMANDS, "exit status:"]),
        *(([name, "--help"], ["--json", "exit status:"]) for name in COMMANDS if name != "extract"),
        (["extract", "--help"], ["--store.path", "--teacher.name"]),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert [text for text in texts if text not in out] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], "numpy zarr pydantic torch tqdm"),
        (["verify", "--help"], "torch"),
        (["plan", "--wrong"], "torch"),
    ],
)
def test_help_needs_no_library(arguments: list[str], heavy: str) -> None:
    """Help answers before anything heavy is imported, which is what takes the time; that of a command before torch."""
    code = (
        "import sys\n"
        "from featstore.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"print(sorted(set({heavy!r}.split()) & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done


def test_verify(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0 and a verdict for a sound store; 1 and a line per damage else; the same facts as JSON."""
    assert main(["verify", str(whole)]) == 0
    assert "verdict    sound, complete" in capsys.readouterr().out
    assert main(["verify", str(whole), "--sample", "10", "--seed", "3"]) == 0
    assert "10 blocks" in (text := capsys.readouterr().out)
    assert "with 95 % probability" in text
    path = shutil.copytree(whole, tmp_path / "s")
    (path / "fields/cls/c/1/0/0").unlink()
    (path / "notes.txt").write_text("x")
    assert main(["verify", str(path)]) == 1
    text = capsys.readouterr().out
    assert (
        'damaged    shard 1 (rows 8-15), column "fields/cls": fields/cls/c/1/0/0: missing; ' in text
    )
    assert "verdict    DAMAGED: 1 problems in 1 shards: 1" in text
    assert "foreign    1 files do not belong to the store: notes.txt" in text
    assert main(["verify", str(path), "--json"]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    assert (report["sound"], report["damaged_shards"]) == (False, [1])
    assert report["damages"][0]["rows"] == [8, 16]
    assert main(["verify", str(tmp_path / "no")]) == 2


def test_verify_of_an_incomplete_store(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sound but not whole is status 1, and says which shards are missing."""
    assert main(["verify", str(part)]) == 1
    text = capsys.readouterr().out
    assert "missing    1 shards were not extracted: 1" in text
    assert "verdict    sound, INCOMPLETE" in text


def test_list(whole: Path, part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stores below folders, complete or not; what is not a store, or was deleted, is not listed."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text("{}")
    shutil.copytree(whole, tmp_path / ".deleted-s-x")
    (tmp_path / "link").symlink_to(whole)
    assert main(["list", str(tmp_path), str(whole), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["path"], first["complete"], first["shards"]) == (str(part), False, [2, 3])
    assert first["bytes"] is None
    assert (second["path"], second["complete"], second["rows"]) == (str(whole), True, 20)
    assert second["fields"] == ["cls", "grid2"]
    assert second["bytes"] > 0
    assert main(["list", str(tmp_path)]) == 0
    assert "2 of 3 shards" in capsys.readouterr().out
    (part / "manifest.json").write_bytes(b"{")
    assert main(["list", str(tmp_path)]) == 1
    assert "UNREADABLE" in capsys.readouterr().out
    assert main(["list", str(tmp_path / "no")]) == 2
    assert main(["list", str(tmp_path / "link")]) == 0
    assert "complete" in capsys.readouterr().out
    assert main(["list", str(tmp_path / "web")]) == 0
    assert capsys.readouterr().out == "no stores\n"


def test_listing_looks_into_no_shard(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a complete store two files are read, however many shards it has."""
    opened: list[str] = []
    original = plainfiles.open_plain
    monkeypatch.setattr(
        plainfiles,
        "open_plain",
        lambda path: opened.append(path.name) or original(path),  # type: ignore[func-returns-value, redundant-expr]
    )
    assert lifecycle.summarise(whole).complete
    assert set(opened) == {"manifest.json", "complete.json"}


def test_delete(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The store goes, and nothing beside it; what links in it point to stays."""
    path = shutil.copytree(whole, tmp_path / "s")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (path / "fields" / "link").symlink_to(tmp_path / "precious")
    assert main(["delete", str(path), "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deleted"]["rows"] == 20
    assert [item.name for item in tmp_path.iterdir()] == ["precious"]
    assert (tmp_path / "precious" / "file").exists()


def test_delete_asks(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a terminal it asks, and any answer but yes keeps the store; where nobody can be asked it refuses."""
    path = shutil.copytree(whole, tmp_path / "s")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["delete", str(path)]) == 2
    assert "--yes" in capsys.readouterr().err
    for answer, status in (("", 1), ("n\n", 1), ("y\n", 0)):
        assert path.exists()
        terminal = io.StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr("sys.stdin", terminal)
        assert main(["delete", str(path)]) == status
    assert not path.exists()


def test_delete_refuses(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no store, holds other files, is linked to, or is being written, stays; --force only goes so far."""
    path = shutil.copytree(whole, tmp_path / "s")

    def refused(message: str, *options: str, at: Path = path) -> None:
        before = sorted(at.rglob("*"))
        assert main(["delete", str(at), "--yes", *options]) == 2
        assert message in capsys.readouterr().err
        assert sorted(at.rglob("*")) == before

    with locks.shared(path):
        refused("another run is writing here")
    (path / "holiday.jpg").write_bytes(b"x")
    refused("not of the store: holiday.jpg")
    (tmp_path / "link").symlink_to(path)
    refused("a link to", at=tmp_path / "link")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "manifest.json").write_bytes(b"{}")
    refused("not a feature store", "--force", at=tmp_path / "folder")
    (path / "manifest.json").write_bytes(b"{")
    refused("--force")
    assert main(["delete", str(path), "--yes", "--force"]) == 0
    assert not path.exists()


def test_plan_of_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes of every type and codec, measured on its rows, and what each type loses."""
    path = golden.write(tmp_path / "s", "zarr")
    assert main(["plan", str(path), "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)["fields"]
    cls = {(item["dtype"], item["codec"]): item for item in fields["cls"]["choices"]}
    # A codec is not measured on a wider type than the stored one, whose last bits are all zeros.
    assert len(cls) == 10
    assert len(fields["grid2"]["choices"]) == 12
    assert len(fields["codes_row"]["choices"]) == 6
    assert cls["float32", "raw"]["row_bytes"] == 2 * 6 * 4
    assert cls["float16", "raw"]["row_bytes"] == 2 * 6 * 2
    assert cls["int8", "raw"]["row_bytes"] == 2 * (6 + 4)
    assert cls["float16", "raw"]["bytes"] == 13 * 24
    assert cls["float32", "raw"]["relative_l2"] == cls["float16", "raw"]["relative_l2"] == 0
    assert 0 < cls["int8", "raw"]["relative_l2"] < 0.02
    stored = {name: [i for i in item["choices"] if i["stored"]] for name, item in fields.items()}
    assert {name: len(item) for name, item in stored.items()} == dict.fromkeys(fields, 1)
    assert (stored["packed"][0]["codec"], stored["codes_row"][0]["dtype"]) == ("zstd", "int8")
    assert main(["plan", str(path)]) == 0
    text = capsys.readouterr().out
    assert "field     cls, measured on 12 rows" in text
    assert "(stored)" in text


def test_plan_from_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ImageNet's class tokens of a ViT-L are 2.6 GB; the slower of teacher and disk is the bottleneck."""
    monkeypatch.setattr(estimates, "free_bytes", lambda _: 10**12)
    monkeypatch.setattr(estimates, "measure_disk", lambda _: 10.0**9)
    arguments = ["plan", "--images", "1281167", "--field", "cls=1024"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "bytes     2.62 GB as asked for" in text
    assert "time" not in text
    arguments += ["--field", "grid7=7x7x1024:int8", "--views", "2", "--images-per-second", "50"]
    assert main([*arguments, "--path", str(tmp_path), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["bottleneck"] == "teacher"
    assert plan["seconds"] == pytest.approx(1281167 / 50)
    assert plan["bytes"] == 1281167 * 2 * (2048 + 49 * (1024 + 4))
    assert plan["shard_rows"] == 2048
    assert plan["shards"] == 626
    assert plan["free_bytes"] > 0
    assert main([*arguments, "--path", str(tmp_path)]) == 0
    assert "bottleneck: teacher" in capsys.readouterr().out
    assert (
        main(["plan", "--images", str(10**12), "--field", "x=1024", "--path", str(tmp_path)]) == 1
    )
    assert "TOO SMALL" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either a STORE"),
        (["somewhere", "--field", "cls=4"], "either a STORE"),
        (["--field", "cls=4"], "--images is missing"),
        (["--images", "4", "--field", "cls"], "expected NAME=SHAPE"),
        (["--images", "4", "--field", "cls=0"], "0"),
        (["--images", "4", "--field", "cls=4:float64"], "float64"),
        (["--images", "4", "--field", "../x=4"], "cannot name a field"),
        (["--images", "4", "--field", "a=4", "--field", "a=5"], "twice"),
        (["--images", "4", "--field", "a=4", "--images-per-second", "0"], "0"),
    ],
)
def test_plans_that_cannot_be_made(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, and one sentence that says which argument."""
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_few_descriptors_are_enough(tmp_path: Path) -> None:
    """A store of many shards and columns is read and written with 24 open files; with 6 the error is clean."""
    every_kind(rows=60).write(tmp_path / "s", "zarr")
    for limit, status in ((24, 0), (6, 2)):
        words = [sys.executable, "-m", "featstore.cli.main", "convert", str(tmp_path / "s")]
        words += [str(tmp_path / str(limit)), "--container", "webdataset"]
        shell = ["bash", "-c", f'ulimit -n {limit}; exec "$@"', "bash", *words]
        done = subprocess.run(shell, capture_output=True, text=True, cwd=ROOT, timeout=120)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        assert status == 0 or "too many open files" in done.stderr.lower()


def test_two_teachers_that_look_alike(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their preprocessing is shown, with the values in which it differs; licence and signature have a line each."""
    manifest = read_manifest(whole)
    (one,) = manifest.teachers.values()
    assert one.preprocessing is not None
    other = one.preprocessing.model_copy(update={"mean": (0.4815, 0.4578, 0.4082)})
    teachers = {"a": one, "b": one.model_copy(update={"preprocessing": other})}
    summary = inspect.inspect_values(FeatureStore.open(whole), counts=False)
    text = inspect.inspect_lines(manifest.model_copy(update={"teachers": teachers}), summary)
    found = [line for line in text if line.startswith("input")]
    assert len(found) == 2
    assert "0.4815 0.4578 0.4082" in found[1]
    assert main(["inspect", str(whole), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["image_licence"], shown["signature"]) == ("", "none")
