"""Numbers that say how good predictions are. Pure functions of logits, features and labels; nothing here is run."""

# N test images, L labelled images, C student width, K classes

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.measures.feature_similarity import top1
from distill.measures.linear_probe import fit_probe


def accuracy(logits_NK: Tensor, labels_N: Tensor, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Top-1, top-5, balanced and per class, and which class was taken for which.

    Args:
        logits_NK: (N, K).
        labels_N: (N,) classes, all known.
        class_names: K names; a class without a test image gets None and does not count in the balanced accuracy.

    Returns:
        Shares; ``confusion`` counts images by true and by predicted class, pairs that never occur left out.
    """
    from torchmetrics.functional.classification import multiclass_accuracy

    classes = logits_NK.shape[1]
    result: dict[str, Any] = {}
    for k in (1, 5):
        if k < classes:
            value = multiclass_accuracy(logits_NK, labels_N, classes, average="micro", top_k=k)
            result[f"top{k}"] = float(value)
    chosen = logits_NK.argmax(1)
    right = (chosen == labels_N).double()
    per_class = {
        name: float(right[labels_N == number].mean()) if bool((labels_N == number).any()) else None
        for number, name in enumerate(class_names)
    }
    known = [value for value in per_class.values() if value is not None]
    result["balanced_accuracy"] = float(np.mean(known))
    result["per_class"] = per_class
    result["confusion"] = {name: {} for name in class_names}
    pairs, counts = torch.stack([labels_N, chosen], 1).unique(dim=0, return_counts=True)
    for (true, predicted), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        result["confusion"][class_names[true]][class_names[predicted]] = count
    return result


def calibration(logits_NK: Tensor, labels_N: Tensor, *, bins: int) -> dict[str, Any]:
    """Whether the student's confidence is the share of images it has right.

    Args:
        logits_NK: (N, K).
        labels_N: (N,) classes, all known.
        bins: of equal width, for the expected calibration error (Guo et al. 2017) and the diagram.

    Returns:
        ``calibration_error``; ``nll`` in nats; ``brier``, the squared distance to the one-hot label (0 to 2);
        ``temperature`` and ``calibration_error_scaled`` after dividing the logits by a temperature that was fitted on
        the other half of the images; and ``reliability``, one record per bin that holds an image.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error as error

    logits, classes = logits_NK.float(), logits_NK.shape[1]
    probabilities = logits.softmax(1)
    scaled, temperature = _scaled(logits, labels_N)
    one_hot = F.one_hot(labels_N, classes)
    return {
        "calibration_error": float(error(probabilities, labels_N, classes, n_bins=bins)),
        "nll": float(F.cross_entropy(logits, labels_N)),
        "brier": float((probabilities - one_hot).square().sum(1).mean()),
        "temperature": temperature,
        "calibration_error_scaled": float(error(scaled.softmax(1), labels_N, classes, n_bins=bins)),
        "reliability": _reliability(probabilities, labels_N, bins),
    }


def _scaled(logits_NK: Tensor, labels_N: Tensor) -> tuple[Tensor, float]:
    """Temperature scaling (Guo et al. 2017) fitted on one half of the images and used on the other, both ways."""
    from scipy.optimize import minimize_scalar

    halves = [torch.arange(len(labels_N)) % 2 == 0, torch.arange(len(labels_N)) % 2 == 1]
    scaled, temperatures = logits_NK.clone(), []
    for fit, use in (halves, halves[::-1]):
        if bool(fit.any()):
            logits, labels = logits_NK[fit].double(), labels_N[fit]

            def loss(log_t: float, logits: Tensor = logits, labels: Tensor = labels) -> float:
                return float(F.cross_entropy(logits / np.exp(log_t), labels))

            found = minimize_scalar(loss, bounds=(-3, 3), method="bounded")
            temperatures.append(float(np.exp(found.x)))
            scaled[use] /= temperatures[-1]
    return scaled, float(np.mean(temperatures))


def _reliability(probabilities_NK: Tensor, labels_N: Tensor, bins: int) -> list[dict[str, float]]:
    """Per bin of confidence: its ends, and the count, mean confidence and accuracy of the images in it."""
    confidence, chosen = probabilities_NK.double().max(1)
    right = (chosen == labels_N).double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    return [
        {
            "low": number / bins,
            "high": (number + 1) / bins,
            "count": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
        }
        for number in range(bins)
        for inside in [place == number]
        if bool(inside.any())
    ]


def feature_quality(
    fit_LC: Tensor,
    fit_labels_L: Tensor,
    test_NC: Tensor,
    labels_N: Tensor,
    *,
    k: int,
    num_classes: int,
) -> dict[str, float]:
    """k-NN (cosine, majority) and a linear probe (of two or more classes) on the student's own features."""
    from sklearn.neighbors import KNeighborsClassifier

    unit_fit, unit_test = F.normalize(fit_LC, dim=1).numpy(), F.normalize(test_NC, dim=1).numpy()
    neighbours = KNeighborsClassifier(n_neighbors=min(k, len(unit_fit))).fit(
        unit_fit, fit_labels_L.numpy()
    )
    found: npt.NDArray[Any] = neighbours.predict(unit_test) == labels_N.numpy()
    result = {"knn_top1": float(found.mean())}
    if len(fit_labels_L.unique()) > 1:
        probe = fit_probe(fit_LC.numpy(), fit_labels_L.numpy(), num_classes=num_classes)
        result["linear_probe_top1"] = top1(
            torch.from_numpy(probe.logits(test_NC.numpy())), labels_N
        )
    return result


def agreement(student_NK: Tensor, teacher_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """How the student's answers relate to those of the teacher's probe.

    Returns:
        ``probe_top1``, the teacher's own accuracy; ``agreement``, the share of equal answers; ``kl``, KL(teacher ||
        student), and ``kl_reverse``, KL(student || teacher), in nats per image; and ``only_student_right``,
        ``only_teacher_right``, ``both_right``, ``neither_right``, shares of the images.
    """
    student, teacher = student_NK.float().log_softmax(1), teacher_NK.float().log_softmax(1)
    choice, other = student_NK.argmax(1), teacher_NK.argmax(1)
    right, teacher_right = choice == labels_N, other == labels_N

    def share(mask: Tensor) -> float:
        return float(mask.double().mean())

    return {
        "probe_top1": top1(teacher_NK, labels_N),
        "agreement": share(choice == other),
        "kl": float(F.kl_div(student, teacher, reduction="batchmean", log_target=True)),
        "kl_reverse": float(F.kl_div(teacher, student, reduction="batchmean", log_target=True)),
        "both_right": share(right & teacher_right),
        "only_student_right": share(right & ~teacher_right),
        "only_teacher_right": share(~right & teacher_right),
        "neither_right": share(~right & ~teacher_right),
    }
