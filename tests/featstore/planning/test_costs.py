"""The plan: what it promises is what lands on disk, and a disk that is too small is found before anything is made."""

import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.errors import ManifestMismatch, StoreWriteError
from featstore.extraction import dry_run
from featstore.extraction.config import StoreConfig
from featstore.extraction.teachers import Teacher
from featstore.files import disk as measure
from featstore.files.disk import measure_disk, measure_rate
from featstore.format.manifest_records import FieldRecord
from featstore.planning.costs import Plan, Rates, make_plan, shard_rows, stored_bytes
from featstore.sources import open_source
from tests.featstore import golden
from tests.featstore.formula import FormulaTeacher, describe, make_config, run
from tests.featstore.stores import field, make_columns, make_manifest, write_store


def plan_of(path: Path, manifest: Any, *, pending: int, rates: Rates | None = None) -> Plan:
    return make_plan(manifest, store=path, pending=pending, rates=rates, processes=1)


@pytest.mark.parametrize(("num_rows", "rows"), [(16, 8), (20, 8), (3, 8)])
def test_the_plan_is_what_lands_on_disk(tmp_path: Path, num_rows: int, rows: int) -> None:
    """Planned bytes are the payload of the field objects, planned files are the files of the store.

    Payload: without the index of each shard object, and without the zeros that fill the last inner chunk.
    """
    manifest = make_manifest(num_rows=num_rows, shard_rows=rows)
    planned = plan_of(tmp_path / "s", manifest, pending=manifest.num_shards)
    path = write_store(tmp_path / "s", manifest, make_columns(manifest))
    files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    assert planned.files == len(files)
    for name, planned_bytes in planned.field_bytes.items():
        objects = [file for file in (path / "fields" / name / "c").rglob("*") if file.is_file()]
        one_row = manifest.fields[name].row_bytes(len(manifest.views))
        assert planned_bytes == one_row * num_rows
        # These shards are one inner chunk: 16 bytes of index and 4 of its checksum.
        on_disk = sum(file.stat().st_size - 20 for file in objects)
        assert on_disk == one_row * rows * manifest.num_shards
    assert planned.bytes_left == sum(planned.field_bytes.values())
    assert planned.rows_left == num_rows


