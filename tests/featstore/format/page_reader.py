"""A reader of stores written from docs/format.md alone: the standard library and numpy, nothing of this project.

It is the proof that the page is enough. Zstandard and Blosc are not in the standard library; numcodecs decodes them,
and nothing else. Every byte that a checksum covers is compared before it is used.
"""

import hashlib
import io
import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

FLOAT_KEYS = {
    *("crop_pct", "mean", "std", "scale", "ratio"),
    *("relative_l2", "cosine_mean", "cosine_worst"),
}
"""Keys of the manifest whose numbers are floating point, also where they are written without a point."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "manifest": {"container": "zarr", "artefacts": {}},
    "teacher": {
        **{"tag": "", "model_args": {}, "licence": "", "mode": "eval"},
        **{"batch_seed": None, "preprocessing": None},
    },
    "views": {
        **{"seed": 0, "scale": [0.35, 1.0], "ratio": [3 / 4, 4 / 3]},
        "views": [{"kind": "canonical"}],
    },
    "view": {"number": 0, "mirrored": False},
    "field": {"teacher": "", "per_view": True, "encoding": {"kind": "plain"}, "codec": "raw"},
    "int8": {"channels": ""},
    "artefact": {"teacher": ""},
    "source": {"class_names": []},
    "work": {"shard_sizes": [], "shard_names": []},
}
"""What an absent key means."""

CHUNK_BYTES = 256 * 1024


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), as in RFC 3720."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


class Damaged(Exception):
    """Bytes are not those that the store's checksums state."""


def read_json(path: Path) -> Any:
    """A file of JSON with the checksum of itself, which is taken out."""
    data = path.read_bytes()
    values = json.loads(data)
    if "file_crc32c" not in values:
        return values
    crc = values.pop("file_crc32c")
    if data.count(crc.encode()) != 1 or crc32c(data.replace(crc.encode(), b"0" * 8)) != int(
        crc, 16
    ):
        raise Damaged(path.name)
    return values


