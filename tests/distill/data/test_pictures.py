"""Images and rows belong together by id, then by content; everything else is an error that names the ids."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.config import DataConfig
from distill.data.join_samples import join_samples
from distill.data.pictures import (
    BatchMaker,
    Changes,
    PictureCache,
    ViewDataset,
    load_batches,
)
from distill.data.rules import rule_of
from distill.data.samples import Samples
from distill.data.schedule import CANONICAL, Request
from distill.data.split_parts import split_parts
from distill.data.stored_features import Features
from distill.losses import IGNORE
from featstore import FeatureStore
from featstore.errors import ConfigError, MissingSamples
from featstore.importing.create import from_arrays
from featstore.sources import open_source
from featstore.sources.base import NO_LABEL, Source
from featstore.sources.config import SourceConfig
from tests.distill.stores import SIZE, write_store

DATA = DataConfig(labelled=["train/*"], unlabelled=["train/*"], test=["test/*"], labels_per_class=4)


def folder(path: Path, labels_from: str = "parent") -> Source:
    return open_source(SourceConfig(kind="folder", path=str(path), labels_from=labels_from))  # type: ignore[arg-type]


@pytest.fixture
def copy(images: Path, tmp_path: Path) -> Path:
    """The images, to be changed."""
    return shutil.copytree(images, tmp_path / "copy")


def requests(samples: Samples, column: int = CANONICAL) -> list[Request]:
    return [Request(i, column, 0, False) for i in range(len(samples.ids))]


def pixels_of(samples: Samples, store: FeatureStore, column: int) -> torch.Tensor:
    """What the student is shown at the teacher's own size, (n, H x W x 3)."""
    dataset = ViewDataset(samples, rule_of(store, "cls"), size=SIZE)
    (pictures,) = load_batches(dataset, [requests(samples, column)], workers=0)
    return pictures.pixels.permute(0, 2, 3, 1).reshape(len(samples.ids), -1).float()


def test_the_student_sees_exactly_the_view_behind_the_feature(images: Path, tmp_path: Path) -> None:
    """At the teacher's size, every stored view is replayed to the last pixel, mirrored ones too."""
    store = write_store(tmp_path / "s", folder(images), seeded=2, mirrored=True)
    samples = join_samples(folder(images), store, DATA)
    stored = store.gather("pixels", samples.rows)
    for column in range(6):
        assert np.array_equal(pixels_of(samples, store, column).numpy(), stored[:, column])
    assert np.array_equal(pixels_of(samples, store, CANONICAL).numpy(), stored[:, 0])


def test_rows_are_found_whatever_the_order(images: Path, store: FeatureStore) -> None:
    """A source in another order gives every image its own row."""
    source = folder(images)
    order = np.random.default_rng(0).permutation(len(source))

    class Shuffled(Source):
        def __init__(self) -> None:
            super().__init__()
            self.kind, self.uri = source.kind, "shuffled"
            self.class_names = source.class_names
            self.sample_ids = [source.sample_ids[i] for i in order]
            assert source.labels is not None
            self.labels = source.labels[order]

        def read(self, row: int) -> bytes:
            return source.read(int(order[row]))

    samples = join_samples(Shuffled(), store, DATA)
    assert [store.sample_ids[row] for row in samples.rows] == samples.ids
    assert np.array_equal(
        pixels_of(samples, store, 1).numpy(), store.gather("pixels", samples.rows)[:, 1]
    )


def test_a_renamed_file_finds_its_row_and_its_crop(copy: Path, store: FeatureStore) -> None:
    """By content; a seeded crop depends on the id that the *store* knows."""
    (copy / "train/left/000.png").rename(copy / "train/left/new name.png")
    samples = join_samples(folder(copy), store, DATA)
    place = samples.ids.index("train/left/new name.png")
    assert samples.stored_ids[place] == "train/left/000.png"
    assert any("new name.png = train/left/000.png" in note for note in samples.notes)
    stored = store.gather("pixels", samples.rows)
    for column in range(3):
        assert np.array_equal(pixels_of(samples, store, column).numpy(), stored[:, column])


def test_added_and_removed_files(copy: Path, store: FeatureStore) -> None:
    """A removed file is no concern; a new one is an error with its id."""
    (copy / "train/left/000.png").unlink()
    assert len(join_samples(folder(copy), store, DATA).ids) == store.num_rows - 1
    Image.new("RGB", (9, 9)).save(copy / "train/top/extra.png")
    with pytest.raises(MissingSamples, match=r"\b1\b.*\b48\b.*train/top/extra.png"):
        join_samples(folder(copy), store, DATA)
    # Patterns that leave it out need no row for it.
    only = DataConfig(labelled=["train/left/*", "train/right/*"], test=["test/*"])
    join_samples(folder(copy), store, only)


