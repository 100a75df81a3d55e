"""Image tars and feature tars in step: every sample with its own features, once, or an error that names it."""

import hashlib
import io
import itertools
import pickle
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore import FeatureStore
from featstore.errors import ConfigError, MissingSamples, ShardCorrupt, SourceError
from featstore.format.fields import Ragged, TopK
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import TopKEncoding
from featstore.reading.paired_tars import PairStream, buffered_order
from featstore.sources import mirror_work
from featstore.sources.tars import TarSource
from tests.featstore.backend_tests import POINTS, Rows, points, spec, values_of, vectors


def image_of(sample_id: str) -> bytes:
    """Bytes that stand for a picture, of some length; nothing here decodes them."""
    return b"picture of " + sample_id.encode() * (1 + len(sample_id) % 7)


def write_images(folder: Path, keys: Mapping[str, Sequence[str]]) -> Path:
    """Image tars with classes and captions between the images, as they are usual."""
    for tar, names in keys.items():
        path = folder / f"{tar}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for name in names:
                for suffix, data in (
                    ("txt", b"a caption"),
                    ("JPG", image_of(f"{tar}/{name}")),
                    ("cls", b"3"),
                ):
                    member = tarfile.TarInfo(f"{name}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


def write_features(path: Path, images: Path, *, invalid: Sequence[str] = ()) -> Rows:
    """A store that mirrors image tars; the feature of a sample can be told from its id."""
    source = TarSource(str(images))
    count = len(source)
    logits = values_of("float16", count, 2, 40)
    fields = {
        "cls": spec("float32", (4,)),
        "name": spec("text", (), per_view=False),
        "confidence": spec("float32", (), per_view=False),
        "logits": spec("float16", (3,), encoding=TopKEncoding(num_classes=40)),
        "points": POINTS,
    }
    values: dict[str, Any] = {
        "cls": np.stack([feature_of(sample_id) for sample_id in source.sample_ids]),
        "name": np.array(source.sample_ids, dtype=object),
        "confidence": np.arange(count, dtype=np.float32),
        "logits": logits,
        "points": points(count, 2),
    }
    rows = Rows(
        fields,
        values,
        labels=False,
        invalid={source.sample_ids.index(name): "not an image" for name in invalid},
    )
    rows.ids = list(source.sample_ids)
    for row in range(count):
        digest = hashlib.sha256(source.read(row)).digest()
        rows.hashes[row] = np.frombuffer(digest, dtype=np.uint8)
    rows.write(path, "webdataset", work=mirror_work(source, batch_size=4))
    return rows


def feature_of(sample_id: str) -> Any:
    """(2, 4) float32 that belongs to an id."""
    seed = int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal((2, 4), dtype=np.float32)


KEYS = {
    "a": ["0", "1", "2", "3", "4"],
    "b/x": ["cat/0", "cat/1", "dog/ä"],
    "b/y": [f"{number:03d}" for number in range(11)],
    "c": ["only"],
}
INVALID = ["a/3", "c/only"]
IDS = [f"{tar}/{key}" for tar, keys in KEYS.items() for key in keys]
USABLE = [sample_id for sample_id in IDS if sample_id not in INVALID]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Rows]:
    """Store, images and rows that no test changes."""
    folder = tmp_path_factory.mktemp("stream")
    write_images(folder / "images", KEYS)
    rows = write_features(folder / "store", folder / "images" / "**/*.tar", invalid=INVALID)
    return folder / "store", folder / "images" / "**/*.tar", rows


def check(pairs: list[Any]) -> None:
    """Every image and feature is that of its sample."""
    for sample_id, image, fields in pairs:
        assert image == image_of(sample_id)
        np.testing.assert_array_equal(fields["cls"], feature_of(sample_id), strict=True)


def test_every_usable_sample_in_tar_order(made: tuple[Path, Path, Rows]) -> None:
    """Ids, image bytes and fields of all kinds; unusable rows are left out."""
    store, images, rows = made
    pairs = list(PairStream(store, images))
    assert [pair.sample_id for pair in pairs] == USABLE
    check(pairs)
    for pair in pairs:
        row = IDS.index(pair.sample_id)
        assert pair.fields.keys() == rows.fields.keys()
        assert pair.fields["name"].item() == pair.sample_id
        assert pair.fields["confidence"] == row
        found = pair.fields["logits"]
        assert isinstance(found, TopK)
        written = rows.values["logits"][row]
        picked = np.take_along_axis(written, found.indices.astype(int), axis=-1)
        np.testing.assert_array_equal(found.values, picked)
        items = pair.fields["points"]
        assert isinstance(items, Ragged)
        for view, part in enumerate(rows.values["points"][row]):
            span = slice(*items.offsets[view : view + 2])
            np.testing.assert_array_equal(items.values[span], part)


