"""Which images are held out: per class, by content, stable, and never beside one of their group."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distill.config import DataConfig
from distill.data.samples import Samples, Split
from distill.data.split_parts import split_parts
from featstore.errors import ConfigError
from featstore.format.ids import content_sha256
from featstore.sources.base import Source

Make = Callable[..., Samples]


class Fake(Source):
    """Images whose bytes are their names."""

    kind, uri = "fake", "fake"

    def __init__(self, ids: list[str]) -> None:
        self.sample_ids = ids

    def read(self, row: int) -> bytes:
        return self.sample_ids[row].encode()


def samples_of(ids: list[str], labels: list[int], *, hashes: bool = True) -> Samples:
    every = np.arange(len(ids))
    content = np.array([list(content_sha256(name.encode())) for name in ids], np.uint8)
    return Samples(
        source=Fake(ids),
        positions=every,
        rows=every,
        ids=ids,
        stored_ids=ids,
        hashes=content if hashes else None,
        labels=np.array(labels),
        class_names=tuple(str(number) for number in range(max(labels) + 1)),
        groups={"labelled": every, "unlabelled": every, "test": np.empty(0, np.int64)},
        notes=[],
    )


def made(count: int, **settings: Any) -> tuple[Samples, Split]:
    samples = samples_of([f"c{i % 4}/{i}" for i in range(count)], [i % 4 for i in range(count)])
    return samples, split_parts(samples, DataConfig(holdout=0.2, **settings), seed=0)


def test_a_share_of_every_class() -> None:
    """About a fifth of each; nothing on two sides; with no store the same, by reading the images."""
    samples, part = made(2000)
    for label in range(4):
        share = (samples.labels[part.test] == label).mean() * len(part.test) / 500
        assert 0.15 < share < 0.25
    assert len(part.test) + len(part.labelled) == 2000
    assert not set(part.test) & (set(part.labelled) | set(part.unlabelled))
    alone = samples_of(samples.ids, samples.labels.tolist(), hashes=False)
    again = split_parts(alone, DataConfig(holdout=0.2), seed=5)
    assert np.array_equal(again.test, part.test)


def test_adding_images_moves_none() -> None:
    """What was held out stays so, whatever comes; also under another name."""
    few, part = made(400)
    more, later = made(800)
    before = {few.ids[index] for index in part.test}
    after = {more.ids[index] for index in later.test}
    assert before == after & set(few.ids)


def test_small_classes_keep_one() -> None:
    """Five images of a class: at least one on each side."""
    ids = [f"k{label}/{i}" for label in range(40) for i in range(3)]
    samples = samples_of(ids, [label for label in range(40) for _ in range(3)])
    part = split_parts(samples, DataConfig(holdout=0.1), seed=0)
    assert set(samples.labels[part.test]) == set(range(40))


def test_groups_are_never_cut() -> None:
    """All pictures of one person on one side; others, by their own content."""
    ids = [f"p{person}/{i}" for person in range(60) for i in range(5)] + ["alone"]
    samples = samples_of(ids, [i % 2 for i in range(301)])
    for config in (
        DataConfig(holdout=0.3, group=r"p\d+"),
        DataConfig(holdout=0.3, group=r"p(\d+)/", validation=4),
    ):
        part = split_parts(samples, config, seed=0)
        sides = [
            {ids[i].split("/")[0] for i in rows}
            for rows in (part.test, part.labelled, part.validation)
        ]
        assert len(sides[0]) > 8
        assert not sides[0] & sides[1]
        assert not sides[2] & (sides[0] | sides[1])
        assert not sides[2] & {ids[i].split("/")[0] for i in part.unlabelled}


def test_groups_hold_for_a_named_test_part_too() -> None:
    """Training images of a person in the test part are left out, and said."""
    samples = samples_of(["a/1", "a/2", "b/1", "b/2"], [0, 1, 0, 1])
    samples.groups["test"] = np.array([0, 1])
    samples.groups["labelled"] = samples.groups["unlabelled"] = np.array([1, 2, 3])
    samples.groups["test"] = np.array([0])
    part = split_parts(samples, DataConfig(group="^a|^b"), seed=0)
    assert part.labelled.tolist() == [2, 3]
    assert any("a/2" in note for note in part.notes)
    with pytest.raises(ConfigError, match="zzz"):
        split_parts(samples, DataConfig(group="zzz"), seed=0)


def test_folds_cover_all_once() -> None:
    """Five folds by seed: every image is held out in one of them."""
    samples = samples_of([f"{i}" for i in range(500)], [i % 2 for i in range(500)])
    parts = [
        split_parts(samples, DataConfig(holdout=0.2, fold=-1), seed=seed).test for seed in range(5)
    ]
    assert sorted(np.concatenate(parts).tolist()) == list(range(500))
    fixed = [
        split_parts(samples, DataConfig(holdout=0.2, fold=2), seed=seed).test for seed in (0, 1)
    ]
    assert np.array_equal(fixed[0], fixed[1])
    assert np.array_equal(fixed[0], parts[2])


def test_when_the_test_part_takes_all() -> None:
    """The message names both patterns and the way out; a hold-out by one group says that."""
    samples = samples_of(["a", "b", "c"], [0, 1, 1])
    samples.groups["test"] = np.arange(3)
    with pytest.raises(
        ConfigError, match=r"--data.test '\*'.*--data.labelled '\*'.*--data.holdout"
    ):
        split_parts(samples, DataConfig(labelled=["*"], test=["*"]), seed=0)
    with pytest.raises(ConfigError, match=r"--data.holdout 0\.5.*--data.group"):
        split_parts(samples, DataConfig(holdout=0.5, group="()"), seed=0)


@pytest.mark.parametrize(
    "settings",
    [{"holdout": 0.7}, {"holdout": -0.1}, {"holdout": 0.2, "fold": 5}, {"fold": 1}, {"group": "("}],
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    """Named as on the command line."""
    with pytest.raises(ConfigError, match="--data"):
        DataConfig(**settings)
