"""Parts of stores and stores packed anew: every row as numpy takes it, and never half of a store to be read."""

import json
import signal
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore import FeatureStore, from_arrays
from featstore.cli.main import main
from featstore.derive.convert import convert
from featstore.derive.split import assign, split
from featstore.derive.subset import choose_rows, content_keys, subset
from featstore.errors import ConfigError, MissingSamples, ShardCorrupt, StoreIncomplete
from featstore.format.ledger import remove_entries
from featstore.format.manifest_records import Container
from featstore.reading import stored_rows as rowreader
from featstore.writing import commit as writer
from tests.featstore.backend_tests import any_rows, every_kind, points, spec, vectors
from tests.featstore.parts import (
    check,
    in_memory,
    made,
    manifest_of,
    same_columns,
    sound,
    taken,
    write,
)
from tests.featstore.processes import die_at, fork, wait
from tests.featstore.stores import snapshot


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a place: what fsync costs is not what is tested."""
    with in_memory() as folder:
        yield folder


GOLDEN = Path(__file__).parents[2] / "golden"

INVALID = {3: "empty file (0 bytes)", 7: "not a picture"}


@pytest.mark.slow
@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_rows_of_every_kind_of_record(tmp_path: Path, container: Container) -> None:
    """All types, three int8 schemes, top-k, ragged, text, in any order and cut anew: bit by bit what they were."""
    rows = every_kind()
    path = rows.write(tmp_path / "s", container)
    for name, order in (("mixed", [10, 3, 0, 7, 5]), ("back", list(range(11))[::-1])):
        subset(path, tmp_path / name, rows=order)
        taken(rows, order).check(FeatureStore.open(tmp_path / name), range(len(order)))
        store = sound(tmp_path / name)
        assert store.manifest.artefacts == FeatureStore.open(path).manifest.artefacts
        assert store.manifest.created_by["subset_from"] == FeatureStore.open(path).fingerprint
    subset(tmp_path / "back", tmp_path / "again", rows=range(10, -1, -1))
    same_columns(path, tmp_path / "again")
    assert manifest_of(tmp_path / "again").fingerprint == sound(tmp_path / "again").fingerprint


@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_invalid_rows_take_their_reasons_along(tmp_path: Path, container: Container) -> None:
    """Wherever they come to lie, with zeros and no items."""
    rows = made(11, invalid=INVALID)
    path = write(rows, tmp_path / "s", container)
    order = [7, 1, 10, 3, 0, 8]
    subset(path, tmp_path / "part", rows=order)
    check(tmp_path / "part", taken(rows, order))


@pytest.mark.slow
def test_any_rows_of_any_store() -> None:
    """Against numpy: any fields, any cutting, any order, any container."""

    @settings(max_examples=6, deadline=None)
    @given(rows=any_rows(), data=st.data())
    def run(rows: object, data: st.DataObject) -> None:
        count = rows.num_rows  # type: ignore[attr-defined]
        order = data.draw(st.permutations(range(count)))[: data.draw(st.integers(1, count))]
        container = data.draw(st.sampled_from(["zarr", "webdataset"]))
        with in_memory() as folder:
            path = rows.write(folder / "s", container)  # type: ignore[attr-defined]
            subset(path, folder / "part", rows=order)
            store = sound(folder / "part")
            part = taken(rows, order)  # type: ignore[arg-type]
            part.check(store, range(len(order)))
            assert store.sample_ids == part.ids

    run()


def test_fields_of_a_part(tmp_path: Path) -> None:
    """Other fields, their teachers and their scales are gone; an unknown one is an error."""
    rows = every_kind()
    path = rows.write(tmp_path / "s", "zarr")
    subset(path, tmp_path / "part", fields=["int8-channel", "caption"])
    store = sound(tmp_path / "part")
    assert sorted(store.manifest.fields) == ["caption", "int8-channel"]
    assert list(store.manifest.artefacts) == ["int8-channel-scales"]
    assert not store.manifest.teachers
    rows.fields = {name: rows.fields[name] for name in store.manifest.fields}
    rows.check(store, range(11))
    with pytest.raises(ConfigError):
        subset(path, tmp_path / "x", fields=["nose"])
    with pytest.raises(ConfigError):
        subset(path, tmp_path / "x", fields=[])


def test_rows_that_are_none(tmp_path: Path) -> None:
    """Twice, outside, none at all, a mask; and a store that is not whole. Nothing is left behind."""
    path = vectors().write(tmp_path / "s", "zarr")
    for rows, problem in (
        ([1, 2, 1], "rows 1 were asked for more than once"),
        ([], "expected one or more"),
        ([True, False], "flatnonzero"),
    ):
        with pytest.raises(ConfigError, match=problem):
            subset(path, tmp_path / "x", rows=rows)
    with pytest.raises(MissingSamples, match=r"\b0\b.*\b10\b"):
        subset(path, tmp_path / "x", rows=[11])
    with pytest.raises(ConfigError):
        subset(path, path / "x")
    remove_entries(path, [1])
    with pytest.raises(StoreIncomplete):
        subset(path, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_damage_is_found_on_the_way(tmp_path: Path) -> None:
    """Of the rows that are taken; the new store cannot be opened, and is finished when the old one is mended."""
    path = vectors().write(tmp_path / "s", "zarr")
    target = path / "fields/grid/c/1/0/0/0/0"
    sane = target.read_bytes()
    target.write_bytes(bytes([sane[0] ^ 1]) + sane[1:])
    subset(path, tmp_path / "others", rows=[0, 1, 10, 9])
    with pytest.raises(ShardCorrupt, match=r'\b1\b.*"fields/grid"'):
        subset(path, tmp_path / "part", rows=[10, 9, 0, 1, 2, 4])
    with pytest.raises(StoreIncomplete):
        FeatureStore.open(tmp_path / "part")
    target.write_bytes(sane)
    subset(path, tmp_path / "part", rows=[10, 9, 0, 1, 2, 4])
    taken(vectors(), [10, 9, 0, 1, 2, 4]).check(sound(tmp_path / "part"), range(6))


@pytest.mark.slow
def test_memory_and_mappings_stay_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With next to no mappings allowed and nothing held, the rows are the same."""
    rows = every_kind()
    path = rows.write(tmp_path / "s", "zarr")
    monkeypatch.setattr(rowreader, "MOST_MAPPED", 3)
    monkeypatch.setattr(rowreader, "HELD_BYTES", 0)
    order = [9, 0, 4, 1, 10]
    subset(path, tmp_path / "part", rows=order)
    taken(rows, order).check(sound(tmp_path / "part"), range(5))