def test_the_same_samples_as_stock_webdataset(made: tuple[Path, Path, Rows]) -> None:
    """Ids, image bytes and features are those that webdataset gives when it reads both kinds of tars itself."""
    webdataset = pytest.importorskip("webdataset", reason="stock reader")
    store, images, _ = made
    expected = []
    for tar in KEYS:
        sides: list[list[dict[str, Any]]] = []
        for path in (Path(str(images)[:-8]) / f"{tar}.tar", store / "shards" / f"{tar}.tar"):
            with path.open("rb") as file:
                flat = webdataset.tariterators.tar_file_iterator(file)
                named = ({**item, "__url__": ""} for item in flat)
                sides.append(list(webdataset.tariterators.group_by_keys(named)))
        for image, features in zip(*sides, strict=True):
            assert image["__key__"] == features["__key__"]
            decoded = webdataset.autodecode.default_decoder(features)
            if decoded["json"]["valid"]:
                expected.append((decoded["json"]["sample_id"], image["jpg"], decoded["cls.npy"]))
    pairs = list(PairStream(store, images, fields=["cls"]))
    assert len(pairs) == len(expected)
    for pair, (sample_id, image, feature) in zip(pairs, expected, strict=True):
        assert (pair.sample_id, pair.image) == (sample_id, image)
        np.testing.assert_array_equal(pair.fields["cls"], feature, strict=True)


def test_another_order_inside_a_tar(made: tuple[Path, Path, Rows], tmp_path: Path) -> None:
    """Image tars that were sorted anew give each image its own features, in their order."""
    store, _, _ = made
    images = write_images(tmp_path, {tar: sorted(keys, reverse=True) for tar, keys in KEYS.items()})
    pairs = list(PairStream(store, images / "**/*.tar"))
    assert sorted(pair.sample_id for pair in pairs) == sorted(USABLE)
    assert [pair.sample_id for pair in pairs][:4] == ["a/4", "a/2", "a/1", "a/0"]
    check(pairs)


# ---------------------------------------------------------------- one side only


def test_one_of_several_images_of_a_sample(tmp_path: Path) -> None:
    """``image_member`` says which, as it did for the extraction; without it, two images are refused."""
    folder = write_images(tmp_path / "i", {"a": ["x1", "x2", "x3", "x4"]})
    write_features(tmp_path / "s", folder)
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name in ("x1", "x2", "x3", "x4"):
            for suffix, data in (("seg.png", b"mask"), ("jpg", image_of(f"a/{name}"))):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    stream = PairStream(tmp_path / "s", folder, image_member="jpg")
    assert [pair.image for pair in stream] == [
        image_of(f"a/{name}") for name in ("x1", "x2", "x3", "x4")
    ]
    assert [pair.sample_id for pair in stream.split(0, 1)] == [
        f"a/{name}" for name in ("x1", "x2", "x3", "x4")
    ]
    with pytest.raises(MissingSamples, match=r"x1"):
        list(PairStream(tmp_path / "s", folder))


def changed(tmp_path: Path, **changes: Sequence[str]) -> Path:
    """Images of which some tars have other samples."""
    return write_images(tmp_path / "images", {**KEYS, **changes}) / "**/*.tar"


def test_an_image_without_features(made: tuple[Path, Path, Rows], tmp_path: Path) -> None:
    """It is named with its tar; or passed over and counted, if asked."""
    store = made[0]
    images = changed(tmp_path, a=["0", "1", "new", "2", "3", "4"])
    with pytest.raises(MissingSamples, match=r"a\.tar.*'new'.*missing="):
        list(PairStream(store, images))
    stream = PairStream(store, images, missing="skip")
    assert [pair.sample_id for pair in stream] == USABLE
    assert stream.skipped == 1


def test_features_without_an_image(made: tuple[Path, Path, Rows], tmp_path: Path) -> None:
    """They are named with the tar that lacks the image; if asked they are passed over, and the epoch stays as long."""
    store = made[0]
    images = changed(tmp_path, a=["0", "1", "3", "4"])
    with pytest.raises(SourceError, match=r"a\.tar.*'2'"):
        list(PairStream(store, images))
    stream = PairStream(store, images, missing="skip", num_ranks=2)
    found = [pair.sample_id for pair in stream]
    assert len(found) == len(stream) == len(USABLE) // 2
    assert "a/2" not in found
    assert stream.skipped > 0


