"""Stored features in other people's loops: the right row for each sample, and the refusals of our own loop."""

import hashlib
import io
import pickle
import runpy
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

import featstore
import featstore.hf
import featstore.torch
import featstore.webdataset
from featstore import FeatureStore
from featstore.errors import ConfigError, MissingSamples, ViewMismatch
from featstore.format.ids import ids_sha256
from tests.conftest import ROOT
from tests.featstore.parts import made, write
from tests.featstore.stores import Array, field, make_columns, make_manifest, write_store
from tests.images import picture

COUNT, INVALID = 12, 7

LEAVES_FILES_OPEN = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
"""What webdataset does with the tars that it has read."""


def names() -> list[str]:
    """Sample ids as a folder of classes has them."""
    return [f"{'cat' if i % 2 else 'dog'}/{i:02d}.png" for i in range(COUNT)]


def make_store(path: Path, ids: list[str], *, invalid: list[int], order: list[int]) -> Path:
    """A store of the pictures in some order, two views, fields cls and bits."""
    fields = {"cls": field(4), "bits": field(3, dtype="bfloat16")}
    manifest = make_manifest(num_rows=COUNT, shard_rows=5, fields=fields)
    source = manifest.source.model_copy(update={"ids_sha256": ids_sha256([ids[i] for i in order])})
    manifest = manifest.model_copy(update={"source": source})
    columns = make_columns(manifest, invalid=invalid)
    columns["sample_id"][:] = [ids[i] for i in order]
    for row, i in enumerate(order):
        digest = hashlib.sha256(picture(i)).digest()
        columns["content_sha256"][row] = np.frombuffer(digest, np.uint8)
    return write_store(path, manifest, columns, reasons={row: "broken" for row in invalid})


ORDER = [3, 0, 1, 2, 11, 10, 9, 8, 7, 6, 5, 4]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes."""
    for i, name in enumerate(names()):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i))
    return tmp_path / "photos"


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Its features, in another order."""
    return FeatureStore.open(make_store(tmp_path / "store", names(), invalid=[], order=ORDER))


def feature(store: FeatureStore, name: str, sample_id: str) -> Array:
    """What is stored of a sample."""
    return store.gather(name, store.rows_of([sample_id]))[0]


def test_names_are_modules_of_the_package() -> None:
    """``featstore.torch`` and the others, also without an import of their own."""
    for name in ("torch", "webdataset", "hf"):
        assert getattr(featstore, name).__name__ == f"featstore.{name}"


# ---------------------------------------------------------------- PyTorch


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_folder(photos: Path, store: FeatureStore, workers: int) -> None:
    """Ids and bytes come from the folder's paths; batches hold the right rows, in worker processes too."""
    images = ImageFolder(photos, transform=to_tensor)
    data = featstore.torch.with_features(images, store, fields=["cls", "bits"])
    assert len(data) == COUNT
    loader = DataLoader(data, batch_size=5, shuffle=True, num_workers=workers)
    seen = 0
    for pixels, labels, features in loader:
        assert features["bits"].dtype == torch.bfloat16
        for pixel, label, cls in zip(pixels, labels, features["cls"], strict=True):
            at = next(i for i in range(COUNT) if torch.equal(images[i][0], pixel))
            assert images[at][1] == label
            name = Path(images.samples[at][0]).relative_to(photos).as_posix()
            np.testing.assert_array_equal(cls.numpy(), feature(store, "cls", name))
            seen += 1
    assert seen == COUNT


def test_kinds_of_samples(store: FeatureStore) -> None:
    """Tuples grow by one item, mappings by the fields, anything else becomes a pair; views can be picked."""
    ids = names()
    tuples = featstore.torch.with_features(
        [(i, -i) for i in range(COUNT)], store, ids, fields="cls"
    )
    number, label, cls = tuples[3]
    assert (number, label, tuple(cls.shape)) == (3, -3, (2, 4))
    np.testing.assert_array_equal(cls.numpy(), feature(store, "cls", ids[3]))
    dicts = [{"image": i} for i in range(COUNT)]
    found = featstore.torch.with_features(dicts, store, ids, fields="cls", views=1)[2]
    assert sorted(found) == ["cls", "image"]
    np.testing.assert_array_equal(found["cls"].numpy(), feature(store, "cls", ids[2])[1])
    pair = featstore.torch.with_features(range(COUNT), store, ids, views=[1])[0]
    assert pair[0] == 0
    assert {name: tuple(value.shape) for name, value in pair[1].items()} == {
        "bits": (1, 3),
        "cls": (1, 4),
    }
    clash = featstore.torch.with_features([{"cls": 0}] * COUNT, store, ids)
    with pytest.raises(ConfigError, match="cls"):
        clash[0]