def test_changed_bytes_are_refused_with_the_id(copy: Path, store: FeatureStore) -> None:
    """Same name, other picture: found at the first read, in line and in a loading process."""
    Image.new("RGB", (9, 9)).save(copy / "train/top/003.png")
    samples = join_samples(folder(copy), store, DATA)
    dataset = ViewDataset(samples, rule_of(store, "cls"), size=SIZE)
    for workers in (0, 1):
        with pytest.raises(MissingSamples, match=r"train/top/003.png"):
            list(load_batches(dataset, [requests(samples)], workers=workers))


def test_a_file_that_vanished_is_named(copy: Path, store: FeatureStore) -> None:
    """After the join, before the read."""
    samples = join_samples(folder(copy), store, DATA)
    (copy / "test/left/001.png").unlink()
    dataset = ViewDataset(samples, rule_of(store, "cls"), size=SIZE)
    with pytest.raises(ConfigError, match=r"test/left/001.png"):
        list(load_batches(dataset, [requests(samples)], workers=0))


def test_invalid_rows_are_dropped_and_counted(images: Path, tmp_path: Path) -> None:
    """Their features mean nothing."""
    bad = ["train/left/002.png", "test/top/000.png"]
    store = write_store(tmp_path / "s", folder(images), invalid=bad)
    samples = join_samples(folder(images), store, DATA)
    assert not set(bad) & set(samples.ids)
    assert any("2 images" in note and bad[0] in note for note in samples.notes)


def test_copies_of_test_images_leave_the_training_parts(copy: Path, tmp_path: Path) -> None:
    """A leak under another name, in either training part."""
    shutil.copy(copy / "test/left/000.png", copy / "train/left/leak.png")
    store = write_store(tmp_path / "s", folder(copy))
    samples = join_samples(folder(copy), store, DATA)
    for per_class in (0, 4):
        part = split_parts(
            samples, DataConfig(unlabelled=["train/*"], labels_per_class=per_class), seed=0
        )
        training = {samples.ids[i] for i in np.union1d(part.labelled, part.unlabelled)}
        assert "train/left/leak.png" not in training
        assert any("exact copies" in note and "leak.png" in note for note in part.notes)


def test_a_part_may_be_a_list_of_ids(images: Path, store: FeatureStore, tmp_path: Path) -> None:
    """``@FILE`` takes the ids of a file, alone or beside patterns; an id that the source lacks is named."""
    ids = [name for name in folder(images).sample_ids if name.startswith("train/")]
    (tmp_path / "ids.txt").write_text("\n".join(ids[:3]) + "\n")
    listed = f"@{tmp_path / 'ids.txt'}"
    config = DataConfig(labelled=["train/*"], unlabelled=[listed], test=["test/*"])
    samples = join_samples(folder(images), store, config)
    assert [samples.ids[i] for i in samples.groups["unlabelled"]] == ids[:3]
    both = DataConfig(labelled=["train/*"], unlabelled=[listed, "train/top/*"], test=["test/*"])
    found = join_samples(folder(images), store, both)
    assert {found.ids[i] for i in found.groups["unlabelled"]} >= {
        *ids[:3],
        *(name for name in ids if name.startswith("train/top/")),
    }
    (tmp_path / "ids.txt").write_text("train/nowhere.png\n")
    with pytest.raises(MissingSamples, match="nowhere"):
        join_samples(folder(images), store, config)
    with pytest.raises(ConfigError, match=r"nothing\.txt"):
        join_samples(
            folder(images), store, DataConfig(unlabelled=["@nothing.txt"], test=["test/*"])
        )


def test_a_store_from_arrays_is_joined_by_id(copy: Path, tmp_path: Path) -> None:
    """Without content hashes: said once, no image counts as a copy of another, changed bytes pass."""
    ids = folder(copy).sample_ids
    values = np.ones((len(ids), 4), np.float32)
    from_arrays(tmp_path / "s", {"cls": values}, ids, teacher="mine v1", preprocessing=16)
    made = FeatureStore.open(tmp_path / "s")
    samples = join_samples(folder(copy), made, DATA)
    assert sum("no content hash" in note for note in samples.notes) == 1
    part = split_parts(samples, DATA, seed=0)
    assert len(part.labelled) + len(part.unlabelled) + len(part.test) == len(samples.ids)
    dataset = ViewDataset(samples, rule_of(made, "cls"), size=SIZE)
    assert len(list(load_batches(dataset, [requests(samples)], workers=0))) == 1
    (copy / ids[0]).rename(copy / "train/top/renamed.png")
    with pytest.raises(MissingSamples, match="renamed"):
        join_samples(folder(copy), made, DATA)


