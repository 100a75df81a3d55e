"""Numbers of the evaluation against plain formulas and scikit-learn, and a whole evaluation of a tiny student."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss
from sklearn.neighbors import KNeighborsClassifier

from distill.commands.config import EvaluateConfig
from distill.commands.evaluate import run as evaluate_main
from distill.commands.train import run as main
from distill.config import EvalConfig
from distill.data import joined
from distill.evaluation import predictions
from distill.evaluation.evaluate import Evaluation, Viewer, corruption_names, evaluate
from distill.measures.metrics import accuracy, agreement, calibration, feature_quality
from distill.student.model import build_student
from featstore import FeatureStore
from featstore.errors import ConfigError
from featstore.extraction.accelerator import start_accelerator
from featstore.sources import open_source
from tests.conftest import RunTwo
from tests.distill.conftest import MakeConfig

NAMES = ("a", "b", "c", "d", "e", "f", "g")


def case() -> tuple[torch.Tensor, torch.Tensor]:
    """40 rows of 7 classes; class g never occurs."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 6
    return torch.randn(40, 7, generator=generator) + 2 * torch.eye(7)[labels], labels


def test_accuracies_by_hand() -> None:
    """Top-1, top-5 and per class, counted with numpy; a class without images counts nowhere."""
    logits, labels = case()
    found = accuracy(logits, labels, NAMES)
    order = np.argsort(-logits.numpy(), axis=1)
    hits = order == labels.numpy()[:, None]
    assert found["top1"] == pytest.approx(hits[:, 0].mean())
    assert found["top5"] == pytest.approx(hits[:, :5].any(1).mean())
    for number, name in enumerate(NAMES[:6]):
        assert found["per_class"][name] == pytest.approx(hits[labels.numpy() == number, 0].mean())
    assert found["per_class"]["g"] is None


def test_confusion_and_balanced_accuracy_equal_scikit_learn() -> None:
    """Six classes, all of them predicted; pairs that never occur are left out."""
    logits, labels = case()
    logits, names = logits[:, :6], NAMES[:6]
    found = accuracy(logits, labels, names)
    expected = confusion_matrix(labels, logits.argmax(1))
    for row, true in enumerate(names):
        for column, predicted in enumerate(names):
            assert found["confusion"][true].get(predicted, 0) == expected[row, column]
    assert all(count > 0 for counts in found["confusion"].values() for count in counts.values())
    assert found["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(labels, logits.argmax(1))
    )


def test_top_5_of_fewer_classes_is_left_out() -> None:
    """With three classes it would always be 1."""
    found = accuracy(torch.eye(3), torch.arange(3), NAMES[:3])
    assert found["top1"] == 1
    assert "top5" not in found


def test_calibration_by_hand() -> None:
    """|confidence - accuracy| per bin, weighted by the bin's share; scikit-learn's log loss; the squared distance."""
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
    found = calibration(logits, labels, bins=15)
    assert found["calibration_error"] == pytest.approx(expected, rel=1e-5)
    shown = found["reliability"]
    assert sum(row["count"] for row in shown) == 40
    again = sum(row["count"] / 40 * abs(row["confidence"] - row["accuracy"]) for row in shown)
    assert again == pytest.approx(expected, rel=1e-5)
    probabilities = logits.double().softmax(1).numpy()
    assert found["nll"] == pytest.approx(log_loss(labels, probabilities, labels=range(7)), rel=1e-5)
    one_hot = np.eye(7)[labels]
    brier = ((probabilities - one_hot) ** 2).sum(1).mean()
    assert found["brier"] == pytest.approx(brier, rel=1e-5)


def test_temperature_scaling_undoes_a_wrong_scale() -> None:
    """Logits of a calibrated model, times four: the temperature is about 4, and the error nearly goes away."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    found = calibration(4 * logits, labels, bins=15)
    assert found["temperature"] == pytest.approx(4, rel=0.1)
    assert found["calibration_error"] > 0.15
    # What is left is sampling: 15 bins of some 270 images with a deviation of at most 0.03 each.
    assert found["calibration_error_scaled"] < 0.03


def test_calibration_of_a_single_image() -> None:
    """No second half to fit a temperature on; the numbers are still numbers."""
    found = calibration(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), bins=15)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["reliability"][0]["count"] == 1


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
    """Two of three choices are shared; KL of the one row that differs, the same both ways by symmetry."""
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = agreement(student, teacher, torch.tensor([0, 0, 1]))
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["probe_top1"] == pytest.approx(2 / 3)
    p = 1 / (1 + np.exp(-1))
    # KL((q, p) || (p, q)) = (p - q) ln(p / q), and ln(p / q) = 1.
    assert found["kl"] == pytest.approx((2 * p - 1) / 3, rel=1e-5)
    assert found["kl_reverse"] == pytest.approx((2 * p - 1) / 3, rel=1e-5)
    shares = ("both_right", "only_student_right", "only_teacher_right", "neither_right")
    assert [found[name] for name in shares] == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])


def test_the_two_directions_of_kl() -> None:
    """KL(teacher || student) weighs with the teacher's probabilities."""
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    p = 1 / (1 + np.exp(-2))
    found = agreement(student, teacher, torch.tensor([0]))
    assert found["kl"] == pytest.approx(p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p)), rel=1e-5)
    assert found["kl_reverse"] == pytest.approx(-np.log(2 * np.sqrt(p * (1 - p))), rel=1e-5)


