"""Labels from a CSV or Parquet file."""

from pathlib import Path

import pytest

from featstore.errors import ConfigError
from featstore.sources import open_source
from featstore.sources.base import Source
from featstore.sources.config import SourceConfig
from tests.distill.stores import draw_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"), per_class=2, test_per_class=1)


def opened(folder: Path, path: Path, text: str) -> Source:
    path.write_text(text)
    return open_source(SourceConfig(kind="folder", path=str(folder), labels=str(path)))


def test_labels_by_id(folder: Path, tmp_path: Path) -> None:
    """Columns by name in any order; classes sorted; images that are not named have no label; strangers are noted."""
    text = (
        "label,extra,id\nsad,1,train/left/000.png\nhappy,2,train/top/001.png\n"
        ",3,train/top/000.png\nhappy,4,gone.png\n"
    )
    source = opened(folder, tmp_path / "labels.csv", text)
    assert source.class_names == ("happy", "sad")
    assert source.labels is not None
    named = {
        name: label
        for name, label in zip(source.sample_ids, source.labels, strict=True)
        if label >= 0
    }
    assert named == {"train/left/000.png": 1, "train/top/001.png": 0}
    assert any("2 of 9" in note for note in source.notes)
    assert any("gone.png" in note for note in source.notes)


def test_labels_by_file_name(tmp_path: Path) -> None:
    """Where it is unique, with or without its ending; numbers are sorted as numbers."""
    folder = tmp_path / "flat"
    (folder / "sub").mkdir(parents=True)
    image = next(draw_images(tmp_path / "one", per_class=1, test_per_class=0).rglob("*.png"))
    for name in ("a.png", "b.png", "sub/c.png"):
        (folder / name).write_bytes(image.read_bytes())
    source = opened(folder, tmp_path / "labels.csv", "file,class\na,10\nb.png,9\nc,9\n")
    assert source.class_names == ("9", "10")
    assert source.labels is not None
    assert dict(zip(source.sample_ids, source.labels.tolist(), strict=True)) == {
        "a.png": 1, "b.png": 0, "sub/c.png": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,label\ntrain/left/000.png,a\ntrain/left/000.png,b\n", "train/left/000.png"),
        ("id,label\nother.png,a\n", "other.png"),
        ("id\nx\n", "labels.csv"),
        ("", "labels.csv"),
        ("id,label\nx\n", "row 2"),
    ],
)
def test_tables_that_do_not_fit(folder: Path, tmp_path: Path, text: str, words: str) -> None:
    """Two labels for one image, no image named, columns missing."""
    with pytest.raises(ConfigError, match=words):
        opened(folder, tmp_path / "labels.csv", text)


def test_files_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    """Absent, and not what the ending says."""
    for name in ("absent.csv", "absent.parquet"):
        with pytest.raises(ConfigError, match=name):
            open_source(SourceConfig(kind="folder", path=str(folder), labels=str(tmp_path / name)))
    with pytest.raises(ConfigError, match=r"bad\.parquet"):
        opened(folder, tmp_path / "bad.parquet", "id,label\n")


def test_parquet(folder: Path, tmp_path: Path) -> None:
    """Numbers as labels, null for none."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    ids = ["train/left/000.png", "train/left/001.png"]
    parquet.write_table(pyarrow.table({"id": ids, "label": [3, None]}), tmp_path / "labels.parquet")
    path = str(tmp_path / "labels.parquet")
    source = open_source(SourceConfig(kind="folder", path=str(folder), labels=path))
    assert source.class_names == ("3",)
    assert source.labels is not None
    assert (source.labels >= 0).sum() == 1


@pytest.mark.parametrize(
    "text",
    [
        "id,label\ntrain/left/000.png,cat;dog\ntrain/top/001.png,dog\ntrain/left/001.png, bird | cat\n",
        "id,bird,cat,dog\ntrain/left/000.png,0,1,1\ntrain/top/001.png,0,0,1\ntrain/left/001.png,1,true,0\n",
    ],
)
def test_several_labels_per_image(folder: Path, tmp_path: Path, text: str) -> None:
    """In one cell, or one column each; images that are not named are unknown, and so are empty cells."""
    source = opened(folder, tmp_path / "labels.csv", text)
    assert source.class_names == ("bird", "cat", "dog")
    assert source.labels is None
    assert source.label_sets is not None
    found = dict(zip(source.sample_ids, source.label_sets.tolist(), strict=True))
    assert found["train/left/000.png"] == [0, 1, 1]
    assert found["train/top/001.png"] == [0, 0, 1]
    assert found["train/left/001.png"] == [1, 1, 0]
    assert found["test/top/000.png"] == [-1, -1, -1]
    part = open_source(
        SourceConfig(
            kind="folder",
            path=str(folder),
            labels=str(tmp_path / "labels.csv"),
            include=["train/top/*"],
        )
    )
    assert part.label_sets is not None
    assert part.label_sets.tolist()[-1] == [0, 0, 1]
    unknown = opened(folder, tmp_path / "part.csv", "id,cat,dog\ntrain/left/000.png,,1\n")
    assert unknown.label_sets is not None
    assert max(unknown.label_sets.tolist()) == [-1, 1]
    with pytest.raises(ConfigError, match=r"000\.png.*cat;dog.*\bcat\b"):
        opened(
            folder,
            tmp_path / "twice.csv",
            "id,label\ntrain/left/000.png,cat;dog\ntrain/left/000.png,cat\n",
        )