def test_tars_stay_mirrored_while_rows_stay_in_order(tmp_path: Path) -> None:
    """Then a shard has the name and the keys of its tar of images, with fewer samples."""
    rows = vectors()
    rows.ids = [f"{'a' if row < 7 else 'b'}/x{row}" for row in range(11)]
    work = {"shard_rows": 7, "batch_size": 4, "shard_sizes": (7, 4), "shard_names": ("a", "b")}
    path = write(rows, tmp_path / "s", "webdataset", work=work)
    subset(path, tmp_path / "part", rows=[2, 3, 8])
    subset(path, tmp_path / "mixed", rows=[8, 2, 3])
    assert manifest_of(tmp_path / "part").work.shard_sizes == (2, 1)
    assert (tmp_path / "part/shards/b.tar").is_file()
    assert manifest_of(tmp_path / "mixed").work.shard_sizes == ()
    for name, order in (("part", [2, 3, 8]), ("mixed", [8, 2, 3])):
        taken(rows, order).check(sound(tmp_path / name), range(3))
    convert(path, tmp_path / "zarr", container="zarr")
    assert manifest_of(tmp_path / "zarr").work.shard_rows == 4
    rows.check(sound(tmp_path / "zarr"), range(11))
    convert(tmp_path / "zarr", tmp_path / "back", container="webdataset")
    same_columns(path, tmp_path / "back")


