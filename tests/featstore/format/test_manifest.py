"""The manifest: refuses what it does not know, and its fingerprint is the contract."""

import json
from pathlib import Path
from typing import Any

import pytest

from featstore import FeatureStore
from featstore.errors import FeatstoreError, ManifestMismatch, StoreError, StoreNotFound
from featstore.format.ids import check_name
from featstore.format.ledger import complete_path
from featstore.format.manifest import (
    FORMAT_VERSION,
    Manifest,
    check_same_contract,
    read_manifest,
    write_manifest,
)
from tests.featstore.stores import field, make_columns, make_manifest, write_store


def values_of(manifest: Manifest) -> dict[str, Any]:
    return manifest.model_dump(mode="json")


def change(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with one value, named by a dotted path, set to another."""
    values = json.loads(json.dumps(values))
    *parents, last = key.split(".")
    inner = values
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return values


def put(folder: Path, content: Any) -> Path:
    """A folder with nothing but a manifest."""
    folder.mkdir(exist_ok=True)
    if isinstance(content, (str, bytes)):
        data = content if isinstance(content, bytes) else content.encode()
    else:
        data = json.dumps(content).encode()
    (folder / "manifest.json").write_bytes(data)
    return folder


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    """Writing and reading changes nothing, also of text that is not ASCII."""
    manifest = make_manifest(fields={"cls": field(4), "grid2": field(2, 2, 4, dtype="float32")})
    manifest = Manifest.model_validate(change(values_of(manifest), "source.uri", "Bilder/Mädchen"))
    write_manifest(tmp_path, manifest)
    found = read_manifest(tmp_path)
    assert found == manifest
    assert found.fingerprint == manifest.fingerprint


CHANGES: dict[str, Any] = {
    "teachers.teacher.library": "open_clip",
    "teachers.teacher.name": "another",
    "teachers.teacher.tag": "laion",
    "teachers.teacher.model_args": {"img_size": 64},
    "teachers.teacher.weights_sha256": "cd" * 32,
    "teachers.teacher.precision": "bf16",
    "teachers.teacher.preprocessing.size": [16, 16],
    "teachers.teacher.preprocessing.crop_pct": 1.0,
    "teachers.teacher.preprocessing.crop_mode": "squash",
    "teachers.teacher.preprocessing.interpolation": "bilinear",
    "teachers.teacher.preprocessing.mean": [0.4, 0.5, 0.5],
    "teachers.teacher.preprocessing.std": [0.5, 0.5, 0.4],
    "teachers.teacher.preprocessing.decode": "another rule",
    "views.seed": 1,
    "views.scale": [0.4, 1.0],
    "views.ratio": [1.0, 1.0],
    "views.views": [{"kind": "canonical", "number": 0, "mirrored": False}],
    "fields.cls.shape": [7],
    "fields.cls.dtype": "float32",
    "fields.cls.meaning": "something else",
    "source.kind": "tars",
    "source.num_samples": 21,
    "source.ids_sha256": "ef" * 32,
    "source.has_labels": False,
    "source.class_names": ["dog", "cat"],
    "fields.cls.teacher": "",
    "fields.cls.encoding": {"kind": "topk", "num_classes": 9},
    "artefacts": {"head": {"bytes": 1, "sha256": "ab" * 32, "meaning": "a head"}},
}

PACKING: dict[str, Any] = {
    "container": "webdataset",
    "fields.cls.codec": "zstd",
    "work.shard_rows": 16,
    "work.batch_size": 8,
}


@pytest.mark.parametrize("key", [*CHANGES, *PACKING])
def test_every_part_of_the_contract_counts(key: str) -> None:
    """A change of any part is a mismatch that names key and both values.

    What rows are is in the fingerprint; how they are packed is not.
    """
    manifest = make_manifest()
    before = values_of(manifest)
    value = {**CHANGES, **PACKING}[key]
    other = Manifest.model_validate(change(before, key, value))
    assert (other.fingerprint != manifest.fingerprint) == (key in CHANGES)
    was: Any = before
    for name in key.split("."):
        was = was[name]
    with pytest.raises(ManifestMismatch) as caught:
        check_same_contract(Path("somewhere"), found=manifest, expected=other)
    message = str(caught.value)
    assert key in message
    assert "--store.path" in message
    if not isinstance(was, dict):
        assert f"{key}: the store has {was!r}, now asked for {value!r}" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uuid", "another"),
        ("created", "2001-01-01T00:00:00+00:00"),
        ("created_by", {"torch": "9"}),
        ("source.uri", "moved/there"),
        ("teachers.teacher.licence", "mit"),
    ],
)
def test_what_is_no_part_of_the_contract(key: str, value: Any) -> None:
    """Identity, time, library versions, the place of the images and the licence do not matter for a row."""
    manifest = make_manifest()
    other = Manifest.model_validate(change(values_of(manifest), key, value))
    assert other.fingerprint == manifest.fingerprint
    check_same_contract(Path("somewhere"), found=manifest, expected=other)


def test_the_fingerprint_is_that_of_the_docs() -> None:
    """SHA-256 of the contract as JSON with sorted keys and no spaces; the number was computed when this was written.

    It may only change together with the format version.
    """
    assert FORMAT_VERSION == 1
    golden = "4aa787aa3c0b41f56a899604209cc6dfce450895d1fc2f29356e3d53833429f4"
    assert make_manifest().fingerprint == golden


def test_no_folder_and_no_manifest(tmp_path: Path) -> None:
    """Nothing there, a folder of something else, a file: StoreNotFound says which."""
    with pytest.raises(StoreNotFound):
        FeatureStore.open(tmp_path / "nothing")
    with pytest.raises(StoreNotFound):
        FeatureStore.open(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreNotFound):
        FeatureStore.open(tmp_path / "file")
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(StoreNotFound):
        FeatureStore.open(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"format_version": 1',
        "[" * 200_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"format_version": ' + "9" * 10_000 + "}",
    ],
    ids=["empty", "brace", "not text", "cut off", "deep lists", "deep objects", "huge number"],
)
def test_corrupt_json(tmp_path: Path, content: str | bytes) -> None:
    """Bytes that are no JSON, also hostile ones, give our error and no traceback of a parser."""
    with pytest.raises(StoreNotFound):
        read_manifest(put(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        [],
        "text",
        3,
        None,
        {},
        {"format_version": 0},
        {"format_version": 2},
        {"format_version": True},
        {"format_version": "1"},
    ],
    ids=repr,
)
def test_other_versions_are_refused(tmp_path: Path, content: Any) -> None:
    """A version that this release does not know is refused before anything else is looked at."""
    with pytest.raises(ManifestMismatch, match=r"\b1\b"):
        read_manifest(put(tmp_path, json.dumps(content)))


def test_a_newer_version_asks_for_an_upgrade(tmp_path: Path) -> None:
    """A store of a later release is refused with what to do, whatever else it holds."""
    with pytest.raises(ManifestMismatch, match=r"\b2\b"):
        read_manifest(put(tmp_path, {"format_version": 2, "later": []}))


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    """At the top and further in; the message names the key."""
    values = values_of(make_manifest())
    for key in ("later", "teachers.teacher.later", "views.later", "work.later", "fields.cls.later"):
        with pytest.raises(StoreNotFound, match=f"{key}"):
            read_manifest(put(tmp_path, change(values, key, 1)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fields", {}),
        ("fields", [1]),
        ("fields.cls.shape", [-1]),
        ("fields.cls.shape", [0]),
        ("fields.cls.shape", "many"),
        ("fields.cls.shape", [2, 3]),
        ("fields.cls.dtype", "object"),
        ("fields.cls.dtype", "|O"),
        ("fields.cls.teacher", "nobody"),
        ("fields.cls.shape", [2**50]),
        ("artefacts", {"head": {"bytes": 1, "sha256": "../x", "meaning": ""}}),
        ("work.shard_sizes", [8, 8, 4]),
        ("container", "hdf5"),
        ("source.num_samples", 0),
        ("source.num_samples", -3),
        ("source.num_samples", 1.5),
        ("source.num_samples", None),
        ("source.class_names", "cat"),
        ("work.shard_rows", 0),
        ("work.batch_size", "x"),
        ("teachers.teacher.preprocessing.size", [0, 8]),
        ("teachers.teacher.preprocessing.size", [8]),
        ("teachers.teacher.preprocessing.crop_pct", 0),
        ("teachers.teacher.preprocessing.crop_pct", 2),
        ("teachers.teacher.preprocessing.crop_pct", float("nan")),
        ("teachers.teacher.preprocessing.crop_mode", "border"),
        ("teachers.teacher.preprocessing.interpolation", "__import__"),
        ("teachers.teacher.preprocessing.mean", [0.5, float("inf"), 0.5]),
        ("views.views", []),
        ("views.views", [{"kind": "canonical"}, {"kind": "canonical"}]),
        ("views.views", [{"kind": "seeded", "number": -1}]),
        ("views.scale", [0.0, 1.0]),
        ("views.ratio", [2.0, 1.0]),
        ("teachers.teacher.mode", "train"),
        ("teachers", 7),
        ("created_by", {"torch": 2}),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    """A store of another team is untrusted: wrong types and impossible numbers are one clear error with the key."""
    with pytest.raises(StoreNotFound):
        read_manifest(put(tmp_path, change(values_of(make_manifest()), key, value)))


@pytest.mark.parametrize(
    "name", ["../x", "..", "/etc", "a/b", "a\\b", "", ".hidden", "-x", "a\0", "a\n", "ä", "x" * 65]
)
def test_field_names_cannot_leave_the_store(tmp_path: Path, name: str) -> None:
    """A field name becomes a path: separators, leading dots and everything odd are refused, also from a manifest."""
    with pytest.raises(StoreError):
        check_name(name)
    values = change(
        values_of(make_manifest()), "fields", {name: values_of(make_manifest())["fields"]["cls"]}
    )
    with pytest.raises(FeatstoreError):
        read_manifest(put(tmp_path, values))


@pytest.mark.parametrize("name", ["cls", "grid7", "a", "0", "text_embedding.v2-x", "x" * 64])
def test_plain_field_names_pass(name: str) -> None:
    """Letters, digits, underscore, dot and hyphen."""
    assert check_name(name) == name


def test_a_changed_manifest_is_found_at_the_bytes(tmp_path: Path) -> None:
    """A manifest that promises more than the objects hold gives an error, never rows from beyond an object."""
    manifest = make_manifest(num_rows=8, shard_rows=8)
    path = write_store(tmp_path / "s", manifest, make_columns(manifest))
    put(path, change(values_of(manifest), "fields.cls.shape", [6_000_000]))
    with pytest.raises(ManifestMismatch, match=r"manifest\.json"):
        FeatureStore.open(path)
    complete_path(path).unlink()  # and where nothing says which manifest it was
    store = FeatureStore.open(path)
    with pytest.raises(StoreError, match="fields/cls"):
        store.gather("cls", [0])
