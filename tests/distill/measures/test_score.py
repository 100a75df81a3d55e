"""Records of runs: the score, the measures beside it, and records of older versions."""

import pytest

from distill.measures import score
from distill.measures.score import TOP1, Measure

LOSS = Measure("loss", "loss", percent=False, higher_is_better=False)


def test_a_record_holds_what_was_measured() -> None:
    """The score first; what the evaluation lacks is left out; nested numbers are found by a point."""
    evaluation = {
        "top1": 0.9,
        "nll": 0.4,
        "teacher": {"kl": 0.1, "probe_top1": 0.8},
        "num_images": 7,
    }
    found = score.classification_record(evaluation)
    assert found["score"] == {
        "name": "top1", "label": "top-1", "percent": True, "higher_is_better": True, "value": 0.9,
    }  # fmt: skip
    assert [item["name"] for item in found["measures"]] == ["top1", "teacher.kl", "nll"]
    assert score.score_of(found) == (TOP1, 0.9)
    assert score.measures_of(found)[1][1] == 0.1
    assert score.reference_of(found) == (score.PROBE, 0.8)
    assert score.reference_of(score.record({"loss": 1.0}, [LOSS])) is None


def test_records_of_older_versions_are_read() -> None:
    """They have top1 and the probe's accuracy, and no score."""
    old = {"top1": 0.5, "teacher_probe_top1": 0.6}
    assert score.score_of(old) == (TOP1, 0.5)
    assert score.measures_of(old) == [(TOP1, 0.5)]
    assert score.reference_of(old) == (score.PROBE, 0.6)


def test_the_part_that_was_measured() -> None:
    """test, validation, or held-out images where nothing has a label."""
    assert score.part_of({}) == "test"
    assert score.part_of({"contract": {"eval": {"part": "validation"}}}) == "validation"
    assert score.part_of({"contract": {"eval": {"part": "test"}, "task": "none"}}) == "held-out"


def test_the_best_run_may_be_the_lowest() -> None:
    """Of equal runs the first."""
    runs = [
        score.record({"loss": value}, [LOSS]) | {"seed": seed}
        for seed, value in enumerate((2, 1, 1))
    ]
    assert score.best(runs)["seed"] == 1
    assert score.best([{"top1": 0.1}, {"top1": 0.2}]) == {"top1": 0.2}


@pytest.mark.parametrize(
    ("measure", "value", "shown", "difference"),
    [(TOP1, 0.9333, "93.3%", "+93.3 points"), (LOSS, 0.2214, "0.221", "+0.221")],
)
def test_values_have_their_unit(
    measure: Measure, value: float, shown: str, difference: str
) -> None:
    assert measure.text(value) == shown
    assert measure.difference(value) == difference
    assert measure.difference(-value) == difference.replace("+", "\N{MINUS SIGN}")
    assert measure.text(None) == "-"


def test_spread() -> None:
    """Sample standard deviation; none for one value."""
    assert TOP1.spread([0.5, 0.7]) == "60.0 +- 14.1"
    assert TOP1.spread([0.5]) == "50.0"
    assert LOSS.spread([1.0, 2.0]) == "1.500 +- 0.707"
