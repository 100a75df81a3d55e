"""Pareto fronts: who is beaten by nobody in cost and value at once."""

from collections.abc import Sequence


def front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Mark what is on the front.

    A point is off it if another one costs no more and is worth no less, and differs in one of the two. Equal points are
    on it together.

    Args:
        costs: less is better.
        values: more is better; as many.
    """
    points = list(zip(costs, values, strict=True))
    return [
        not any(cost <= own and value >= worth and (cost, value) != (own, worth) for cost, value in points)
        for own, worth in points
    ]  # fmt: skip


def steps(costs: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """Corners of the front as a line of steps, from the cheapest point to the dearest."""
    kept = sorted(
        {
            point
            for point, on in zip(zip(costs, values, strict=True), front(costs, values), strict=True)
            if on
        }
    )
    line: list[tuple[float, float]] = []
    for cost, value in kept:
        if line:
            line.append((cost, line[-1][1]))
        line.append((cost, value))
    return line