def test_subsets_and_pickles(photos: Path, store: FeatureStore) -> None:
    """A part of a data set knows its ids; the whole may be sent to a spawned worker."""
    part = Subset(ImageFolder(photos), [4, 1])
    data = pickle.loads(pickle.dumps(featstore.torch.with_features(part, store, fields="cls")))
    name = Path(part.dataset.samples[4][0]).relative_to(photos).as_posix()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(data[0][2].numpy(), feature(store, "cls", name))
    with pytest.raises(ConfigError, match="ids="):
        featstore.torch.with_features(range(3), store)


def test_refusals(photos: Path, tmp_path: Path, store: FeatureStore) -> None:
    """Unknown ids, invalid rows, another number of ids, other images, unknown fields and views."""
    ids = names()
    with pytest.raises(MissingSamples, match="new/1"):
        featstore.torch.with_features(range(COUNT), store, [*ids[:-1], "new/1"])
    with pytest.raises(ConfigError, match=f"{COUNT - 1} ids for a data set of {COUNT}"):
        featstore.torch.with_features(range(COUNT), store, ids[:-1])
    with pytest.raises(ConfigError, match="grid"):
        featstore.torch.with_features(range(COUNT), store, ids, fields="grid")
    with pytest.raises(ViewMismatch):
        featstore.torch.with_features(range(COUNT), store, ids, views=2)
    bad = make_store(tmp_path / "bad", ids, invalid=[INVALID], order=list(range(COUNT)))
    with pytest.raises(MissingSamples, match="broken") as caught:
        featstore.torch.with_features(range(COUNT), bad, ids)
    assert ids[INVALID] in str(caught.value)
    shutil.copy(photos / ids[0], photos / ids[1])
    data = featstore.torch.with_features(ImageFolder(photos), store)
    at = [Path(path).relative_to(photos).as_posix() for path, _ in data.dataset.samples].index(
        ids[1]
    )
    with pytest.raises(MissingSamples, match=ids[1]):
        data[at]
    assert featstore.torch.with_features(ImageFolder(photos), store, check_content=False)[at]
    given = featstore.torch.with_features(range(COUNT), store, ids, content=picture)
    assert [given[i][0] for i in range(COUNT)] == list(range(COUNT))
    swapped = featstore.torch.with_features(range(COUNT), store, ids[::-1], content=picture)
    with pytest.raises(MissingSamples, match="sha256"):
        swapped[0]


# ---------------------------------------------------------------- webdataset


