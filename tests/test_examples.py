"""The examples in docstrings of public names run as they are printed."""

import doctest
import inspect
from pathlib import Path

import numpy as np
import pytest

import featstore
from featstore.format.ids import ids_sha256
from featstore.format.manifest import new_manifest
from featstore.format.manifest_records import SourceRecord, WorkRecord
from featstore.format.views import ViewSet, make_views
from tests.featstore.stores import CLASSES, TEACHER, field, make_columns, write_store

ELSEWHERE = {"extract", "Manifest", "read_manifest", "__version__"}
"""Public names without a doctest of their own; the notebook and the reference show them."""


def photos(path: Path, *, seed: int) -> Path:
    """Write a store of ten photographs of cats and dogs, three views, fields cls and grid2."""
    ids = [f"{CLASSES[row // 5]}/{seed}{row}.jpg" for row in range(10)]
    manifest = new_manifest(
        teachers={"teacher": TEACHER},
        views=ViewSet(views=make_views(canonical=True, seeded=2, mirrored=False)),
        fields={"cls": field(4), "grid2": field(2, 2, 4)},
        source=SourceRecord(
            kind="folder",
            uri="photos",
            num_samples=len(ids),
            ids_sha256=ids_sha256(ids),
            has_labels=True,
            class_names=CLASSES,
        ),
        work=WorkRecord(shard_rows=8, batch_size=4),
        created_by={"test": "1"},
    )
    columns = make_columns(manifest, seed=seed)
    columns["sample_id"][:] = ids
    columns["label"] = np.arange(10) // 5
    return write_store(path, manifest, columns)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory that the examples assume."""
    photos(tmp_path / "stores" / "photos", seed=0)
    photos(tmp_path / "stores" / "more", seed=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(docstring: str, name: str, found: dict[str, object]) -> int:
    """Run the examples of a docstring; returns how many there are."""
    examples = doctest.DocTestParser().get_doctest(docstring, found, name, None, None)
    output: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, out=output.append)
    assert result.failed == 0, "".join(output)
    return result.attempted


FUNCTIONS = sorted(
    name
    for name in featstore.__all__
    if name not in ELSEWHERE and inspect.isfunction(getattr(featstore, name))
)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_example_of_a_function(name: str, folder: Path) -> None:
    """Every public function has an example, and it gives what it says."""
    if name == "pull":
        featstore.push("stores/photos", "share/photos")
    found: dict[str, object] = {"featstore": featstore, "numpy": np}
    assert run(inspect.getdoc(getattr(featstore, name)) or "", name, found) > 0


def test_example_of_the_package(folder: Path) -> None:
    """The example of ``help(featstore)`` runs."""
    assert run(featstore.__doc__ or "", "featstore", {"featstore": featstore}) > 0


@pytest.mark.parametrize("name", ["", "dataset", "loader"])
def test_example_of_an_open_store(name: str, folder: Path) -> None:
    """``FeatureStore`` and the methods that give loaders have an example."""
    item = getattr(featstore.FeatureStore, name) if name else featstore.FeatureStore
    found: dict[str, object] = {"featstore": featstore, "numpy": np}
    assert run(inspect.getdoc(item) or "", f"FeatureStore.{name}", found) > 0
