"""Verify finds what is wrong and names it; repair takes back exactly the damaged shards, and the bytes come again."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore import FeatureStore
from featstore.containers import make_backend
from featstore.containers.metadata import difference, metadata_files
from featstore.errors import ConfigError, StoreBusy, StoreError, StoreIncomplete
from featstore.extraction import teachers
from featstore.files.locks import shared
from featstore.format.artefacts import artefact_path, artefact_record, pack
from featstore.format.checksummed_json import seal, unseal
from featstore.format.ledger import (
    complete_path,
    entry_path,
    mark_complete,
    pending_shards,
    read_entry,
    remove_entries,
)
from featstore.format.manifest import read_manifest, write_manifest
from featstore.maintenance import verify as module
from featstore.maintenance import verify_shard as examine
from featstore.maintenance.verify import VerifyReport, repair, verify
from featstore.maintenance.verify_shard import Damage
from featstore.writing.commit import commit
from featstore.writing.shard import Shard
from pipelines import extract as script
from tests.featstore import formula, golden
from tests.featstore.stores import make_columns, make_manifest, snapshot, write_store

OBJECT = "fields/cls/c/1/0/0"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 rows in two shards, a field of every kind, one invalid row."""
    return golden.write(tmp_path_factory.mktemp("sound") / "s", "zarr")


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(sound, tmp_path / "s")


def only(report: VerifyReport) -> Damage:
    """The one damage of a report."""
    assert len(report.damages) == 1, [str(damage) for damage in report.damages]
    return report.damages[0]


def flip(file: Path, place: int = 0) -> None:
    """Flip one bit."""
    data = bytearray(file.read_bytes())
    data[place] ^= 0x10
    file.write_bytes(data)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_a_sound_store_is_sound(tmp_path: Path, container: Any, workers: int) -> None:
    """Every block of every object was compared, nothing is damaged, foreign or left over; looking changes nothing."""
    path = golden.write(tmp_path / "s", container)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    seen: list[tuple[int, int]] = []
    report = verify(path, workers=workers, progress=lambda *state: seen.append(state))
    assert report.damages == []
    assert (report.sound, report.complete, report.marked) == (True, True, True)
    assert (report.foreign, report.leftovers) == ([], [])
    entries = [read_entry(path, shard) for shard in range(report.num_shards)]
    objects = [item for entry in entries for item in entry.objects.values()]
    assert report.bytes == sum(item.bytes for item in objects)
    assert report.blocks == sum(item.num_blocks for item in objects)
    assert seen == [(1, 2), (2, 2)]
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_flipped_bit_is_named_by_rows(tmp_path: Path) -> None:
    """Shard, column, file, and the very rows that share the checksum; neighbours in one line."""
    manifest = make_manifest(num_rows=3000, shard_rows=2048, fields={"cls": golden.FIELDS["cls"]})
    manifest = manifest.model_copy(
        update={"fields": {"cls": manifest.fields["cls"].model_copy(update={"shape": (256,)})}}
    )
    path = write_store(tmp_path / "s", manifest, make_columns(manifest))
    file = path / "fields/cls/c/0/0/0"
    flip(file, 600 * 1024 + 3)
    damage = only(verify(path))
    # 2 views of 256 float16 are 1,024 bytes a row, so 256 rows share a checksum.
    assert (damage.shard, damage.column, damage.rows) == (0, "fields/cls", range(512, 768))
    assert damage.object == "fields/cls/c/0/0/0"
    assert "--repair" in str(damage)
    assert str(damage).startswith(
        'shard 0 (rows 512-767), column "fields/cls": fields/cls/c/0/0/0: crc32c'
    )
    flip(file, 800 * 1024)
    damage = only(verify(path))
    assert damage.rows == range(512, 1024)
    assert "and 1 more blocks" in damage.problem


def _truncate(path: Path) -> None:
    (path / OBJECT).write_bytes((path / OBJECT).read_bytes()[:10])


def _lengthen(path: Path) -> None:
    (path / OBJECT).write_bytes((path / OBJECT).read_bytes() + b"x")


def _delete(path: Path) -> None:
    (path / OBJECT).unlink()


def _zero(path: Path) -> None:
    (path / OBJECT).write_bytes(bytes((path / OBJECT).stat().st_size))


def _swap(path: Path) -> None:
    """The same bytes in another shard are damage of both."""
    other = path / "fields/cls/c/0/0/0"
    ours, theirs = (path / OBJECT).read_bytes(), other.read_bytes()
    (path / OBJECT).write_bytes(theirs)
    other.write_bytes(ours)


