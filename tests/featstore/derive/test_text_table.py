"""Text tables: checked when they are made, kept in the store, and nothing else of the store changes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore import FeatureStore, text_table
from featstore.cli.main import main
from featstore.derive.subset import subset
from featstore.derive.text_table import class_means, prompts
from featstore.errors import ConfigError, ShardCorrupt
from featstore.format.artefacts import artefact_path, pack, pack_texts
from featstore.format.text_table import TextTable, artefact_name, tables_of
from featstore.maintenance.verify import verify
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from tests.distill.stores import CLASSES, WIDTH, draw_images, write_store


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Images of three classes, 12 rows in 3 shards."""
    return make(tmp_path / "store")


def make(path: Path, *invalid: str) -> FeatureStore:
    photos = draw_images(path.with_name("photos"), per_class=3, test_per_class=1)
    source = open_source(SourceConfig(kind="folder", path=str(photos)))
    return write_store(path, source, shard_rows=5, invalid=invalid)


def test_a_table_is_added_and_the_rows_are_shared(store: FeatureStore, tmp_path: Path) -> None:
    """Equal rows, the table readable by name, full shards not copied; a second call changes nothing."""
    array = np.random.default_rng(0).standard_normal((3, WIDTH))
    for _ in range(2):
        made = text_table(
            store, tmp_path / "out", field="cls", array=array, origin="by hand", progress=False
        )
    assert tables_of(made.manifest) == ["texts.classes"]
    record = made.manifest.artefacts["texts.classes"]
    assert record.teacher == "teacher"
    assert "by hand" in record.meaning
    table = TextTable.from_tensors(made.artefact("texts.classes"))
    assert table.names == CLASSES
    np.testing.assert_allclose(
        table.embedding, array / np.linalg.norm(array, axis=1, keepdims=True), rtol=1e-6
    )
    rows = np.arange(store.num_rows)
    np.testing.assert_array_equal(made.gather("cls", rows), store.gather("cls", rows))
    np.testing.assert_array_equal(made.labels, store.labels)
    assert verify(tmp_path / "out").sound
    shards = [path for path in (store.path / "fields" / "cls").rglob("*") if path.is_file()]
    shared = [path for path in shards if path.stat().st_nlink > 1]
    assert len(shared) >= 2
    # The table follows the field of its teacher, and is dropped by nothing but damage.
    part = subset(tmp_path / "out", tmp_path / "part", fields=["cls"], rows=[1, 2])
    assert tables_of(part) == ["texts.classes"]
    # Merging teachers puts a prefix before the name.
    both = part.model_copy(update={"artefacts": {"clip_texts.classes": record, "head": record}})
    assert tables_of(both) == ["clip_texts.classes"]
    assert artefact_name("clip_texts.classes") == "clip_texts.classes"
    artefact_path(tmp_path / "out", "texts.classes").write_bytes(pack({"a": np.zeros(1)}))
    with pytest.raises(ShardCorrupt, match=r"texts\.classes"):
        FeatureStore.open(tmp_path / "out").artefact("texts.classes")


def test_class_means_are_those_of_the_canonical_view(tmp_path: Path) -> None:
    """The mean of rows of length 1, of valid rows alone, again of length 1."""
    store = make(tmp_path / "store", "train/left/000.png")
    rows = np.flatnonzero([name.startswith("train/") for name in store.sample_ids])
    table = class_means(store, "cls", rows)
    good = [row for row in rows if store.valid[row] and store.labels[row] == 0]
    vectors = store.gather("cls", good, views=[0])[:, 0].astype(np.float64)
    mean = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(0)
    np.testing.assert_allclose(table.embedding[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert len(good) == 2
    assert table.names == CLASSES


@pytest.mark.parametrize(
    ("names", "array", "named"),
    [
        (["a", "b"], np.ones((3, 4)), "3"),
        (["a", "a"], np.ones((2, 4)), "a"),
        (["a", ""], np.ones((2, 4)), "empty"),
        (["a", "b"], [[1.0, 0], [0, 0]], "b"),
        (["a", "b"], [[1.0, 0], [np.nan, 0]], "b"),
        (["a", "b"], np.array([["x", "y"], ["x", "y"]]), "U1"),
    ],
)
def test_a_table_that_is_none(names: list[str], array: Any, named: str) -> None:
    """Other numbers of names and rows, repeated names, rows without a direction."""
    with pytest.raises(ConfigError, match=named):
        TextTable.of(names, array)


def test_an_artefact_that_is_no_table() -> None:
    """Whatever another team put there is refused, not believed."""
    with pytest.raises(ConfigError, match="embedding"):
        TextTable.from_tensors(pack_texts(["a"]))
    with pytest.raises(ConfigError):
        TextTable.from_tensors({"embedding": np.ones((1, 2), np.float32)})
    with pytest.raises(ConfigError, match="b"):
        TextTable.of(["a"], [[1.0]]).rows_of(["a", "b"])


def test_another_width_or_name(store: FeatureStore, tmp_path: Path) -> None:
    """Refused before a folder is made; names both widths."""
    with pytest.raises(ConfigError, match=f"7.*{WIDTH}"):
        text_table(store, tmp_path / "out", field="cls", array=np.ones((3, 7)), progress=False)
    with pytest.raises(ConfigError, match="grid2"):
        text_table(store, tmp_path / "out", field="grid2", array=np.ones((3, 7)), progress=False)
    with pytest.raises(ConfigError, match="2"):
        text_table(store, tmp_path / "out", array=np.ones((3, WIDTH)), progress=False)
    assert not (tmp_path / "out").exists()


def test_prompts() -> None:
    """Underscores of names become spaces; a text of one's own is put in as it is; lines of a name add up."""
    found = prompts(["sea_horse", "cat\ta_b", "cat\tc"], ["a {}.", "{}"])
    assert found == {
        "sea_horse": ["a sea horse.", "sea horse"],
        "cat": ["a a_b.", "a_b", "a c.", "c"],
    }
    with pytest.raises(ConfigError, match="no place"):
        prompts(["cat"], ["no place"])


def test_the_command(store: FeatureStore, tmp_path: Path, capsys: Any) -> None:
    """An array with names of a file, then class means of some rows."""
    np.save(tmp_path / "t.npy", np.eye(2, WIDTH, dtype=np.float32))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    args = ["text-table", str(store.path), str(tmp_path / "a"), "--field", "cls", "--json"]
    array = ["--names", str(tmp_path / "names.txt"), "--array", str(tmp_path / "t.npy")]
    assert main([*args, *array]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == 2
    more = ["text-table", str(tmp_path / "a"), str(tmp_path / "b"), "--field", "cls"]
    means = ["--class-means", "--where", "train/*", "--name", "means"]
    assert main([*more, *means]) == 0
    both = FeatureStore.open(tmp_path / "b")
    assert tables_of(both.manifest) == ["texts.classes", "texts.means"]
    assert "stand-in" in both.manifest.artefacts["texts.means"].meaning
    assert main([*args[:2], str(tmp_path / "d"), "--field", "cls", "--template", "no place"]) == 2
