"""What every container must do: one suite, subclassed once per container.

A subclass says which container it is; tests of what only one container has are in its own file.
"""

import json
import multiprocessing
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore import FeatureStore
from featstore.containers import make_backend
from featstore.errors import (
    ConfigError,
    FeatstoreError,
    MissingSamples,
    ShardCorrupt,
    StoreIncomplete,
    ViewMismatch,
)
from featstore.format.artefacts import artefact_record, pack
from featstore.format.fields import Ragged, TopK, columns_of, empty_columns, put, put_ragged
from featstore.format.int8 import Channels, Scheme, calibrate
from featstore.format.ledger import read_entry
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import (
    Container,
    FieldRecord,
    Int8Encoding,
    RaggedEncoding,
    TopKEncoding,
)
from featstore.writing.commit import commit, open_or_create
from featstore.writing.shard import Shard
from tests.featstore.stores import TEACHER, field, make_manifest, names_of, snapshot

Array = npt.NDArray[Any]

NUM_ROWS = 11
SHARD_ROWS = 4
VIEWS = 2
ORDER = [10, 3, 3, 0, 7]

NUMBERS = (
    ("float32", ()),
    ("float16", (6,)),
    ("float16", (5, 6)),
    ("float32", (7, 7, 6)),
    ("bfloat16", (8, 4, 4)),
    ("bool", (9, 9)),
    ("int8", (4,)),
    ("uint8", (4,)),
    ("int16", (4,)),
    ("uint16", (3,)),
    ("int32", (4,)),
    ("int64", (3,)),
)
"""Type and shape: a scalar, a vector, tokens, grids, masks, coordinates, indices."""


def spec(dtype: str, shape: Sequence[int], **options: Any) -> FieldRecord:
    """A field that no teacher made."""
    dims = tuple("abcd"[: len(shape)])
    return FieldRecord(
        shape=tuple(shape),
        dtype=dtype,  # type: ignore[arg-type]
        dims=dims,
        meaning="test",
        **options,
    )