def _other_store(path: Path) -> None:
    """An object of the same size from another store."""
    (path / OBJECT).write_bytes((path / "fields/packed/c/1/0/0").read_bytes())


def _folder(path: Path) -> None:
    (path / OBJECT).unlink()
    (path / OBJECT).mkdir()


def _entry_gone(path: Path) -> None:
    entry_path(path, 1).unlink()


def _entry_of_another(path: Path) -> None:
    shutil.copy(entry_path(path, 0), entry_path(path, 1))


def _entry_flipped(path: Path) -> None:
    flip(entry_path(path, 1), 30)


SHARD_DAMAGES: list[tuple[Callable[[Path], None], str, list[int]]] = [
    (_truncate, "10 bytes, expected", [1]),
    (_lengthen, "bytes, expected", [1]),
    (_delete, "missing", [1]),
    (_zero, "crc32c", [1]),
    (_swap, "crc32c|bytes, expected", [0, 1]),
    (_other_store, "bytes, expected|crc32c", [1]),
    (_folder, "missing", [1]),
    (_entry_gone, "missing, so shard 1 does not exist", [1]),
    (_entry_of_another, "shard 0, expected 1", [1]),
    (_entry_flipped, "not a ledger entry", [1]),
]


@pytest.mark.parametrize(
    ("damage", "problem", "shards"), SHARD_DAMAGES, ids=lambda item: getattr(item, "__name__", "")
)
def test_damage_of_shards_is_found_and_taken_back(
    path: Path, damage: Callable[[Path], None], problem: str, shards: list[int]
) -> None:
    """Whatever happens to the files of a shard is found; repair takes back exactly those shards and no other."""
    damage(path)
    report = verify(path)
    assert report.damaged_shards == shards
    assert {item.kind for item in report.damages} == {"shard"}
    assert all(re.search(problem, item.problem) for item in report.damages), report.damages
    assert all(item.object for item in report.damages)
    kept = {
        file: file.read_bytes() for file in path.rglob("*") if file.is_file() and "/c/" in str(file)
    }
    said: list[str] = []
    assert repair(path, say=said.append) == shards
    assert said == [str(item) for item in report.damages]
    assert pending_shards(path, 2) == shards
    # Nothing but ledger entries went away.
    assert {f: f.read_bytes() for f in path.rglob("*") if f.is_file() and "/c/" in str(f)} == kept
    with pytest.raises(StoreIncomplete):
        FeatureStore.open(path)
    manifest = read_manifest(path)
    after = verify(path)
    assert after.sound
    assert after.missing == shards
    # As the next run of extract.py does it.
    if (path / OBJECT).is_dir():
        (path / OBJECT).rmdir()
    for shard in shards:
        reasons = ["x" if row == golden.INVALID else None for row in manifest.shard_range(shard)]
        commit(
            make_backend(path, manifest),
            Shard(shard, golden.columns_of_shard(manifest, shard), reasons, {}),
        )
    mark_complete(path, [read_entry(path, shard) for shard in range(2)])
    report = verify(path)
    assert report.sound
    assert report.complete


def test_metadata_of_the_container_is_compared_and_rewritten(path: Path, sound: Path) -> None:
    """What stock readers need is checked, though ours does not need it; repair writes it again."""
    names = ["zarr.json", "fields/cls/zarr.json", "valid/zarr.json", "fields/zarr.json"]
    text = (path / names[1]).read_text()
    (path / names[1]).write_text(text.replace('"float16"', '"float32"'))
    (path / names[0]).write_bytes(b"{}")
    (path / names[2]).unlink()
    (path / names[3]).write_text((path / names[3]).read_text().replace("\n", " ", 1))
    report = verify(path)
    assert {item.object for item in report.damages} == set(names)
    assert {item.kind for item in report.damages} == {"metadata"}
    problems = {item.object: item.problem for item in report.damages}
    assert problems[names[1]] == "data_type is 'float32', the manifest asks for 'float16'"
    assert "cannot be read" in problems[names[2]]
    assert "a byte was changed" in problems[names[3]]
    assert repair(path) == []
    for name in names:
        assert (path / name).read_bytes() == (sound / name).read_bytes()
    assert verify(path).sound
    assert FeatureStore.open(path).complete