def test_a_test_image_that_a_training_pattern_matches_is_left_out(
    images: Path, store: FeatureStore
) -> None:
    """Overlapping patterns do not train on the test part."""
    config = DataConfig(labelled=["*"], unlabelled=["*"], test=["test/*"])
    samples = join_samples(folder(images), store, config)
    part = split_parts(samples, config, seed=0)
    assert not set(part.test) & set(part.labelled) | set(part.test) & set(part.unlabelled)
    assert len(part.test) == 12


def test_parts_are_disjoint_and_the_draw_follows_the_seed(
    images: Path, store: FeatureStore
) -> None:
    """4 of each class; another seed draws others, a fixed label seed does not."""
    samples = join_samples(folder(images), store, DATA)
    part = split_parts(samples, DATA, seed=0)
    assert np.bincount(samples.labels[part.labelled]).tolist() == [4, 4, 4]
    assert not set(part.labelled) & set(part.unlabelled)
    assert len(part.labelled) + len(part.unlabelled) == 36
    assert split_parts(samples, DATA, seed=1).labelled.tolist() != part.labelled.tolist()
    fixed = DataConfig(labels_per_class=4, label_seed=5)
    assert (
        split_parts(samples, fixed, 0).labelled.tolist()
        == split_parts(samples, fixed, 1).labelled.tolist()
    )


def test_labels_come_from_the_source_then_from_the_store(images: Path, store: FeatureStore) -> None:
    """A source without labels takes the store's, with their names; one whose labels were refused takes none."""
    plain = folder(images)
    plain.labels, plain.class_names = None, ()
    samples = join_samples(plain, store, DATA)
    assert samples.class_names == ("left", "right", "top")
    assert np.array_equal(samples.labels, join_samples(folder(images), store, DATA).labels)
    refused = join_samples(folder(images, labels_from="none"), store, DATA)
    assert refused.class_names == ()
    assert (refused.labels == NO_LABEL).all()


def test_no_labels_anywhere_is_refused(images: Path, tmp_path: Path) -> None:
    """Every method measures a classifier."""
    store = write_store(tmp_path / "s", folder(images), labels=False)
    samples = join_samples(folder(images, labels_from="none"), store, DATA)
    with pytest.raises(ConfigError, match=r"\b12\b"):
        split_parts(samples, DATA, seed=0)


def test_too_few_images_of_a_class(images: Path, store: FeatureStore) -> None:
    """Names class and count."""
    samples = join_samples(folder(images), store, DATA)
    with pytest.raises(ConfigError, match=r"\b12\b"):
        split_parts(samples, DataConfig(labels_per_class=13), seed=0)


def test_a_pattern_that_matches_nothing(images: Path, store: FeatureStore) -> None:
    """Shows what ids look like."""
    with pytest.raises(ConfigError, match=r"--data.test 'val/\*'.*test/left/000.png"):
        join_samples(folder(images), store, DataConfig(test=["val/*"]))


def test_features_are_those_of_the_chosen_views(images: Path, store: FeatureStore) -> None:
    """Against a direct read; without columns the canonical view."""
    samples = join_samples(folder(images), store, DATA)
    features = Features(store, "pixels", samples)
    stored = store.gather("pixels", samples.rows[[3, 1]])
    taken = features.take(np.array([3, 1]), np.array([2, 0]))
    assert taken.dtype == torch.float32
    assert np.array_equal(taken.numpy(), stored[[0, 1], [2, 0]])
    assert np.array_equal(features.take(np.array([3, 1])).numpy(), stored[:, 0])
    chunks = torch.cat(list(features.chunks(np.arange(5), [0, 2], size=2)))
    assert chunks.shape == (10, features.width)


def test_fields_that_are_no_vector_are_refused(images: Path, store: FeatureStore) -> None:
    """The message lists the fields that would do."""
    samples = join_samples(folder(images), store, DATA)
    with pytest.raises(ConfigError):
        Features(store, "grid2", samples)
    with pytest.raises(ConfigError):
        Features(store, "tokens", samples)


