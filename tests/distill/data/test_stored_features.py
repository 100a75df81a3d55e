"""Stored vectors and grids by sample: of one teacher, of several, in any dtype."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.config import DataConfig, TeacherConfig
from distill.data.feature_norm import Columns, FeatureNorm, measure_channels, shares
from distill.data.join_samples import join_samples
from distill.data.match_views import match_views
from distill.data.pictures import BatchMaker, Changes, ViewDataset, load_batches
from distill.data.rules import rule_of
from distill.data.samples import Samples
from distill.data.schedule import Request, allowed_columns
from distill.data.stored_features import Features, Grid, StoredField, find_grid
from featstore import FeatureStore
from featstore.errors import ConfigError, MissingSamples, ViewMismatch
from featstore.format.views import ViewSet, make_views
from featstore.sources import open_source
from featstore.sources.base import Source
from featstore.sources.config import SourceConfig
from tests.distill.stores import SIZE, WIDTH, write_store

DATA = DataConfig(labelled=["train/*"], unlabelled=["train/*"], test=["test/*"], labels_per_class=4)
OTHER_WEIGHTS = "1" * 64


def folder(path: Path) -> Source:
    return open_source(SourceConfig(kind="folder", path=str(path)))


@pytest.fixture(scope="module")
def other(images: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Another teacher's store: the same pictures in another order of views, and rows."""
    return write_store(
        tmp_path_factory.mktemp("other") / "s",
        folder(images),
        seeded=3,
        mirrored=True,
        weights=OTHER_WEIGHTS,
        shard_rows=7,
    )


@pytest.fixture(scope="module")
def samples(images: Path, store: FeatureStore, other: FeatureStore) -> Samples:
    return join_samples(folder(images), store, DATA, [other])


def both(
    store: FeatureStore, other: FeatureStore, samples: Samples, *, weight: float = 1.0
) -> Features:
    """The ``cls`` of one store beside the ``pixels`` of the other."""
    columns = match_views(store, other, [0, 1, 2], samples, 0)
    second = StoredField(other, "pixels", samples.other_rows[0], columns, weight)
    return Features(store, "cls", samples, weight=3.0, others=[second])


# ------------------------------------------------------------ several teachers


def test_teachers_lie_side_by_side_view_by_view(
    store: FeatureStore, other: FeatureStore, samples: Samples
) -> None:
    """The same image and view of both, whatever the order of their rows and views."""
    features = both(store, other, samples)
    indices, columns = np.array([5, 40, 5]), np.array([2, 0, 1])
    taken = features.take(indices, columns)
    assert taken.shape == (3, features.width) == (3, WIDTH + 192)
    first = store.gather("cls", samples.rows[indices])[np.arange(3), columns]
    assert np.array_equal(taken[:, :WIDTH].numpy(), first.astype(np.float32))
    # Its views are canonical, its mirror image, seeded 0, its mirror image, ...
    second = other.gather("pixels", samples.other_rows[0][indices])[np.arange(3), columns * 2]
    assert np.array_equal(taken[:, WIDTH:].numpy(), second)
    same = store.gather("pixels", samples.rows[indices])[np.arange(3), columns]
    assert np.array_equal(taken[:, WIDTH:].numpy(), same)
    chunks = torch.cat(list(features.chunks(indices, [2, 0], size=2)))
    assert torch.equal(chunks[0], taken[0])
    assert torch.equal(chunks[3], taken[1])
    assert features.take(indices).shape == (3, features.width)


def test_one_teacher_is_what_it_was(store: FeatureStore, samples: Samples) -> None:
    """No scale, no split: bit by bit the store's numbers, and the plain normalisation of them."""
    features = Features(store, "cls", samples, weight=7.0)
    indices = np.arange(12)
    vectors = features.take(indices)
    assert np.array_equal(vectors.numpy(), store.gather("cls", samples.rows[indices])[:, 0])
    statistics = measure_channels(features.chunks(indices, [0, 1, 2]))
    for kind in ("none", "standardize", "layernorm", "l2"):
        norm = features.norm(kind, indices, [0, 1, 2])
        plain = FeatureNorm(kind, statistics)
        assert torch.equal(norm(vectors), plain(vectors))