def test_another_spelling_of_metadata_is_not_damage() -> None:
    """Libraries differ in white space, order and empty keys; what they say is compared."""
    ours = json.dumps({"a": 1, "attributes": {}, "codecs": [{"name": "crc32c"}]}).encode()
    for theirs in (
        {"a": 1, "codecs": ["crc32c"]},
        {"codecs": [{"name": "crc32c", "configuration": {}}], "a": 1.0, "dimension_names": None},
    ):
        for options in ({}, {"indent": 2}, {"separators": (",", ":")}):
            assert difference(json.dumps(theirs, **options).encode(), ours) == ""  # type: ignore[arg-type]
    assert "a is 2" in difference(b'{"a": 2, "codecs": ["crc32c"]}', ours)
    assert "not readable as JSON" in difference(b"{", ours)


def test_the_mark_of_a_complete_store(path: Path) -> None:
    """A damaged mark is written again; a missing one is said and is no damage."""
    mark = complete_path(path)
    before = mark.read_bytes()
    mark.write_bytes(b"{")
    assert only(verify(path)).kind == "mark"
    assert repair(path) == []
    assert mark.read_bytes() == before
    mark.unlink()
    report = verify(path)
    assert (report.sound, report.complete, report.marked) == (True, True, False)
    assert repair(path) == []
    assert mark.read_bytes() == before
    mark.write_bytes(b"{")
    entry_path(path, 0).unlink()
    assert repair(path) == []
    assert not mark.exists()
    assert pending_shards(path, 2) == [0]


def test_an_incomplete_store(path: Path) -> None:
    """What is not there yet is missing, not damaged; what is there is checked all the same."""
    remove_entries(path, [0])
    report = verify(path)
    assert (report.sound, report.complete, report.missing, report.shards) == (True, False, [0], 1)
    flip(path / OBJECT)
    assert verify(path).damaged_shards == [1]


def test_what_only_a_copy_can_replace(path: Path) -> None:
    """A damaged artefact or ledger is an error of repair, and nothing was changed."""
    flip(path / "artefacts/prompts.safetensors", -1)
    flip(path / OBJECT)
    assert {item.kind for item in verify(path).damages} == {"artefact", "shard"}
    with pytest.raises(StoreError, match=r"\b1\b.*artefacts/prompts"):
        repair(path)
    assert pending_shards(path, 2) == []


def test_a_manifest_of_another_store(path: Path) -> None:
    """One that fits in every number is still refused: the store was completed beside another."""
    manifest = read_manifest(path)
    write_manifest(path, manifest.model_copy(update={"uuid": "another"}))
    assert only(verify(path)).kind == "manifest"
    with pytest.raises(StoreError, match=r"manifest\.json"):
        FeatureStore.open(path)


def test_a_shard_of_another_store_with_its_entry(path: Path, tmp_path: Path) -> None:
    """Checksums agree, rows and ids too; only the sum over all entries tells."""
    entry = entry_path(path, 1)
    values = unseal(entry.read_bytes())
    entry.write_bytes(seal({**values, "seconds": {"load": 99.0}}))
    damage = only(verify(path))
    assert (damage.kind, damage.object) == ("ledger", "ledger/complete.json")
    assert "not those that the store was completed with" in damage.problem


def test_entries_beyond_the_manifest(path: Path) -> None:
    """A stray entry is named, with the file."""
    shutil.copy(entry_path(path, 1), entry_path(path, 7))
    damage = only(verify(path))
    assert damage.object == "ledger/00000007.json"
    assert "beyond the 2 shards" in damage.problem


def test_foreign_files_are_named_and_no_damage(path: Path) -> None:
    """Other people's files, leftovers of a kill, locks and leases: each is told from the others."""
    for name in ("notes.txt", "ledger/notes.json", "fields/cls/c/9/0/0", "shards/x.tar"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x")
    for name in (
        ".partial-abc",
        "ledger/.partial-x",
        ".lock",
        ".publish",
        "README.md",
        "leases/00000000.json",
    ):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"x")
    report = verify(path)
    assert report.sound
    assert report.foreign == [
        "fields/cls/c/9/0/0",
        "ledger/notes.json",
        "notes.txt",
        "shards/x.tar",
    ]
    assert report.leftovers == [".partial-abc", "ledger/.partial-x"]


def rewrite(
    path: Path, shard: int, column: str, change: Callable[[Any], None], **entry: Any
) -> None:
    """Commit a shard again with one column changed: what a writer with a mistake would do."""
    manifest = read_manifest(path)
    columns = golden.columns_of_shard(manifest, shard)
    change(columns[column])
    remove_entries(path, [shard])
    reasons = entry.get("reasons") or [
        "empty file (0 bytes)" if row == golden.INVALID else None
        for row in manifest.shard_range(shard)
    ]
    commit(make_backend(path, manifest), Shard(shard, columns, reasons, {}))
    mark_complete(path, [read_entry(path, number) for number in range(2)])


