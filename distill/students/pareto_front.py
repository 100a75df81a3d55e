"""Pareto fronts: candidates not dominated on cost and value."""

from collections.abc import Sequence


def front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Mark the points on the front.

    A point is dominated if another one costs no more, is worth no less, and differs in one of the two.

    Args:
        costs: lower is better.
        values: higher is better.
    """
    points = list(zip(costs, values, strict=True))
    return [
        not any(cost <= own and value >= worth and (cost, value) != (own, worth) for cost, value in points)
        for own, worth in points
    ]  # fmt: skip


def steps(costs: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """Corners of the front as a line of steps, from the lowest cost to the highest."""
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