@pytest.mark.slow
@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_there_and_back_again(tmp_path: Path, container: Container) -> None:
    """The other container, then this one: every bit, every reason, and one fingerprint for all three."""
    other: Container = "webdataset" if container == "zarr" else "zarr"
    rows = made(11, invalid=INVALID)
    path = write(rows, tmp_path / "s", container)
    golden = GOLDEN / f"store_v1_{container}"
    for name, source in (("golden", golden), ("made", path)):
        there = convert(source, tmp_path / f"{name}-there", container=other)
        convert(tmp_path / f"{name}-there", tmp_path / f"{name}-back", container=container)
        assert there.container == other
        fingerprints = {
            sound(folder).fingerprint
            for folder in (tmp_path / f"{name}-there", tmp_path / f"{name}-back")
        }
        assert fingerprints == {manifest_of(source).fingerprint}
        same_columns(source, tmp_path / f"{name}-there")
        same_columns(source, tmp_path / f"{name}-back")
    check(tmp_path / "made-there", rows)


@pytest.mark.slow
def test_codecs_and_sizes_of_shards(tmp_path: Path) -> None:
    """Each codec and cutting holds the same rows; where nothing would change, or cannot, it says so."""
    rows = made(11, invalid=INVALID)
    path = write(rows, tmp_path / "s", "zarr")
    for name, options in (
        ("zstd", {"codec": "zstd"}),
        ("shuffled", {"codec": "bitshuffle", "shard_rows": 8}),
        ("large", {"shard_rows": 64}),
    ):
        found = convert(path, tmp_path / name, **options)  # type: ignore[arg-type]
        assert found.fingerprint == manifest_of(path).fingerprint
        check(tmp_path / name, rows)
    convert(tmp_path / "zstd", tmp_path / "tars", container="webdataset")
    check(tmp_path / "tars", rows)
    with pytest.raises(ConfigError):
        convert(path, tmp_path / "x", codec="raw")
    with pytest.raises(ConfigError, match="--container zarr"):
        convert(path, tmp_path / "x", container="webdataset", codec="zstd")


@pytest.mark.slow
@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_killed_before_each_shard(tmp_path: Path, container: Container) -> None:
    """What is left is no store; the next run goes on and ends at the bytes of one that was not killed."""
    path = write(made(11, invalid=INVALID), tmp_path / "s", container)
    order = [10, 3, 0, 7, 5, 1, 2, 9, 8]
    subset(path, tmp_path / "straight", rows=order)
    expected = snapshot(tmp_path / "straight")
    for step in range(3):
        out = tmp_path / f"killed-{step}"

        def work(out: Path = out, step: int = step) -> None:
            die_at(writer, "publish_shard", step)
            subset(path, out, rows=order)

        assert wait(fork(work)) == -signal.SIGKILL
        with pytest.raises(StoreIncomplete):
            FeatureStore.open(out)
        calls: list[tuple[int, int]] = []
        subset(path, out, rows=order, progress=lambda *call, calls=calls: calls.append(call))
        assert calls[-1] == (3 - step, 3 - step)
        assert snapshot(out) == expected
    sound(out)


def test_two_processes_fill_one_store(tmp_path: Path) -> None:
    """They share the shards, and both end when it is complete."""
    path = write(made(40), tmp_path / "s")
    child = fork(lambda: subset(path, tmp_path / "part", rows=range(39, 0, -2)))
    subset(path, tmp_path / "part", rows=range(39, 0, -2))
    assert wait(child) == 0
    check(tmp_path / "part", taken(made(40), range(39, 0, -2)))


# ------------------------------------------------------------ which rows