def heavy_tailed(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Numbers with an outlier channel, as ViT features have; never zero."""
    generator = np.random.default_rng(seed)
    values = generator.standard_t(4, size=shape) + 0.01
    if shape:
        values[..., 0] *= 50
    return values.astype(np.float32)


def values_of(dtype: str, *shape: int, seed: int = 0) -> Array:
    """Numbers of any type; whole parts of what can be zero are zero."""
    wide = heavy_tailed(*shape, 1, seed=seed)[..., 0]
    wide[: len(wide) // 3] = 0
    if dtype == "bool":
        return wide > 0
    return wide.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def points(rows: int, views: int, *, seed: int = 0) -> list[list[Array]]:
    """Ragged rows of 0 to 249 points, so that samples differ in size; the second row has none at all."""
    generator = np.random.default_rng(seed)
    lists = [
        [
            generator.standard_normal((generator.integers(0, 250), 3)).astype(np.float16)
            for _ in range(views)
        ]
        for _ in range(rows)
    ]
    if rows > 1:
        lists[1] = [np.empty((0, 3), np.float16)] * views
    return lists


POINTS = spec("float16", (3,), encoding=RaggedEncoding(most_items=1000))


def int8_field(values: Array, scheme: Scheme, name: str) -> tuple[FieldRecord, Channels | None]:
    """A quantised field for some values, and its scales."""
    found = calibrate(values, scheme)
    encoding = Int8Encoding(
        scheme=scheme,
        channels="" if found.channels is None else name,
        sample_rows=found.sample_rows,
        relative_l2=found.relative_l2,
        cosine_mean=found.cosine_mean,
        cosine_worst=found.cosine_worst,
    )
    return spec("float32", values.shape[2:], encoding=encoding), found.channels


class Rows:
    """Rows to be written into a store of any container: fields, their values, and what belongs to them.

    Attributes:
        values: by field, (N, V, *shape), without V where it is not per view; a list of lists of arrays if ragged.
        invalid: rows that are stored as zeros, with the reason.
    """

    def __init__(
        self,
        fields: Mapping[str, FieldRecord],
        values: Mapping[str, Any],
        *,
        channels: Mapping[str, Channels] | None = None,
        invalid: Mapping[int, str] | None = None,
        shard_rows: int = SHARD_ROWS,
        views: int = VIEWS,
        labels: bool = True,
    ) -> None:
        self.fields, self.values = dict(fields), dict(values)
        self.channels, self.invalid = dict(channels or {}), dict(invalid or {})
        self.num_rows = len(next(iter(values.values())))
        self.views, self.labels, self.shard_rows = views, labels, shard_rows
        generator = np.random.default_rng(99)
        self.hashes = generator.integers(0, 256, (self.num_rows, 32), dtype=np.uint8)
        self.label = generator.integers(-1, 2, self.num_rows)
        self.ids = names_of(self.num_rows)

    def manifest(self, container: Container, **changes: Any) -> Manifest:
        """The manifest of a store of these rows, the same for each container but for its name."""
        files = self.files()
        base = make_manifest(
            num_rows=self.num_rows,
            shard_rows=self.shard_rows,
            views=self.views,
            labels=self.labels,
            fields={"placeholder": field(1)},
        ).model_dump()
        artefacts = {name: artefact_record(data, meaning="scales") for name, data in files.items()}
        parts = {
            "fields": self.fields,
            "artefacts": artefacts,
            "container": container,
            "teachers": {"teacher": TEACHER},
        }
        return Manifest.model_validate({**base, **parts, **changes})

    def files(self) -> dict[str, bytes]:
        """Bytes of the artefacts."""
        return {
            name: pack({"scale": item.scale, "offset": item.offset})
            for name, item in self.channels.items()
        }

    def columns(self, manifest: Manifest, shard: int) -> dict[str, Array]:
        """Columns of one shard."""
        span = manifest.shard_range(shard)
        columns = empty_columns(manifest, shard)
        columns["sample_id"][:] = self.ids[span.start : span.stop]
        columns["content_sha256"][:] = self.hashes[span.start : span.stop]
        columns["valid"][:] = [row not in self.invalid for row in span]
        if self.labels:
            columns["label"][:] = self.label[span.start : span.stop]
        bad = [row - span.start for row in span if row in self.invalid]
        for name, record in self.fields.items():
            part = self.values[name][span.start : span.stop]
            if isinstance(record.encoding, RaggedEncoding):
                put_ragged(manifest, columns, name, shard, part)
                continue
            channels = self.channels.get(f"{name}-scales")
            put(manifest, columns, name, slice(None), part, channels=channels)
            for column in columns_of(manifest).values():
                if column.name in (f"fields/{name}", f"fields/{name}/codes") and bad:
                    columns[column.name][bad] = "" if column.dtype is None else 0
        return columns

    def write(
        self,
        path: Path,
        container: Container,
        *,
        shards: Iterable[int] | None = None,
        **changes: Any,
    ) -> Path:
        """Write a store, or some of its shards."""
        manifest = open_or_create(path, self.manifest(container, **changes), self.files())
        backend = make_backend(path, manifest)
        for shard in range(manifest.num_shards) if shards is None else shards:
            reasons = [self.invalid.get(row) for row in manifest.shard_range(shard)]
            commit(backend, Shard(shard, self.columns(manifest, shard), reasons, {}))
        return path

    def check(self, store: FeatureStore, rows: Sequence[int]) -> None:
        """Compare rows of every field, bit by bit, to what was written."""
        at = np.array(rows, dtype=np.int64)
        for name, record in self.fields.items():
            found = read(store, name, rows)
            written = self.values[name]
            if isinstance(found, Ragged):
                expected = [view for row in rows for view in written[row]]
                lengths = np.cumsum([0, *(len(view) for view in expected)])
                np.testing.assert_array_equal(found.offsets, lengths)
                empty = np.empty((0, *record.shape), found.values.dtype)
                np.testing.assert_array_equal(found.values, np.concatenate([empty, *expected]))
            elif isinstance(found, TopK):
                wide = written[at].astype(np.float32)
                expected = np.sort(wide, axis=-1)[..., ::-1][..., : record.shape[-1]]  # type: ignore[assignment]
                np.testing.assert_array_equal(found.values.astype(np.float32), expected)
                picked = np.take_along_axis(wide, found.indices.astype(np.int64), axis=-1)
                np.testing.assert_array_equal(picked, expected)
            elif isinstance(record.encoding, Int8Encoding):
                assert found.dtype == np.float32
                difference = np.linalg.norm(found - written[at])
                assert difference <= 0.05 * np.linalg.norm(written[at])
            else:
                np.testing.assert_array_equal(found, written[at], strict=True)


def read(store: FeatureStore, name: str, rows: Sequence[int]) -> Any:
    """Rows of a field of any kind."""
    encoding = store.manifest.fields[name].encoding
    if isinstance(encoding, TopKEncoding):
        return store.gather_topk(name, rows)
    if isinstance(encoding, RaggedEncoding):
        return store.gather_ragged(name, rows)
    return store.gather(name, rows)


def every_kind(
    *, rows: int = NUM_ROWS, views: int = VIEWS, invalid: Mapping[int, str] | None = None
) -> Rows:
    """A store with a field of each kind of record."""
    fields: dict[str, FieldRecord] = {}
    values: dict[str, Any] = {}
    channels: dict[str, Channels] = {}
    for number, (dtype, shape) in enumerate(NUMBERS):
        fields[f"{dtype}{len(shape)}"] = spec(dtype, shape)
        values[f"{dtype}{len(shape)}"] = values_of(dtype, rows, views, *shape, seed=number)
    for scheme in ("row", "channel", "channel_row"):
        name = f"int8-{scheme}"
        values[name] = heavy_tailed(rows, views, 3, 16)
        fields[name], scales = int8_field(values[name], scheme, f"{name}-scales")
        if scales is not None:
            channels[f"{name}-scales"] = scales
    fields["logits"] = spec("float16", (5,), encoding=TopKEncoding(num_classes=70_000))
    values["logits"] = np.zeros((rows, views, 70_000), np.float16)
    values["logits"][..., ::7000] = heavy_tailed(rows, views, 10)
    fields["points"], values["points"] = POINTS, points(rows, views)
    fields["boxes"], values["boxes"] = POINTS, points(rows, views, seed=1)
    fields["caption"] = spec("text", (2,), per_view=False)
    values["caption"] = np.empty((rows, 2), dtype=object)
    values["caption"][:] = [[f"Bild {row}", "图" * (row % 4)] for row in range(rows)]
    fields["alt.text"] = spec("text", ())
    values["alt.text"] = np.full((rows, views), 'a "quoted"\n text\0', dtype=object)
    fields["landmarks"] = spec("float32", (68, 2), per_view=False)
    values["landmarks"] = heavy_tailed(rows, 68, 2)
    return Rows(fields, values, channels=channels, invalid=invalid, views=views)


def vectors(rows: int = NUM_ROWS, width: int = 6, **options: Any) -> Rows:
    """Two plain fields."""
    return Rows(
        {"cls": spec("float16", (width,)), "grid": spec("float32", (2, 2, 3))},
        {
            "cls": values_of("float16", rows, VIEWS, width),
            "grid": values_of("float32", rows, VIEWS, 2, 2, 3),
        },
        **options,
    )


FIELDS = st.dictionaries(
    st.sampled_from(["cls", "grid2", "tokens", "mean.v-2", "0", "A_b.C"]),
    st.builds(
        spec,
        st.sampled_from(["float16", "float32", "bfloat16", "bool", "int64"]),
        st.lists(st.integers(1, 4), max_size=3),
        per_view=st.booleans(),
    )
    | st.just(POINTS),
    min_size=1,
    max_size=3,
)


@st.composite
def any_rows(draw: st.DrawFn) -> Rows:
    """Any number of rows, rows per shard, views and fields, with and without labels."""
    count, views = draw(st.integers(1, 20)), draw(st.integers(1, 3))
    fields = draw(FIELDS)
    values = {
        name: points(count, views, seed=len(name))
        if record.encoding.kind == "ragged"
        else values_of(record.dtype, count, *([views] if record.per_view else []), *record.shape)
        for name, record in fields.items()
    }
    return Rows(
        fields,
        values,
        views=views,
        labels=draw(st.booleans()),
        shard_rows=draw(st.integers(1, 24)),
    )


def _read_in_child(store: FeatureStore, answers: Any) -> None:
    answers.put((store.gather("cls", ORDER), store.sample_ids, store.labels))


class BackendTests:
    """Subclass it with the name of the container."""

    container: ClassVar[Container]

    def write(self, path: Path, rows: Rows, **options: Any) -> Path:
        """Write a store of this container."""
        return rows.write(path, self.container, **options)

    def objects(self, path: Path) -> list[Path]:
        """Files of the store that the ledger lists, in order."""
        names = {
            name for entry in sorted((path / "ledger").glob("[0-9]*")) for name in _listed(entry)
        }
        return [path / name for name in sorted(names)]

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """A store of two plain fields, in three shards, the last of them short."""
        return self.write(tmp_path / "s", vectors())

    # -------------------------------------------------------- what is written comes back

    def test_every_kind_of_record(self, tmp_path: Path) -> None:
        """Numbers of every type and rank, three int8 schemes, top-k, ragged, text: in any order, with repeats."""
        rows = every_kind()
        store = FeatureStore.open(self.write(tmp_path / "s", rows))
        for wanted in (ORDER, range(NUM_ROWS), [10], [4, 4, 4], []):
            if len(wanted):
                rows.check(store, list(wanted))
        for name in ("float161", "landmarks", "caption"):
            assert store.gather(name, []).shape == (0, *rows.values[name].shape[1:])

    @pytest.mark.slow
    def test_any_rows_of_any_store(self) -> None:
        """gather(rows)[i] is row rows[i] bit by bit, and what describes the samples is as written."""

        # Not a method: Hypothesis wants one function for each class that runs it.
        @settings(max_examples=25, deadline=None)
        @given(rows=any_rows(), data=st.data())
        def check(rows: Rows, data: st.DataObject) -> None:
            wanted = data.draw(st.lists(st.integers(0, rows.num_rows - 1), min_size=1, max_size=30))
            with TemporaryDirectory() as folder:
                store = FeatureStore.open(self.write(Path(folder) / "s", rows))
                rows.check(store, wanted)
                self.check_samples(store, rows)
                ids = [rows.ids[row] for row in wanted]
                np.testing.assert_array_equal(store.rows_of(ids), wanted)

        check()

    def check_samples(self, store: FeatureStore, rows: Rows) -> None:
        """Compare everything but the fields."""
        assert store.sample_ids == rows.ids
        np.testing.assert_array_equal(store.content_sha256, rows.hashes, strict=True)
        valid = [row not in rows.invalid for row in range(rows.num_rows)]
        np.testing.assert_array_equal(store.valid, valid)
        labels = rows.label if rows.labels else np.full(rows.num_rows, -1)
        np.testing.assert_array_equal(store.labels, labels, strict=True)

    def test_a_row_into_a_given_array(self, tmp_path: Path) -> None:
        """``out`` is filled, for small rows and for rows of many pages, across shards."""
        for width in (6, 300_000):
            rows = vectors(width=width)
            store = FeatureStore.open(self.write(tmp_path / str(width), rows))
            out = np.full((len(ORDER), VIEWS, width), 9, dtype=np.float16)
            assert store.gather("cls", ORDER, out=out) is out
            np.testing.assert_array_equal(out, rows.values["cls"][ORDER])

    def test_some_views_of_a_row(self, tmp_path: Path) -> None:
        """``views`` picks columns of the view axis, for all rows alike or for each its own, as numpy indexes."""
        rows = every_kind(views=3)
        store = FeatureStore.open(self.write(tmp_path / "s", rows))
        alike, own = [2, 0, 2, 1], np.array([[1], [0], [2], [2], [0]])
        for name, record in rows.fields.items():
            if record.encoding.kind in ("topk", "ragged"):
                continue
            if not record.per_view:
                with pytest.raises(ConfigError):
                    store.gather(name, ORDER, views=[0])
                continue
            whole = store.gather(name, ORDER)
            found = store.gather(name, ORDER, views=alike)
            np.testing.assert_array_equal(found, whole[:, alike], strict=True)
            found = store.gather(name, ORDER, views=own)
            expected = whole[np.arange(len(ORDER))[:, None], own]
            np.testing.assert_array_equal(found, expected, strict=True)
            assert store.gather(name, [], views=alike).shape == (0, 4, *record.shape)
            assert store.gather(name, ORDER, views=[]).shape == (5, 0, *record.shape)
        codes = store.gather_codes("int8-row", ORDER, views=alike)
        assert codes.codes.shape[:2] == (5, 4)
        out = np.zeros((5, 1, 6), np.float16)
        assert store.gather("float161", ORDER, views=own, out=out) is out
        np.testing.assert_array_equal(out, store.gather("float161", ORDER, views=own))

    def test_some_views_of_rows_of_whole_pages(self, tmp_path: Path) -> None:
        """As above where shards are mapped side by side; blocks are checked as ever."""
        rows = vectors(rows=40, width=512, shard_rows=8)
        path = self.write(tmp_path / "s", rows)
        store = FeatureStore.open(path)
        wanted = np.random.default_rng(0).integers(0, 40, 100)
        own = np.random.default_rng(1).integers(0, VIEWS, (100, 1))
        found = store.gather("cls", wanted, views=own)
        np.testing.assert_array_equal(found[:, 0], rows.values["cls"][wanted, own[:, 0]])
        target = path / self.object_of(path, 1, "cls")
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        target.write_bytes(data)
        store = FeatureStore.open(path)
        with pytest.raises(ShardCorrupt, match="crc32c"):
            store.gather("cls", range(40), views=[0])

    def test_views_that_are_none(self, path: Path) -> None:
        """Outside the view axis, a mask, or one for each of other rows."""
        store = FeatureStore.open(path)
        outside: list[Any] = [[2], [-1], [[0], [5]]]
        for views in outside:
            with pytest.raises(ViewMismatch, match=r"\b0\b.*\b1\b.*\b0\b"):
                store.gather("cls", [3, 4], views=views)
        wrong: list[Any] = [[True, False], [0.5], [[0], [1], [0]], 0, [[[0]]]]
        for views in wrong:
            with pytest.raises(ConfigError):
                store.gather("cls", [3, 4], views=views)
        with pytest.raises(ConfigError):
            store.gather("cls", [3], views=[0], out=np.zeros((1, 2, 6), np.float16))

    def test_many_rows_at_once(self, tmp_path: Path) -> None:
        """More rows than are copied in one go, of many shards, touched in batches that overlap."""
        rows = vectors(rows=3000, shard_rows=64, width=256)
        store = FeatureStore.open(self.write(tmp_path / "s", rows))
        generator = np.random.default_rng(0)
        for size in (1, 50, 2999, 6000):
            rows.check(store, generator.integers(0, 3000, size).tolist())

    def test_whole_columns_of_a_shard(self, tmp_path: Path) -> None:
        """``read_shard`` gives every column as the writer was given it, also the short last shard."""
        rows = every_kind()
        store = FeatureStore.open(self.write(tmp_path / "s", rows))
        backend = make_backend(store.path, store.manifest)
        for shard in range(3):
            written = rows.columns(store.manifest, shard)
            for name, column in backend.columns.items():
                found = backend.read_shard(shard, name, store.entry(shard).objects)
                if column.capacity > 1:  # may reserve more items than there are
                    found = found[: len(written[name])]
                np.testing.assert_array_equal(found, written[name], err_msg=name)
                if column.dtype is not None:
                    assert found.dtype == column.dtype

    def test_rows_are_copies(self, path: Path) -> None:
        """What gather returns can be written to; the store does not change."""
        store = FeatureStore.open(path)
        before = store.gather("cls", [3])
        store.gather("cls", [3])[:] = 9
        np.testing.assert_array_equal(store.gather("cls", [3]), before)

    def test_what_was_read_outlives_the_store(self, path: Path) -> None:
        """Rows and columns stay good when the store that they came from is gone."""
        store = FeatureStore.open(path)
        backend = make_backend(path, store.manifest)
        found = store.gather("cls", ORDER)
        column = backend.read_shard(0, "fields/cls", store.entry(0).objects)
        expected = vectors().values["cls"]
        del store, backend
        np.testing.assert_array_equal(found, expected[ORDER])
        np.testing.assert_array_equal(column, expected[:SHARD_ROWS])

    # -------------------------------------------------------- the same rows, the same bytes

    def test_the_same_rows_as_in_other_containers(self, tmp_path: Path) -> None:
        """Equal rows in another container have the same fingerprint and read back the same, bit by bit."""
        rows = every_kind(invalid={5: "empty file"})
        ours = FeatureStore.open(self.write(tmp_path / "ours", rows))
        wanted = [row for row in range(NUM_ROWS) if row != 5]
        for container in ("zarr", "webdataset"):
            other = FeatureStore.open(rows.write(tmp_path / container, container))
            assert other.fingerprint == ours.fingerprint
            self.check_samples(other, rows)
            for name in rows.fields:
                for a, b in zip(
                    _parts(read(ours, name, wanted)), _parts(read(other, name, wanted)), strict=True
                ):
                    np.testing.assert_array_equal(a, b, strict=True)

    def test_written_twice(self, tmp_path: Path) -> None:
        """Nothing in a store's bytes depends on when, where or in which order its shards were written."""
        rows = every_kind(invalid={5: "empty file"})
        first = self.write(tmp_path / "a", rows)
        second = self.write(tmp_path / "b", rows, shards=[2, 0])
        self.write(second, rows, shards=[1])
        assert snapshot(first) == snapshot(second)

    def test_fields_declared_in_another_order(self, tmp_path: Path) -> None:
        """A manifest from disk lists them by name, a new one as it was made: the bytes are the same."""
        rows = every_kind()
        first = self.write(tmp_path / "a", rows)
        rows.fields = dict(reversed(rows.fields.items()))
        second = self.write(tmp_path / "b", rows)
        for one, other in zip(self.objects(first), self.objects(second), strict=True):
            assert one.read_bytes() == other.read_bytes(), one

    def test_the_ledger_says_what_is_on_disk(self, path: Path) -> None:
        """Its objects are those that ``object_names`` gives, and there with their size."""
        store = FeatureStore.open(path)
        backend = make_backend(path, store.manifest)
        for shard in range(3):
            objects = store.entry(shard).objects
            assert sorted(objects) == sorted(backend.object_names(shard))
            for name, record in objects.items():
                assert (path / name).stat().st_size == record.bytes

    # -------------------------------------------------------- rows that are not there

    def test_invalid_rows_are_refused_by_name(self, tmp_path: Path) -> None:
        """With every kind of field; others of their shard are read, and the refused row is still found by its id."""
        rows = every_kind(invalid={5: "empty file (0 bytes)"})
        store = FeatureStore.open(self.write(tmp_path / "s", rows))
        for name in rows.fields:
            with pytest.raises(MissingSamples, match=r"folder/5\.png.*\b0\b"):
                read(store, name, [4, 5])
        rows.check(store, [4, 6])
        assert store.rows_of([names_of(NUM_ROWS)[5]]).tolist() == [5]

    def test_incomplete_stores(self, tmp_path: Path) -> None:
        """Shards that are not there yet: an error, or if asked rows that are refused while the others are read."""
        rows = vectors()
        path = self.write(tmp_path / "s", rows, shards=[0, 2])
        with pytest.raises(StoreIncomplete, match=r"\b1\b.*\b3\b"):
            FeatureStore.open(path)
        store = FeatureStore.open(path, allow_incomplete=True)
        rows.check(store, [10, 0, 3])
        with pytest.raises(MissingSamples, match=r"\b4\b"):
            store.gather("cls", [0, 4])
        assert store.sample_ids == [*rows.ids[:4], "", "", "", "", *rows.ids[8:]]

    # -------------------------------------------------------- damage

    @pytest.mark.slow
    def test_a_flipped_bit_anywhere(self, tmp_path: Path) -> None:
        """Wherever a byte differs, a row reads as it was written or is refused, with the shard and its rows named."""
        rows = every_kind()
        path = self.write(tmp_path / "s", rows)
        generator = np.random.default_rng(0)
        refused = 0
        targets = self.objects(path)
        if len(targets) > 10:
            targets = [targets[i] for i in generator.choice(len(targets), 10, replace=False)]
        for target in targets:
            sound = target.read_bytes()
            places = {0, len(sound) - 1, len(sound) // 2}
            places |= set(generator.integers(0, len(sound), 20 // len(targets)).tolist())
            for place in places:
                damaged = bytearray(sound)
                damaged[place] ^= 1 << int(generator.integers(8))
                target.write_bytes(damaged)
                refused += self.check_damaged(path, rows)
            target.write_bytes(sound)
        assert refused > 0
        rows.check(FeatureStore.open(path), ORDER)

    def check_damaged(self, path: Path, rows: Rows) -> int:
        """Read everything of a damaged store; returns how many reads were refused."""
        refused = 0
        store = FeatureStore.open(path)
        for name in rows.fields:
            for wanted in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]):
                one = Rows({name: rows.fields[name]}, {name: rows.values[name]})
                try:
                    one.check(store, wanted)
                except ShardCorrupt as error:
                    refused += 1
                    assert f"shard {wanted[0] // 4} (rows " in str(error)
                    assert "--repair" in str(error)
        try:
            self.check_samples(FeatureStore.open(path), rows)
        except ShardCorrupt as error:
            assert "shard " in str(error)
        return refused

    def test_damage_is_named_and_the_rest_stays_readable(self, tmp_path: Path) -> None:
        """Shard, column and rows are in the message; rows of other blocks of the same shard are still read."""
        rows = vectors(rows=40, width=30_000, shard_rows=16)
        path = self.write(tmp_path / "s", rows)
        target = path / self.object_of(path, 1, "cls")
        data = bytearray(target.read_bytes())
        needle = rows.values["cls"][27].tobytes()
        place = bytes(data).index(needle)
        data[place + 1000] ^= 4
        target.write_bytes(data)
        store = FeatureStore.open(path)
        for wanted in ([27], [0, 27], [27]):
            with pytest.raises(
                ShardCorrupt, match=r'\b1\b.*\d+-\d+.*"fields/cls".*crc32c'
            ) as caught:
                store.gather("cls", wanted)
        text = str(caught.value)
        first, last = map(int, text.split("(rows ")[1].split(")")[0].split("-"))
        assert first <= 27 <= last
        assert last - first < 8
        rows_left = [row for row in range(40) if row not in range(first - 1, last + 2)]
        one = Rows({"cls": rows.fields["cls"]}, {"cls": rows.values["cls"]})
        one.check(store, rows_left)

    def object_of(self, path: Path, shard: int, name: str) -> str:
        """Path of the object that holds a field of a shard."""
        names = read_entry(path, shard).objects
        return next(item for item in names if len(names) == 1 or f"fields/{name}/" in item)

    @pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
    def test_a_truncated_object(self, path: Path, share: float) -> None:
        """Any length but the right one is refused with both lengths; other shards are read."""
        target = path / self.object_of(path, 1, "cls")
        sound = target.read_bytes()
        target.write_bytes(sound[: int(len(sound) * share)])
        store = FeatureStore.open(path)
        for _ in range(2):
            with pytest.raises(ShardCorrupt, match=r"\b1\b.*4-7"):
                store.gather("cls", [0, 5])
        vectors().check(store, [0, 10])
        target.write_bytes(sound + b"\0")
        with pytest.raises(ShardCorrupt):
            FeatureStore.open(path).gather("cls", [5])

    def test_a_missing_object(self, path: Path) -> None:
        """It is named, with its shard and rows; other shards are read."""
        target = path / self.object_of(path, 1, "cls")
        target.unlink()
        store = FeatureStore.open(path)
        with pytest.raises(ShardCorrupt, match=r"\b1\b.*4-7"):
            store.gather("cls", [4])
        vectors().check(store, [0, 10])

    def test_an_object_of_another_shard(self, path: Path) -> None:
        """A file that took the place of another one is refused, though it is a sound file of the same size."""
        first, second = (path / self.object_of(path, shard, "cls") for shard in (0, 1))
        assert first.stat().st_size == second.stat().st_size
        second.write_bytes(first.read_bytes())
        with pytest.raises(ShardCorrupt, match="crc32c"):
            FeatureStore.open(path).gather("cls", [4])

    def test_what_bytes_hold(self, path: Path) -> None:
        """Every byte of an object belongs to some column and to rows of its shard, whatever its state."""
        store = FeatureStore.open(path)
        backend = make_backend(path, store.manifest)
        for shard in (0, 2):
            span = store.manifest.shard_range(shard)
            for name, record in store.entry(shard).objects.items():
                for start in range(0, record.bytes, 97):
                    column, rows = backend.holds(shard, name, start, min(start + 97, record.bytes))
                    assert column
                    assert rows
                    assert span.start <= rows.start < rows.stop <= span.stop
                (path / name).write_bytes(b"")
                fresh = make_backend(path, store.manifest)
                assert fresh.holds(shard, name, 0, record.bytes)[1] == span

    # -------------------------------------------------------- processes

    @pytest.mark.parametrize("touched", [False, True])
    def test_after_fork_and_pickle(self, path: Path, touched: bool) -> None:
        """A pickled copy and a forked child read the same rows, also when the parent has read some already."""
        rows = vectors()
        store = FeatureStore.open(path)
        if touched:
            rows.check(store, ORDER)
        rows.check(pickle.loads(pickle.dumps(store)), ORDER)
        assert len(pickle.dumps(store)) < 20_000
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        child = context.Process(target=_read_in_child, args=(store, answers))
        child.start()
        found, ids, labels = answers.get(timeout=60)
        child.join()
        np.testing.assert_array_equal(found, rows.values["cls"][ORDER])
        assert ids == rows.ids
        np.testing.assert_array_equal(labels, rows.label)

    def test_errors_are_ours(self, path: Path) -> None:
        """Garbage in place of every object is an error of our tree, in every way of reading."""
        for target in self.objects(path):
            size = target.stat().st_size
            target.write_bytes(np.random.default_rng(0).bytes(size))
        store = FeatureStore.open(path)
        for use in (
            lambda: store.gather("cls", [0]),
            lambda: store.sample_ids,
            lambda: store.valid,
            lambda: store.labels,
            lambda: store.content_sha256,
        ):
            with pytest.raises(FeatstoreError):
                use()


def _listed(entry: Path) -> list[str]:
    return sorted(json.loads(entry.read_bytes())["objects"])


def _parts(found: Any) -> Sequence[Array]:
    return found if isinstance(found, tuple) else (found,)
