"""Spaces of students, and which of them evolution looks at. No student is built here."""

import random
from typing import Any

import pytest

from distill.search.evolution import evolve, smallest
from distill.search.space import Candidate, Space
from featstore.errors import ConfigError

FAMILIES = {
    "resnet": {
        "name": "resnet10t",
        "image_size": {"one_of": [32, 64]},
        "model_args": {"layers": [{"range": [1, 3]}, 1], "stem_width": {"range": [8, 32, 8]}},
    },
    "small": {"name": "test_convnext", "model_args": {"drop_rate": {"range": [0, 0.5, 0.25]}}},
}


def test_students_of_a_space() -> None:
    """Every choice, wherever it stands; the number of students is that of all combinations."""
    space = Space(FAMILIES)
    assert space.size == len({space.text(item) for item in space}) == 2 * 3 * 4 + 3
    student = space.student(Candidate("resnet", (1, 2, 3)))
    assert (student.name, student.image_size) == ("resnet10t", 64)
    assert student.model_args == {"layers": [3, 1], "stem_width": 32}
    assert space.text(Candidate("resnet", (1, 2, 3))) == (
        "resnet image_size=64 layers.0=3 stem_width=32"
    )
    rates = [
        space.student(item).model_args["drop_rate"] for item in space if item.family == "small"
    ]
    assert rates == [0, 0.25, 0.5]


def test_a_mutation_changes_so_many_choices() -> None:
    """In the same family; of a family with fewer choices, all."""
    space, draws = Space(FAMILIES), random.Random(0)
    for _ in range(50):
        parent = space.draw(draws)
        child = space.mutate(parent, 2, draws)
        changed = sum(a != b for a, b in zip(parent.choices, child.choices, strict=True))
        assert (child.family, changed) == (parent.family, min(2, len(parent.choices)))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ("resnet10t", "family"),
        ({"nam": "resnet10t"}, "name"),
        ({"name": "x", "image_size": {"range": [3, 1]}}, r"family\.image_size"),
        ({"name": "x", "model_args": {"layers": [{"one_of": []}]}}, r"model_args\.layers\.0"),
        ({"name": "x", "image_size": {"range": [1, 2], "one_of": [1]}}, "one_of"),
        ({"name": "x", "model_args": {"w": {"range": [0, 1, 0]}}}, "range"),
        ({"name": "x", "model_args": {"w": {"range": ["a", "b"]}}}, "range"),
        ({"name": "x", "pretrained": True}, "pretrained"),
        ({"name": "x", "image_size": {"one_of": ["wide"]}}, "wide"),
    ],
)
def test_bad_spaces(settings: Any, named: str) -> None:
    """The message names the family or the choice."""
    with pytest.raises(ConfigError, match=named) as caught:
        Space({"family": settings})
    assert "family" in str(caught.value)


GRID = Space({"grid": {"name": "x", "model_args": {n: {"range": [0, 9]} for n in "abcd"}}})
"""10,000 students."""


def search(seed: int = 0, tries: int = 400) -> list[Candidate]:
    """A score that grows with every choice, under a limit on their sum."""

    def judge(item: Candidate) -> float | None:
        return None if sum(item.choices) > 20 else float(sum(item.choices) + item.choices[0])

    start = Candidate("grid", (0, 0, 0, 0))
    return list(
        evolve(GRID, start, judge, tries=tries, population=20, mutations=2, seed=seed)
    )  # fmt: skip


def test_evolution() -> None:
    """No student above the limit, none twice, the same for the same seed, and better than as many draws."""
    found = search()
    assert max(sum(item.choices) for item in found) <= 20
    assert len(set(found)) == len(found) <= 400
    assert found == search()
    assert found != search(seed=1)
    best = max(sum(item.choices) + item.choices[0] for item in found)
    first = max(sum(item.choices) + item.choices[0] for item in found[:10])
    assert best > first
    assert best >= 27  # of 29


def test_a_small_space_is_gone_through() -> None:
    """Every student is judged once; those without a score are left out."""
    space, judged = Space(FAMILIES), []

    def judge(item: Candidate) -> float | None:
        judged.append(item)
        return None if item.family == "small" else 1.0

    start = space.first("resnet")
    found = list(evolve(space, start, judge, tries=27, population=2, mutations=1, seed=0))
    assert judged == list(space)
    assert len(found) == 24


def test_the_smallest_student() -> None:
    """Of every family by one choice after another, also where values are not in order."""

    def size(item: Candidate) -> tuple[float, ...]:
        return (
            (float("inf"),) if item.choices[0] == 0 else (sum((n - 6) ** 2 for n in item.choices),)
        )

    assert smallest(GRID, size).choices == (6, 6, 6, 6)
