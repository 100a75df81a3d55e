"""Numbers of the evaluation against plain formulas and scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from distill import report
from distill.evaluate import accuracy, agreement, feature_quality

NAMES = ("a", "b", "c", "d", "e", "f", "g")


def case() -> tuple[torch.Tensor, torch.Tensor]:
    """40 rows of 7 classes; class g never occurs."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 6
    return torch.randn(40, 7, generator=generator) + 2 * torch.eye(7)[labels], labels


def test_accuracies_by_hand() -> None:
    """Top-1, top-5 and per class, counted with numpy."""
    logits, labels = case()
    found = accuracy(logits, labels, NAMES, bins=15)
    order = np.argsort(-logits.numpy(), axis=1)
    hits = order == labels.numpy()[:, None]
    assert found["top1"] == pytest.approx(hits[:, 0].mean())
    assert found["top5"] == pytest.approx(hits[:, :5].any(1).mean())
    for number, name in enumerate(NAMES[:6]):
        assert found["per_class"][name] == pytest.approx(hits[labels.numpy() == number, 0].mean())
    assert found["per_class"]["g"] is None


def test_top_5_of_fewer_classes_is_left_out() -> None:
    """With three classes it would always be 1."""
    found = accuracy(torch.eye(3), torch.arange(3), NAMES[:3], bins=15)
    assert found["top1"] == 1
    assert "top5" not in found


def test_calibration_error_by_hand() -> None:
    """|confidence - accuracy| per bin, weighted by the bin's share."""
    logits, labels = case()
    confidence, chosen = logits.softmax(1).max(1)
    edges = np.linspace(0, 1, 16)
    bins = np.clip(np.searchsorted(edges, confidence.numpy(), side="right") - 1, 0, 14)
    right = (chosen == labels).numpy()
    expected = sum(
        (bins == b).mean() * abs(confidence.numpy()[bins == b].mean() - right[bins == b].mean())
        for b in range(15)
        if (bins == b).any()
    )
    assert accuracy(logits, labels, NAMES, bins=15)["calibration_error"] == pytest.approx(
        expected, rel=1e-5
    )


def test_feature_quality_equals_scikit_learn() -> None:
    """k-NN on unit vectors, and a logistic regression on standardised features."""
    generator = np.random.default_rng(0)
    fit_labels, labels = np.arange(30) % 3, np.arange(60) % 3
    fit, test = (generator.standard_normal((len(y), 4)) + y[:, None] for y in (fit_labels, labels))
    found = feature_quality(
        *(torch.from_numpy(x) for x in (fit, fit_labels, test, labels)), k=3, num_classes=3
    )

    def unit(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    knn = KNeighborsClassifier(3).fit(unit(fit), fit_labels)
    assert found["knn_top1"] == pytest.approx(knn.score(unit(test), labels))
    mean, std = fit.mean(0), fit.std(0)
    linear = LogisticRegression(max_iter=1000).fit((fit - mean) / std, fit_labels)
    assert found["linear_probe_top1"] == pytest.approx(linear.score((test - mean) / std, labels))


def test_agreement_by_hand() -> None:
    """Two of three choices are shared; KL of the one row that differs in its numbers."""
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = agreement(student, teacher, torch.tensor([0, 0, 1]))
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["probe_top1"] == pytest.approx(2 / 3)
    p = 1 / (1 + np.exp(-1))
    assert found["kl"] == pytest.approx(
        (2 * p - 1) / 3, rel=1e-5
    )  # KL((q, p) || (p, q)) = (p - q) ln(p / q)


def record(method: str, seed: int, top1: float, seconds: float) -> dict[str, object]:
    return {
        "method": method,
        "seed": seed,
        "top1": top1,
        "teacher_probe_top1": 0.9,
        "seconds": seconds,
    }


def test_the_table_gives_means_and_sample_deviations(tmp_path: Path) -> None:
    """0.5 and 0.7: 60.0 +- 14.1; a single run has no deviation."""
    records = [
        record("labels", 0, 0.5, 1),
        record("labels", 1, 0.7, 3),
        record("customkd", 0, 0.8, 2),
    ]
    lines = report.table(records).splitlines()
    assert lines[2].split() == ["labels", "2", "60.0", "+-", "14.1", "2.0"]
    assert lines[3].split() == ["customkd", "1", "80.0", "2.0"]
    assert lines[4].startswith("teacher, linear probe  2     90.0 +- 0.0")
    report.write(tmp_path, records)
    assert json.loads((tmp_path / "results.json").read_text()) == records
    rows = (tmp_path / "results.csv").read_text().splitlines()
    assert rows[0].startswith("method,seed,top1")
    assert rows[1].startswith("labels,0,0.5,0.9,1")