@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_every_kind_of_field_is_planned_for(tmp_path: Path, container: Any) -> None:
    """What is planned is what is stored: codes and scales of int8, k of top-k, the items of full ragged rows."""
    manifest = golden.make_manifest(container)
    planned = plan_of(tmp_path / "s", manifest, pending=manifest.num_shards)
    path = golden.write(tmp_path / "s", container)
    files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    assert planned.files == len(files)
    one_row = {name: size // golden.ROWS for name, size in planned.field_bytes.items()}
    assert one_row["cls"] == 2 * 6 * 2
    assert one_row["codes_row"] == one_row["codes_both"] == 2 * (4 + 4)
    assert one_row["codes_channel"] == 2 * 4
    assert one_row["logits"] == 2 * 3 * (2 + 2)
    assert one_row["points"] == 40 * 3 * 2 + 2 * 2 * 8
    assert one_row["caption"] == 0
    assert one_row["ids"] == 2 * 8
    assert planned.rows_left == golden.ROWS
    codecs = planned.codec_bytes
    assert not codecs if container == "webdataset" else codecs["raw"] > codecs["zstd"]
    assert any(line.startswith("codecs") for line in planned.lines()) == (container == "zarr")


def test_shards_are_cut_by_what_is_stored() -> None:
    """A field that is read back as float32 and stored in one byte gets four times the rows."""
    wide = {"x": golden.FIELDS["codes_channel"].model_copy(update={"shape": (10_000,)})}
    rows = shard_rows(wide, num_views=1, most_rows=10**6, most_mb=10)
    assert rows == 512
    assert stored_bytes("x", wide["x"], 1) == 10_000
    text = {"caption": golden.FIELDS["caption"]}
    assert shard_rows(text, num_views=1, most_rows=100, most_mb=1) == 64


def test_only_what_is_left_is_reckoned(tmp_path: Path) -> None:
    """A store that is half there needs half the space."""
    manifest = make_manifest(num_rows=32, shard_rows=8)
    whole = plan_of(tmp_path, manifest, pending=4)
    half = plan_of(tmp_path, manifest, pending=2)
    none = plan_of(tmp_path, manifest, pending=0)
    assert (whole.rows_left, half.rows_left, none.rows_left) == (32, 16, 0)
    assert whole.bytes_left == 2 * half.bytes_left > none.bytes_left == 0
    assert "0 still to do" in none.lines()[0]


@given(
    st.integers(1, 10_000),
    st.integers(1, 500),
    st.integers(1, 5),
    st.lists(st.integers(1, 2_000_000), min_size=1, max_size=3),
)
def test_rows_of_a_shard(most_rows: int, most_mb: int, views: int, widths: list[int]) -> None:
    """A power of two within both limits, the largest one; at least one row."""
    fields: dict[str, FieldRecord] = {f"f{i}": field(width) for i, width in enumerate(widths)}
    rows = shard_rows(fields, num_views=views, most_rows=most_rows, most_mb=most_mb)
    widest = max(widths) * 2 * views
    assert rows & (rows - 1) == 0
    assert rows == 1 or (rows <= most_rows and rows * widest <= most_mb * 10**6)
    assert 2 * rows > most_rows or 2 * rows * widest > most_mb * 10**6


def test_a_small_disk_is_found_before_anything_is_made(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The message names need and free space and what to do; nothing is created, and nothing was measured."""
    monkeypatch.setattr(dry_run, "measure_rates", lambda *_, **__: pytest.fail("measured first"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(measure.shutil, "disk_usage", lambda path: usage)  # type: ignore[attr-defined]
    config = make_config(image_folder, tmp_path / "a" / "s")
    with pytest.raises(StoreWriteError, match=r"1.87.*\b1\b.*--store.fields"):
        plan_run(config)
    assert not list(tmp_path.iterdir())


def plan_run(config: Any, processes: int = 1) -> Plan:
    """``dry_run.plan_run`` with the formula teacher."""
    source = open_source(config.source)
    return dry_run.plan_run(
        config,
        manifest=describe(config),
        source=source,
        teacher=cast(Teacher, FormulaTeacher(config.store.dtype)),
        processes=processes,
    )


def test_planning_writes_nothing(image_folder: Path, tmp_path: Path) -> None:
    """A plan with measurements leaves no file, not even next to where the store would go."""
    config = make_config(image_folder, tmp_path / "s")
    planned = plan_run(config)
    assert planned.rates is not None
    assert min(planned.images_per_second.values()) > 0
    assert not list(tmp_path.iterdir())


def test_planning_of_a_finished_store_measures_nothing(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing to do: no seconds are spent on timing the teacher."""
    config = make_config(image_folder, tmp_path / "s")
    run(config)
    monkeypatch.setattr(dry_run, "measure_rates", lambda *_, **__: pytest.fail("measured"))
    planned = plan_run(config)
    assert planned.rows_left == 0
    assert not any(line.startswith("time") for line in planned.lines())


def test_planning_checks_the_contract(image_folder: Path, tmp_path: Path) -> None:
    """Other settings than the store's are an error already in the plan."""
    run(make_config(image_folder, tmp_path / "s"))
    with pytest.raises(ManifestMismatch, match=r"work.batch_size.*\b2\b.*\b4\b"):
        plan_run(make_config(image_folder, tmp_path / "s", batch_size=4))


@pytest.mark.parametrize(
    ("rates", "slowest"),
    [
        (Rates(teacher=10, decode=500, disk=10**9), "teacher"),
        (Rates(teacher=5000, decode=50, disk=10**9), "decoding"),
        (Rates(teacher=5000, decode=5000, disk=1000), "disk"),
    ],
)
def test_the_bottleneck_is_the_slowest_resource(tmp_path: Path, rates: Rates, slowest: str) -> None:
    """The slowest of teacher, decoding and disk decides the time, and the plan names it."""
    manifest = make_manifest(num_rows=1000, shard_rows=100)
    planned = plan_of(tmp_path, manifest, pending=10, rates=rates)
    assert planned.bottleneck == slowest
    assert planned.seconds == pytest.approx(1000 / planned.images_per_second[slowest])
    assert slowest in planned.lines()[-1]


def test_more_processes_share_the_disk(tmp_path: Path) -> None:
    """Teachers and loaders come with each process, the disk does not."""
    rates = Rates(teacher=10, decode=500, disk=10**6)
    one = plan_of(tmp_path, make_manifest(), pending=3, rates=rates).images_per_second
    planned = make_plan(
        make_manifest(), store=tmp_path, pending=3, rates=rates, processes=4
    ).images_per_second
    assert planned["teacher"] == 4 * one["teacher"]
    assert planned["decoding"] == 4 * one["decoding"]
    assert planned["disk"] == one["disk"]


def test_wide_fields_get_fewer_rows(image_folder: Path, tmp_path: Path) -> None:
    """--store.shard_mb bounds a shard: 2 views of 12 float16 numbers are 48 bytes, 1 MB holds 16,384 rows of them."""
    store = StoreConfig(path=str(tmp_path), fields=["grid2"], shard_rows=10**6, shard_mb=1)
    assert describe(make_config(image_folder, tmp_path, store=store)).work.shard_rows == 16384


def test_measuring(tmp_path: Path) -> None:
    """Rates are positive, the disk probe leaves nothing behind, and a folder that is no folder is our error."""
    assert measure_disk(tmp_path / "a" / "b", size=2**20) > 0
    assert not list(tmp_path.iterdir())
    calls = []
    assert measure_rate(lambda: calls.append(1) or 8, seconds=0.0) > 0  # type: ignore[func-returns-value, redundant-expr]
    assert len(calls) == 2
    assert measure_rate(lambda: calls.append(1) or 8, seconds=5, most=3) > 0  # type: ignore[func-returns-value, redundant-expr]
    assert len(calls) == 6


def test_a_folder_that_cannot_be_written_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A refused probe is one sentence with the folder."""

    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(measure.tempfile, "TemporaryFile", refuse)  # type: ignore[attr-defined]
    with pytest.raises(StoreWriteError, match=r"--store.path"):
        measure_disk(tmp_path)