def put(*at: Any, value: Any) -> Callable[[Any], None]:
    """Set one number of a column."""

    def change(values: Any) -> None:
        values[at] = value

    return change


@pytest.mark.parametrize(
    ("column", "change", "problem", "rows"),
    [
        ("fields/cls", put(2, 1, 3, value=np.nan), "1 rows: not finite", range(2, 3)),
        ("fields/grid2", put(slice(2, 4), 0, value=np.inf), "2 rows: not finite", range(2, 4)),
        ("fields/bits", put(7, 0, 0, value=-np.inf), "1 rows: not finite", range(7, 8)),
        (
            "fields/packed",
            put(5, 0, 0, value=1),
            "not zero, though the row is invalid",
            range(5, 6),
        ),
        (
            "fields/mask",
            put(5, 0, 0, value=True),
            "not zero, though the row is invalid",
            range(5, 6),
        ),
        ("fields/codes_row/codes", put(5, 0, 0, value=1), "not zero", range(5, 6)),
        ("fields/codes_row/scale", put(1, 0, value=np.nan), "not finite", range(1, 2)),
        ("fields/codes_both/scale", put(1, 0, value=-1), "negative scales", range(1, 2)),
        ("fields/logits/indices", put(1, 0, 0, value=10), "beyond the 10 classes", range(1, 2)),
        (
            "fields/logits/values",
            put(0, 0, slice(None), value=[1, 2, 3]),
            "not sorted",
            range(0, 1),
        ),
        ("fields/points/ranges", put(1, 0, 1, value=99), "overlap|beyond", None),
        ("fields/points/ranges", put(1, 0, 0, value=9), "end before they begin", range(1, 2)),
        ("fields/points/ranges", put(5, 1, 1, value=12), "though the row is invalid|overlap", None),
        ("fields/points/values", put(0, 0, value=np.nan), "1 items that are not finite", range(8)),
        ("label", put(3, value=2), "labels outside of -1 to 1", range(3, 4)),
        ("label", put(3, value=-2), "labels outside of -1 to 1", range(3, 4)),
        ("valid", put(4, value=False), "other invalid rows", range(4, 5)),
    ],
)
def test_numbers_that_a_writer_got_wrong(
    path: Path, column: str, change: Callable[[Any], None], problem: str, rows: range | None
) -> None:
    """Checksums agree and the numbers are still no features: shard, column and rows are named."""
    rewrite(path, 0, column, change)
    found = [item for item in verify(path).damages if item.column == column]
    assert found, verify(path).damages
    assert any(re.search(problem, item.problem) for item in found), found
    assert rows is None or rows in [item.rows for item in found]
    assert verify(path).damaged_shards == [0]


def test_sample_ids(path: Path) -> None:
    """Ids are unique, none is empty, and together they are those of the source."""
    rewrite(path, 1, "sample_id", put(0, value=golden.IDS[2]))
    problems = [item.problem for item in verify(path).damages]
    assert any(
        f"row 8: sample id {golden.IDS[2]!r} is that of row 2 too" in item for item in problems
    )
    assert any("source.ids_sha256" in item for item in problems)
    rewrite(path, 1, "sample_id", put(0, value=""))
    assert any("without a sample id" in item.problem for item in verify(path).damages)


def test_entries_that_do_not_fit(path: Path) -> None:
    """Objects that no shard has, or that are left out, and rows of another shard."""
    entry = entry_path(path, 1)
    values = unseal(entry.read_bytes())
    objects = dict(values["objects"])
    objects["../outside"] = objects.pop("valid/c/1")
    entry.write_bytes(seal({**values, "objects": objects}))
    problems = [item.problem for item in verify(path).damages if item.shard == 1]
    assert "the entry lacks valid/c/1" in problems
    assert "the entry lists what no shard has: ../outside" in problems
    entry.write_bytes(seal({**values, "rows": [8, 12]}))
    assert only(verify(path)).problem == "rows 8-11, expected 8-12"


def test_scales_of_channels(path: Path) -> None:
    """An artefact of scales is looked into: sizes must fit the field, scales be positive."""
    manifest = read_manifest(path)
    for scale, problem in (
        (np.zeros(4, "f4"), "must be positive"),
        (np.ones(3, "f4"), "for 4 channels"),
    ):
        data = pack({"scale": scale, "offset": np.zeros(len(scale), "f4")})
        artefact_path(path, "channels").write_bytes(data)
        record = artefact_record(data, meaning="x")
        changed = {**manifest.artefacts, "channels": record}
        write_manifest(path, manifest.model_copy(update={"artefacts": changed}))
        complete_path(path).unlink(missing_ok=True)
        damage = only(verify(path))
        assert (damage.kind, damage.object) == ("artefact", "artefacts/channels.safetensors")
        assert problem in damage.problem


