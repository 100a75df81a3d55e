"""Stores from somebody who means harm: nothing outside is touched, memory and time are bounded, each is an error.

One watched process uses all of them (``tests.featstore.hostile``); each test here looks at what it saw of one.
"""

import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from featstore.format.artefacts import artefact_record, pack
from featstore.format.ids import ids_sha256
from tests.conftest import ROOT
from tests.featstore import golden
from tests.featstore.hostile import (
    ESCAPE,
    FIELDS,
    SECRET,
    edit_array,
    edit_data,
    edit_entry,
    edit_header,
    edit_json,
    edit_manifest,
    edit_member,
    edit_tar,
    member,
    put,
    record_of,
    rewrite,
    write_manifest,
    write_sound,
)

Change = Callable[[Path], object]

MOST_GROWN = 384 * 2**20
"""Memory that one store may cost, bytes; tables of four million shards fit in it."""

CLS = "fields/cls/c/0/0/0"


@dataclass(frozen=True)
class Attack:
    """A change of a sound store."""

    change: Change  # makes it
    store: str  # of which kind it is, see ``hostile.FIELDS``
    readable: bool = False  # what readers give is what it was; else somebody must refuse
    # nothing is wrong by the format, so that verify accepts it, maybe with a note
    harmless: bool = False


def outside(path: Path) -> Path:
    """The folder that no attack may reach; it holds the canary."""
    return path.parents[2] / "outside"


# ---------------------------------------------------------------- manifest


def manifest(*keys: str | int, value: Any) -> Change:
    """Set one value of the manifest."""

    def change(values: Any) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return lambda path: edit_manifest(path, change)


def renamed(part: str, old: str, new: str) -> Change:
    """Give a field, a teacher or an artefact another name."""

    def change(values: Any) -> None:
        values[part][new] = values[part].pop(old)

    return lambda path: edit_manifest(path, change)