def test_whole_tars_on_one_side(made: tuple[Path, Path, Rows], tmp_path: Path) -> None:
    """A tar that is not there, or that the store has not, is an error before anything is read."""
    store = made[0]
    images = changed(tmp_path, d=["0"])
    with pytest.raises(MissingSamples, match=r"\b1\b.*\b5\b"):
        PairStream(store, images)
    (tmp_path / "images" / "d.tar").unlink()
    (tmp_path / "images" / "a.tar").unlink()
    with pytest.raises(SourceError, match=r"\b1\b.*\b4\b"):
        PairStream(store, images)
    found = [pair.sample_id for pair in PairStream(store, images, missing="skip")]
    assert found == [sample_id for sample_id in USABLE if not sample_id.startswith("a/")]
    with pytest.raises(SourceError, match=r"\b4\b.*\b4\b"):
        PairStream(store, write_images(tmp_path / "z", {"z": ["0"]}), missing="skip")


def test_other_pictures_under_the_same_names(made: tuple[Path, Path, Rows], tmp_path: Path) -> None:
    """An image that is not the one its features were made from is named, in every mode, unless told not to look."""
    store = made[0]
    images = changed(tmp_path)
    path = tmp_path / "images" / "b" / "y.tar"
    data = path.read_bytes()
    path.write_bytes(data.replace(image_of("b/y/007"), image_of("b/y/007").swapcase()))
    for missing in ("error", "skip"):
        with pytest.raises(MissingSamples, match=r"y\.tar.*'007'"):
            list(PairStream(store, images, missing=missing))
    pairs = list(PairStream(store, images, check_content=False))
    assert [pair.sample_id for pair in pairs] == USABLE


def test_no_image_of_a_tar_is_left(made: tuple[Path, Path, Rows], tmp_path: Path) -> None:
    """To skip everything would never end; it is an error."""
    store = made[0]
    images = changed(tmp_path, **{tar: ["z"] for tar in KEYS})
    with pytest.raises(SourceError):
        list(PairStream(store, images, missing="skip"))


def test_broken_image_tars(made: tuple[Path, Path, Rows], tmp_path: Path) -> None:
    """A tar that breaks off, one that is none, and two images of one key are refused by name."""
    store = made[0]
    images = changed(tmp_path)
    path = tmp_path / "images" / "a.tar"
    sound = path.read_bytes()
    for data in (sound[:3300], b"<html>" * 200, sound[:5120] + b"x" * 512 + sound[5632:]):
        path.write_bytes(data)
        with pytest.raises(SourceError, match=r"a\.tar"):
            list(PairStream(store, images))
    write_images(tmp_path / "images", {"a": ["0", "0", "1", "2", "3", "4"]})
    with pytest.raises(SourceError, match=r"a\.tar.*'0'"):
        list(PairStream(store, images))


def test_a_cut_tar_that_was_extracted_as_far_as_it_goes(tmp_path: Path) -> None:
    """What allow_cut_tars took can be streamed as well."""
    path = write_images(tmp_path, {"a": KEYS["b/y"]}) / "a.tar"
    path.write_bytes(path.read_bytes()[: 1536 * 11 - 700])
    source = TarSource(str(path), allow_cut_tars=True)
    rows = vectors(rows=len(source), labels=False)
    rows.ids = list(source.sample_ids)
    for row in range(len(source)):
        digest = hashlib.sha256(source.read(row)).digest()
        rows.hashes[row] = np.frombuffer(digest, dtype=np.uint8)
    rows.write(tmp_path / "s", "webdataset", work=mirror_work(source, batch_size=4))
    found = [pair.sample_id for pair in PairStream(tmp_path / "s", path)]
    assert found == rows.ids
    assert 0 < len(found) < 11


def test_damaged_features(tmp_path: Path) -> None:
    """A flipped byte of a feature tar ends the stream with the shard named; samples before it have been given."""
    write_images(tmp_path / "images", KEYS)
    images = tmp_path / "images" / "**/*.tar"
    write_features(tmp_path / "store", images)
    target = tmp_path / "store" / "shards" / "b" / "y.tar"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)
    stream = iter(PairStream(tmp_path / "store", images))
    with pytest.raises(ShardCorrupt, match=r"\b2\b"):
        list(stream)


