"""Features that other programs wrote become stores: the same rows, ids and labels, from every format that is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from featstore import FeatureStore
from featstore.cli.main import main
from featstore.errors import ConfigError, FeatstoreError, MissingSamples, SourceError
from featstore.format.ids import content_sha256
from featstore.importing.imports import import_
from featstore.importing.tables import open_table
from featstore.maintenance.verify import verify
from tests.featstore.stores import snapshot

N = 25
IDS = [f"{row:03d}.png" for row in range(N)]
CLS = np.random.default_rng(0).standard_normal((N, 6)).astype(np.float32)
GRID = np.random.default_rng(1).standard_normal((N, 2, 3)).astype(np.float16)
LABELS: list[Any] = ["cat", "dog", None, "cat", "dog"] * 5


def npy(folder: Path) -> dict[str, Any]:
    """Two npy files, ids and labels as lines of text."""
    folder.mkdir()
    np.save(folder / "cls.npy", CLS)
    np.save(folder / "grid.npy", GRID)
    (folder / "ids.txt").write_text("\n".join(IDS) + "\n")
    (folder / "labels.txt").write_text("\n".join(label or "" for label in LABELS))
    return {"ids": str(folder / "ids.txt"), "labels": str(folder / "labels.txt")}


def _table(rows: slice) -> pa.Table:
    return pa.table(
        {
            "path": IDS[rows],
            "cls": pa.FixedSizeListArray.from_arrays(pa.array(CLS[rows].reshape(-1)), 6),
            "grid": pa.array(GRID[rows].tolist(), pa.list_(pa.list_(pa.float16()))),
            "caption": ["text"] * len(IDS[rows]),
            "label": LABELS[rows],
        }
    )


def parquet(folder: Path) -> dict[str, Any]:
    """Two files, the first one of several row groups."""
    folder.mkdir()
    pq.write_table(_table(slice(0, 16)), folder / "part-0.parquet", row_group_size=5)
    pq.write_table(_table(slice(16, N)), folder / "part-1.parquet")
    return {}


def hf(folder: Path) -> dict[str, Any]:
    """A data set of the Hugging Face library on disk."""
    from datasets import Dataset, concatenate_datasets

    parts = [Dataset(_table(slice(0, 7))), Dataset(_table(slice(7, N)))]
    concatenate_datasets(parts).save_to_disk(str(folder))
    return {}


def clip(folder: Path) -> dict[str, Any]:
    """clip-retrieval's layout, with so many parts that their names do not sort by number."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for part, start in enumerate(range(0, N, 2)):
        rows = slice(start, start + 2)
        np.save(folder / "img_emb" / f"img_emb_{part}.npy", CLS[rows])
        np.save(folder / "text_emb" / f"text_emb_{part}.npy", GRID[rows])
        table = pa.table({"image_path": IDS[rows], "caption": ["x"] * len(IDS[rows])})
        pq.write_table(table, folder / "metadata" / f"metadata_{part}.parquet")
    return {"fields": {"cls": "img_emb", "grid": "text_emb"}}


KINDS = {"npy": npy, "parquet": parquet, "hf": hf, "clip-retrieval": clip}


@pytest.mark.parametrize("kind", KINDS)
def test_every_format(kind: str, tmp_path: Path) -> None:
    """Rows, ids and labels are those of the files; the kind is found by what is there."""
    options = KINDS[kind](tmp_path / "in")
    import_(tmp_path / "in", tmp_path / "s", teacher="t", shard_rows=4, **options)
    store = FeatureStore.open(tmp_path / "s")
    assert store.manifest.source.kind == kind
    assert store.sample_ids == IDS
    np.testing.assert_array_equal(store.gather("cls", range(N))[:, 0], CLS, strict=True)
    np.testing.assert_array_equal(store.gather("grid", range(N))[:, 0], GRID, strict=True)
    if kind != "clip-retrieval":
        names = store.manifest.source.class_names
        assert [names[label] if label >= 0 else None for label in store.labels] == LABELS
    assert verify(tmp_path / "s").sound


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_import_is_resumed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads on where it stopped, and gives the same bytes."""
    monkeypatch.setattr("featstore.importing.imports.BATCH_ROWS", 3)
    options = {**KINDS[kind](tmp_path / "in"), "teacher": "t", "shard_rows": 4}

    def stop(done: int, total: int) -> None:
        if done > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_(tmp_path / "in", tmp_path / "s", progress=stop, **options)
    begun: list[int] = []
    import_(
        tmp_path / "in", tmp_path / "s", progress=lambda done, total: begun.append(done), **options
    )
    assert begun[0] == 12
    import_(tmp_path / "in", tmp_path / "straight", **options)
    assert snapshot(tmp_path / "s") == snapshot(tmp_path / "straight")


def test_a_data_set_without_ids_has_those_of_its_source(tmp_path: Path) -> None:
    """Split and position, as the source kind hf names images, so that phase two finds them; classes keep names."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
    from datasets import Sequence as Items

    features = Features(
        {"emb": Items(Value("float32"), length=2), "label": ClassLabel(names=["a", "b"])}
    )
    part = Dataset.from_dict({"emb": [[0.0, 1.0], [2.0, 3.0]], "label": [1, 0]}, features=features)
    DatasetDict({"train": part, "test": part}).save_to_disk(str(tmp_path / "in"))
    import_(tmp_path / "in", tmp_path / "s", teacher="t")
    store = FeatureStore.open(tmp_path / "s")
    assert store.sample_ids == [
        "train/00000000",
        "train/00000001",
        "test/00000000",
        "test/00000001",
    ]
    assert store.manifest.source.class_names == ("a", "b")
    assert store.labels.tolist() == [1, 0, 1, 0]


