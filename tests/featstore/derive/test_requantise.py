"""A store in another type: the same rows and nothing else, what it cost measured, and never half of it readable."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore import FeatureStore
from featstore.cli.main import main
from featstore.derive.requantise import StoredType, requantise
from featstore.errors import ConfigError, ManifestMismatch, ShardCorrupt, StoreIncomplete
from featstore.format.fields import numpy_dtype
from featstore.format.int8 import rounding_error
from featstore.format.ledger import read_complete, remove_entries
from featstore.format.manifest_records import Container, FieldRecord, Int8Encoding
from featstore.maintenance.verify import verify
from featstore.writing import commit as writer
from tests.featstore.backend_tests import (
    NUM_ROWS,
    VIEWS,
    Rows,
    every_kind,
    heavy_tailed,
    int8_field,
    spec,
)
from tests.featstore.processes import die_at, fork, wait
from tests.featstore.stores import leftovers, snapshot

FLOATS = ("float161", "float162", "float323", "bfloat163")
"""Fields of ``every_kind`` that the teacher made here."""


def made_by_teacher(rows: Rows, names: tuple[str, ...]) -> Rows:
    for name in names:
        rows.fields[name] = rows.fields[name].model_copy(update={"teacher": "teacher"})
    return rows


def small(dtype: str = "float32", *, rows: int = NUM_ROWS) -> Rows:
    """One vector and one grid of the teacher, coordinates of nobody; row 5 is invalid."""
    values = {
        "cls": heavy_tailed(rows, VIEWS, 6).astype(numpy_dtype(dtype)),
        "grid": heavy_tailed(rows, VIEWS, 2, 2, 3, seed=1).astype(numpy_dtype(dtype)),
        "boxes": heavy_tailed(rows, 4, seed=2),
    }
    fields = {
        "cls": spec(dtype, (6,), teacher="teacher"),
        "grid": spec(dtype, (2, 2, 3), teacher="teacher"),
        "boxes": spec("float32", (4,), per_view=False),
    }
    return Rows(fields, values, invalid={5: "empty file (0 bytes)"})


def sound(path: Path) -> FeatureStore:
    """Verify a store, every byte and every rule, and open it."""
    report = verify(path)
    assert report.sound, report.damages
    assert report.complete
    assert not leftovers(path)
    return FeatureStore.open(path)


@pytest.mark.parametrize(
    ("container", "dtype"),
    [("zarr", "float16"), ("zarr", "int8"), ("webdataset", "bfloat16"), ("webdataset", "int8")],
)
def test_every_kind_of_record(tmp_path: Path, container: Container, dtype: StoredType) -> None:
    """Fields of the teacher are rounded once; all others, ids, hashes and labels stay as they are."""
    rows = made_by_teacher(every_kind(), FLOATS)
    old = FeatureStore.open(rows.write(tmp_path / "old", container))
    names = [name for name in FLOATS if rows.fields[name].dtype != dtype]
    requantise(old.path, tmp_path / "new", dtype, allow_widening=True)
    new = sound(tmp_path / "new")
    assert new.sample_ids == old.sample_ids
    assert np.array_equal(new.labels, old.labels)
    assert np.array_equal(new.content_sha256, old.content_sha256)
    assert new.manifest.views == old.manifest.views
    assert new.manifest.work == old.manifest.work
    assert new.manifest.created_by["requantised_from"] == old.fingerprint != new.fingerprint
    everyone = list(range(NUM_ROWS))
    others = Rows(rows.fields, rows.values)
    others.fields = {name: rows.fields[name] for name in rows.fields if name not in names}
    others.check(new, everyone)
    for name in names:
        found, exact = new.gather(name, everyone), old.gather(name, everyone)
        if dtype != "int8":
            assert np.array_equal(found, exact.astype(numpy_dtype(dtype)))
            assert new.manifest.fields[name].encoding.kind == "plain"
        else:
            assert rounding_error(exact, found).relative_l2 < 0.05
        assert f"; from {old.manifest.fields[name].dtype}, relative" in (
            new.manifest.fields[name].meaning
        )


@pytest.mark.slow
def test_what_it_costs_is_in_the_manifest(tmp_path: Path) -> None:
    """Against a direct measurement on all rows; for int8 in the encoding, as extraction leaves it."""
    old = FeatureStore.open(small().write(tmp_path / "old", "zarr"))
    usable = np.flatnonzero(old.valid)
    assert len(usable) == NUM_ROWS - 1
    exact = old.gather("cls", usable)
    for dtype in ("int8", "bfloat16"):
        _, made = requantise(old.path, tmp_path / dtype, dtype)
        new = sound(tmp_path / dtype)
        assert new.invalid_rows() == old.invalid_rows()
        assert np.array_equal(new.valid, old.valid)
        error = rounding_error(exact, new.gather("cls", usable))
        change = next(item for item in made if item.field == "cls")
        assert change.error.relative_l2 == pytest.approx(error.relative_l2, rel=1e-6)
        assert change.error.cosine_worst == pytest.approx(error.cosine_worst, rel=1e-6)
        record = new.manifest.fields["cls"]
        assert f"relative error {error.relative_l2:.1e}, cosine" in record.meaning
        if isinstance(record.encoding, Int8Encoding):
            assert record.encoding.relative_l2 == change.error.relative_l2
            assert record.encoding.sample_rows == len(usable) == change.sample_rows
    assert requantise(old.path, tmp_path / "few", "float16", sample_rows=3)[1][0].sample_rows == 3


@pytest.mark.slow
def test_types_with_more_digits_are_refused(tmp_path: Path) -> None:
    """They would pretend to a precision that is gone; who wants them must say so."""
    for source, dtype in (
        ("float16", "float32"),
        ("bfloat16", "float16"),
        ("int8", "bfloat16"),
    ):
        rows = small("float32" if source == "int8" else source)
        path = rows.write(tmp_path / f"from-{source}", "zarr")
        if source == "int8":
            path = tmp_path / "as-int8"
            requantise(tmp_path / "from-int8", path, "int8")
        out = tmp_path / f"{source}-{dtype}"
        with pytest.raises(ConfigError, match=rf"{source}.*{source}.*{dtype}"):
            requantise(path, out, dtype)  # type: ignore[arg-type]
        assert not out.exists()
        requantise(path, out, dtype, allow_widening=True)  # type: ignore[arg-type]
        old, new = FeatureStore.open(path), sound(out)
        wide = old.gather("cls", [0, 1]).astype(numpy_dtype(dtype))
        assert np.array_equal(new.gather("cls", [0, 1]), wide)
        assert not new.manifest.artefacts


def test_what_cannot_be_done(tmp_path: Path) -> None:
    """Nothing to change, into itself, a number too large, and a folder that holds another store."""
    path = small().write(tmp_path / "old", "zarr")
    with pytest.raises(ConfigError, match="float32"):
        requantise(path, tmp_path / "new", "float32")
    for out in (path, path / "inside"):
        with pytest.raises(ConfigError):
            requantise(path, out, "float16")
    rows = small()
    rows.values["cls"][7, 1, 3] = 1e5
    large = rows.write(tmp_path / "large", "zarr")
    with pytest.raises(ConfigError, match=r'"cls".*100000.*float16.*--dtype bf'):
        requantise(large, tmp_path / "new", "float16")
    assert not (tmp_path / "new").exists()
    requantise(large, tmp_path / "new", "bfloat16")
    with pytest.raises(ManifestMismatch, match=r"fields\.cls\.dtype"):
        requantise(path, tmp_path / "new", "float16")


def test_a_store_that_is_not_whole(tmp_path: Path) -> None:
    """Missing shards and damaged bytes end it; nothing that can be opened is left."""
    path = small().write(tmp_path / "old", "zarr")
    target = next((path / "fields" / "grid").rglob("c/2/*/*/*/*"))
    data = bytearray(target.read_bytes())
    data[20] ^= 1
    target.write_bytes(data)
    with pytest.raises(ShardCorrupt, match=r'\b2\b.*"fields/grid"'):
        requantise(path, tmp_path / "new", "float16", sample_rows=2)
    if (tmp_path / "new").exists():
        with pytest.raises(StoreIncomplete):
            FeatureStore.open(tmp_path / "new")
    remove_entries(path, [1])
    with pytest.raises(StoreIncomplete):
        requantise(path, tmp_path / "other", "float16")


@pytest.mark.slow
@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_killed_before_each_shard(tmp_path: Path, container: Container) -> None:
    """What is left is refused as incomplete; the next run goes on, and ends at the bytes of one that was not killed."""
    path = small().write(tmp_path / "old", container)
    requantise(path, tmp_path / "straight", "int8")
    expected = snapshot(tmp_path / "straight")
    for step in range(3):
        out = tmp_path / f"killed-{step}"

        def work(out: Path = out, step: int = step) -> None:
            die_at(writer, "publish_shard", step)
            requantise(path, out, "int8")

        assert wait(fork(work)) == -signal.SIGKILL
        with pytest.raises(StoreIncomplete):
            FeatureStore.open(out)
        assert read_complete(out, 3) is None
        calls: list[tuple[int, int]] = []
        requantise(path, out, "int8", progress=lambda *call, calls=calls: calls.append(call))
        assert calls[-1] == (3 - step, 3 - step)
        assert snapshot(out) == expected
        sound(out)
    again = snapshot(out)
    requantise(path, out, "int8")
    assert snapshot(out) == again


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text and JSON say what was changed; errors have status 2; no torch is imported."""
    path = small().write(tmp_path / "old", "zarr")
    out = tmp_path / "new"
    assert main(["requantise", str(path), str(out), "--dtype", "float16"]) == 0
    text = capsys.readouterr().out
    assert "field        cls: float32 -> float16, relative error" in text
    assert f"{out}: complete, 11 rows" in text
    arguments = ["requantise", str(path), str(out), "--dtype", "float16", "--json"]
    assert main(arguments) == 0
    changes: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["changes"]
    assert [item["field"] for item in changes] == ["cls", "grid"]
    assert 0 < changes[0]["relative_l2"] < 1e-3
    assert main(["requantise", str(out), str(tmp_path / "x"), "--dtype", "float32"]) == 2
    assert "--allow-widening" in capsys.readouterr().err
    code = (
        "import sys; from featstore.cli.main import main; "
        f"main(['requantise', {str(path)!r}, {str(tmp_path / 'y')!r}, '--dtype', 'int8']); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_record_that_is_copied_stays_what_it_is() -> None:
    """Fields of nobody, and of eight bits already, are none to convert."""
    from featstore.derive.requantise import stored_type

    record, _ = int8_field(heavy_tailed(4, 2, 6), "row", "")
    assert stored_type(record) is None
    assert stored_type(record.model_copy(update={"teacher": "teacher"})) == "int8"
    text: FieldRecord = spec("text", ())
    assert stored_type(text.model_copy(update={"teacher": "teacher"})) is None