@pytest.mark.parametrize("kind", ["none", "standardize", "layernorm", "l2"])
def test_a_squared_error_is_the_weighted_mean_of_the_teachers_own(kind: str) -> None:
    """MSE(s x, s y) = sum_i (w_i / sum w) MSE_i, whatever the widths; each block is normalised on its own."""
    widths, weights = (3, 8, 5), (3.0, 1.0, 0.5)
    blocks = [Columns(*pair) for pair in zip(widths, weights, strict=True)]
    x, y = torch.randn(6, 16), torch.randn(6, 16)
    share = shares(blocks)
    parts = zip(x.split(widths, 1), y.split(widths, 1), weights, strict=True)
    expected = sum(w / 4.5 * (a - b).square().mean() for a, b, w in parts)
    torch.testing.assert_close((share * x - share * y).square().mean(), expected)
    whole = FeatureNorm(kind, measure_channels([x]), blocks)(x)  # type: ignore[arg-type]
    pieces = zip(x.split(widths, 1), whole.split(widths, 1), share.split(widths), strict=True)
    for part, found, scale in pieces:
        alone = FeatureNorm(kind, measure_channels([part]))(part)  # type: ignore[arg-type]
        torch.testing.assert_close(found, alone * scale)


def test_statistics_are_taken_once(store: FeatureStore, samples: Samples) -> None:
    """Methods and seeds that train on the same rows share them; other rows have their own."""
    features = Features(store, "cls", samples)
    for rows, columns in ((20, [0]), (20, [0]), (21, [0]), (21, [0, 1]), (20, [0])):
        norm = features.norm("standardize", np.arange(rows), columns)
        expected = measure_channels(features.chunks(np.arange(rows), columns))
        assert torch.equal(norm.mean_D, expected.mean_D)
    assert len(features._norms._statistics) == 3


# ------------------------------------------------------------ joining


def test_an_image_needs_a_feature_in_every_store(
    images: Path, store: FeatureStore, tmp_path: Path
) -> None:
    """What one teacher could not use is left out, with a note that names it."""
    bad = ["train/left/002.png", "test/top/000.png"]
    second = write_store(tmp_path / "s", folder(images), invalid=bad, weights=OTHER_WEIGHTS)
    samples = join_samples(folder(images), store, DATA, [second])
    assert not set(bad) & set(samples.ids)
    assert len(samples.other_rows[0]) == len(samples.rows) == 46
    assert any("every store" in note and "2 images" in note for note in samples.notes)


def test_teachers_must_have_seen_the_same_bytes(
    images: Path, store: FeatureStore, tmp_path: Path
) -> None:
    """Same id, other picture: refused with the id before anything is read."""
    copy = shutil.copytree(images, tmp_path / "copy")
    Image.new("RGB", (9, 9)).save(copy / "train/top/003.png")
    second = write_store(tmp_path / "s", folder(copy), weights=OTHER_WEIGHTS)
    with pytest.raises(MissingSamples, match=r"\b1\b.*train/top/003.png"):
        join_samples(folder(images), store, DATA, [second])


def test_another_store_is_searched_by_content(
    images: Path, store: FeatureStore, tmp_path: Path
) -> None:
    """A renamed file is found; its seeded views are other crops, so only the canonical one can be read of both."""
    copy = shutil.copytree(images, tmp_path / "copy")
    (copy / "train/left/000.png").rename(copy / "train/left/zzz.png")
    second = write_store(tmp_path / "s", folder(copy), weights=OTHER_WEIGHTS)
    samples = join_samples(folder(images), store, DATA, [second])
    assert any(f"another name than in {second.path}" in note for note in samples.notes)
    place = samples.ids.index("train/left/000.png")
    assert second.sample_ids[samples.other_rows[0][place]] == "train/left/zzz.png"
    assert match_views(store, second, [0], samples, 0)[0] == 0
    with pytest.raises(ViewMismatch, match=r"train/left/zzz.png.*train/left/000.png"):
        match_views(store, second, [0, 1], samples, 0)