def with_defaults(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with every absent key filled in, and floating point numbers as such."""

    def fill(kind: str, values: dict[str, Any]) -> dict[str, Any]:
        return {**DEFAULTS[kind], **values}

    found = fill("manifest", manifest)
    found["teachers"] = {k: fill("teacher", v) for k, v in found["teachers"].items()}
    views = fill("views", found["views"])
    found["views"] = {**views, "views": [fill("view", view) for view in views["views"]]}
    found["fields"] = {k: fill("field", v) for k, v in found["fields"].items()}
    for field in found["fields"].values():
        if field["encoding"]["kind"] == "int8":
            field["encoding"] = fill("int8", field["encoding"])
    found["artefacts"] = {k: fill("artefact", v) for k, v in found["artefacts"].items()}
    found["source"] = fill("source", found["source"])
    found["work"] = fill("work", found["work"])
    return _floats(found)


def _floats(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: v if k == "model_args" else _floats(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_floats(item, key) for item in value]
    return float(value) if key in FLOAT_KEYS else value


def fingerprint(manifest: dict[str, Any]) -> str:
    """SHA-256 of what the rows are."""
    kept = with_defaults(manifest)
    for key in ("uuid", "created", "created_by", "history", "container", "work"):
        kept.pop(key, None)
    kept["source"].pop("uri")
    for teacher in kept["teachers"].values():
        del teacher["licence"]
    for field in kept["fields"].values():
        del field["codec"]
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class PageReader:
    """A complete store, read whole.

    Attributes:
        manifest: with defaults filled in.
        ids, valid, hashes, labels: of all rows; labels are None if the store has none.
        reasons: why rows are invalid, by row.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        raw = read_json(store / "manifest.json")
        assert raw["format_version"] == 1
        self.manifest = with_defaults(raw)
        self.fingerprint = fingerprint(raw)
        work = self.manifest["work"]
        self.rows = self.manifest["source"]["num_samples"]
        self.size = work["shard_rows"]
        self.views = len(self.manifest["views"]["views"])
        sizes = work["shard_sizes"] or [
            min(self.size, self.rows - start) for start in range(0, self.rows, self.size)
        ]
        self.starts = [sum(sizes[:shard]) for shard in range(len(sizes) + 1)]
        self.objects: dict[str, bytes] = {}
        self.reasons: dict[int, str] = {}
        for shard in range(len(sizes)):
            self._read_entry(shard)
        self._check_complete(len(sizes))
        self.artefacts = {name: self._artefact(name) for name in self.manifest["artefacts"]}
        shards = range(len(sizes))
        if self.manifest["container"] == "zarr":
            columns = [self._zarr_shard(shard) for shard in shards]
        else:
            columns = [self._tar_shard(shard) for shard in shards]
        self.columns = {
            name: [part[name] for part in columns] for name in (columns[0] if columns else ())
        }
        self.ids = np.concatenate(self.columns["sample_id"]).tolist()
        self.valid = np.concatenate(self.columns["valid"])
        self.hashes = np.concatenate(self.columns["content_sha256"])
        has_labels = self.manifest["source"]["has_labels"]
        self.labels = np.concatenate(self.columns["label"]) if has_labels else None
        digest = hashlib.sha256(b"".join(name.encode() + b"\0" for name in self.ids))
        if digest.hexdigest() != self.manifest["source"]["ids_sha256"]:
            raise Damaged("ids")
        assert sorted(self.reasons) == np.flatnonzero(~self.valid).tolist()

    # ---------------------------------------------------------------- ledger and artefacts

    def _read_entry(self, shard: int) -> None:
        entry = read_json(self.store / "ledger" / f"{shard:08d}.json")
        assert entry["shard"] == shard
        assert entry["rows"] == [self.starts[shard], self.starts[shard + 1]]
        for name, record in entry["objects"].items():
            data = (self.store / name).read_bytes()
            size = record["block_bytes"]
            found = "".join(
                f"{crc32c(data[at : at + size]):08x}" for at in range(0, len(data), size)
            )
            if len(data) != record["bytes"] or found != record["crc32c"]:
                raise Damaged(name)
            self.objects[name] = data
        for item in entry.get("invalid", []):
            self.reasons[item["row"]] = item["reason"]

    def _check_complete(self, shards: int) -> None:
        path = self.store / "ledger" / "complete.json"
        mark = read_json(path)
        assert mark["shards"] == shards
        assert mark["invalid_rows"] == len(self.reasons)
        assert mark["bytes"] == sum(map(len, self.objects.values()))
        entries = hashlib.sha256()
        for shard in range(shards):
            entries.update((path.parent / f"{shard:08d}.json").read_bytes())
        manifest = hashlib.sha256((self.store / "manifest.json").read_bytes())
        for key, digest in (("manifest_sha256", manifest), ("entries_sha256", entries)):
            if mark.get(key) not in (None, "", digest.hexdigest()):
                raise Damaged(key)

    def _artefact(self, name: str) -> dict[str, Any]:
        """Tensors of a safetensors file."""
        data = (self.store / "artefacts" / f"{name}.safetensors").read_bytes()
        record = self.manifest["artefacts"][name]
        if len(data) != record["bytes"] or hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise Damaged(name)
        (length,) = struct.unpack("<Q", data[:8])
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        header.pop("__metadata__", None)
        dtypes = {"F32": "<f4", "U8": "u1", "I64": "<i8"}
        tensors = {}
        for key, item in header.items():
            start, stop = item["data_offsets"]
            values = np.frombuffer(body[start:stop], dtypes[item["dtype"]])
            tensors[key] = values.reshape(item["shape"])
        return tensors

    # -------------------------------------------------------------------------- columns

    def _parts(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Columns of a field of numbers with one entry a row: by the part's name, type and shape of an entry."""
        field = self.manifest["fields"][name]
        encoding = field["encoding"]
        shape = (*([self.views] if field["per_view"] else []), *field["shape"])
        if encoding["kind"] == "topk":
            index = "uint16" if encoding["num_classes"] <= 65_536 else "int32"
            return {"values": (field["dtype"], shape), "indices": (index, shape)}
        if encoding["kind"] == "int8":
            codes = {"codes": ("int8", shape)}
            return (
                codes
                if encoding["scheme"] == "channel"
                else {**codes, "scale": ("float32", shape[:-1])}
            )
        return {"": (field["dtype"], shape)}

    def field(self, name: str) -> Any:
        """All rows of a field: an array, (values, indices), or lists of items by row and view."""
        field = self.manifest["fields"][name]
        encoding = field["encoding"]
        if encoding["kind"] == "ragged":
            return self._ragged(name)
        parts = [np.concatenate(self.columns[column]) for column in self._column_names(name)]
        if encoding["kind"] == "topk":
            return _real(field["dtype"], parts[0]), parts[1]
        if encoding["kind"] != "int8":
            return _real(field["dtype"], parts[0])
        values = parts[0].astype(np.float32)
        if len(parts) == 2:
            values = values * parts[1][..., None]
        if encoding["channels"]:
            tensors = self.artefacts[encoding["channels"]]
            values = values * tensors["scale"] + tensors["offset"]
        return values

    def _column_names(self, name: str) -> list[str]:
        return [f"fields/{name}/{part}" if part else f"fields/{name}" for part in self._parts(name)]

    def _ragged(self, name: str) -> list[list[Any]]:
        field = self.manifest["fields"][name]
        rows: list[list[Any]] = []
        for shard, ranges in enumerate(self.columns[f"fields/{name}/ranges"]):
            values = _real(field["dtype"], self.columns[f"fields/{name}/values"][shard])
            first = shard * self.size * field["encoding"]["most_items"]
            for views in (ranges - first).reshape(len(ranges), -1, 2).tolist():
                rows.append([values[start:stop] for start, stop in views])
        return rows

    # ------------------------------------------------------------------- the zarr container

    def _zarr_shard(self, shard: int) -> dict[str, Any]:
        count = self.starts[shard + 1] - self.starts[shard]
        found = {
            "sample_id": self._zarr_text("sample_id", shard, (), count),
            "content_sha256": self._zarr_plain("content_sha256", shard, "uint8", (32,), count),
            "valid": self._zarr_plain("valid", shard, "bool", (), count),
        }
        if self.manifest["source"]["has_labels"]:
            found["label"] = self._zarr_plain("label", shard, "int64", (), count)
        for name, field in self.manifest["fields"].items():
            codec, path = field["codec"], f"fields/{name}"
            shape = tuple(field["shape"])
            views = (self.views,) if field["per_view"] else ()
            if field["dtype"] == "text":
                found[path] = self._zarr_text(path, shard, (*views, *shape), count)
            elif field["encoding"]["kind"] == "ragged":
                most = field["encoding"]["most_items"]
                values, ranges = f"{path}/values", f"{path}/ranges"
                found[values] = self._zarr_chunks(
                    values, shard, field["dtype"], shape, None, codec, most
                )
                found[ranges] = self._zarr_chunks(ranges, shard, "int64", (*views, 2), count, "raw")
            else:
                for part, (dtype, entry) in self._parts(name).items():
                    column = f"{path}/{part}" if part else path
                    used = "raw" if part == "scale" else codec
                    found[column] = self._zarr_chunks(column, shard, dtype, entry, count, used)
        return found

    def _zarr_object(self, column: str, shard: int, axes: int) -> bytes:
        return self.objects["/".join([column, "c", str(shard), *["0"] * axes])]

    def _zarr_plain(self, column: str, shard: int, dtype: str, entry: Any, count: int) -> Any:
        data = self._zarr_object(column, shard, len(entry))
        values = np.frombuffer(data, _stored(dtype)).reshape(-1, *entry)
        assert len(values) == self.size
        assert not values[count:].any()
        return values[:count]

    def _zarr_text(self, column: str, shard: int, entry: Any, count: int) -> Any:
        data = self._zarr_object(column, shard, len(entry))
        (texts,), place = struct.unpack_from("<I", data), 4
        found = np.empty(texts, dtype=object)
        for i in range(texts):
            (length,) = struct.unpack_from("<I", data, place)
            found[i] = data[place + 4 : place + 4 + length].decode()
            place += 4 + length
        assert place == len(data)
        return found.reshape(self.size, *entry)[:count]

    def _zarr_chunks(
        self,
        column: str,
        shard: int,
        dtype: str,
        entry: Any,
        count: int | None,
        codec: str,
        most: int = 1,
    ) -> Any:
        """Entries of one shard object: of all its rows, or of all chunks that are there (``count`` None)."""
        data = self._zarr_object(column, shard, len(entry))
        entry_bytes = _stored(dtype).itemsize * int(np.prod(entry))
        per_chunk = self.size * most & -(self.size * most)
        while per_chunk > 1 and per_chunk * entry_bytes > CHUNK_BYTES:
            per_chunk //= 2
        meta = json.loads((self.store / column / "zarr.json").read_text())
        assert meta["codecs"][0]["configuration"]["chunk_shape"][0] == per_chunk
        slots = self.size * most // per_chunk
        index, crc = data[-16 * slots - 4 : -4], data[-4:]
        if struct.pack("<I", crc32c(index)) != crc:
            raise Damaged(column)
        chunks = []
        for offset, length in struct.iter_unpack("<QQ", index):
            if offset == length == 2**64 - 1:
                continue
            chunk = data[offset : offset + length]
            if codec != "raw":
                import numcodecs

                coder = numcodecs.Zstd() if codec == "zstd" else numcodecs.Blosc()
                chunk = bytes(coder.decode(chunk))
            chunks.append(np.frombuffer(chunk, _stored(dtype)).reshape(per_chunk, *entry))
        values = np.concatenate([np.empty((0, *entry), _stored(dtype)), *chunks])
        return values if count is None else values[:count]

    # ----------------------------------------------------------------------------- tars

    def _tar_shard(self, shard: int) -> dict[str, Any]:
        names = self.manifest["work"]["shard_names"]
        name = names[shard] if names else f"{shard:06d}"
        data = self.objects[f"shards/{name}.tar"]
        members = list(_members(data))
        own = {
            member: body
            for member, body, _ in members
            if member.partition("/")[0] == "__featstore__"
        }
        index = {key.removeprefix("__featstore__/"): _npy(body) for key, body in own.items()}
        starts, count = index["starts"], self.starts[shard + 1] - self.starts[shard]
        assert len(starts) == count + 1
        found = {
            "sample_id": _texts(index["sample_id/values"], index["sample_id/offsets"]),
            "content_sha256": index["content_sha256/values"],
            "valid": index["valid/values"],
        }
        if self.manifest["source"]["has_labels"]:
            found["label"] = index["label/values"]
        samples: list[dict[str, bytes]] = [{} for _ in range(count)]
        for member, body, place in members[len(own) :]:
            row = int(np.searchsorted(starts, place, side="right")) - 1
            sample_id = found["sample_id"][row]
            key = sample_id.removeprefix(f"{name}/") if names else _key(sample_id)
            assert member.startswith(f"{key}."), (member, key)
            samples[row][member.removeprefix(f"{key}.")] = body
        self._check_jsons(samples, found)
        for field, record in self.manifest["fields"].items():
            path = f"fields/{field}"
            if record["dtype"] == "text":
                entry = (*([self.views] if record["per_view"] else []), *record["shape"])
                texts = _texts(index[f"{path}/values"], index[f"{path}/offsets"])
                found[path] = texts.reshape(count, *entry)
                for row, sample in enumerate(samples):
                    said = np.array(json.loads(sample["json"])["text"][field], dtype=object)
                    assert (said == found[path][row]).all()
            elif record["encoding"]["kind"] == "ragged":
                items = [_npy(sample[f"{field}.values.npy"]) for sample in samples]
                found[f"{path}/values"] = np.concatenate(items)
                found[f"{path}/ranges"] = index[f"{path}/ranges/values"]
                for row, sample in enumerate(samples):
                    offsets = _npy(sample[f"{field}.offsets.npy"])
                    lengths = np.diff(found[f"{path}/ranges"][row].reshape(-1, 2))[:, 0]
                    assert (np.diff(offsets) == lengths).all()
            else:
                for part, (dtype, entry) in self._parts(field).items():
                    suffix = f"{field}.{part}.npy" if part else f"{field}.npy"
                    values = np.stack([_npy(sample[suffix]) for sample in samples])
                    assert values.dtype == _stored(dtype)
                    assert values.shape == (count, *entry)
                    found[f"{path}/{part}" if part else path] = values
        return found

    def _check_jsons(self, samples: list[dict[str, bytes]], found: dict[str, Any]) -> None:
        for row, sample in enumerate(samples):
            said = json.loads(sample["json"])
            assert said["sample_id"] == found["sample_id"][row]
            assert said["content_sha256"] == found["content_sha256"][row].tobytes().hex()
            assert said["valid"] == found["valid"][row]
            assert said.get("label") == (found["label"][row] if "label" in found else None)


def _stored(dtype: str) -> Any:
    return np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")


def _real(dtype: str, values: Any) -> Any:
    """The numbers of a column; bfloat16, which numpy lacks, as the float32 of the same value."""
    if dtype != "bfloat16":
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)


def _members(data: bytes) -> Any:
    """Name, content, and the place of the member's first header, of each member of a tar."""
    place, start, longer = 0, 0, None
    while any(data[place : place + 512]):
        head = data[place : place + 512]
        name, prefix = (head[at].split(b"\0")[0] for at in (slice(0, 100), slice(345, 500)))
        size = int(head[124:136].rstrip(b"\0 "), 8)
        body = data[place + 512 : place + 512 + size]
        place += 512 + -(-size // 512) * 512
        if head[156:157] == b"x":  # pax: lines of "<length> <key>=<value>\n"
            records = {}
            while body:
                length, _, _ = body.partition(b" ")
                line, body = body[: int(length)], body[int(length) :]
                key, _, value = line.partition(b" ")[2].rstrip(b"\n").partition(b"=")
                records[key] = value
            longer = records[b"path"]
            continue
        whole = longer or (prefix + b"/" + name if prefix else name)
        yield whole.decode(), body, start
        start, longer = place, None


def _npy(data: bytes) -> Any:
    return np.load(io.BytesIO(data), allow_pickle=False)


def _texts(values: Any, offsets: Any) -> Any:
    found = np.empty(len(offsets) - 1, dtype=object)
    for i, (start, stop) in enumerate(pairwise(offsets.tolist())):
        found[i] = values[start:stop].tobytes().decode()
    return found


def _key(sample_id: str) -> str:
    key = quote(sample_id, safe="/" if all(sample_id.split("/")) else "")
    key = key.replace(".", "%2E").replace("~", "%7E")
    key = f"%5F{key[1:]}" if key.startswith("__") else key
    return key if len(key) <= 150 else "~" + hashlib.sha256(sample_id.encode()).hexdigest()
