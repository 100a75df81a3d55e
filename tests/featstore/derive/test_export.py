"""Stores in formats of other tools: the same numbers, bit by bit, and never half of them under the export's name."""

import json
import signal
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featstore import FeatureStore
from featstore.cli.main import main
from featstore.derive import export as library
from featstore.derive.export import Format, export
from featstore.errors import (
    ConfigError,
    StoreBusy,
    StoreError,
    StoreIncomplete,
    StoreWriteError,
    ViewMismatch,
)
from featstore.files.locks import exclusive
from featstore.format.fields import Ragged, TopK
from featstore.format.ledger import remove_entries
from featstore.format.manifest_records import Container
from featstore.format.views import ViewSet, make_views
from tests.featstore.backend_tests import (
    NUM_ROWS,
    POINTS,
    VIEWS,
    Rows,
    every_kind,
    heavy_tailed,
    int8_field,
    points,
    read,
    spec,
    vectors,
)
from tests.featstore.processes import die_at, fork, wait

INVALID = {5: "empty file (0 bytes)"}
FORMATS: tuple[Format, ...] = ("npy", "parquet", "hf")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store with a field of every kind and one row that is not valid."""
    path = tmp_path_factory.mktemp("kinds") / "store"
    return FeatureStore.open(every_kind(invalid=INVALID).write(path, "zarr"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two plain fields in three shards."""
    return vectors().write(tmp_path_factory.mktemp("plain") / "store", "zarr")


def expected(store: FeatureStore, rows: list[int]) -> dict[str, Any]:
    """By column, what our own reader says of some rows, in types that other tools know."""
    found: dict[str, Any] = {
        "row": np.array(rows),
        "sample_id": [store.sample_ids[row] for row in rows],
        "label": store.labels[rows],
        "valid": store.valid[rows],
        "content_sha256": store.content_sha256[rows],
    }
    for name in store.manifest.fields:
        values = read(store, name, rows)
        if isinstance(values, TopK):
            found[f"{name}_values"], found[f"{name}_indices"] = values
        elif isinstance(values, Ragged) or values.dtype != ml_dtypes.bfloat16:
            found[name] = values
        else:
            found[name] = values.astype(np.float32)
    return found


def nested(values: Any, record: Any, num_rows: int) -> Any:
    """Values of one column as lists, which is how tables give them back."""
    if not isinstance(values, Ragged):
        return values.tolist() if isinstance(values, np.ndarray) else values
    ends = values.offsets.tolist()
    lists = [values.values[a:b].tolist() for a, b in pairwise(ends)]
    views = len(lists) // num_rows
    if not record.per_view:
        return lists
    return [lists[row * views : (row + 1) * views] for row in range(num_rows)]


@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_npy(store: FeatureStore, tmp_path: Path, container: Container) -> None:
    """Every column is mapped without pickle and equals what our reader gives, in its very type."""
    path = store.path
    if container == "webdataset":
        path = every_kind(invalid=INVALID).write(tmp_path / "store", container)
    made = export(path, tmp_path / "out", "npy")
    rows = [row for row in range(NUM_ROWS) if row not in INVALID]
    assert (made.rows, made.invalid, made.unmatched, made.resumed) == (NUM_ROWS - 1, 1, 0, 0)
    out = tmp_path / "out"
    assert made.bytes == sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    description = json.loads((out / "export.json").read_bytes())
    assert description == made.description
    assert description["store"]["fingerprint"] == store.fingerprint
    assert description["class_names"] == list(store.manifest.source.class_names)
    for name, values in expected(store, rows).items():
        files = description["columns"][name]["files"]
        if name == "sample_id":
            assert (out / "ids.txt").read_bytes().decode().split("\n") == [*values, ""]
            continue
        found, *offsets = (np.load(out / file, mmap_mode="r", allow_pickle=False) for file in files)
        if description["columns"][name]["kind"] == "text":
            ends = offsets[0].tolist()
            texts = [bytes(found[a:b]).decode() for a, b in pairwise(ends)]
            assert texts == values.reshape(-1).tolist()
        elif isinstance(values, Ragged):
            np.testing.assert_array_equal(found, values.values, strict=True)
            np.testing.assert_array_equal(offsets[0], values.offsets, strict=True)
        else:
            np.testing.assert_array_equal(found, values, strict=True)
    assert {item.name for item in tmp_path.iterdir()} <= {"out", "store"}