# ---------------------------------------------------------------- ranks, workers, epochs


def epoch_of(
    store: Path, images: Path, *, ranks: int, workers: int, **options: Any
) -> list[list[str]]:
    """Ids that each worker of each rank gives in an epoch."""
    given = []
    for rank, worker in itertools.product(range(ranks), range(workers)):
        stream = PairStream(
            store,
            images,
            fields=["cls"],
            rank=rank,
            num_ranks=ranks,
            worker=worker,
            num_workers=workers,
            **options,
        )
        pairs = list(stream)
        check(pairs)
        assert len(pairs) == len(stream) == stream.batches_per_worker * stream.batch_size
        assert stream.batches_per_rank == workers * stream.batches_per_worker
        given.append([pair.sample_id for pair in pairs])
    return given


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.integers(1, 4),
    workers=st.integers(1, 2),
    batch_size=st.integers(1, 3),
    pad=st.booleans(),
    shuffle=st.booleans(),
    buffer=st.sampled_from([0, 1, 5, 100]),
    seed=st.integers(0, 3),
)
def test_equal_steps(
    made: tuple[Path, Path, Rows],
    ranks: int,
    workers: int,
    batch_size: int,
    pad: bool,
    shuffle: bool,
    buffer: int,
    seed: int,
) -> None:
    """All workers give as many full batches; without pad no sample twice, with pad none left out."""
    store, images, _ = made
    options: dict[str, Any] = {"batch_size": batch_size, "pad": pad, "seed": seed}
    options |= {"shuffle_shards": shuffle, "shuffle_buffer": buffer}
    parts = ranks * workers
    if not pad and len(USABLE) // parts < batch_size:
        with pytest.raises(ConfigError):
            epoch_of(store, images, ranks=ranks, workers=workers, **options)
        return
    given = epoch_of(store, images, ranks=ranks, workers=workers, **options)
    assert len({len(ids) for ids in given}) == 1
    counts = Counter(itertools.chain(*given))
    if pad:
        assert set(counts) == set(USABLE)
    else:
        assert max(counts.values()) == 1
        assert counts.keys() <= set(USABLE)
        assert len(USABLE) - len(counts) < parts * batch_size
    if not shuffle and buffer < 2 and not pad:
        order = list(itertools.chain(*given))
        assert order == sorted(order, key=USABLE.index)


def test_epochs_differ_and_repeat(made: tuple[Path, Path, Rows]) -> None:
    """Shuffled, each epoch has another order of tars and samples; the same seed and epoch give the same one."""
    store, images, _ = made
    stream = PairStream(store, images, fields=["cls"], shuffle_shards=True, shuffle_buffer=8)
    epochs = [[pair.sample_id for pair in stream] for _ in range(4)]
    assert stream.epoch == 4
    assert len({tuple(ids) for ids in epochs}) == 4
    assert all(sorted(ids) == sorted(USABLE) for ids in epochs)
    again = PairStream(store, images, fields=["cls"], shuffle_shards=True, shuffle_buffer=8)
    again.set_epoch(2)
    assert [pair.sample_id for pair in again] == epochs[2]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle_shards": True},
        {"shuffle_buffer": 6, "shuffle_shards": True},
        {"shuffle_buffer": 100},
        {"pad": True, "batch_size": 4, "num_ranks": 3, "rank": 1, "shuffle_buffer": 3},
    ],
    ids=str,
)
def test_resuming(made: tuple[Path, Path, Rows], options: dict[str, Any]) -> None:
    """From any position the rest of an epoch comes as it would have come, and so do the epochs after it."""
    store, images, _ = made
    straight = PairStream(store, images, fields=["cls"], **options)
    expected = [[pair.sample_id for pair in straight] for _ in range(2)]
    for position in range(len(straight) + 1):
        first = PairStream(store, images, fields=["cls"], **options)
        head = [pair.sample_id for pair in itertools.islice(first, position)]
        state = pickle.loads(pickle.dumps(first.state_dict()))
        second = PairStream(store, images, fields=["cls"], **options)
        second.load_state_dict(state)
        rest = list(second)
        check(rest)
        assert head + [pair.sample_id for pair in rest] == expected[0]
        assert [pair.sample_id for pair in second] == expected[1]