def test_choosing_rows(tmp_path: Path) -> None:
    """Patterns, ranges and so many of each class, alone and together."""
    rows = made(30, invalid={4: "bad"})
    rows.hashes[9] = rows.hashes[5]
    store = FeatureStore.open(write(rows, tmp_path / "s"))
    assert choose_rows(store) == range(30)
    assert choose_rows(store, rows=slice(-3, None)) == range(27, 30)
    found = choose_rows(store, where=["ä*", "*/0.png"], rows=slice(20))
    assert list(found) == [row for row in range(20) if row % 3 or row == 0]
    for seed in (0, 1):
        few = np.asarray(choose_rows(store, labelled_per_class=3, seed=seed))
        assert np.bincount(rows.label[few]).tolist() == [3, 3]
        assert len(np.unique(rows.hashes[few], axis=0)) == 6
        assert 4 not in few
        more = np.asarray(choose_rows(store, labelled_per_class=4, seed=seed))
        assert set(few) < set(more)
    assert set(few) != set(np.asarray(choose_rows(store, labelled_per_class=3, seed=0)))
    with pytest.raises(ConfigError):
        choose_rows(store, where=["nothing"])
    with pytest.raises(ConfigError, match=r"'cat'.*\d+.*\b29\b"):
        choose_rows(store, labelled_per_class=29)


def test_splitting_by_content(tmp_path: Path) -> None:
    """Equal images never part, every row is somewhere, and neither order nor names nor further rows matter."""
    rows = made(200, shard_rows=64)
    rows.hashes[100:150] = rows.hashes[50:100]
    rows.hashes[7] = 0  # not read
    store = FeatureStore.open(write(rows, tmp_path / "s"))
    order = np.random.default_rng(0).permutation(200)[:150]
    subset(store.path, tmp_path / "other", rows=order)
    other = FeatureStore.open(tmp_path / "other")
    shares = [0.7, 0.2, 0.1]
    parts = assign(store, shares, seed=5, by_class=False)
    np.testing.assert_array_equal(assign(other, shares, seed=5, by_class=False), parts[order])
    assert (assign(store, shares, seed=6, by_class=False) != parts).any()
    for by_class in (False, True):
        found = assign(store, shares, seed=5, by_class=by_class)
        np.testing.assert_array_equal(found[100:150], found[50:100])
        assert abs(np.bincount(found, minlength=3) / 200 - shares).max() < 0.1
    for label in (-1, 0, 1):
        inside = found[rows.label == label]
        # Exact but for the images that are there several times.
        assert abs(np.bincount(inside, minlength=3) - np.array(shares) * len(inside)).max() < 10
    assert len(np.unique(content_keys(store, 0))) == 150


def test_parts_of_a_split(tmp_path: Path) -> None:
    """Stores of their own that say what they are; shares that do not add up and empty parts are errors."""
    rows = made(40, shard_rows=16)
    rows.label[:] = np.arange(40) % 2
    path = write(rows, tmp_path / "s")
    outs = {tmp_path / "train": 0.75, tmp_path / "test": 0.25}
    assert [item.num_rows for item in split(path, outs, by_class=True, seed=3)] == [30, 10]
    ids: set[str] = set()
    for out in outs:
        store = sound(out)
        assert len(set(np.bincount(store.labels))) == 1
        at = [rows.ids.index(name) for name in store.sample_ids]
        check(out, taken(rows, at))
        ids |= set(store.sample_ids)
    assert ids == set(rows.ids)
    assert store.manifest.created_by["split"] == "0.25 of 0.75, 0.25, seed 3, by class"
    for shares, problem in (
        ([0.5, 0.4], "add up to 1"),
        ([1.0], "two or more"),
        ([1.5, -0.5], "above 0"),
    ):
        with pytest.raises(ConfigError, match=problem):
            split(path, {tmp_path / str(i): share for i, share in enumerate(shares)})
    with pytest.raises(ConfigError, match=r"\b40\b"):
        split(path, {tmp_path / "0": 0.999999, tmp_path / "1": 0.000001})
    assert not (tmp_path / "0").exists()


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """subset, split and convert: text, JSON, and what is wrong with status 2."""
    path = write(made(20), tmp_path / "s", "zarr")

    def run(*arguments: object) -> str:
        assert main([str(item) for item in arguments]) == 0
        return capsys.readouterr().out

    out = tmp_path / "part"
    arguments = ("subset", path, out, "--fields", "cls,caption", "--where", "ä*", "--rows", ":12")
    assert f"{out}: complete, 8 rows of caption, cls" in run(*arguments)
    assert json.loads(run(*arguments, "--json"))["rows"] == 8
    said = manifest_of(out).created_by["subset_of"]
    assert said == "--where 'ä*' --rows :12 --fields cls,caption"
    few = tmp_path / "few"
    run("subset", path, few, "--labelled-per-class", 2, "--seed", 7)
    assert manifest_of(few).created_by["subset_of"] == "--labelled-per-class 2 --seed 7"
    parts = [f"{tmp_path / name}={share}" for name, share in (("a", 0.5), ("b", 0.5))]
    assert "rows (" in run("split", path, *parts)
    assert len(json.loads(run("split", path, *parts, "--json"))["parts"]) == 2
    tars = tmp_path / "tars"
    assert "5 webdataset shards, fingerprint" in run(
        "convert", path, tars, "--container", "webdataset"
    )
    arguments = ("convert", tars, tmp_path / "back", "--container", "zarr", "--codec", "zstd")  # type: ignore[assignment]
    assert json.loads(run(*arguments, "--json"))["fingerprint"] == manifest_of(path).fingerprint
    assert main(["convert", str(path), str(path), "--codec", "zstd"]) == 2
    assert "into itself" in capsys.readouterr().err