@pytest.mark.parametrize("form", ["parquet", "hf"])
def test_tables(store: FeatureStore, tmp_path: Path, form: Format) -> None:
    """Every column of a table, read by stock tools, equals what our reader gives."""
    out = tmp_path / "out"
    assert export(store.path, out, form).rows == NUM_ROWS - 1
    rows = [row for row in range(NUM_ROWS) if row not in INVALID]
    fields = store.manifest.fields
    if form == "parquet":
        parts = sorted((out / "data").iterdir())
        assert len(parts) == store.manifest.num_shards
        table = pa.concat_tables([pq.read_table(part) for part in parts])
    else:
        import datasets

        table = datasets.load_from_disk(str(out)).data.table.combine_chunks()
    for name, values in expected(store, rows).items():
        found = table.column(name)
        if name == "content_sha256":
            assert found.to_pylist() == [row.tobytes().hex() for row in values]
            continue
        if isinstance(values, np.ndarray) and values.dtype != object:
            chunk = found.combine_chunks()
            flat = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
            while pa.types.is_list(flat.type) or pa.types.is_fixed_size_list(flat.type):
                flat = flat.flatten()
            numbers = flat.to_numpy(zero_copy_only=False).reshape(values.shape)
            np.testing.assert_array_equal(numbers, values, strict=True)
        else:
            assert found.to_pylist() == nested(values, fields.get(name), len(rows))


def test_datasets_knows_the_types(plain: Path, tmp_path: Path) -> None:
    """Class names and shapes are there in a data set, and in Parquet files that ``load_dataset`` reads."""
    import datasets

    export(plain, tmp_path / "hf", "hf")
    export(plain, tmp_path / "parquet", "parquet")
    store = FeatureStore.open(plain)
    disk = datasets.load_from_disk(str(tmp_path / "hf"))
    assert disk.features["cls"] == datasets.Array2D((VIEWS, 6), "float16")
    assert disk.features["grid"] == datasets.Array4D((VIEWS, 2, 2, 3), "float32")
    cache = str(tmp_path / "cache")
    folder = datasets.load_dataset(str(tmp_path / "parquet"), cache_dir=cache)["train"]
    files = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "parquet/data/*.parquet"), cache_dir=cache
    )["train"]
    rows = list(range(NUM_ROWS))
    for found in (disk, folder, files):
        assert found.features["label"].names == list(store.manifest.source.class_names)
        batch = found.with_format("numpy")[:]
        assert batch["sample_id"].tolist() == store.sample_ids
        np.testing.assert_array_equal(batch["label"], store.labels)
        np.testing.assert_array_equal(batch["cls"], store.gather("cls", rows))
        np.testing.assert_array_equal(batch["grid"], store.gather("grid", rows))


def test_a_part_of_it(store: FeatureStore, tmp_path: Path) -> None:
    """Fields, patterns, the canonical view alone and float32; rows in the order of the store."""
    made = export(
        store.path,
        tmp_path / "out",
        "npy",
        fields=["float161", "points", "caption"],
        where=["folder/*", "*/1.png"],
        float32=True,
        canonical=True,
    )
    rows = [
        row for row, name in enumerate(store.sample_ids) if name.startswith("folder/") or row == 1
    ]
    assert (made.rows, made.unmatched, made.invalid) == (len(rows), NUM_ROWS - len(rows), 0)
    found = {path.stem: np.load(path) for path in (tmp_path / "out").rglob("*.npy")}
    names = ("float161", "points_values", "points_offsets", "caption_values", "caption_offsets")
    assert set(found) == {"rows", "labels", "valid", "content_sha256", *names}
    assert found["rows"].tolist() == rows
    first = store.gather("float161", rows)[:, 0].astype(np.float32)
    np.testing.assert_array_equal(found["float161"], first, strict=True)
    items = store.gather_ragged("points", rows)
    lists = np.split(items.values, items.offsets[1:-1])[::VIEWS]
    np.testing.assert_array_equal(
        found["points_values"], np.concatenate(lists).astype(np.float32), strict=True
    )
    assert np.diff(found["points_offsets"]).tolist() == [len(part) for part in lists]


