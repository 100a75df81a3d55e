"""Several stores in one: rows behind each other, or fields side by side whatever the order and names of the files."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore import FeatureStore
from featstore.cli.main import main
from featstore.derive.merge import merge
from featstore.derive.requantise import requantise
from featstore.derive.subset import subset
from featstore.errors import ConfigError, ManifestMismatch, StoreIncomplete
from featstore.format.artefacts import artefact_record, pack
from featstore.format.manifest_records import Container
from featstore.format.views import ViewSet, make_views
from featstore.writing import commit as writer
from tests.featstore.backend_tests import Rows, heavy_tailed, spec
from tests.featstore.parts import check, columns, in_memory, joined, made, sound, taken, write
from tests.featstore.processes import die_at, fork, wait
from tests.featstore.stores import TEACHER, snapshot

CANONICAL = ViewSet(views=make_views(canonical=True, seeded=0, mirrored=True)).model_dump()
"""Two views that do not depend on sample ids."""

OTHER = TEACHER.model_copy(update={"name": "other", "weights_sha256": "cd" * 32})


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a place: what fsync costs is not what is tested."""
    with in_memory() as folder:
        yield folder


def second(rows: Rows, **changes: Any) -> Rows:
    """The same images through another teacher: another width, and a field of its own."""
    count = rows.num_rows
    found = Rows(
        {
            "cls": spec("float32", (3,), teacher="teacher"),
            "logits": spec("float16", (5,), teacher="teacher"),
        },
        {
            "cls": heavy_tailed(count, 2, 3, seed=7),
            "logits": heavy_tailed(count, 2, 5).astype("f2"),
        },
        **changes,
    )
    found.hashes, found.label, found.ids = rows.hashes.copy(), rows.label.copy(), list(rows.ids)
    for values in found.values.values():
        values[list(found.invalid)] = 0
    return found


def write_second(
    rows: Rows, path: Path, container: Container = "webdataset", **changes: Any
) -> Path:
    """A store of the other teacher."""
    return write(
        rows, path, container, teachers={"teacher": OTHER}, **{"views": CANONICAL, **changes}
    )


def has_fields(path: Path, rows: Rows, names: dict[str, str]) -> None:
    """The store's fields of these names hold the values of the given rows' fields."""
    store = FeatureStore.open(path)
    at = np.flatnonzero(store.valid).tolist()
    part = taken(rows, at)
    part.fields = {new: rows.fields[old] for old, new in names.items()}
    part.values = {new: part.values[old] for old, new in names.items()}
    for new in names.values():
        found = store.gather(new, at) if part.fields[new].encoding.kind == "plain" else None
        if found is not None:
            np.testing.assert_array_equal(found, part.values[new], strict=True)


# ------------------------------------------------------------ rows


@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_rows_behind_each_other(tmp_path: Path, container: Container) -> None:
    """Three stores of two containers, invalid rows and all, against numpy."""
    parts = [
        made(5, seed=1, invalid={2: "bad"}),
        made(7, seed=2),
        made(1, seed=3, invalid={0: "gone"}),
    ]
    other: Container = "zarr" if container == "webdataset" else "webdataset"
    paths = [
        write(part, tmp_path / f"s{i}", (container, other)[i % 2]) for i, part in enumerate(parts)
    ]
    done = merge(paths, tmp_path / "out")
    store = check(tmp_path / "out", joined(*parts))
    assert (done.kind, done.notes) == ("rows", [])
    assert store.manifest.container == container
    assert store.manifest.source.kind == "merged"
    assert store.manifest.source.uri == "/images/s0, /images/s1, /images/s2"
    prints = " ".join(FeatureStore.open(path).fingerprint for path in paths)
    assert store.manifest.created_by["merged_from"] == prints