def claims(rows: int, shard_rows: int) -> Change:
    """Other counts, and a mark that agrees with them."""

    def change(path: Path) -> None:
        def counts(values: Any) -> None:
            values["source"]["num_samples"] = rows
            values["work"]["shard_rows"] = shard_rows

        edit_manifest(path, counts)
        shards = -(-rows // shard_rows)
        edit_json(path / "ledger/complete.json", lambda said: said.update(shards=shards))

    return change


def one_wide_field(**spec: Any) -> Change:
    """No field but one, of any shape."""
    field = {"shape": [6], "dtype": "float16", "dims": ["a"], "meaning": "", "teacher": ""} | spec
    field["dims"] = [f"d{i}" for i in range(len(field["shape"]))]
    return manifest("fields", value={"cls": field})


def text(old: bytes, new: bytes) -> Change:
    """Change the manifest's text; a file without a checksum of itself is allowed."""

    def change(path: Path) -> None:
        data = (path / "manifest.json").read_bytes()
        assert old in data
        start = data.index(b' "file_crc32c"')
        data = data[:start] + data[data.index(b"\n", start) + 1 :]
        write_manifest(path, data.replace(old, new, 1))

    return change


def replaced_by(name: str, make: Callable[[Path, Path], object]) -> Change:
    """Take a file or folder away and put something else in its place; ``make`` gets (its path, the store)."""

    def change(path: Path) -> None:
        target = path / name
        if target.is_dir() and not target.is_symlink():
            shutil.move(target, outside(path) / f"{path.parent.name}-{target.name}")
        else:
            target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        make(target, path)

    return change


def linked(name: str) -> Change:
    """Move a file or folder out of the store, and leave a link to it: every checksum agrees."""

    def change(path: Path) -> None:
        moved = outside(path) / f"{path.parent.name}-{Path(name).name}"
        shutil.move(path / name, moved)
        (path / name).symlink_to(moved)

    return change


def to_canary(target: Path, store: Path) -> None:
    """A link to the canary."""
    target.symlink_to(outside(store) / "canary")


def to_outside(target: Path, store: Path) -> None:
    """A link to the folder outside."""
    target.symlink_to(outside(store), target_is_directory=True)


def pipe(target: Path, _: Path) -> None:
    """A pipe that nobody writes to."""
    os.mkfifo(target)


def endless(target: Path, _: Path) -> None:
    """A device that never ends, where one may make those; else a link to one."""
    try:
        os.mknod(target, stat.S_IFCHR | 0o644, os.makedev(1, 5))
    except PermissionError:
        target.symlink_to("/dev/zero")


def sparse(size: int) -> Callable[[Path, Path], object]:
    """A file of zeros that takes no place on the disk."""

    def make(target: Path, _: Path) -> None:
        with target.open("wb") as file:
            file.truncate(size)

    return make


def nested(depth: int) -> Any:
    """A dictionary in a dictionary in a ..."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


TEACHER = ("teachers", "teacher")
MANIFESTS: dict[str, Change] = {
    "rows 2^60": claims(2**60, 2**23),
    "rows 2^36": claims(2**36, 2**24),
    "rows 2^34, all of them in one mark": claims(2**34, 2**24),
    "shards 2^22": claims(2**22, 1),
    "shards 2^24": claims(2**24, 1),
    "shards 2^60": claims(2**60, 1),
    "shard rows 2^60": claims(13, 2**60),
    "shard rows 2^24": claims(13, 2**24),
    "rows of digits": manifest("source", "num_samples", value=int("9" * 4000)),
    "rows 0": manifest("source", "num_samples", value=0),
    "rows true": manifest("source", "num_samples", value=True),
    "shape 2^60": one_wide_field(shape=[2**60]),
    "shape 2^40 of text": one_wide_field(shape=[2**40], dtype="text"),
    "shape 2^33 raw": one_wide_field(shape=[2**33]),
    "shape 2^33 zstd": one_wide_field(shape=[2**33], codec="zstd"),
    "shape 2^33 bitshuffle": one_wide_field(shape=[2**33], codec="bitshuffle"),
    "shape of 17 axes": one_wide_field(shape=[1] * 17),
    "shape of 65 axes": one_wide_field(shape=[1] * 65),
    "shape negative": one_wide_field(shape=[-1]),
    "type object": one_wide_field(dtype="object"),
    "type pickle": one_wide_field(encoding={"kind": "pickle"}),
    "codec pickle": one_wide_field(codec="numcodecs.pickle"),
    "items 2^60": one_wide_field(encoding={"kind": "ragged", "most_items": 2**60}),
    "items 2^40": one_wide_field(encoding={"kind": "ragged", "most_items": 2**40}, shape=[1]),
    "classes 2^60": one_wide_field(encoding={"kind": "topk", "num_classes": 2**60}),
    "views 20,000": manifest(
        "views", "views", value=[{"kind": "seeded", "number": n} for n in range(20_000)]
    ),
    "field ../x": renamed("fields", "cls", "../../outside/cls"),
    "field /x": renamed("fields", "cls", "/tmp/cls"),
    "field .x": renamed("fields", "cls", ".hidden"),
    "field ...": renamed("fields", "cls", ".."),
    "field \\0": renamed("fields", "cls", "a\0b"),
    "field with escapes": renamed("fields", "cls", ESCAPE),
    "field of metadata": renamed("fields", "cls", "zarr.json"),
    "field of 65 letters": renamed("fields", "cls", "x" * 65),
    "field in full width": renamed("fields", "cls", "\uff43\uff4c\uff53"),
    "fields 2,000": lambda path: edit_manifest(
        path,
        lambda values: values["fields"].update(
            {f"f{i}": values["fields"]["cls"] for i in range(2_000)}
        ),
    ),
    "artefact ../x": renamed("artefacts", "prompts", "../../outside/canary"),
    "artefact of 2^60 bytes": manifest("artefacts", "prompts", "bytes", value=2**60),
    "artefact of 2^40 bytes": manifest("artefacts", "prompts", "bytes", value=2**40),
    "teacher ../x": renamed("teachers", "teacher", "../x"),
    "channels of nobody": manifest("fields", "codes_both", "encoding", "channels", value="../x"),
    "unknown key": manifest("__class__", value="os.system"),
    "arguments 300 deep": manifest(*TEACHER, "model_args", value=nested(300)),
    "arguments 100,000 deep": text(b'"model_args": {}', b'"model_args": ' + b"[" * 100_000),
    "arguments 900 deep": text(
        b'"model_args": {}', b'"model_args": {"a": ' + b"[" * 900 + b"]" * 900 + b"}"
    ),
    "arguments not finite": text(b'"model_args": {}', b'"model_args": {"a": NaN}'),
    "arguments 1e999": text(b'"model_args": {}', b'"model_args": {"a": 1e999}'),
    "a number of 5,000 digits": text(b'"shard_rows": 16', b'"shard_rows": ' + b"8" * 5000),
    "a key twice": text(b'"shard_rows": 16', b'"shard_rows": 16, "shard_rows": 8'),
    "a surrogate": text(b'"uri": "images"', b'"uri": "\\ud800"'),
    "not UTF-8": text(b'"uri": "images"', b'"uri": "\xff\xfe"'),
    "version true": manifest("format_version", value=True),
    "version 2^60": manifest("format_version", value=2**60),
    "version of text": manifest("format_version", value=ESCAPE),
    "a list": lambda path: write_manifest(path, b"[1]"),
    "half of it": lambda path: write_manifest(path, b'{"format_version": 1, "con'),
    "manifest of 1 GiB": replaced_by("manifest.json", sparse(2**30)),
    "manifest of lists": lambda path: write_manifest(path, b"[" + b"[]," * 2**15 + b"[]]"),
    "manifest linked": linked("manifest.json"),
    "manifest is the canary": replaced_by("manifest.json", to_canary),
    "manifest a pipe": replaced_by("manifest.json", pipe),
    "manifest without end": replaced_by("manifest.json", endless),
    "manifest a folder": replaced_by("manifest.json", lambda target, _: target.mkdir()),
}

# ---------------------------------------------------------------- ledger


def entry(change: Callable[[Any], object], shard: int = 0) -> Change:
    """Change a ledger entry."""
    return lambda path: edit_entry(path, shard, change)


def an_object(**values: Any) -> Change:
    """Change what the ledger says of the class token's object."""
    return entry(lambda said: said["objects"][CLS].update(values))


LEDGERS: dict[str, Change] = {
    "names a file outside": entry(
        lambda said: said["objects"].update({"../../../outside/canary": said["objects"].pop(CLS)})
    ),
    "names another object": entry(
        lambda said: said["objects"].update({CLS: said["objects"]["valid/c/0"]})
    ),
    "bytes 2^62": an_object(bytes=2**62, block_bytes=2**62, crc32c="0" * 8),
    "bytes 2^70": an_object(bytes=2**70, block_bytes=2**70, crc32c="0" * 8),
    "bytes negative": an_object(bytes=-1),
    "bytes 0": an_object(bytes=0, crc32c=""),
    "blocks of 2^62": an_object(block_bytes=2**62),
    "blocks of 0": an_object(block_bytes=0),
    "digits missing": an_object(crc32c=""),
    "digits in full width": an_object(crc32c="\uff10" * 8),
    "rows of others": entry(lambda said: said.update(rows=[0, 2**62])),
    "invalid row 2^61": entry(
        lambda said: said.update(invalid=[{"row": 2**61, "sample_id": "x", "reason": "y"}])
    ),
    "invalid row 2^70": entry(
        lambda said: said.update(invalid=[{"row": 2**70, "sample_id": "x", "reason": "y"}])
    ),
    "seconds not finite": lambda path: (path / "ledger/00000000.json").write_bytes(
        (path / "ledger/00000000.json").read_bytes().replace(b"0.5", b"NaN", 1)
    ),
    "another shard": entry(lambda said: said.update(shard=1)),
    "10,000 deep": lambda path: (path / "ledger/00000000.json").write_bytes(b"[" * 10_000),
    "entry of 1 GiB": replaced_by("ledger/00000000.json", sparse(2**30)),
    "entry linked": linked("ledger/00000000.json"),
    "entry is the canary": replaced_by("ledger/00000000.json", to_canary),
    "entry a pipe": replaced_by("ledger/00000000.json", pipe),
    "entry without end": replaced_by("ledger/00000000.json", endless),
    "ledger linked": linked("ledger"),
    "ledger a pipe": replaced_by("ledger", pipe),
    "entry beyond the end": lambda path: shutil.copy(
        path / "ledger/00000000.json", path / "ledger/99999999.json"
    ),
    "entry of another spelling": lambda path: (
        (path / "ledger/complete.json").unlink(),  # type: ignore[func-returns-value]
        (path / "ledger/00000000.json").rename(path / "ledger/000000000.json"),
    ),
    "mark of other sums": lambda path: edit_json(
        path / "ledger/complete.json", lambda said: said.update(bytes=2**60, invalid_rows=0)
    ),
    "mark of more shards": lambda path: edit_json(
        path / "ledger/complete.json", lambda said: said.update(shards=2**60)
    ),
    "mark linked": linked("ledger/complete.json"),
    "mark a pipe": replaced_by("ledger/complete.json", pipe),
    "mark without end": replaced_by("ledger/complete.json", endless),
}

# ---------------------------------------------------------------- objects


def bomb(path: Path) -> None:
    """A gigabyte of zeros in a few kilobytes of zstd, whose frame does not say how long it becomes."""
    data = bytes(numcodecs.Zstd(3).encode(bytes(2**20)))
    block = data[data.index(b"\x28\xb5\x2f\xfd") :]
    # Frame header without a content size: a window of 128 MiB; then the blocks of the frame, without its own header.
    size_bytes = {0: 1 if block[4] & 0x20 else 0, 1: 2, 2: 4, 3: 8}[block[4] >> 6]
    body = block[5 + (0 if block[4] & 0x20 else 1) + size_bytes :]
    inner, at = [], 0
    while at < len(body):
        head = int.from_bytes(body[at : at + 3], "little")
        length = 1 if head >> 1 & 3 == 1 else head >> 3
        inner.append((head, body[at + 3 : at + 3 + length]))
        at += 3 + length
    blocks = [((head & ~1), rest) for head, rest in inner] * 2**10
    blocks[-1] = (blocks[-1][0] | 1, blocks[-1][1])
    frame = b"\x28\xb5\x2f\xfd\x00\x88" + b"".join(
        head.to_bytes(3, "little") + rest for head, rest in blocks
    )
    chunk(path, "packed", frame)


def chunk(path: Path, field: str, data: bytes) -> None:
    """Put other bytes in the place of a compressed chunk; one holds all rows of the first shard."""
    index = np.array([[0, len(data)]], dtype="<u8").tobytes()
    crc = struct.pack("<I", google_crc32c.value(index))
    rewrite(path, f"fields/{field}/c/0/0/0", data + index + crc)


def zstd_lies(path: Path) -> None:
    """A frame that states a terabyte."""
    chunk(path, "packed", b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**40) + b"\x01\x00\x00")