def test_missing_in_another_store(images: Path, store: FeatureStore, tmp_path: Path) -> None:
    """The error names the store that lacks them."""
    copy = shutil.copytree(images, tmp_path / "copy")
    (copy / "train/left/000.png").unlink()
    second = write_store(tmp_path / "s", folder(copy), weights=OTHER_WEIGHTS)
    with pytest.raises(MissingSamples, match=rf"{second.path}.*\b1\b.*\b48\b.*train/left/000.png"):
        join_samples(folder(images), store, DATA, [second])


@pytest.mark.parametrize(
    ("changes", "columns", "message"),
    [
        ({"seeded": 1}, [0, 1, 2], r"\b1\b.*\b0\b"),
        ({"canonical": False}, [0, 1], "lacks views of .*: canonical"),
        ({"view_seed": 5}, [0, 1], r"\b0\b.*\b5\b"),
    ],
)
def test_views_that_another_store_cannot_answer(
    images: Path,
    store: FeatureStore,
    tmp_path: Path,
    changes: dict[str, int],
    columns: list[int],
    message: str,
) -> None:
    """Refused by name; views that nobody reads need not be there."""
    second = write_store(tmp_path / "s", folder(images), weights=OTHER_WEIGHTS, **changes)  # type: ignore[arg-type]
    samples = join_samples(folder(images), store, DATA, [second])
    with pytest.raises(ViewMismatch, match=message):
        match_views(store, second, columns, samples, 0)
    unread = [1] if "canonical" in changes else [0]
    assert match_views(store, second, unread, samples, 0)[unread[0]] == 0


# ------------------------------------------------------------ views that training picks


def test_the_first_seeded_views() -> None:
    """With the canonical view or without, with mirror images or without; 0 takes all."""
    views = ViewSet(views=make_views(canonical=True, seeded=3, mirrored=True))
    assert allowed_columns(views, DataConfig()) == [0, 2, 4, 6]
    assert allowed_columns(views, DataConfig(seeded=2)) == [0, 2, 4]
    assert allowed_columns(views, DataConfig(seeded=1, views="seeded", mirror=True)) == [2, 3]
    with pytest.raises(ViewMismatch, match=r"--data.seeded 4\b.*\b3\b"):
        allowed_columns(views, DataConfig(seeded=4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeded": -1}, "--data.seeded -1"),
        ({"seeded": 2, "views": "canonical"}, r"--data.views canonical"),
    ],
)
def test_settings_of_views_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    """Refused before anything is opened."""
    with pytest.raises(ConfigError, match=message):
        DataConfig(**settings)  # type: ignore[arg-type]


def test_views_that_were_never_stored_are_refused() -> None:
    """A mirror image, a seeded crop, the canonical region."""
    plain = ViewSet(views=make_views(canonical=True, seeded=0, mirrored=False))
    with pytest.raises(ViewMismatch, match="mirrored"):
        allowed_columns(plain, DataConfig(mirror=True))
    with pytest.raises(ViewMismatch, match="seeded"):
        allowed_columns(plain, DataConfig(views="seeded"))
    crops = ViewSet(views=make_views(canonical=False, seeded=2, mirrored=False))
    with pytest.raises(ViewMismatch, match="canonical"):
        allowed_columns(crops, DataConfig(views="canonical"))