def test_images_that_are_there_already(tmp_path: Path) -> None:
    """By content under another id, or by id: refused with both names, or left out; the first one stays."""
    first, more = made(6, seed=1), made(5, seed=2)
    more.hashes[3] = first.hashes[4]
    more.ids[0], more.hashes[0] = first.ids[2], first.hashes[2]
    more.hashes[4] = more.hashes[1]  # twice within one store is no business of a merge
    paths = [write(first, tmp_path / "a"), write(more, tmp_path / "b")]
    with pytest.raises(ConfigError, match=r"\b2\b.*folder1/2.png.*folder2/3.png.*folder1/4"):
        merge(paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = merge(paths, tmp_path / "out", duplicates="skip")
    assert "2 rows of " in done.notes[0]
    check(tmp_path / "out", joined(first, taken(more, [1, 2, 4])))
    with pytest.raises(ConfigError):
        merge([paths[0], paths[0]], tmp_path / "x", duplicates="skip")


def test_one_id_for_two_images(tmp_path: Path) -> None:
    """Never skipped; a name before the ids keeps both, unless crops were cut by id. Who could not read has the id."""
    first, more = made(4, seed=1), made(4, seed=2)
    more.ids = list(first.ids)
    paths = [
        write(part, tmp_path / name, views=CANONICAL) for name, part in (("a", first), ("b", more))
    ]
    for duplicates in ("refuse", "skip"):
        with pytest.raises(ConfigError, match=r"\b4\b"):
            merge(paths, tmp_path / "out", duplicates=duplicates)  # type: ignore[arg-type]
    merge(paths, tmp_path / "out", names=["x", "y"])
    both = joined(first, more)
    both.ids = [*(f"x/{name}" for name in first.ids), *(f"y/{name}" for name in more.ids)]
    check(tmp_path / "out", both)
    seeded = [write(part, tmp_path / f"s{i}") for i, part in enumerate((first, more))]
    with pytest.raises(ConfigError):
        merge(seeded, tmp_path / "z", names=["x", "y"])
    unread = made(2, seed=3, invalid={1: "cannot be read"})
    unread.ids[1], unread.hashes[1] = first.ids[0], 0
    path = write(unread, tmp_path / "unread", views=CANONICAL)
    merge([paths[0], path], tmp_path / "skipped", duplicates="skip")
    check(tmp_path / "skipped", joined(first, taken(unread, [0])))


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    """New names come behind the old ones; who has no labels has unknown ones; numbers alone cannot be matched."""
    first, more, bare = made(6, seed=1), made(6, seed=2), made(3, seed=3, labels=False)
    a = write(first, tmp_path / "a")
    source = more.manifest("zarr").source
    b = write(more, tmp_path / "b")
    renamed = made(6, seed=2)
    from featstore.format.ids import ids_sha256

    named = {
        **source.model_dump(),
        "class_names": ("dog", "bird"),
        "ids_sha256": ids_sha256(more.ids),
    }
    Rows.write(renamed, tmp_path / "c", "webdataset", source=named)
    merge([a, b], tmp_path / "same")
    check(tmp_path / "same", joined(first, more))
    merge([a, tmp_path / "c", write(bare, tmp_path / "d")], tmp_path / "out")
    store = sound(tmp_path / "out")
    assert store.manifest.source.class_names == ("cat", "dog", "bird")
    expected = [*first.label, *np.array([1, 2, -1])[more.label], -1, -1, -1]
    np.testing.assert_array_equal(store.labels, expected)
    Rows.write(renamed, tmp_path / "e", "webdataset", source={**named, "class_names": ()})
    with pytest.raises(ConfigError):
        merge([a, tmp_path / "e"], tmp_path / "x")


def test_rows_that_were_made_otherwise(tmp_path: Path) -> None:
    """Other views, types or scales are no rows for one store; what requantise noted, and room for items, are."""
    first, more = made(6, seed=1), made(5, seed=2)
    a, b = write(first, tmp_path / "a"), write(more, tmp_path / "b")
    for name, path in (("a", a), ("b", b)):
        requantise(path, tmp_path / f"{name}8", "int8")
        requantise(path, tmp_path / f"{name}32", "float32", allow_widening=True)
    with pytest.raises(ManifestMismatch, match=r"scales\.cls"):
        merge([tmp_path / "a8", tmp_path / "b8"], tmp_path / "x", kind="rows")
    merge([tmp_path / "a32", tmp_path / "b32"], tmp_path / "wide")
    notes = sound(tmp_path / "wide").manifest.fields["cls"].meaning
    assert notes.count("; from float16, relative error") in (1, 2)
    other = write(more, tmp_path / "v", views=CANONICAL)
    with pytest.raises(ManifestMismatch, match=r"views\.views"):
        merge([a, other], tmp_path / "x", kind="rows")
    with pytest.raises(ManifestMismatch):
        merge([a, other], tmp_path / "x")
    roomy = made(5, seed=2)
    record = roomy.fields["points"]
    encoding = record.encoding.model_copy(update={"most_items": 5000})
    roomy.fields["points"] = record.model_copy(update={"encoding": encoding})
    merge([a, write(roomy, tmp_path / "roomy", "webdataset")], tmp_path / "out")
    both = joined(first, more)
    both.fields["points"] = roomy.fields["points"]
    check(tmp_path / "out", both)


# ------------------------------------------------------------ teachers


@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_teachers_side_by_side(tmp_path: Path, container: Container) -> None:
    """The other store's files are in another order and renamed; ids and order are the first one's."""
    first = made(11, seed=1, invalid={3: "bad"})
    first.hashes[3] = 0  # not read here
    other = second(made(11, seed=1), invalid={6: "too small"})
    order = np.random.default_rng(0).permutation(11).tolist()
    mixed = taken(other, order)
    mixed.ids = [
        f"renamed/{i}" if first.invalid.get(row) is None else first.ids[row]
        for i, row in enumerate(order)
    ]
    a = write(first, tmp_path / "a", container, views=CANONICAL)
    b = write_second(mixed, tmp_path / "b", "zarr")
    with pytest.raises(ConfigError, match="--names"):
        merge([a, b], tmp_path / "out")
    done = merge([a, b], tmp_path / "out", names=["dino", "clip"])
    assert (done.kind, done.notes) == ("teachers", [])
    store = sound(tmp_path / "out")
    assert store.sample_ids == first.ids
    assert {item.row: item.reason for item in store.invalid_rows()} == {3: "bad", 6: "too small"}
    np.testing.assert_array_equal(store.labels, first.label)
    has_fields(tmp_path / "out", first, {name: f"dino_{name}" for name in first.fields})
    has_fields(tmp_path / "out", other, {"cls": "clip_cls", "logits": "clip_logits"})
    points = store.gather_ragged("dino_points", [0, 10])
    expected = [view for row in (0, 10) for view in first.values["points"][row]]
    np.testing.assert_array_equal(points.values, np.concatenate(expected))
    assert sorted(store.manifest.teachers) == ["clip", "dino"]
    assert store.manifest.fields["clip_cls"].teacher == "clip"
    stored = columns(tmp_path / "out")
    assert not stored["fields/dino_grid"][6].astype(bool).any()
    assert not stored["fields/dino_points/counts"][6].any()


def test_scales_keep_their_fields(tmp_path: Path) -> None:
    """Artefacts get the name too, and fields of eight bits read as before; a teacher that both have is one."""
    first, other = made(6, seed=1), second(made(6, seed=1))
    a, b = write(first, tmp_path / "a", views=CANONICAL), write_second(other, tmp_path / "b")
    for name, path in (("a8", a), ("b8", b)):
        requantise(path, tmp_path / name, "int8")
    merge([tmp_path / "a8", tmp_path / "b8"], tmp_path / "out", names=["x", "y"])
    store, old = sound(tmp_path / "out"), sound(tmp_path / "b8")
    assert {"x_cls.channels", "y_cls.channels"} < store.manifest.artefacts.keys()
    np.testing.assert_array_equal(store.gather("y_cls", range(6)), old.gather("cls", range(6)))
    subset(a, tmp_path / "cls", fields=["cls"])
    subset(a, tmp_path / "rest", fields=["grid", "caption"], rows=[5, 4, 3, 2, 1, 0])
    assert merge([tmp_path / "cls", tmp_path / "rest"], tmp_path / "again").kind == "teachers"
    again = sound(tmp_path / "again")
    assert sorted(again.manifest.fields) == ["caption", "cls", "grid"]
    assert list(again.manifest.teachers) == ["teacher"]
    has_fields(tmp_path / "again", first, {"cls": "cls", "grid": "grid", "caption": "caption"})


def test_images_that_are_missing(tmp_path: Path) -> None:
    """In either store: refused with their names, dropped, or kept as invalid rows that say where."""
    first, other = made(6, seed=1), second(made(8, seed=1))
    other.hashes[:6], other.label[:6] = first.hashes, first.label
    other.ids = [*first.ids, "new/6", "new/7"]
    some = [7, 5, 4, 3, 1, 0, 6]  # without 2
    mixed = taken(other, some)
    a, b = write(first, tmp_path / "a", views=CANONICAL), write_second(mixed, tmp_path / "b")
    options: Any = {"names": ["x", "y"]}
    with pytest.raises(
        ConfigError,
        match=r"\b2\b.*/a.*new/7.*new/6.*\b1\b.*/b.*folder1/2.png",
    ):
        merge([a, b], tmp_path / "out", **options)
    done = merge([a, b], tmp_path / "dropped", missing="drop", **options)
    assert len(done.notes) == 2
    store = sound(tmp_path / "dropped")
    kept = [0, 1, 3, 4, 5]
    assert store.sample_ids == [first.ids[row] for row in kept]
    np.testing.assert_array_equal(store.gather("y_cls", range(5)), other.values["cls"][kept])
    merge([a, b], tmp_path / "kept", missing="invalid", **options)
    store = sound(tmp_path / "kept")
    assert store.sample_ids == [*first.ids, "new/7", "new/6"]
    reasons = {item.row: item.reason for item in store.invalid_rows()}
    assert reasons == {2: "not in y", 6: "not in x", 7: "not in x"}
    np.testing.assert_array_equal(store.content_sha256[6:], other.hashes[[7, 6]])
    np.testing.assert_array_equal(store.labels[6:], other.label[[7, 6]])
    assert store.manifest.source.kind == "merged"
    nothing = second(made(3, seed=9))
    with pytest.raises(ManifestMismatch):
        merge([a, write_second(nothing, tmp_path / "n")], tmp_path / "x", **options)


def test_crops_belong_to_their_names(tmp_path: Path) -> None:
    """Seeded views of a renamed file show other crops: it counts as another image. In another order it does not."""
    first = made(6, seed=1)
    views = first.manifest("zarr").views.model_dump()
    other = taken(second(first), [3, 5, 4, 0, 1, 2])
    a = write(first, tmp_path / "a")
    b = write_second(other, tmp_path / "b", views=views)
    merge([a, b], tmp_path / "out", names=["x", "y"])
    has_fields(tmp_path / "out", second(first), {"cls": "y_cls"})
    other.ids[0] = "renamed"
    c = write_second(other, tmp_path / "c", views=views)
    with pytest.raises(ConfigError):
        merge([a, c], tmp_path / "x", names=["x", "y"])


def test_labels_of_several_stores(tmp_path: Path) -> None:
    """The first that knows one says it; two that differ are an error, and so is an id for two images."""
    first, other = made(6, seed=1), second(made(6, seed=1))
    first.label[:] = [0, 1, -1, -1, 0, 1]
    other.label[:] = [0, -1, 1, -1, 0, 1]
    a, b = write(first, tmp_path / "a", views=CANONICAL), write_second(other, tmp_path / "b")
    merge([a, b], tmp_path / "out", names=["x", "y"])
    np.testing.assert_array_equal(sound(tmp_path / "out").labels, [0, 1, 1, -1, 0, 1])
    other.label[5] = 0
    c = write_second(other, tmp_path / "c")
    with pytest.raises(ConfigError, match=r"\b1\b.*folder1/5.png"):
        merge([a, c], tmp_path / "x", names=["x", "y"])
    other.label[5], other.hashes[0] = 1, 77
    d = write_second(other, tmp_path / "d")
    with pytest.raises(ConfigError, match=r"\b1\b"):
        merge([a, d], tmp_path / "x", names=["x", "y"], missing="invalid")


@pytest.mark.slow
def test_any_order_any_names() -> None:
    """Whatever the other store's order and names, each image finds its own numbers; equal images find equal ones."""

    @settings(max_examples=6, deadline=None)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        count = data.draw(st.integers(1, 9))
        first = made(count, seed=1, shard_rows=data.draw(st.integers(1, 8)))
        groups = data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
        first.hashes = np.array([[group + 1] * 32 for group in groups], dtype=np.uint8)
        other = second(first, shard_rows=data.draw(st.integers(1, 8)))
        other.values["cls"] = np.zeros((count, 2, 3), np.float32) + np.array(groups)[:, None, None]
        order = data.draw(st.permutations(range(count)))
        mixed = taken(other, order)
        if data.draw(st.booleans()):
            mixed.ids = [f"other {i}" for i in range(count)]
        with in_memory() as folder:
            a = write(first, folder / "a", views=CANONICAL)
            b = write_second(mixed, folder / "b")
            merge([a, b], folder / "out", names=["x", "y"])
            store = sound(folder / "out")
            np.testing.assert_array_equal(store.gather("y_cls", range(count)), other.values["cls"])
            has_fields(folder / "out", first, {"cls": "x_cls"})

    run()


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    """One store, names that do not fit, artefacts that clash, a place inside one of them."""
    first = made(6, seed=1)
    a = write(first, tmp_path / "a")
    with pytest.raises(ConfigError):
        merge([a], tmp_path / "x")
    with pytest.raises(ConfigError, match=r"\b2\b"):
        merge([a, a], tmp_path / "x", names=["x", "x"])
    with pytest.raises(ConfigError):
        merge([a, a], a / "x")
    heads = [pack({"weight": np.full(3, value, np.float32)}) for value in (1, 2)]
    paths = []
    for seed, head in enumerate(heads):
        part = made(3, seed=10 + seed)
        part.files = lambda head=head: {"head": head}  # type: ignore[method-assign, misc]
        records = {"head": artefact_record(head, meaning="classifier")}
        paths.append(write(part, tmp_path / f"h{seed}", artefacts=records))
    with pytest.raises(ConfigError, match="'head'"):
        merge(paths, tmp_path / "x")
    merge([paths[0], a], tmp_path / "out")
    np.testing.assert_array_equal(sound(tmp_path / "out").artefact("head")["weight"], [1, 1, 1])


@pytest.mark.slow
def test_killed_before_each_shard(tmp_path: Path) -> None:
    """What is left is no store; the next run goes on and ends at the bytes of one that was not killed."""
    first, other = made(11, seed=1, invalid={3: "bad"}), second(made(11, seed=1))
    a = write(first, tmp_path / "a", views=CANONICAL)
    b = write_second(taken(other, range(10, -1, -1)), tmp_path / "b", "webdataset")
    merge([a, b], tmp_path / "straight", names=["x", "y"])
    for step in range(3):
        out = tmp_path / f"killed-{step}"

        def work(out: Path = out, step: int = step) -> None:
            die_at(writer, "publish_shard", step)
            merge([a, b], out, names=["x", "y"])

        assert wait(fork(work)) == -signal.SIGKILL
        with pytest.raises(StoreIncomplete):
            FeatureStore.open(out)
        merge([a, b], out, names=["x", "y"])
        assert snapshot(out) == snapshot(tmp_path / "straight")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says which of the two it did; flags of the other are errors."""
    first, more, other = made(6, seed=1), made(5, seed=2), second(made(6, seed=1))
    a, b = (
        write(first, tmp_path / "a", views=CANONICAL),
        write(more, tmp_path / "b", views=CANONICAL),
    )
    c = write_second(other, tmp_path / "c")
    out = tmp_path / "out"

    def run(*arguments: object, status: int = 0) -> str:
        assert main(["merge", *(str(item) for item in arguments)]) == status
        said = capsys.readouterr()
        return said.err if status else said.out

    assert "merged       rows appended\n" in run(a, b, out)
    assert json.loads(run(a, b, out, "--json"))["rows"] == 11
    assert "merged       fields side by side\n" in run("--names", "x,y", a, c, tmp_path / "wide")
    assert "--names a,c" in run(a, c, tmp_path / "x", status=2)
    assert "--missing is for --as teachers" in run(
        a, b, out, "--as", "rows", "--missing", "drop", status=2
    )
    assert "--duplicates is for" in run(
        a, b, out, "--as", "teachers", "--duplicates", "skip", status=2
    )
