"""One test per kind of record that distillation systems need: declared, written, read back, read by others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import tensorstore
import zarr
from pydantic import ValidationError

from featstore import FeatureStore
from featstore.containers import make_backend
from featstore.errors import ConfigError, ManifestMismatch, MissingSamples, ShardCorrupt
from featstore.format.artefacts import artefact_record, pack, pack_texts, unpack_texts
from featstore.format.fields import empty_columns, put, put_ragged
from featstore.format.int8 import Channels, Scheme, calibrate
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import (
    FieldRecord,
    Int8Encoding,
    RaggedEncoding,
    TeacherRecord,
    TopKEncoding,
)
from featstore.reading import stored_rows as reader
from featstore.reading.torch_data import gather_tensors
from featstore.writing.commit import commit, open_or_create
from featstore.writing.shard import Shard
from tests.featstore.stores import TEACHER, make_manifest, names_of

Array = npt.NDArray[Any]

ROWS = 11
VIEWS = 2


def build(
    path: Path,
    fields: dict[str, FieldRecord],
    values: dict[str, Any],
    *,
    channels: dict[str, Channels] | None = None,
    **changes: Any,
) -> FeatureStore:
    """Write a store of 11 rows in shards of 4 with these fields; ragged values are lists per row."""
    manifest = make_manifest(
        num_rows=ROWS, shard_rows=4, views=VIEWS, fields={"cls": FieldRecord(**VECTOR)}
    )
    files = {
        name: pack({"scale": item.scale, "offset": item.offset})
        for name, item in (channels or {}).items()
    } | changes.pop("files", {})
    artefacts = {name: artefact_record(data, meaning="test") for name, data in files.items()}
    values_of = {**manifest.model_dump(), "fields": fields, "artefacts": artefacts, **changes}
    manifest = open_or_create(path, Manifest.model_validate(values_of), files)
    backend = make_backend(path, manifest)
    for number in range(manifest.num_shards):
        rows = manifest.shard_range(number)
        columns = empty_columns(manifest, number)
        columns["sample_id"][:] = names_of(ROWS)[rows.start : rows.stop]
        columns["valid"][:] = True
        for name, data in values.items():
            part = data[rows.start : rows.stop]
            if isinstance(fields[name].encoding, RaggedEncoding):
                put_ragged(manifest, columns, name, number, part)
            else:
                put(
                    manifest,
                    columns,
                    name,
                    slice(None),
                    part,
                    channels=(channels or {}).get(f"{name}-channels"),
                )
        commit(backend, Shard(number, columns, [None] * len(rows), {}))
    return FeatureStore.open(path)


VECTOR: dict[str, Any] = {"shape": (6,), "dtype": "float16", "dims": ("channel",), "meaning": "v"}


def record(shape: Sequence[int], dtype: str = "float16", **options: Any) -> FieldRecord:
    """A field without a teacher."""
    dims = tuple("abcd"[: len(shape)])
    return FieldRecord(
        shape=tuple(shape),
        dtype=dtype,  # type: ignore[arg-type]
        dims=dims,
        meaning="test",
        **options,
    )


def numbers(*shape: int, seed: int = 0) -> Array:
    """Correlated, heavy-tailed rows with an outlier channel, as ViT features have."""
    generator = np.random.default_rng(seed)
    values = generator.standard_t(4, size=shape)
    values[..., 0] *= 50
    return values.astype(np.float32)


ORDER = [10, 3, 3, 0, 7]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((), "float32"),
        ((6,), "float16"),
        ((5, 6), "float16"),
        ((7, 7, 6), "float32"),
        ((8, 4, 4), "bfloat16"),
        ((68, 2), "float32"),
        ((9, 9), "bool"),
        ((3,), "uint16"),
        ((3,), "int64"),
        ((4,), "int8"),
        ((4,), "uint8"),
        ((4,), "int16"),
        ((4,), "int32"),
    ],
    ids=str,
)
@pytest.mark.parametrize("codec", ["raw", "zstd", "bitshuffle"])
def test_arrays_of_any_rank_and_type(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, codec: str
) -> None:
    """Vectors, tokens, grids, coordinates, masks, indices: what was written comes back, also through zarr-python."""
    spec = record(shape, dtype, codec=codec)
    wide = numbers(ROWS, VIEWS, *shape, 1)[..., 0]
    values = (wide > 0) if dtype == "bool" else wide
    stored = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    store = build(tmp_path / "s", {"x": spec}, {"x": stored})
    found = store.gather("x", ORDER)
    np.testing.assert_array_equal(found, stored[ORDER], strict=True)
    array: Any = zarr.open_group(store.path, mode="r")["fields/x"]
    bits = stored.view(np.uint16) if dtype == "bfloat16" else stored
    np.testing.assert_array_equal(array[:], bits, strict=True)
    kvstore = {"driver": "file", "path": f"{store.path / 'fields/x'}/"}
    foreign = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    np.testing.assert_array_equal(foreign.read().result(), bits)


def test_bfloat16_goes_into_a_buffer_bit_by_bit(tmp_path: Path) -> None:
    """No way leads through float32: NaN payloads and denormals would not survive it everywhere."""
    bits = np.random.default_rng(0).integers(0, 2**16, (ROWS, VIEWS, 6)).astype(np.uint16)
    store = build(
        tmp_path / "s", {"x": record((6,), "bfloat16")}, {"x": bits.view(ml_dtypes.bfloat16)}
    )
    out = np.zeros((5, VIEWS, 6), dtype=ml_dtypes.bfloat16)
    assert store.gather("x", ORDER, out=out) is out
    np.testing.assert_array_equal(out.view(np.uint16), bits[ORDER])
    array: Any = zarr.open_group(store.path, mode="r")["fields/x"]
    assert array.attrs["bits_of"] == "bfloat16"


@pytest.mark.parametrize("scheme", ["row", "channel", "channel_row"])
@pytest.mark.parametrize("shape", [(64,), (3, 3, 64)], ids=str)
def test_int8_with_scales(tmp_path: Path, scheme: Scheme, shape: tuple[int, ...]) -> None:
    """Rows come back as float32 with the error that the manifest states, for vectors and for grids."""
    values = numbers(ROWS, VIEWS, *shape)
    found = calibrate(values, scheme)
    encoding = Int8Encoding(
        scheme=scheme,
        channels="" if found.channels is None else "x-channels",
        sample_rows=found.sample_rows,
        relative_l2=found.relative_l2,
        cosine_mean=found.cosine_mean,
        cosine_worst=found.cosine_worst,
    )
    channels = {} if found.channels is None else {"x-channels": found.channels}
    store = build(
        tmp_path / "s",
        {"x": record(shape, "float32", encoding=encoding)},
        {"x": values},
        channels=channels,
    )
    everything = store.gather("x", range(ROWS))
    assert everything.dtype == np.float32
    exact = values.reshape(-1, shape[-1])
    difference = np.linalg.norm(everything.reshape(exact.shape) - exact, axis=1)
    error = (difference / np.linalg.norm(exact, axis=1)).mean()
    stated = store.manifest.fields["x"].encoding
    assert isinstance(stated, Int8Encoding)
    assert error == pytest.approx(stated.relative_l2, rel=1e-3)
    assert error < 0.1
    read = store.gather("x", ORDER)
    np.testing.assert_array_equal(read, everything[ORDER])
    out = np.empty((5, VIEWS, *shape), dtype=np.float32)
    store.gather("x", ORDER, out=out)
    np.testing.assert_array_equal(out, read)
    # The same sums in another order.
    tensor = gather_tensors(store, ["x"], np.array(ORDER))["x"]
    np.testing.assert_allclose(tensor.numpy(), read, rtol=1e-5, atol=1e-5)
    codes: Any = zarr.open_group(store.path, mode="r")["fields/x/codes"]
    assert codes.dtype == np.int8
    if found.channels is not None:
        np.testing.assert_array_equal(store.artefact("x-channels")["scale"], found.channels.scale)


def test_top_k_logits(tmp_path: Path) -> None:
    """The largest logits with their classes; back on the whole axis, the others are missing."""
    logits = numbers(ROWS, VIEWS, 1000).astype(np.float16)
    spec = record((20,), "float16", encoding=TopKEncoding(num_classes=1000))
    store = build(tmp_path / "s", {"logits": spec}, {"logits": logits})
    found = store.gather_topk("logits", ORDER)
    assert found.indices.dtype == np.uint16
    expected = np.sort(logits[ORDER].astype(np.float32), axis=-1)[..., ::-1][..., :20]
    np.testing.assert_array_equal(found.values.astype(np.float32), expected)
    dense = np.full((*found.values.shape[:-1], 1000), -np.inf, dtype=np.float32)
    indices = found.indices.astype(np.int64)
    np.put_along_axis(dense, indices, found.values.astype(np.float32), axis=-1)
    kept = np.isfinite(dense)
    assert kept.sum() == 5 * VIEWS * 20
    np.testing.assert_array_equal(dense[kept], logits[ORDER].astype(np.float32)[kept])
    with pytest.raises(ConfigError, match="gather_topk"):
        store.gather("logits", ORDER)


def test_ragged_point_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of any number of items, none among them, several views: flat values and ranges, without padding on disk."""
    generator = np.random.default_rng(0)
    rows = [
        [
            generator.standard_normal((generator.integers(0, 9), 3)).astype(np.float16)
            for _ in range(VIEWS)
        ]
        for _ in range(ROWS)
    ]
    rows[3] = [np.empty((0, 3), np.float16)] * VIEWS
    spec = record((3,), encoding=RaggedEncoding(most_items=100_000))
    store = build(tmp_path / "s", {"points": spec}, {"points": rows})
    found = store.gather_ragged("points", ORDER)
    assert len(found.offsets) == 5 * VIEWS + 1
    for b, row in enumerate(ORDER):
        for v in range(VIEWS):
            i = b * VIEWS + v
            part = found.values[found.offsets[i] : found.offsets[i + 1]]
            np.testing.assert_array_equal(part, rows[row][v], strict=True)
    none = store.gather_ragged("points", [])
    assert (none.values.shape, none.offsets.tolist()) == ((0, 3), [0])
    group: Any = zarr.open_group(store.path, mode="r")
    for row in range(ROWS):
        start, stop = group["fields/points/ranges"][row, 1]
        np.testing.assert_array_equal(group["fields/points/values"][start:stop], rows[row][1])
    size = sum(file.stat().st_size for file in (store.path / "fields/points/values/c").rglob("0"))
    assert size < 2 * 10**6, "positions are reserved, bytes are not"
    monkeypatch.setattr(reader, "HELD_BYTES", 1)
    again = FeatureStore.open(store.path)
    np.testing.assert_array_equal(again.gather_ragged("points", ORDER).values, found.values)
    assert len(again._stored._held) == 3, "mapped items take no memory"
    too_many = [[np.zeros((100_001, 3), np.float16), np.zeros((0, 3), np.float16)]] * ROWS
    with pytest.raises(ConfigError, match="100000"):
        build(tmp_path / "t", {"points": spec}, {"points": too_many})