def test_a_sample_finds_damage_in_proportion(path: Path) -> None:
    """Drawn over shards and objects alike, by a seed; a sound sample says how sure it is."""
    report = verify(path, sample=50, seed=1)
    assert (report.sound, report.sampled, report.blocks) == (True, True, 50)
    assert 0.05 < report.likely_share < 0.06
    flip(path / OBJECT)
    found = [verify(path, sample=30, seed=seed).damaged_shards for seed in range(20)]
    assert [1] in found
    assert [] in found
    assert found == [verify(path, sample=30, seed=seed).damaged_shards for seed in range(20)]
    entry_path(path, 0).write_bytes(b"{")
    assert 0 in verify(path, sample=20).damaged_shards
    remove_entries(path, [0, 1])
    assert verify(path, sample=5).missing == [0, 1]


def test_the_cost_of_a_sample_does_not_grow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a complete store it lists no folder, and reads no more entries than there are blocks in the sample."""
    reads: list[int] = []
    original = examine.read_entry  # type: ignore[attr-defined]
    monkeypatch.setattr(examine, "read_entry", lambda *a: reads.append(a[1]) or original(*a))  # type: ignore[func-returns-value, redundant-expr]
    monkeypatch.setattr(module.os, "listdir", lambda *_: pytest.fail("listed"))  # type: ignore[attr-defined]
    monkeypatch.setattr(module.os, "walk", lambda *_: pytest.fail("walked"))  # type: ignore[attr-defined]
    verify(path, sample=1)
    assert len(reads) == 1
    verify(path, sample=40)
    assert sorted(reads[1:]) == [0, 1]


def test_nobody_else_writes_during_a_repair(path: Path) -> None:
    """A run that is writing is not disturbed."""
    flip(path / OBJECT)
    with shared(path), pytest.raises(StoreBusy):
        repair(path)
    assert pending_shards(path, 2) == []


@pytest.fixture
def extracted(image_folder: Path, tmp_path: Path) -> tuple[Any, Path]:
    """A store of the formula teacher, and its settings."""
    config = formula.make_config(image_folder, tmp_path / "s")
    formula.run(config)
    return config, tmp_path / "s"


def test_a_repaired_store_has_the_same_bytes(extracted: tuple[Any, Path]) -> None:
    """After a flip, a truncation, a deletion and a broken entry, the run makes exactly those shards, bit by bit."""
    config, path = extracted
    straight = snapshot(path)
    flip(path / "fields/cls/c/0/0/0")
    (path / "fields/grid2/c/2/0/0/0/0").write_bytes(b"")
    (path / "valid/c/4").unlink()
    entry_path(path, 5).write_bytes(b"{}")
    assert repair(path) == [0, 2, 4, 5]
    before = {shard: entry_path(path, shard).read_bytes() for shard in (1, 3, 6)}
    summary = formula.run(config)
    assert summary.written == 4 * 4
    assert snapshot(path) == straight
    assert {shard: entry_path(path, shard).read_bytes() for shard in (1, 3, 6)} == before
    report = verify(path)
    assert report.sound
    assert report.complete
    assert report.foreign == []


def test_the_script_repairs(
    extracted: tuple[Any, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``extract.py --repair`` says what was damaged, makes it again, and leaves a store like the first one."""
    config, path = extracted
    straight = snapshot(path)
    monkeypatch.setattr(
        teachers, "build_teacher", lambda *_, **__: formula.FormulaTeacher(config.store.dtype)
    )
    monkeypatch.setattr(teachers, "check_teacher", lambda *_, **__: None)
    flip(path / "fields/cls/c/3/0/0")
    script.run(dataclasses.replace(config, repair=True))
    text = capsys.readouterr().out
    assert 'shard 3 (rows 12-15), column "fields/cls": fields/cls/c/3/0/0: crc32c' in text
    assert "repair    1 damaged shards will be made again: 3" in text
    assert "26 rows in" in text
    assert snapshot(path) == straight
    script.run(dataclasses.replace(config, repair=True))
    assert "repair    0 damaged shards" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--dry_run"):
        dataclasses.replace(config, repair=True, dry_run=True)


def test_metadata_is_that_of_the_manifest(sound: Path) -> None:
    """What is expected is what the writer writes."""
    for name, data in metadata_files(read_manifest(sound)).items():
        assert (sound / name).read_bytes() == data
