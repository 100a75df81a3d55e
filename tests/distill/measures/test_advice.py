"""Advice follows from the teacher's probe and the scores, not from the domain."""

from typing import Any

import pytest

from distill.measures.advice import advice


def record(method: str, top1: float, probe: float) -> dict[str, Any]:
    return {"method": method, "seed": 0, "top1": top1, "teacher_probe_top1": probe}


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([("labels+dan", 0.81, 0.957), ("labels", 0.84, 0.957)], ["95.7", "82.", "kd"]),
        ([("labels", 0.2, 0.22), ("customkd", 0.3, 0.22)], ["22.0", "20.0", "--partner dan"]),
        ([("customkd", 0.5, 0.4)], ["40.0", "50.0", "--partner dan"]),
        ([("labels", 0.4, 0.8), ("kd", 0.6, 0.8)], ["80.0", "60.0", "--student.image_size"]),
        ([("labels", 0.4, 0.8), ("kd", 0.71, 0.8)], []),
        ([("fitnet", 0.92, 0.93)], []),
        ([("labels", 0.4, 0.42), ("kd", 0.4, 0.9)], []),  # two teachers
    ],
)
def test_advice(runs: list[tuple[str, float, float]], words: list[str]) -> None:
    """Labels only, strong teacher: imitate it. Weak teacher: another, or a partner. Weak student: larger pictures."""
    found = " ".join(advice([record(*run) for run in runs]))
    assert all(word in found for word in words)
    assert bool(found) == bool(words)