def test_resuming_reads_what_is_left_only(
    made: tuple[Path, Path, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that were given already are walked over, not read again."""
    from featstore.sources.tarstream import TarImage

    store, images, _ = made
    stream = PairStream(store, images, fields=["cls"], shuffle_buffer=5)
    stream.load_state_dict({**stream.state_dict(), "position": len(USABLE) - 3})
    read = TarImage.read
    keys: list[str] = []

    def noted(image: TarImage) -> bytes:
        keys.append(image.key)
        return read(image)

    monkeypatch.setattr(TarImage, "read", noted)
    assert len(list(stream)) == len(keys) == 3


def test_states_of_other_streams_are_refused(made: tuple[Path, Path, Rows]) -> None:
    """Another seed, rank, batch size or store would go on elsewhere; the message names what differs."""
    store, images, _ = made
    stream = PairStream(store, images)
    state = stream.state_dict()
    for key, value in (("seed", 1), ("rank", 1), ("batch_size", 2), ("fingerprint", "00")):
        with pytest.raises(ConfigError, match=rf"{key}.*{value!r}"):
            stream.load_state_dict({**state, key: value})
    for wrong in (
        {},
        {**state, "position": -1},
        {**state, "position": 10**6},
        {**state, "more": 1},
    ):
        with pytest.raises(ConfigError):
            stream.load_state_dict(wrong)


def test_splitting_over_loader_processes(made: tuple[Path, Path, Rows]) -> None:
    """A torch DataLoader with workers gives whole batches, of each worker in turn, every sample once."""
    torch = pytest.importorskip("torch")
    store, images, _ = made
    stream = PairStream(store, images, fields=["cls"], batch_size=3, shuffle_buffer=4)

    class Wrapped(torch.utils.data.IterableDataset):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Any:
            info = torch.utils.data.get_worker_info()
            for pair in stream if info is None else stream.split(info.id, info.num_workers):
                yield pair.sample_id, torch.from_numpy(pair.fields["cls"].copy())

    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(Wrapped(), batch_size=3, num_workers=workers)
        batches = list(loader)
        expected = (
            stream.split(0, max(1, workers)) if workers else PairStream(store, images, batch_size=3)
        )
        assert len(batches) == expected.batches_per_rank
        assert {len(ids) for ids, _ in batches} == {3}
        names = [name for ids, _ in batches for name in ids]
        assert len(set(names)) == len(names)
        for ids, features in batches:
            for name, feature in zip(ids, features, strict=True):
                np.testing.assert_array_equal(feature.numpy(), feature_of(name))
        stream.set_epoch(1)
    next(iter(stream))
    with pytest.raises(ConfigError):
        stream.split(0, 2)


@given(st.integers(0, 60), st.integers(1, 70), st.integers(0, 5))
def test_buffered_order(size: int, buffer: int, seed: int) -> None:
    """Every number once, and none before it has arrived: position p knows of p + buffer arrivals."""
    order = buffered_order(size, buffer, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(size))
    assert all(number < position + buffer for position, number in enumerate(order.tolist()))


# ---------------------------------------------------------------- what it is made for


def test_stores_that_mirror_nothing_are_refused(
    made: tuple[Path, Path, Rows], tmp_path: Path
) -> None:
    """Zarr, and tars of their own numbering, have no image tars to go with."""
    _, images, _ = made
    for container in ("zarr", "webdataset"):
        path = vectors().write(tmp_path / container, container)
        with pytest.raises(ConfigError):
            PairStream(path, images)


@pytest.mark.parametrize(
    "wrong", [{"rank": 2, "num_ranks": 2}, {"worker": -1}, {"batch_size": 0}, {"num_ranks": 0}]
)
def test_impossible_settings_are_refused(
    made: tuple[Path, Path, Rows], wrong: dict[str, int]
) -> None:
    """Before anything is read."""
    store, images, _ = made
    with pytest.raises(ConfigError, match=r"\b0\b"):
        PairStream(store, images, **wrong)  # type: ignore[arg-type]


def test_unknown_fields_are_refused(made: tuple[Path, Path, Rows]) -> None:
    """The message lists the fields that are there."""
    store, images, _ = made
    with pytest.raises(ConfigError):
        PairStream(store, images, fields=["CLS"])


def test_an_open_store_is_taken(made: tuple[Path, Path, Rows]) -> None:
    """Path or store; the manifest stays the same object."""
    store = FeatureStore.open(made[0])
    stream = PairStream(store, made[1])
    assert stream.store is store
    assert isinstance(stream.store.manifest, Manifest)
