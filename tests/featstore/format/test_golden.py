"""Stores that earlier releases wrote stay readable, and the page about the format is enough to read them."""

import json
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from featstore import FeatureStore
from featstore.format.artefacts import unpack_texts
from featstore.format.manifest import Container
from tests.featstore import golden
from tests.featstore.stores import snapshot

CONTAINERS: list[Container] = ["zarr", "webdataset"]
VALID = [row for row in range(golden.ROWS) if row != golden.INVALID]


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_golden_store_reads(container: Container) -> None:
    """Every field of a store of version 1 gives the values it was made of."""
    store = FeatureStore.open(golden.FOLDER / f"store_v1_{container}")
    assert store.complete
    assert store.sample_ids == golden.IDS
    assert store.labels.tolist() == [row % 3 - 1 for row in range(golden.ROWS)]
    assert [item.row for item in store.invalid_rows()] == [golden.INVALID]
    assert np.flatnonzero(store.valid).tolist() == VALID
    for name, field in golden.fields_of(container).items():
        expected = [golden.formula(name, row) for row in VALID]
        if name == "points":
            found = store.gather_ragged(name, VALID)
            parts = np.split(found.values, found.offsets[1:-1])
            flat = [view for row in expected for view in row]
            for part, view in zip(parts, flat, strict=True):
                np.testing.assert_array_equal(part, view, strict=True)
        elif name == "logits":
            top = store.gather_topk(name, VALID)
            whole = np.stack(expected)
            order = np.argsort(-whole, axis=-1, kind="stable")[..., :3]
            np.testing.assert_array_equal(top.indices, order)
            np.testing.assert_array_equal(top.values, np.take_along_axis(whole, order, -1))
        else:
            values = store.gather(name, VALID)
            np.testing.assert_array_equal(values, np.stack(expected), strict=field.dtype != "text")
    table = store.artefact("prompts")
    assert unpack_texts(table) == golden.PROMPTS
    assert table["embedding"].shape == (2, 4)


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_format_has_not_changed(container: Container, tmp_path: Path) -> None:
    """The same rows give the same bytes as when version 1 was fixed; any other byte needs a new version.

    Metadata of Zarr is compared by its readers, not here: its spelling is up to the library.
    """
    ours = snapshot(golden.write(tmp_path / "s", container))
    theirs = snapshot(golden.FOLDER / f"store_v1_{container}")
    assert ours.keys() == theirs.keys()
    for name in ours:
        if not name.endswith("zarr.json"):
            assert ours[name] == theirs[name], name


def read_as_documented(store: Path) -> dict[str, Any]:
    """A reader of the zarr container written from docs/format.md alone: no featstore, no Zarr library."""
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    rows = manifest["source"]["num_samples"]
    size = manifest["work"]["shard_rows"]
    shards = -(-rows // size)
    assert json.loads((store / "ledger/complete.json").read_text())["shards"] == shards
    objects: dict[str, bytes] = {}
    for shard in range(shards):
        entry = json.loads((store / f"ledger/{shard:08d}.json").read_text())
        for name, item in entry["objects"].items():
            data = (store / name).read_bytes()
            assert len(data) == item["bytes"]
            for number, start in enumerate(range(0, len(data), item["block_bytes"])):
                crc = google_crc32c.value(data[start : start + item["block_bytes"]])
                assert f"{crc:08x}" == item["crc32c"][8 * number : 8 * number + 8]
            objects[name] = data

    def raw(column: str, dtype: Any, *shape: int) -> Any:
        parts = []
        for shard in range(shards):
            count = min(size, rows - shard * size)
            name = "/".join([column, "c", str(shard), *("0" for _ in shape)])
            numbers = count * int(np.prod(shape))
            parts.append(np.frombuffer(objects[name], dtype, numbers).reshape(count, *shape))
        return np.concatenate(parts)

    ids: list[str] = []
    for shard in range(shards):
        data = objects[f"sample_id/c/{shard}"]
        (count,), place = struct.unpack_from("<I", data), 4
        for _ in range(count):
            (length,) = struct.unpack_from("<I", data, place)
            ids.append(data[place + 4 : place + 4 + length].decode())
            place += 4 + length
    views = len(manifest["views"]["views"])
    channels = load_file(store / "artefacts" / "channels.safetensors")
    codes = raw("fields/codes_both/codes", "i1", views, 4).astype(np.float32)
    scale = raw("fields/codes_both/scale", "<f4", views)
    return {
        "ids": [name for name in ids if name],
        "valid": raw("valid", "?"),
        "cls": raw("fields/cls", "<f2", views, 6),
        "grid2": raw("fields/grid2", "<f4", views, 2, 2, 3),
        "bits": raw("fields/bits", "<u2", views, 4).view(ml_dtypes.bfloat16),
        "codes_both": codes * scale[..., None] * channels["scale"] + channels["offset"],
        "indices": raw("fields/logits/indices", "<u2", views, 3),
    }


def test_the_page_is_enough_to_write_a_reader() -> None:
    """What the page says, followed to the letter, gives the same rows as our reader."""
    path = golden.FOLDER / "store_v1_zarr"
    found = read_as_documented(path)
    store = FeatureStore.open(path)
    assert found["ids"] == store.sample_ids
    np.testing.assert_array_equal(found["valid"], store.valid)
    for name in ("cls", "grid2", "bits", "codes_both"):
        np.testing.assert_array_equal(found[name][VALID], store.gather(name, VALID))
    np.testing.assert_array_equal(
        found["indices"][VALID], store.gather_topk("logits", VALID).indices
    )