def test_rows_are_bound_to_images(tmp_path: Path) -> None:
    """--images hashes the files; an id without a file is an error that names it."""
    options = npy(tmp_path / "in")
    (tmp_path / "photos").mkdir()
    for row, name in enumerate(IDS):
        Image.new("RGB", (4, 4), (row, 0, 0)).save(tmp_path / "photos" / name)
    import_(tmp_path / "in", tmp_path / "s", teacher="t", images=tmp_path / "photos", **options)
    store = FeatureStore.open(tmp_path / "s")
    for row, name in enumerate(IDS):
        data = (tmp_path / "photos" / name).read_bytes()
        assert store.content_sha256[row].tobytes() == content_sha256(data)
    (tmp_path / "photos" / IDS[3]).unlink()
    with pytest.raises(MissingSamples, match=IDS[3]):
        import_(tmp_path / "in", tmp_path / "t", teacher="t", images=tmp_path / "photos", **options)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """featstore import, told to scripts in JSON; the store then says what it is and can be inspected."""
    options = npy(tmp_path / "in")
    argv = ["import", str(tmp_path / "in" / "cls.npy"), str(tmp_path / "s"), "--ids"]
    argv += [options["ids"], "--teacher", "CLIP B/32", "--size", "224", "--dtype", "float16"]
    assert main([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["rows"], said["fields"]) == (N, ["cls"])
    assert main(argv) == 0  # again: nothing to do
    assert str(N) in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "s")]) == 0
    assert "CLIP B/32" in capsys.readouterr().out
    rule = FeatureStore.open(tmp_path / "s").manifest.teachers["teacher"].preprocessing
    assert rule is not None
    assert rule.size == (224, 224)
    assert main(["import", str(tmp_path / "nothing"), str(tmp_path / "t"), "--teacher", "t"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    """Missing ids, columns and files, lists of different lengths, nulls, wrong counts, an id twice."""
    folder = tmp_path / "in"
    options = npy(folder)
    (tmp_path / "few.txt").write_text("a\nb\n")
    (tmp_path / "twice.txt").write_text("\n".join([*IDS[:-1], IDS[0]]))
    (tmp_path / "bad.npy").write_bytes(b"no npy")
    table = _table(slice(0, N))
    files = {
        "ragged": table.set_column(1, "cls", pa.array([[1.0] * (1 + row % 2) for row in range(N)])),
        "null": table.set_column(1, "cls", pa.array([None] + [[1.0]] * (N - 1))),
        "no_id": table.drop_columns(["path"]),
        "no_vector": table.select(["path", "caption"]),
    }
    for name, content in files.items():
        pq.write_table(content, tmp_path / f"{name}.parquet")
    cases: list[tuple[Any, dict[str, Any], type[FeatstoreError], str]] = [
        (folder, {}, ConfigError, "ids"),
        (folder, {"ids": str(tmp_path / "few.txt")}, ConfigError, "25.*2"),
        (folder, {"ids": str(tmp_path / "twice.txt")}, SourceError, IDS[0]),
        (tmp_path / "bad.npy", {"ids": options["ids"]}, SourceError, "bad.npy"),
        (tmp_path / "ragged.parquet", {}, SourceError, "1 to 2"),
        (tmp_path / "null.parquet", {}, SourceError, "cls"),
        (tmp_path / "no_id.parquet", {}, SourceError, "caption"),
        (tmp_path / "no_vector.parquet", {}, SourceError, "caption"),
        (tmp_path / "ragged.parquet", {"fields": {"x": "y"}}, SourceError, "y"),
        (tmp_path, {"kind": "clip-retrieval"}, SourceError, "img_emb"),
        (tmp_path, {"kind": "hf"}, SourceError, str(tmp_path)),
    ]
    for source, given, error, match in cases:
        with pytest.raises(error, match=match):
            import_(source, tmp_path / "s", teacher="t", **given)
    with pytest.raises(SourceError):
        open_table(tmp_path / "few.txt")


def test_ids_that_look_like_numbers_stay_as_they_are(tmp_path: Path) -> None:
    """007 is not 7; labels that are numbers are class numbers."""
    np.save(tmp_path / "x.npy", CLS[:3])
    (tmp_path / "names.txt").write_text("007\n08\n9\n")
    (tmp_path / "y.txt").write_text("1\n\n0")
    table = open_table(
        tmp_path / "x.npy", ids=str(tmp_path / "names.txt"), labels=str(tmp_path / "y.txt")
    )
    assert list(table.ids) == ["007", "08", "9"]
    assert table.labels == [1, None, 0]