def test_a_batch_hides_the_labels_of_unlabelled_images(images: Path, store: FeatureStore) -> None:
    """They are known here, and must not be used."""
    samples = join_samples(folder(images), store, DATA)
    dataset = ViewDataset(samples, rule_of(store, "cls"), size=(16, 16))
    wanted = [Request(5, 1, 0, True), Request(6, 2, 0, False)]
    (pictures,) = load_batches(dataset, [wanted], workers=0)
    maker = BatchMaker(
        samples,
        Features(store, "cls", samples),
        mean=[0.5] * 3,
        std=[0.25] * 3,
        device=torch.device("cpu"),
    )
    batch = maker(pictures)
    assert batch.labels.tolist() == [samples.labels[5], IGNORE]
    assert batch.images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(batch.images, (pictures.pixels / 255 - 0.5) / 0.25)
    assert batch.teacher is not None
    assert np.array_equal(
        batch.teacher.numpy(),
        store.gather("cls", samples.rows[[5, 6]])[[0, 1], [1, 2]].astype(np.float32),
    )


@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_pixels_are_normalised_by_channel(
    images: Path, store: FeatureStore, form: torch.memory_format
) -> None:
    """To the last bit (pixel / 255 - mean) / std of its channel, wherever channels lie in memory."""
    samples = join_samples(folder(images), store, DATA)
    mean, std = (0.5, 0.25, 0.1), (0.2, 0.3, 0.7)
    maker = BatchMaker(samples, mean=mean, std=std, device=torch.device("cpu"))
    pixels = torch.randint(256, (2, 3, 5, 7), dtype=torch.uint8).contiguous(memory_format=form)
    centre, scale = (torch.tensor(value).reshape(1, 3, 1, 1) for value in (mean, std))
    assert torch.equal(maker.normalise(pixels), (pixels.float() / 255 - centre) / scale)


def test_the_cache_changes_nothing(images: Path, store: FeatureStore) -> None:
    """Same pictures with and without, also when it is full after a few."""
    samples = join_samples(folder(images), store, DATA)
    rule = rule_of(store, "cls")
    batches = [requests(samples, 1), requests(samples, 2), requests(samples, 1)]

    def pixels(cache_mb: int) -> list[torch.Tensor]:
        dataset = ViewDataset(samples, rule, size=(128, 128), cache=PictureCache(cache_mb))
        return [pictures.pixels for pictures in load_batches(dataset, batches, workers=0)]

    plain = pixels(0)
    for cache_mb in (1, 64):
        assert all(torch.equal(a, b) for a, b in zip(plain, pixels(cache_mb), strict=True))


def test_jitter_reaches_training_pictures_only(images: Path, store: FeatureStore) -> None:
    """A request without bits, as in evaluation, is not changed."""
    samples = join_samples(folder(images), store, DATA)
    rule = rule_of(store, "cls")
    dataset = ViewDataset(samples, rule, size=SIZE, changes=Changes(DataConfig(jitter=0.8)))
    plain = ViewDataset(samples, rule, size=SIZE)
    assert torch.equal(dataset[Request(0, 1, 0, True)].pixels, plain[Request(0, 1, 0, True)].pixels)
    assert not torch.equal(
        dataset[Request(0, 1, 7, True)].pixels, plain[Request(0, 1, 7, True)].pixels
    )


def test_reduced_decoding_shows_the_same_region(tmp_path: Path) -> None:
    """``--data.decode reduced``: pixels within a few levels, frames the same, whatever the EXIF orientation."""
    x, y = np.meshgrid(np.linspace(0, 1, 400), np.linspace(0, 1, 300))
    waves = np.stack([np.sin(9 * x), np.cos(7 * y), np.sin(5 * (x + y))], axis=2)
    image, exif = Image.fromarray((127 + 120 * waves).astype(np.uint8)), Image.Exif()
    (tmp_path / "images/train").mkdir(parents=True)
    for orientation, height in ((1, 300), (6, 296)):
        exif[0x0112] = orientation
        path = tmp_path / f"images/train/{orientation}.jpg"
        image.crop((0, 0, 400, height)).save(path, quality=95, exif=exif)
    store = write_store(tmp_path / "s", folder(tmp_path / "images"), seeded=2)
    config = DataConfig(labelled=[], unlabelled=["*"], test=[])
    samples = join_samples(folder(tmp_path / "images"), store, config)
    full, reduced = (
        ViewDataset(samples, rule_of(store, "cls"), size=(24, 24), reduced=reduced)
        for reduced in (False, True)
    )
    for request in [Request(i, column, 0, False) for i in range(2) for column in (CANONICAL, 1, 2)]:
        data = samples.source.read(int(samples.positions[request.sample]))
        (one, frame), (other, same_frame) = full.cut(request, data), reduced.cut(request, data)
        assert frame == same_frame
        difference = np.abs(one.astype(int) - other)
        assert 0 < difference.max() <= 4, difference.max()