def test_only_the_very_view_gets_a_stored_feature(images: Path, store: FeatureStore) -> None:
    """Strong copies move pixels: they get none, and the pictures that get one are those that the teacher saw."""
    samples = join_samples(folder(images), store, DATA)
    requests = [
        Request(4, 1, 0, True),
        Request(9, 2, 0, False),
        Request(9, 2, 77, False, strong=1),
        Request(9, 2, 78, False, strong=2),
    ]
    changes = Changes(DataConfig())
    dataset = ViewDataset(samples, rule_of(store, "cls"), size=SIZE, changes=changes)
    (pictures,) = load_batches(dataset, [requests], workers=0)
    features, grid = Features(store, "pixels", samples), Grid(store, "grid2", samples)
    cpu = torch.device("cpu")
    maker = BatchMaker(samples, features, grid, mean=[0.0] * 3, std=[1.0] * 3, device=cpu)
    batch = maker(pictures)
    assert (batch.num_labelled, batch.num_unlabelled, batch.num_strong) == (1, 1, 2)
    assert batch.teacher is not None
    assert batch.grid is not None
    assert len(batch.images) == 4
    assert batch.teacher.shape == (2, 192)
    assert batch.grid.shape == (2, 2, 2, 3)
    seen = (batch.images * 255).permute(0, 2, 3, 1).reshape(4, -1)
    torch.testing.assert_close(seen[:2], batch.teacher)
    assert (seen[2:] - batch.teacher[1]).abs().mean() > 1


# ------------------------------------------------------------ grids


def test_grids_of_the_chosen_views(store: FeatureStore, samples: Samples) -> None:
    """(S, g, g, D) float32; the one that is there is taken without being named."""
    grid = Grid(store, "", samples)
    assert (grid.field, grid.side, grid.width) == ("grid2", 2, 3)
    indices, columns = np.array([7, 1]), np.array([2, 1])
    stored = store.gather("grid2", samples.rows[indices])[np.arange(2), columns]
    taken = grid.take(indices, columns)
    assert taken.dtype == torch.float32
    assert np.array_equal(taken.numpy(), stored)
    assert grid.take(indices).shape == (2, 2, 2, 3)


def test_grids_are_standardised_by_evenly_spread_images(
    store: FeatureStore, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Per channel, over all places; of many images some are read, in parts."""
    grid, rows = Grid(store, "", samples), np.arange(20)
    norm = grid.norm("standardize", rows, [0, 1])
    places = norm(torch.cat(list(grid.chunks(rows, [0, 1]))))
    torch.testing.assert_close(places.mean(0), torch.zeros(3))
    torch.testing.assert_close(places.std(0, correction=0), torch.ones(3))
    monkeypatch.setattr("distill.data.stored_features.MOST_MEASURED", 14)
    few = grid.norm("standardize", rows, [0, 1])
    expected = measure_channels(grid.chunks(rows[::3], [0, 1]))
    assert torch.equal(few.mean_D, expected.mean_D)


def test_the_largest_grid_is_taken(images: Path, tmp_path: Path) -> None:
    """By its side, of the teacher in question; what is no grid is refused with what there is."""
    store = write_store(tmp_path / "s", folder(images), grids=(2, 4, 3))
    assert find_grid(store, "") == "grid4"
    assert find_grid(store, "grid3") == "grid3"
    for name in ("cls", "grid7"):
        with pytest.raises(ConfigError, match=rf"--grid_field {name}.*grid2.*grid3.*grid4"):
            find_grid(store, name)
    with pytest.raises(ConfigError):
        find_grid(store, "", "another teacher")


def test_no_grid_at_all(images: Path, tmp_path: Path) -> None:
    """The message says how to get one."""
    store = write_store(tmp_path / "s", folder(images), grids=())
    with pytest.raises(ConfigError, match=r"--store\.fields '\[cls,grid7\]'"):
        find_grid(store, "")


# ------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "settings", [{}, {"store": "s", "weight": 0.0}, {"store": "s", "field": ""}]
)
def test_settings_of_a_further_teacher(settings: dict[str, object]) -> None:
    """A folder, a field and a positive weight."""
    with pytest.raises(ConfigError, match="--teachers"):
        TeacherConfig(**settings)  # type: ignore[arg-type]