# --- predictions.npz -----------------------------------------------------------------------------------------------


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Ids with any characters; logits as float16, clipped; the choice is that of float32; equal bytes again."""
    logits = np.array([[1.0, 1.0001, -1e6], [1e6, 0.0, 0.0]], np.float32)
    made = predictions.predictions(
        ["<script>/\u00e9.png", "b"], ("x", "<y>", "z"), np.array([2, 0]), logits, logits[:, ::-1]
    )
    first = predictions.write_predictions(tmp_path, made).read_bytes()
    found = predictions.read_predictions(tmp_path)
    assert found is not None
    for name, value in vars(made).items():
        np.testing.assert_array_equal(getattr(found, name), value)
    assert found.student.dtype == np.float16
    assert found.student_class.tolist() == [1, 0]
    assert np.isfinite(found.student).all()
    assert predictions.write_predictions(tmp_path, made).read_bytes() == first


def test_predictions_without_a_teacher(tmp_path: Path) -> None:
    """None comes back as None; no file is None too."""
    assert predictions.read_predictions(tmp_path) is None
    made = predictions.predictions(["a"], ("x", "y"), np.array([0]), np.eye(2)[:1], None)
    predictions.write_predictions(tmp_path, made)
    found = predictions.read_predictions(tmp_path)
    assert found is not None
    assert found.teacher is None
    assert found.teacher_class is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"not an archive"])
def test_damaged_predictions_are_refused(tmp_path: Path, content: bytes) -> None:
    """Names the file and what to do; nothing is unpickled."""
    (tmp_path / "predictions.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"predictions.npz"):
        predictions.read_predictions(tmp_path)


def test_pickled_predictions_are_refused(tmp_path: Path) -> None:
    """An archive of objects could run code."""
    np.savez(tmp_path / "predictions.npz", ids=np.array([{}], dtype=object))
    with pytest.raises(ConfigError):
        predictions.read_predictions(tmp_path)


# --- a whole evaluation --------------------------------------------------------------------------------------------


def measured(make_config: MakeConfig, **changes: object) -> tuple[Evaluation, joined.JoinedData]:
    """An untrained student on the tiny store."""
    config = make_config(**changes)
    data = joined.join_data(
        open_source(config.source), FeatureStore.open(config.store), config.data, config.field
    )
    part = data.split(0)
    torch.manual_seed(0)
    viewer = Viewer(data=data, settings=config.eval, workers=0, accelerator=start_accelerator())
    found = evaluate(
        viewer,
        build_student(config.student, data.samples.num_classes),
        part,
        seed=0,
        probe=data.fit_probe(part, most=100, seed=0),
    )
    return found, data


def test_a_whole_evaluation(make_config: MakeConfig) -> None:
    """The result follows from the stored predictions, and corruption changes nothing but its own part."""
    plain, data = measured(make_config)
    found, _ = measured(make_config, eval__corruptions=["contrast", "gaussian_noise"])
    answers = found.predictions
    assert json.loads(json.dumps(found.result, allow_nan=False)) == found.result
    assert found.result["top1"] == pytest.approx(np.mean(answers.student_class == answers.labels))
    assert answers.teacher_class is not None
    teacher = found.result["teacher"]
    assert teacher["probe_top1"] == pytest.approx(np.mean(answers.teacher_class == answers.labels))
    assert answers.ids.tolist() == [data.samples.ids[index] for index in data.split(0).test]
    robust = found.result.pop("corruptions")
    assert list(robust["top1"]) == ["gaussian_noise", "contrast"]
    assert all(len(values) == 5 for values in robust["top1"].values())
    assert robust["mean_top1"] == pytest.approx(np.mean(list(robust["mean"].values())))
    assert found.result == plain.result
    assert corruption_names(EvalConfig(corruptions=["all", "jpeg"])) == corruption_names(
        EvalConfig(corruptions=["all"])
    )


@pytest.mark.slow
def test_two_processes_measure_what_one_does(
    make_config: MakeConfig, tmp_path: Path, run_two: RunTwo
) -> None:
    """One student, measured with one and with two processes: the same numbers, corruptions included.

    Batches differ, so logits may in their last bits; all that is counted is equal.
    """
    config = make_config(methods=["labels"], train__epochs=1)
    main(config)
    settings = EvaluateConfig(
        model=str(Path(config.out) / "labels" / "seed0"),
        store=config.store,
        source=config.source,
        data=config.data,
        eval=dataclasses.replace(config.eval, corruptions=["jpeg", "shot_noise"]),
        workers=0,
        out=str(tmp_path / "one.json"),
    )
    one = json.loads(json.dumps(evaluate_main(settings)))
    recipe = tmp_path / "two.yaml"
    values = dataclasses.asdict(dataclasses.replace(settings, out=str(tmp_path / "two.json")))
    recipe.write_text(yaml.safe_dump(values))
    done = run_two(["pipelines/evaluate.py", "--config", str(recipe)])
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    assert one.keys() == two.keys()
    for key in ("top1", "per_class", "confusion", "corruptions", "knn_top1", "num_images"):
        assert one[key] == two[key], key
    assert two["nll"] == pytest.approx(one["nll"], rel=1e-5)
