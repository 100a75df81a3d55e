"""Which students of a space are looked at: all of a small one, else those that evolution reaches."""

import random
from collections.abc import Callable, Iterator

from distill.search.space import Candidate, Space

Size = Callable[[Candidate], tuple[float, ...]]
"""How large a student is, to be compared; infinite if it cannot be built."""
Judge = Callable[[Candidate], float | None]
"""The score of a student; None if it does not fit or has no score."""


def smallest(space: Space, size: Size) -> Candidate:
    """The smallest student: of every family, the value of each choice is taken that makes it smallest, in turn.

    Exact where no choice makes another one's order of values differ.
    """
    found = []
    for family in space.families:
        best = space.first(family)
        for place, gene in enumerate(space.genes(family)):
            others = [
                Candidate(family, (*best.choices[:place], n, *best.choices[place + 1 :]))
                for n in range(len(gene.values))
            ]
            best = min(others, key=size)
        found.append(best)
    return min(found, key=size)


def evolve(
    space: Space,
    start: Candidate,
    judge: Judge,
    *,
    tries: int,
    population: int,
    mutations: int,
    seed: int,
) -> Iterator[Candidate]:
    """Students one after another: first any, then changes of one of the best so far.

    A space of no more than ``tries`` students is gone through as a whole.

    Args:
        start: A student that fits, from which others come if no student that is drawn does.
        judge: Is called once for every student.
        tries: Students that are drawn, those that are drawn again included.
        population: Best students that are kept; as many of the tries are drawn from all.
        mutations: Choices that are changed.
    """
    if space.size <= tries:
        yield from (item for item in space if judge(item) is not None)
        return
    draws = random.Random(seed)
    seen: set[Candidate] = set()
    best: list[tuple[float, int, Candidate]] = []
    for number in range(tries):
        if number == 0:
            child = start
        elif number < population or not best:
            child = space.draw(draws)
        else:
            child = space.mutate(draws.choice(best)[2], mutations, draws)
        if child in seen:
            continue
        seen.add(child)
        score = judge(child)
        if score is not None:
            best = sorted([*best, (score, -number, child)], reverse=True)[:population]
            yield child