def test_columns_of_another_writer(tmp_path: Path) -> None:
    """Room that a container reserves for ragged items and does not fill is no item."""
    rows = made(6)
    rows.values["points"] = points(6, 2, seed=5)
    path = write(rows, tmp_path / "s", "zarr")
    convert(path, tmp_path / "zstd", codec="zstd")
    subset(tmp_path / "zstd", tmp_path / "part", rows=[5, 0])
    check(tmp_path / "part", taken(rows, [5, 0]))
    assert spec("text", ()).codec == "raw"


def test_the_ways_to_take_a_part_agree(tmp_path: Path) -> None:
    """Fields of rows, and rows of fields."""
    path = write(made(9), tmp_path / "s")
    for first, second in combinations(({"fields": ["cls"]}, {"rows": [4, 2]}), 2):
        subset(path, tmp_path / "a", **first)  # type: ignore[arg-type]
        subset(tmp_path / "a", tmp_path / "ab", **second)  # type: ignore[arg-type]
        subset(path, tmp_path / "both", **first, **second)  # type: ignore[arg-type]
    same_columns(tmp_path / "ab", tmp_path / "both")
    assert manifest_of(tmp_path / "ab").fingerprint == manifest_of(tmp_path / "both").fingerprint


def test_conditions_on_a_field_of_one_number(tmp_path: Path) -> None:
    """All must hold, together with one pattern; nothing but the field is read; invalid rows never hold."""
    ids = [f"{'a' if row < 4 else 'b'}/{row}" for row in range(8)]
    values = {
        "confidence": np.arange(8, dtype=np.float32) / 10,
        "argmax": (np.arange(8) % 2).astype(np.int32),
        "cls": np.ones((8, 3), np.float32),
    }
    store = from_arrays(tmp_path / "s", values, ids, teacher=None)
    for where, rows in (
        (["confidence > .45"], [5, 6, 7]),
        (["confidence>=0.3", "argmax == 1", "a/*"], [3]),
        (["argmax != 1", "b/*"], [4, 6]),
    ):
        assert choose_rows(store, where=where).tolist() == rows  # type: ignore[union-attr]
    for where, named in (
        (["cls > 1"], "confidence"),
        (["nothing < 1"], "argmax"),
        (["argmax < x"], "x"),
        (["confidence > 2"], "confidence > 2"),
    ):
        with pytest.raises(ConfigError, match=named):
            choose_rows(store, where=where)