def blosc(**changes: int) -> Change:
    """Change words of the header of a blosc chunk: nbytes, blocksize, cbytes."""
    places = {"nbytes": 4, "blocksize": 8, "cbytes": 12}

    def change(path: Path) -> None:
        name = "fields/shuffled/c/0/0/0"
        raw = bytearray((path / name).read_bytes()[:-20])
        for key, value in changes.items():
            raw[places[key] : places[key] + 4] = struct.pack("<I", value)
        chunk(path, "shuffled", bytes(raw))

    return change


def index_of(field: str, offset: int, size: int) -> Change:
    """Let the index of a sharded object point elsewhere."""

    def change(path: Path) -> None:
        name = f"fields/{field}/c/0/0/0"
        raw = (path / name).read_bytes()
        body = np.array([[offset, size]], dtype=np.uint64).astype("<u8").tobytes()
        crc = struct.pack("<I", google_crc32c.value(body))
        rewrite(path, name, raw[:-20] + body + crc)

    return change


def texts(*values: str, count: int = 0, lengths: int = 0) -> bytes:
    """Texts as vlen-utf8 stores them, with a count and lengths that may be lies."""
    parts = [struct.pack("<I", count or len(values))]
    for value in values:
        data = value.encode("utf-8", "surrogatepass")
        parts.append(struct.pack("<I", lengths or len(data)) + data)
    return b"".join(parts)