def write_tars(folder: Path, *, members: dict[str, list[int]]) -> list[str]:
    """Tars of pictures under their numbers; returns their paths."""
    for name, numbers in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for i in numbers:
                for suffix, data in (("png", picture(i)), ("cls", str(i).encode())):
                    info = tarfile.TarInfo(f"{i:02d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return [str(folder / f"{name}.tar") for name in members]


@LEAVES_FILES_OPEN
@pytest.mark.parametrize("decode", ["after", "before"])
def test_a_pipeline_of_tars(tmp_path: Path, decode: str) -> None:
    """Each sample gets the row of its key, whatever the order; before or after images are decoded."""
    webdataset = pytest.importorskip("webdataset")
    tars = {"a/000000": list(range(5)), "a/000001": list(range(5, COUNT))}
    urls = write_tars(tmp_path / "tars", members=tars)
    ids = [f"{name}/{i:02d}" for name, numbers in tars.items() for i in numbers]
    path = make_store(tmp_path / "store", ids, invalid=[], order=ORDER)
    store = FeatureStore.open(path)
    join = pickle.loads(pickle.dumps(featstore.webdataset.join(path, ["bits"], views=0)))
    stages = webdataset.WebDataset(urls, shardshuffle=False)
    stages = (
        stages.compose(join).decode("torchrgb", partial=True)
        if decode == "after"
        else stages.decode("torchrgb").compose(join)
    )
    found = list(stages)
    assert len(found) == COUNT
    for sample in found:
        name = next(name for name in ids if name.endswith(f"/{sample['__key__']}"))
        expected = feature(store, "bits", name)[0].astype(np.float32)
        np.testing.assert_array_equal(sample["bits.npy"].float().numpy(), expected)
        assert sample["png"].shape[0] == 3


@LEAVES_FILES_OPEN
def test_keys_of_a_folder_that_was_packed_into_tars(tmp_path: Path) -> None:
    """A store of a folder joins tars whose members are the folder's files; ids may be given by a function too."""
    webdataset = pytest.importorskip("webdataset")
    urls = write_tars(tmp_path / "tars", members={"all": list(range(COUNT))})
    ids = [f"{i:02d}.png" for i in range(COUNT)]
    store = FeatureStore.open(make_store(tmp_path / "s", ids, invalid=[], order=ORDER))
    joined = list(
        webdataset.WebDataset(urls, shardshuffle=False).compose(
            featstore.webdataset.join(store, "cls")
        )
    )
    given = featstore.webdataset.join(store, "cls", ids=lambda sample: f"{sample['__key__']}.png")
    again = list(webdataset.WebDataset(urls, shardshuffle=False).compose(given))
    for i, (one, other) in enumerate(zip(joined, again, strict=True)):
        np.testing.assert_array_equal(one["cls.npy"].numpy(), feature(store, "cls", ids[i]))
        assert torch.equal(one["cls.npy"], other["cls.npy"])


def test_refusals_of_the_stage(tmp_path: Path) -> None:
    """Samples without a usable row stop the pipeline or are skipped and counted; other images stop it."""
    samples = [
        {"__key__": f"{i:02d}", "__url__": "x/all.tar", "png": picture(i)} for i in range(COUNT)
    ]
    ids = [f"all/{i:02d}" for i in range(COUNT)]
    path = make_store(tmp_path / "s", ids, invalid=[INVALID], order=list(range(COUNT)))
    with pytest.raises(MissingSamples, match="broken"):
        list(featstore.webdataset.join(path)(samples))
    skipping = featstore.webdataset.join(path, missing="skip")
    assert len(list(skipping(iter(samples)))) == COUNT - 1
    assert skipping.skipped == 1
    stranger = {"__key__": "stranger", "__url__": "x/all.tar", "png": b""}
    with pytest.raises(MissingSamples, match="all/stranger"):
        list(featstore.webdataset.join(path)([stranger]))
    with pytest.raises(MissingSamples, match="sha256"):
        list(featstore.webdataset.join(path)([{**samples[0], "png": samples[1]["png"]}]))
    assert list(featstore.webdataset.join(path, check_content=False)([{**samples[0], "png": b""}]))
    with pytest.raises(ConfigError, match="cls"):
        list(featstore.webdataset.join(path)([{**samples[0], "cls.npy": 1}]))
    with pytest.raises(ConfigError):
        featstore.webdataset.join(path, missing="maybe")  # type: ignore[arg-type]


# ---------------------------------------------------------------- Hugging Face


@pytest.fixture
def images() -> Any:
    """A data set of the pictures."""
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [{"bytes": picture(i), "path": None} for i in range(COUNT)],
        "id": names(),
        "number": list(range(COUNT)),
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "id": datasets.Value("string"),
            "number": datasets.Value("int64"),
        }
    )
    return datasets.Dataset.from_dict(rows, features=features)