def test_captions_and_scalars_per_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text in several languages and numbers that belong to an image, not to a view."""
    texts = np.array([[f"Bild {row}", f"图 {row}"] for row in range(ROWS)], dtype=object)
    fields = {
        "captions": FieldRecord(
            shape=(2,), dtype="text", dims=("language",), meaning="captions", per_view=False
        ),
        "confidence": record((), "float32", per_view=False),
        "landmarks": record((68, 2), "float32", per_view=False),
    }
    points = numbers(ROWS, 68, 2)
    values = {"captions": texts, "confidence": points[:, 0, 0], "landmarks": points}
    store = build(tmp_path / "s", fields, values)
    np.testing.assert_array_equal(store.gather("captions", ORDER), texts[ORDER])
    monkeypatch.setattr(reader, "HELD_BYTES", 1)
    again = FeatureStore.open(store.path)
    np.testing.assert_array_equal(again.gather("captions", ORDER), texts[ORDER])
    assert len(again._stored._held) == 1
    np.testing.assert_array_equal(store.gather("confidence", ORDER), points[ORDER, 0, 0])
    np.testing.assert_array_equal(store.gather("landmarks", ORDER), points[ORDER])
    array: Any = zarr.open_group(store.path, mode="r")["fields/captions"]
    np.testing.assert_array_equal(array[:], texts)


def test_several_teachers_over_one_sample_axis(tmp_path: Path) -> None:
    """Each field says whose it is; teachers without images among them have no preprocessing."""
    text = TeacherRecord(
        library="transformers", name="xlm-r", weights_sha256="cd" * 32, precision="fp16"
    )
    fields = {
        "dino": record((6,), teacher="dinov2"),
        "clip": record((4,), teacher="clip"),
        "caption": record((4,), teacher="text", per_view=False),
    }
    values = {
        "dino": numbers(ROWS, VIEWS, 6).astype(np.float16),
        "clip": numbers(ROWS, VIEWS, 4).astype(np.float16),
        "caption": numbers(ROWS, 4).astype(np.float16),
    }
    teachers = {
        "dinov2": TEACHER.model_dump(),
        "clip": TEACHER.model_dump() | {"name": "clip"},
        "text": text.model_dump(),
    }
    store = build(tmp_path / "s", fields, values, teachers=teachers)
    assert store.manifest.teacher_of("clip").name == "clip"
    assert store.manifest.teacher_of("caption").preprocessing is None
    for name, expected in values.items():
        np.testing.assert_array_equal(store.gather(name, ORDER), expected[ORDER], strict=True)


def test_heads_and_tables_of_texts_as_artefacts(tmp_path: Path) -> None:
    """A classifier, and class prompts with their embeddings, travel with the store under a hash."""
    prompts = ["a photo of a cat", "ein Foto eines Hundes", ""]
    embeddings = numbers(3, 6)
    head = {"weight": numbers(2, 6), "bias": np.zeros(2, np.float32)}
    files = {
        "classifier": pack(head),
        "prompts": pack({**pack_texts(prompts), "embedding": embeddings}),
    }
    values = {"cls": numbers(ROWS, VIEWS, 6).astype(np.float16)}
    store = build(tmp_path / "s", {"cls": record((6,))}, values, files=files)
    np.testing.assert_array_equal(store.artefact("classifier")["weight"], head["weight"])
    table = store.artefact("prompts")
    assert unpack_texts(table) == prompts
    np.testing.assert_array_equal(table["embedding"], embeddings)
    with pytest.raises(ConfigError):
        store.artefact("../manifest")
    path = store.path / "artefacts" / "classifier.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardCorrupt, match=r"classifier\.safetensors.*sha256"):
        store.artefact("classifier")


def test_statistics_of_a_data_set_as_an_artefact(tmp_path: Path) -> None:
    """Mean and covariance, for parties that may not pass samples on."""
    values = numbers(ROWS, VIEWS, 6)
    flat = values.reshape(-1, 6)
    files = {"statistics": pack({"mean": flat.mean(0), "covariance": np.cov(flat.T)})}
    store = build(
        tmp_path / "s", {"cls": record((6,))}, {"cls": values.astype(np.float16)}, files=files
    )
    assert store.artefact("statistics")["covariance"].shape == (6, 6)


def test_attention_tensors(tmp_path: Path) -> None:
    """Queries, keys and values of a block, from which any relation map follows: rank 4."""
    values = numbers(ROWS, VIEWS, 3, 2, 5, 8).astype(np.float16)
    store = build(tmp_path / "s", {"qkv": record((3, 2, 5, 8))}, {"qkv": values})
    np.testing.assert_array_equal(store.gather("qkv", ORDER), values[ORDER], strict=True)


def test_batch_statistics_must_name_their_seed() -> None:
    """A teacher in batch mode makes a row depend on its neighbours; without the seed that drew them it is refused."""
    values = TEACHER.model_dump() | {"mode": "batch"}
    with pytest.raises(ValidationError, match="batch_seed"):
        TeacherRecord.model_validate(values)
    assert TeacherRecord.model_validate(values | {"batch_seed": 3}).batch_seed == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (2, 3)}, r"\b1\b.*\b2\b"),
        ({"shape": (2**40, 2**40), "dims": ("a", "b")}, "beyond any machine"),
        ({"dtype": "text", "codec": "zstd"}, "text is stored plain"),
        ({"encoding": {"kind": "topk", "num_classes": 3}}, r"\b6\b.*\b3\b"),
        ({"encoding": {"kind": "pickle"}}, "pickle"),
        ({"dtype": "object"}, "dtype"),
        ({"codec": "lzma"}, "codec"),
    ],
)
def test_impossible_fields_are_refused(changes: dict[str, Any], message: str) -> None:
    """A manifest is another team's input: what cannot be is refused before memory is reserved for it."""
    with pytest.raises(ValidationError, match=message):
        FieldRecord.model_validate({**VECTOR, **changes})


def test_a_field_of_no_teacher_says_so(tmp_path: Path) -> None:
    """Asking whose preprocessing a field has is an error where nobody's is meant."""
    store = build(
        tmp_path / "s", {"x": record((2,))}, {"x": np.zeros((ROWS, VIEWS, 2), np.float16)}
    )
    with pytest.raises(ManifestMismatch, match='"x"'):
        store.manifest.teacher_of("x")
    with pytest.raises(MissingSamples, match=r"\b0\b.*\b10\b"):
        store.gather("x", [11])
