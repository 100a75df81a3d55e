"""What a search has found: students with scores and costs, as rows, in words and against limits."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from distill.config import StudentConfig
from distill.search.config import LimitConfig


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a student costs.

    Attributes:
        parameters: Weights and biases.
        macs: Multiply-adds of one image.
        latency_ms: Median of one image with ONNX Runtime; None where it was not measured.
    """

    parameters: int
    macs: int
    latency_ms: float | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """One student that fits, with its score."""

    text: str
    student: StudentConfig
    score: float
    cost: Cost

    def row(self) -> dict[str, Any]:
        """A line of search.csv."""
        costs = {name: value for name, value in vars(self.cost).items() if value is not None}
        return {"student": self.text, "score": self.score, **costs}


def over(cost: Cost, limit: LimitConfig) -> float:
    """Largest share of a limit that a student takes; it fits up to 1."""
    values = (cost.parameters, cost.macs, cost.latency_ms or 0)
    most = (limit.parameters, limit.macs, limit.latency_ms)
    return max(value / high if high else 0.0 for value, high in zip(values, most, strict=True))


def described(cost: Cost) -> str:
    latency = "" if cost.latency_ms is None else f", {cost.latency_ms:.2f} ms"
    return f"{cost.parameters:,} parameters, {cost.macs:,} MACs{latency}"


def limits(limit: LimitConfig) -> str:
    named = {"parameters": limit.parameters, "MACs": limit.macs, "ms": limit.latency_ms}
    return ", ".join(f"{value:,.10g} {name}" for name, value in named.items() if value) or "none"


def cells(found: Sequence[Found], score: str) -> list[list[str]]:
    """The printed table."""
    timed = any(item.cost.latency_ms is not None for item in found)
    head = ["student", score, "parameters", "MACs", *(["ms"] if timed else [])]
    lines = [
        [item.text, f"{item.score:.6g}", f"{item.cost.parameters:,}", f"{item.cost.macs:,}"]
        + ([f"{item.cost.latency_ms:.2f}"] if timed else [])
        for item in found
    ]
    return [head, *lines]