def test_columns_of_a_hugging_face_data_set(images: Any, store: FeatureStore) -> None:
    """The right rows by an id column, after selecting and shuffling too, and in a DataLoader."""
    found = featstore.hf.with_features(images, store, "id", fields="cls", views=0)
    assert len(found) == COUNT
    for data in (found, found.select([5, 2]), found.shuffle(seed=1)):
        for sample in data:
            expected = feature(store, "cls", sample["id"])[0]
            np.testing.assert_array_equal(sample["cls"].numpy(), expected)
            assert featstore.hf.POSITION not in sample
            assert sample["image"].size
    doubled = images.with_transform(lambda batch: {"twice": [2 * n for n in batch["number"]]})
    joined = featstore.hf.with_features(doubled, store, names())
    for batch in DataLoader(joined, batch_size=5):
        for twice, cls in zip(batch["twice"].tolist(), batch["cls"], strict=True):
            np.testing.assert_array_equal(cls.numpy(), feature(store, "cls", names()[twice // 2]))
    assert pickle.loads(pickle.dumps(found))[1]["number"] == 1


def test_positions_of_a_hugging_face_data_set(images: Any, tmp_path: Path) -> None:
    """Without ids, those that extraction from this data set gives, bound by the content of the images."""
    ids = [f"{i:08d}" for i in range(COUNT)]
    store = FeatureStore.open(make_store(tmp_path / "s", ids, invalid=[], order=ORDER))
    found = featstore.hf.with_features(images, store, fields="cls")
    np.testing.assert_array_equal(found[3]["cls"].numpy(), feature(store, "cls", ids[3]))
    other = featstore.hf.with_features(images.select(range(COUNT - 1, -1, -1)), store)
    with pytest.raises(MissingSamples, match="sha256"):
        other[0]


def test_refusals_of_columns(images: Any, store: FeatureStore) -> None:
    """Formats that cannot be combined, columns that would be overwritten, unknown ids and columns of ids."""
    for wrong in (
        lambda: featstore.hf.with_features(images.with_format("numpy"), store, "id"),
        lambda: featstore.hf.with_features(images.rename_column("number", "cls"), store, "id"),
        lambda: featstore.hf.with_features(images, store, "name"),
        lambda: featstore.hf.with_features(images, store, names()[1:]),
    ):
        with pytest.raises(ConfigError):
            wrong()
    with pytest.raises(MissingSamples, match="00000000"):
        featstore.hf.with_features(images, store)


# ---------------------------------------------------------------- examples

# ---------------------------------------------------------------- Arrow


def test_shards_as_tables(tmp_path: Path) -> None:
    """Together they hold the valid rows of the store with their ids; numbers keep their type, lists their lengths."""
    rows = made(20, invalid={3: "broken"})
    store = FeatureStore.open(write(rows, tmp_path / "store"))
    tables = [featstore.shard_table(tmp_path / "store", shard) for shard in store.shards]
    table = pyarrow.concat_tables(tables)
    valid = [row for row in range(20) if row != 3]
    assert len(tables) > 1
    assert table["row"].to_pylist() == valid
    assert table["sample_id"].to_pylist() == [rows.ids[row] for row in valid]
    assert table["label"].to_pylist() == store.labels[valid].tolist()
    assert table["caption"].to_pylist() == rows.values["caption"][valid].tolist()
    cls = table["cls"].combine_chunks()
    assert cls.type == pyarrow.list_(pyarrow.list_(pyarrow.float16(), 6), 2)
    numbers = cls.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 2, 6)
    np.testing.assert_array_equal(numbers, rows.values["cls"][valid], strict=True)
    for found, row in zip(table["points"].to_pylist(), valid, strict=True):
        assert found == [view.tolist() for view in rows.values["points"][row]]


def test_fields_and_types_of_a_table(store: FeatureStore) -> None:
    """The fields that are asked for, as float32 where the engine has no float16."""
    table = featstore.shard_table(store, 0, ["cls"], float32=True)
    assert table.schema.field("cls").type == pyarrow.list_(pyarrow.list_(pyarrow.float32(), 4), 2)
    assert "bits" not in table.column_names
    with pytest.raises(ConfigError, match="nothing"):
        featstore.shard_table(store, 0, ["nothing"])
    with pytest.raises(ConfigError, match="99"):
        featstore.shard_table(store, 99)


EXAMPLES = ROOT / "docs" / "examples"


def example(name: str) -> Any:
    """An example of the documentation, at most 40 lines of it."""
    text = (EXAMPLES / name).read_text()
    assert len(text.splitlines()) <= 40
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_the_plain_loop_of_the_guide(
    photos: Path, store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs as it stands, and the loss falls."""
    example("plain_pytorch.py")(str(photos), str(store.path))
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_lightning_loop_of_the_guide(
    photos: Path, store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs as it stands."""
    pytest.importorskip("lightning", reason="lightning is not installed")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    example("lightning_loop.py")(str(photos), str(store.path), accelerator="cpu", **quiet)
    assert "steps: 3" in capsys.readouterr().out