def test_rows_that_are_not_valid(tmp_path: Path) -> None:
    """Kept, they are zeros, no items and empty texts, quantised ones too, and are marked; also whole shards of them."""
    wide = heavy_tailed(NUM_ROWS, VIEWS, 6)
    int8, scales = int8_field(wide, "channel", "codes-scales")
    assert scales is not None
    rows = Rows(
        {"codes": int8, "points": POINTS, "caption": spec("text", ())},
        {
            "codes": wide,
            "points": points(NUM_ROWS, VIEWS),
            "caption": np.full((NUM_ROWS, VIEWS), "words", dtype=object),
        },
        channels={"codes-scales": scales},
        invalid=dict.fromkeys((1, 4, 5, 6, 7), "bad"),
    )
    store = FeatureStore.open(rows.write(tmp_path / "store", "zarr"))
    made = export(store.path, tmp_path / "out", "npy", keep_invalid=True)
    assert (made.rows, made.invalid) == (NUM_ROWS, 0)
    found = {path.stem: np.load(path) for path in (tmp_path / "out").rglob("*.npy")}
    np.testing.assert_array_equal(found["valid"], store.valid)
    valid = np.flatnonzero(store.valid)
    assert not found["codes"][~store.valid].any()
    np.testing.assert_array_equal(found["codes"][valid], store.gather("codes", valid))
    lists = store.gather_ragged("points", valid)
    np.testing.assert_array_equal(found["points_values"], lists.values, strict=True)
    lengths = np.diff(found["points_offsets"]).reshape(NUM_ROWS, VIEWS)
    assert not lengths[~store.valid].any()
    np.testing.assert_array_equal(lengths[valid].reshape(-1), np.diff(lists.offsets))
    assert np.diff(found["caption_offsets"]).tolist() == [
        length for row in store.valid for length in [5 if row else 0] * VIEWS
    ]


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("form", FORMATS)
def test_a_killed_run_goes_on(
    plain: Path, tmp_path: Path, form: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the third of three shards: nothing has the name; the next run ends with the same bytes."""
    monkeypatch.setattr(library, "STATE_S", 0)
    export(plain, tmp_path / "whole", form)

    def killed() -> None:
        die_at(library, "write_bytes", 2)
        export(plain, tmp_path / "out", form)

    assert wait(fork(killed)) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    aside = tmp_path / ".partial-export-out"
    if form == "npy":  # as a kill in the middle of a write leaves it
        with (aside / "fields/cls.npy").open("ab") as file:
            file.write(b"half a row")
    made = export(plain, tmp_path / "out", form)
    assert made.resumed == 8
    assert made.rows == NUM_ROWS
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}


def test_what_another_run_left_is_cleared(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of an export of other fields does not get into this one; a finished one is not written again."""
    monkeypatch.setattr(library, "STATE_S", 0)

    def stop(done: int, _: int) -> None:
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(plain, tmp_path / "out", "npy", fields=["cls"], progress=stop)
    made = export(plain, tmp_path / "out", "npy", fields=["grid"])
    assert made.resumed == 0
    assert [path.name for path in (tmp_path / "out/fields").iterdir()] == ["grid.npy"]
    before = (tmp_path / "out/rows.npy").stat().st_mtime_ns
    assert export(plain, tmp_path / "out", "npy", fields=["grid"]).bytes == made.bytes
    assert (tmp_path / "out/rows.npy").stat().st_mtime_ns == before
    with pytest.raises(ConfigError):
        export(plain, tmp_path / "out", "npy", fields=["cls"])


def test_what_is_refused(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with an error of ours, and nothing left behind."""
    out = tmp_path / "out"
    for options, error, message in (
        ({"fields": ["cls", "depth"]}, ConfigError, "no field 'depth'; it has: cls, grid"),
        ({"where": ["val/*"]}, ConfigError, "11 ids do not match"),
        ({"out": plain / "out"}, ConfigError, "into itself"),
    ):
        with pytest.raises(error, match=message):
            export(plain, **{"out": out, "form": "npy", **options})  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(library, "free_bytes", lambda path: 1000)
        with pytest.raises(StoreWriteError, match=r"\b1\b"):
            export(plain, out, "npy")
    for form, name in (("parquet", "pyarrow"), ("hf", "datasets")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ConfigError, match=f"{name}"):
                export(plain, out, form)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    aside = tmp_path / ".partial-export-out"
    aside.mkdir()
    with exclusive(aside), pytest.raises(StoreBusy):
        export(plain, out, "npy")
    odd = vectors()
    odd.ids[3] = "two\nlines.png"
    path = odd.write(tmp_path / "odd", "zarr")
    with pytest.raises(StoreError):
        export(path, out, "npy")
    assert export(path, out, "parquet").rows == NUM_ROWS
    same = Rows(
        {"label": spec("float32", (2,))}, {"label": np.ones((3, VIEWS, 2), np.float32)}
    ).write(tmp_path / "same", "zarr")
    with pytest.raises(ConfigError):
        export(same, tmp_path / "out2", "npy")
    views = ViewSet(views=make_views(canonical=False, seeded=VIEWS, mirrored=False))
    crops = vectors().write(tmp_path / "crops", "zarr", views=views)
    with pytest.raises(ViewMismatch, match="canonical"):
        export(crops, tmp_path / "out2", "npy", canonical=True)
    remove_entries(path, [1])
    with pytest.raises(StoreIncomplete):
        export(path, tmp_path / "out3", "npy")


def test_the_command(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says how much first, what was left out, and how to read it; --json is one value; errors are status 2."""
    out = tmp_path / "out"
    words = [
        "export",
        str(plain),
        str(out),
        "--format",
        "npy",
        "--fields",
        "cls",
        "--where",
        "folder*",
    ]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "4 rows, about " in said.err
    assert "4 rows, " in said.out
    assert "left out: 7 images that --where does not match" in said.out
    assert f'numpy.load("{out}/fields/cls.npy", mmap_mode="r")' in said.out
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left_out"] == {"invalid": 0, "unmatched": 7}
    assert (found["rows"], found["path"]) == (4, str(out))
    assert main(["export", str(tmp_path / "no"), str(out), "--format", "npy"]) == 2