def ids(change: Callable[[list[str]], object], *, honest: bool = True) -> Change:
    """Other sample ids, and a hash of them that fits."""

    def apply(path: Path) -> None:
        everything = list(golden.IDS)
        change(everything)
        rewrite(path, "sample_id/c/0", texts(*everything, "", "", ""))
        edit_entry(
            path, 0, lambda said: said["invalid"][0].update(sample_id=everything[golden.INVALID])
        )
        if honest:
            digest = ids_sha256([item.encode("utf-8", "replace").decode() for item in everything])
            edit_manifest(path, lambda values: values["source"].update(ids_sha256=digest))

    return apply


def artefact(data: bytes) -> Change:
    """Another artefact, with its hash in the manifest."""

    def change(path: Path) -> None:
        (path / "artefacts/channels.safetensors").write_bytes(data)
        record = artefact_record(data, meaning="x").model_dump()
        edit_manifest(path, lambda values: values["artefacts"].update(channels=record))

    return change


def safetensors(header: Any, body: bytes = b"1234") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(**values: Any) -> dict[str, Any]:
    """A header of one tensor."""
    return {"scale": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | values}


def sparse_object(path: Path) -> None:
    """Zeros as one block, whose checksum is right."""
    name, size = "fields/caption/c/0/0", 2**27
    with (path / name).open("wb") as file:
        file.truncate(size)
    record_of(path, name, 0, size=size, blocks=[])
    crc = 0
    for _ in range(size // 2**24):
        crc = google_crc32c.extend(crc, ZEROS)
    edit_entry(path, 0, lambda said: said["objects"][name].update(crc32c=f"{crc:08x}"))


ZEROS = bytes(2**24)

OBJECTS: dict[str, Change] = {
    "object linked": linked(CLS),
    "object is the canary": replaced_by(CLS, to_canary),
    "object a pipe": replaced_by(CLS, pipe),
    "object without end": replaced_by(CLS, endless),
    "folder of a shard linked": linked("fields/cls/c/0"),
    "folder of a column linked": linked("fields/cls"),
    "folder of the fields linked": linked("fields"),
    "folder of the ids linked": linked("sample_id"),
    "shorter than its rows": lambda path: rewrite(path, CLS, (path / CLS).read_bytes()[-120:]),
    "empty": lambda path: rewrite(path, CLS, b""),
    "128 MiB in one block": sparse_object,
    "index beyond the end": index_of("cls", 2**62, 192),
    "index that wraps around": index_of("cls", 2**64 - 4, 192),
    "index of a huge chunk": index_of("packed", 0, 2**63),
    "index of a chunk of nothing": index_of("packed", 0, 0),
    "index without chunks": index_of("packed", 2**64 - 1, 2**64 - 1),
    "zstd that expands": bomb,
    "zstd that states a terabyte": zstd_lies,
    "zstd of noise": lambda path: chunk(path, "packed", bytes(range(256))),
    "blosc that states more": blosc(nbytes=2**31 - 1),
    "blosc that has less": blosc(cbytes=2**31 - 1),
    "blosc of odd blocks": blosc(blocksize=2**31 - 1),
    "blosc of no blocks": blosc(blocksize=0),
    "count of texts": lambda path: rewrite(path, "sample_id/c/0", texts("a", count=2**32 - 1)),
    "length of a text": lambda path: rewrite(
        path, "sample_id/c/0", texts(*"abcdefghijklmnop", lengths=2**32 - 1)
    ),
    "texts that are no UTF-8": lambda path: rewrite(
        path, "sample_id/c/0", texts("\ud800", *"bcdefghijklmnop")
    ),
    "ids that repeat": ids(lambda names: names.__setitem__(3, names[2])),
    "ids of another source": ids(lambda names: names.__setitem__(3, "other"), honest=False),
    "an empty id": ids(lambda names: names.__setitem__(3, "")),
    "not a number": lambda path: edit_array(path, CLS, "<f2", put(3, np.nan)),
    "infinite scale": lambda path: edit_array(
        path, "fields/codes_row/scale/c/0/0", "<f4", put(0, np.inf)
    ),
    "overflowing scale": lambda path: edit_array(
        path, "fields/codes_row/scale/c/0/0", "<f4", put(0, 3e38)
    ),
    "labels beyond the classes": lambda path: edit_array(path, "label/c/0", "<i8", put(0, 2**62)),
    "classes beyond the end": lambda path: edit_array(
        path, "fields/logits/indices/c/0/0/0", "<u2", put(0, 65_535)
    ),
    "ranges beyond 64 bits": lambda path: edit_array(
        path, "fields/points/ranges/c/0/0/0", "<i8", put(slice(0, 2), [-(2**63), 2**63 - 1])
    ),
    "ranges of others": lambda path: edit_array(
        path, "fields/points/ranges/c/0/0/0", "<i8", put(slice(0, 2), [0, 2**40])
    ),
    "truth values": lambda path: edit_array(path, "valid/c/0", "u1", put(0, 7)),
    "artefact linked": linked("artefacts/channels.safetensors"),
    "artefact is the canary": replaced_by("artefacts/channels.safetensors", to_canary),
    "artefact a pipe": replaced_by("artefacts/channels.safetensors", pipe),
    "artefacts linked": linked("artefacts"),
    "artefact of noise": artefact(b"\xff" * 100),
    "artefact of nothing": artefact(b""),
    "artefact with a huge header": artefact(struct.pack("<Q", 2**62) + b"{}"),
    "artefact of a huge shape": artefact(safetensors(tensor(shape=[2**40, 2**40]))),
    "artefact beyond its end": artefact(safetensors(tensor(data_offsets=[0, 2**62]))),
    "artefact of an odd type": artefact(safetensors(tensor(dtype="F8_E4M3", shape=[4]))),
    "artefact of 200 axes": artefact(safetensors(tensor(shape=[1] * 200))),
    "artefact 10,000 deep": artefact(safetensors(b"[" * 10_000)),
    "scales that are infinite": artefact(
        pack({"scale": np.full(4, np.inf, "f4"), "offset": np.zeros(4, "f4")})
    ),
}


def metadata(change: Callable[[Any], object], name: str = "fields/cls/zarr.json") -> Change:
    """Change what stock readers go by, in the array's own file and in the group's copy."""

    def apply(path: Path) -> None:
        values = json.loads((path / name).read_bytes())
        change(values)
        (path / name).write_text(json.dumps(values, indent=2))

    return apply


def codec(*names: str) -> Change:
    """Codecs that the manifest does not declare."""
    return metadata(
        lambda values: values.update(codecs=[{"name": name, "configuration": {}} for name in names])
    )


METADATA: dict[str, Change] = {
    "codec pickle": codec("numcodecs.pickle"),
    "codec json2": codec("numcodecs.json2"),
    "codec of a package": codec("https://example.org/codec"),
    "another shape": metadata(lambda values: values.update(shape=[2**60, 2, 6])),
    "another fill value": metadata(lambda values: values.update(fill_value=1)),
    "transformers": metadata(lambda values: values.update(storage_transformers=[{"name": "x"}])),
    "attributes": metadata(lambda values: values.update(attributes={"a": ESCAPE})),
    "attributes 500 deep": metadata(lambda values: values.update(attributes=nested(500))),
    "metadata 100,000 deep": lambda path: (path / "zarr.json").write_bytes(b"[" * 100_000),
    "metadata of 1 GiB": replaced_by("fields/cls/zarr.json", sparse(2**30)),
    "metadata linked": linked("fields/cls/zarr.json"),
    "metadata is the canary": replaced_by("zarr.json", to_canary),
    "metadata a pipe": replaced_by("fields/cls/zarr.json", pipe),
}
"""Our reader does not look at these files: it reads on, and verify says what is wrong."""

# ---------------------------------------------------------------- tars


def doubled(members: list[Any]) -> None:
    """A member of a sample twice."""
    i = member(members, ".cls.npy")
    members.insert(i, members[i])


def added(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Change:
    """A member more, before all samples."""

    def change(members: list[Any]) -> None:
        item = tarfile.TarInfo(name)
        item.type, item.linkname = kind, link
        members.insert(0, (item, b""))

    return lambda path: edit_tar(path, change)


def npy(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Change the header of an npy file, and keep its length."""

    def change(data: bytes) -> bytes:
        assert old in data, data[:128]
        size = 10 + int.from_bytes(data[8:10], "little")
        head = data[10:size].replace(old, new).rstrip()
        return data[:10] + head[: size - 11].ljust(size - 11) + b"\n" + data[size:]

    return change


def numbers(dtype: str, change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    """Change the numbers of an npy file."""

    def apply(data: bytes) -> bytes:
        size = 10 + int.from_bytes(data[8:10], "little")
        values = np.frombuffer(bytearray(data[size:]), dtype=dtype)
        change(values)
        return data[:size] + values.tobytes()

    return apply


TAR = "shards/000000.tar"
STARTS = "__featstore__/starts"
BASE_256 = b"\x80" + (2**70).to_bytes(11, "big")
TARS: dict[str, Change] = {
    "tar linked": linked(TAR),
    "tar is the canary": replaced_by(TAR, to_canary),
    "tar a pipe": replaced_by(TAR, pipe),
    "tar without end": replaced_by(TAR, endless),
    "folder of the tars linked": linked("shards"),
    "tar of nothing": lambda path: rewrite(path, TAR, b""),
    "tar of zeros": lambda path: rewrite(path, TAR, bytes(10_240)),
    "tar cut": lambda path: rewrite(path, TAR, (path / TAR).read_bytes()[:-3000]),
    "member ../x": edit_member(".cls.npy", name="../../../outside/canary"),
    "member /x": edit_member(".cls.npy", name="/tmp/canary"),
    "member a link": edit_member(".cls.npy", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "member a hard link": edit_member(".cls.npy", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "member a device": edit_member(".cls.npy", type=tarfile.CHRTYPE),
    "member a pipe": edit_member(".cls.npy", type=tarfile.FIFOTYPE),
    "member a folder": edit_member(".cls.npy", type=tarfile.DIRTYPE),
    "member a sparse file": edit_header(".cls.npy", 156, b"S"),
    "index a link": edit_member("__featstore__/valid/values", type=tarfile.SYMTYPE, linkname="/x"),
    "member twice": lambda path: edit_tar(path, doubled),
    "index twice": lambda path: edit_tar(path, lambda members: members.insert(0, members[0])),
    "member before the index": added("../../../outside/x"),
    "link before the index": added("x", tarfile.SYMTYPE, "/etc/passwd"),
    "size 2^70": edit_header(".cls.npy", 124, BASE_256),
    "size of the index 2^70": edit_header(STARTS, 124, BASE_256),
    "size negative": edit_header(".cls.npy", 124, b"\xff" * 12),
    "size of letters": edit_header(".cls.npy", 124, b"zzzzzzzzzzz\0"),
    "size of more": edit_header(".cls.npy", 124, b"00000077777\0"),
    "name by pax": edit_member(".cls.npy", pax_headers={"path": "../../../outside/canary"}),
    "size by pax": edit_member(".cls.npy", pax_headers={"size": "9" * 30}),
    "sparse by pax": edit_member(".cls.npy", pax_headers={"GNU.sparse.major": "1"}),
    "a long pax header": edit_member(".cls.npy", pax_headers={"comment": "x" * 2**21}),
    "objects": edit_data(".cls.npy", npy(b"'<f2'", b"'|O'")),
    "fields of a type": edit_data(".cls.npy", npy(b"'<f2'", b"[('a','<f2')]")),
    "code for a type": edit_data(".cls.npy", npy(b"'<f2'", b"__import__('os')")),
    "Fortran's order": edit_data(".cls.npy", npy(b"False", b"True")),
    "a huge shape": edit_data(".cls.npy", npy(b"(2, 6)", b"(2, 6, 999999999999999999)")),
    "a shape that wraps": edit_data(".cls.npy", npy(b"(2, 6)", b"(4294967296, 4294967296, 2, 6)")),
    "a long npy header": edit_data(".cls.npy", lambda data: data[:8] + b"\xff\xff" + data[10:]),
    "starts that go back": edit_data(STARTS, numbers("<i8", put(2, 0))),
    "starts beyond the end": edit_data(STARTS, numbers("<i8", put(slice(1, None), 2**62))),
    "starts negative": edit_data(STARTS, numbers("<i8", put(0, -(2**63)))),
    "offsets of ids": edit_data("sample_id/offsets", numbers("<i8", put(1, 2**62))),
    "offsets that go back": edit_data("sample_id/offsets", numbers("<i8", put(1, -1))),
    "ids that are no UTF-8": edit_data("sample_id/values", numbers("u1", put(0, 255))),
    "ranges of items": edit_data(
        "points/ranges/values", numbers("<i8", put(slice(0, 2), [-(2**63), 2**63 - 1]))
    ),
    "infinite feature": edit_data(".cls.npy", numbers("<f2", put(0, np.inf))),
    "tars of names outside": lambda path: edit_manifest(
        path,
        lambda values: values["work"].update(
            shard_sizes=[13], shard_names=["../../../outside/canary"]
        ),
    ),
    "tars of absolute names": lambda path: edit_manifest(
        path,
        lambda values: values["work"].update(shard_sizes=[13], shard_names=["/etc/passwd"]),
    ),
    "tars with escapes": lambda path: edit_manifest(
        path,
        lambda values: values["work"].update(shard_sizes=[13], shard_names=["a\x9b2J"]),
    ),
    "tars of one name": lambda path: edit_manifest(
        path, lambda values: values["work"].update(shard_sizes=[8, 5], shard_names=["a", "a"])
    ),
    "shard sizes 2^60": lambda path: edit_manifest(
        path, lambda values: values["work"].update(shard_sizes=[2**60])
    ),
    "fields that differ in case": lambda path: edit_manifest(
        path, lambda values: values["fields"].update(CLS=values["fields"]["cls"])
    ),
}

# ---------------------------------------------------------------- what is no damage


def hard_link(path: Path) -> None:
    """An object is a second name of a file outside, with the bytes that belong there."""
    target = outside(path) / f"{path.parent.name}-object"
    shutil.move(path / CLS, target)
    os.link(target, path / CLS)


HARMLESS: dict[str, Change] = {
    "escapes in the manifest": lambda path: edit_manifest(
        path,
        lambda values: (
            values["source"].update(uri=ESCAPE, class_names=[ESCAPE, "dog"]),
            values["teachers"]["teacher"].update(licence=ESCAPE, name=ESCAPE),
            values["fields"]["cls"].update(meaning=ESCAPE),
            values["artefacts"]["prompts"].update(meaning=ESCAPE),
            values.update(created=ESCAPE, created_by={ESCAPE: ESCAPE}),
        ),
    ),
    "escapes in reasons": entry(lambda said: said["invalid"][0].update(reason=ESCAPE)),
    "long reasons": entry(lambda said: said["invalid"][0].update(reason="x" * 10**6)),
    "hard link": hard_link,
}

IDS: dict[str, Change] = {
    "escapes in ids": ids(
        lambda names: names.__setitem__(slice(0, 6), [ESCAPE + n for n in names[:6]])
    ),
    "paths in ids": ids(
        lambda names: names.__setitem__(
            slice(0, 3), ["../../../outside/canary", "/etc/passwd", "..\\..\\x"]
        )
    ),
    "ids that look alike": ids(
        lambda names: names.__setitem__(slice(0, 3), ["caf\u00e9", "cafe\u0301", "CAF\u00c9"])
    ),
    "a long id": ids(lambda names: names.__setitem__(0, "x" * 10**6)),
}

LOCKS: dict[str, Change] = {
    "lock linked": replaced_by(".lock", to_canary),
    "turn linked": replaced_by(".publish", to_canary),
    "leases linked": replaced_by("leases", to_outside),
    "leftover linked": replaced_by(".partial-x", to_canary),
    "folder of a leftover linked": replaced_by("x", to_outside),
    "signature linked": replaced_by("model.sig", to_canary),
    "card linked": replaced_by("README.md", to_canary),
    "card a pipe": replaced_by("README.md", pipe),
}


def attacks() -> Iterator[tuple[str, Attack]]:
    """Every attack under its name."""
    for part, changes, options in (
        ("manifest", MANIFESTS, {"store": "small"}),
        ("ledger", LEDGERS, {"store": "small"}),
        ("objects", OBJECTS, {"store": "zarr"}),
        ("tars", TARS, {"store": "webdataset"}),
        ("metadata", METADATA, {"store": "small", "readable": True}),
        ("harmless", HARMLESS, {"store": "small", "readable": True, "harmless": True}),
        ("ids", IDS, {"store": "small", "harmless": True}),
        ("locks", LOCKS, {"store": "small", "readable": True, "harmless": True}),
    ):
        for name, change in changes.items():
            yield f"{part}: {name}", Attack(change, **options)  # type: ignore[arg-type]


ATTACKS = dict(attacks())

PASSED_ON = {
    "manifest: shards 2^22",
    "manifest: shape 2^40 of text",
    "manifest: shape 2^33 raw",
    "manifest: shape 2^33 zstd",
    "ledger: entry linked",
    "ledger: entry a pipe",
    "ledger: names a file outside",
    "objects: object linked",
    "objects: object a pipe",
    "objects: folder of a column linked",
    "objects: zstd that expands",
    "objects: artefact linked",
    "harmless: escapes in the manifest",
    "harmless: escapes in reasons",
    "ids: escapes in ids",
    "ids: paths in ids",
    "locks: leases linked",
    "locks: card linked",
    "tars: tar linked",
    "tars: member ../x",
}
"""Attacks whose stores somebody also tries to make other stores of, which takes longer."""

PROCESSES = 2  # that use the stores side by side


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the watched process saw, by name of the attack."""
    root = tmp_path_factory.mktemp("hostile").resolve()
    for kind in FIELDS:
        write_sound(root / "sound" / kind, kind)
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (root / "key.pem").write_bytes(key)
    (root / "outside").mkdir()
    (root / "outside/canary").write_bytes(SECRET)
    (root / "outside/.partial-canary").write_bytes(SECRET)
    names = {f"{number:03d}": name for number, name in enumerate(ATTACKS)}
    for number, name in names.items():
        attack = ATTACKS[name]
        path = root / "cases" / number / "store"
        shutil.copytree(root / "sound" / attack.store, path)
        (path.parent / "kind").write_text(attack.store)
        more = "write" if attack.change in LOCKS.values() else ""
        (path.parent / "more").write_text("pass on" if name in PASSED_ON else more)
        attack.change(path)
    before = snapshot(root / "outside")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.featstore.hostile", str(root)]
    running = [
        subprocess.Popen(
            [*command, str(part), str(PROCESSES)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(PROCESSES)
    ]
    found: dict[str, Any] = {}
    for process in running:
        said, errors = process.communicate(timeout=300)
        for line in said.splitlines():
            values = json.loads(line)
            if "case" in values:
                found[names[values["case"]]] = values
            else:
                last = names[values["begin"]]
        if process.returncode:
            found["ended"] = f"a process ended in {last}: {errors[-3000:]}"
    found["outside"] = snapshot(root / "outside") == before
    return found


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything below a folder: names, bytes and times of change."""
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


@pytest.mark.slow
def test_nothing_outside_was_touched(seen: dict[str, Any]) -> None:
    """No file outside of the stores has changed, none has come, none has gone."""
    assert seen["outside"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_store(name: str, seen: dict[str, Any]) -> None:
    """No operation crashes, hangs, reaches outside or takes much memory; and somebody says what is wrong."""
    assert name in seen, seen["ended"]
    attack, values = ATTACKS[name], seen[name]
    ends = values["ends"]
    for what, (ended, said) in ends.items():
        assert ended in ("done", "refused"), f"{what}: {ended}: {said}"
        odd = {char for char in said if not char.isprintable()} - {"\n"}
        assert not odd, f"{what} prints {odd}: {said!r}"
        assert SECRET.decode() not in said, f"{what}: {said}"
        assert "\nverdict    sound, complete" not in said.replace(ends["verify"][1], ""), said
    assert values["elsewhere"] == []
    assert values["grown"] < MOST_GROWN
    verified = ends["verify"]
    if attack.harmless:
        assert verified[1].startswith("status 0"), verified
        assert verified[1].count("\nverdict ") == 1
    else:
        assert verified[0] == "refused" or verified[1].startswith("status 1"), verified
    if attack.readable:
        assert ends["columns"] == ["done", ""]
        assert ends["gather"] == ["done", ""]
