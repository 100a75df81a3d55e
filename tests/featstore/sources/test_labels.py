"""Class numbers of sources: ids are renumbered, numbers for "no class" are named, all others stay as they are."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featstore.errors import ConfigError, SourceError
from featstore.sources import open_source
from featstore.sources.base import NO_LABEL
from featstore.sources.config import SourceConfig
from featstore.sources.labels import check_labels


@pytest.mark.parametrize(
    ("labels", "expected", "names", "said"),
    [
        ([0, 1, 2], [0, 1, 2], (), ""),
        ([3, 7, -1], [3, 7, -1], (), ""),
        ([9_999, 0], [9_999, 0], (), ""),
        (
            [5_000_000_000, 5_000_000_001, -1],
            [0, 1, -1],
            ("5000000000", "5000000001"),
            "5000000000",
        ),
        ([20_000_000, 3], [1, 0], ("3", "20000000"), "20,000,000"),
        ([-100, 0, -2], [-1, 0, -1], (), "-100, -2"),
        ([255, 0, 20], [-1, 0, 20], (), "255"),
        ([255, 254, 0], [255, 254, 0], (), ""),
        ([255, 300, 0], [255, 300, 0], (), ""),
        ([255], [255], (), ""),
    ],
)
def test_numbers(labels: list[int], expected: list[int], names: tuple[str, ...], said: str) -> None:
    """What each set of numbers becomes, and what the note names."""
    notes: list[str] = []
    found, class_names = check_labels(np.array(labels), where="x", notes=notes)
    assert found is not None
    assert (found.tolist(), class_names) == (expected, names)
    assert bool(notes) == bool(said)
    assert said in " ".join(notes)


@settings(deadline=None)
@given(st.lists(st.integers(-(10**17), 10**17), min_size=1, max_size=40))
def test_classes_never_take_memory_by_their_size(labels: list[int]) -> None:
    """Equal numbers stay equal, different ones different, and the largest is bounded by the number of images."""
    found, names = check_labels(np.array(labels), where="x", notes=[])
    if found is None:
        return
    assert found.min() >= NO_LABEL
    assert found.max() <= max(9_999, 10 * len(labels))
    pairs = {(was, now) for was, now in zip(labels, found.tolist(), strict=True) if now >= 0}
    assert len({was for was, _ in pairs}) == len({now for _, now in pairs}) == len(pairs)
    if names:
        assert all(names[now] == str(was) for was, now in pairs)


def test_ids_of_images_are_refused() -> None:
    """A number of its own for nearly every image is no class."""
    with pytest.raises(SourceError, match="100,001"):
        check_labels(np.arange(100_001) * 1_000, where="x", notes=[])


def test_no_class_at_all() -> None:
    """Labels that all mean "no class" are no labels."""
    assert check_labels(np.full(3, -1), where="x", notes=[]) == (None, ())


def test_classes_that_the_user_names(tmp_path: Path) -> None:
    """Numbers follow the order given; other classes lose their label, with a note; unknown ones are refused."""
    for name in ("cat", "ant", "transfer"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    config = SourceConfig(kind="folder", path=str(tmp_path), classes=["dog", "cat", "ant"])
    source = open_source(config)
    assert source.class_names == ("dog", "cat", "ant")
    assert source.labels is not None
    named = dict(zip(source.sample_ids, source.labels.tolist(), strict=True))
    assert named == {"ant/0.png": 2, "cat/0.png": 1, "transfer/0.png": NO_LABEL}
    assert "transfer" in " ".join(source.notes)
    with pytest.raises(ConfigError, match="transfer"):
        open_source(dataclasses.replace(config, classes=["cow"]))
    with pytest.raises(ConfigError, match="repeats"):
        dataclasses.replace(config, classes=["cow", "cow"])
