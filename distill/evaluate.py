"""How good a student is: accuracy, calibration, its features, and its agreement with the teacher's probe."""

# N test images, L labelled images, C student width, K classes

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional as F

from distill.config import EvalConfig
from distill.data import ViewRule, load
from distill.diagnostics import linear_cka, mean_norm, thin_out, top1
from distill.join import Samples, Split
from distill.losses import kd_kl
from distill.probe import LinearProbe, fit_probe
from distill.sampler import CANONICAL, Indices, Request
from distill.student import Student
from distill.task import Task, few
from featstore.errors import ConfigError, shorten

MOST_FOR_CKA = 4096
"""Most test images in the alignment between student and teacher; its cost grows with their widths only."""


@torch.no_grad()
def run_student(
    task: Task,
    student: Student,
    indices: Indices,
    *,
    settings: EvalConfig,
    workers: int,
    accelerator: Accelerator,
    rule: ViewRule | None = None,
) -> tuple[Tensor, Tensor]:
    """Show the student the canonical view of each image; every process takes its share.

    The region is that of the *teacher's* canonical view, at the student's size, whether or not the store holds it;
    ``rule`` replaces the task's.

    Returns:
        Features (S, C) and logits (S, K), float32 on the CPU, in the order of ``indices``, on every process.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    mine = indices[rank::processes]
    requests = [Request(int(index), CANONICAL, 0, False) for index in mine]
    batches = [
        requests[i : i + settings.batch_size] for i in range(0, len(requests), settings.batch_size)
    ]
    maker = task.maker(student, accelerator.device, with_features=False)
    dataset = task.dataset(student, rule=rule)
    training = student.training
    student.eval()
    parts = [
        (features.float().cpu(), logits.float().cpu())
        for pictures in load(dataset, batches, workers=workers)
        for features, logits in [student(maker.normalise(pictures.pixels))]
    ]
    student.train(training)
    features = torch.cat([part[0] for part in parts]) if parts else torch.zeros(0, student.width)
    logits = (
        torch.cat([part[1] for part in parts]) if parts else torch.zeros(0, student.num_classes)
    )
    if processes == 1:
        return features, logits
    shares = gather_object([(features.numpy(), logits.numpy())])
    out_features = torch.zeros(len(indices), student.width)
    out_logits = torch.zeros(len(indices), student.num_classes)
    for other, (some_features, some_logits) in enumerate(shares):
        out_features[other::processes] = torch.from_numpy(some_features)
        out_logits[other::processes] = torch.from_numpy(some_logits)
    return out_features, out_logits


def evaluate(
    task: Task,
    student: Student,
    part: Split,
    *,
    settings: EvalConfig,
    workers: int,
    accelerator: Accelerator,
    seed: int,
    probe: LinearProbe | None = None,
    rule: ViewRule | None = None,
) -> dict[str, Any]:
    """Measure a student on the test part.

    Args:
        task: images, and features if there is a store.
        student: in any mode; it is shown pictures in eval mode.
        part: the labelled part fits k-NN and the probe of the student's features; the test part is measured.
        settings: numbers of the measurement.
        workers: loading processes.
        accelerator: device, and the processes that share the work.
        seed: thins out the labelled part where it is too large.
        probe: of the teacher's features; None leaves out the agreement.
        rule: how the student's pictures are cut; None takes the task's.

    Returns:
        JSON values; shares lie between 0 and 1.
    """
    fit = few(part.labelled, settings.probe_rows, seed)
    both = np.concatenate([part.test, fit])
    features, logits = run_student(
        task, student, both, settings=settings, workers=workers, accelerator=accelerator, rule=rule
    )
    count = len(part.test)
    labels = torch.from_numpy(task.samples.labels[part.test])
    fit_labels = torch.from_numpy(task.samples.labels[fit])
    result: dict[str, Any] = {
        "num_images": count,
        **accuracy(logits[:count], labels, task.samples.class_names, bins=settings.bins),
        **feature_quality(
            features[count:],
            fit_labels,
            features[:count],
            labels,
            k=settings.knn_k,
            num_classes=task.samples.num_classes,
        ),
        "feature_norm": mean_norm(features[:count]),
    }
    if probe is not None and task.features is not None:
        teacher = task.features.take(part.test)
        result["teacher"] = agreement(
            logits[:count], torch.from_numpy(probe.logits(teacher.numpy())), labels
        )
        rows = thin_out(count, MOST_FOR_CKA, seed=0)
        result["teacher"]["cka"] = linear_cka(features[rows], teacher[rows]) if count > 1 else 0.0
    return result


def accuracy(
    logits_NK: Tensor, labels_N: Tensor, class_names: tuple[str, ...], *, bins: int
) -> dict[str, Any]:
    """Top-1, top-5, per class, and expected calibration error.

    Args:
        logits_NK: (N, K).
        labels_N: (N,) classes, all known.
        class_names: K names; a class without a test image gets None.
        bins: of the calibration error.
    """
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_calibration_error,
    )

    classes = logits_NK.shape[1]
    result: dict[str, Any] = {}
    for k in (1, 5):
        if k < classes:
            value = multiclass_accuracy(logits_NK, labels_N, classes, average="micro", top_k=k)
            result[f"top{k}"] = float(value)
    result["calibration_error"] = float(
        multiclass_calibration_error(logits_NK.softmax(1), labels_N, classes, n_bins=bins)
    )
    right = (logits_NK.argmax(1) == labels_N).double()
    result["per_class"] = {
        name: float(right[labels_N == number].mean()) if bool((labels_N == number).any()) else None
        for number, name in enumerate(class_names)
    }
    return result


def feature_quality(
    fit_LC: Tensor,
    fit_labels_L: Tensor,
    test_NC: Tensor,
    labels_N: Tensor,
    *,
    k: int,
    num_classes: int,
) -> dict[str, float]:
    """k-NN (cosine, majority) and a linear probe on the student's own features, fitted on labelled images."""
    from sklearn.neighbors import KNeighborsClassifier

    unit_fit, unit_test = F.normalize(fit_LC, dim=1).numpy(), F.normalize(test_NC, dim=1).numpy()
    neighbours = KNeighborsClassifier(n_neighbors=min(k, len(unit_fit))).fit(
        unit_fit, fit_labels_L.numpy()
    )
    probe = fit_probe(fit_LC.numpy(), fit_labels_L.numpy(), num_classes=num_classes)
    found: npt.NDArray[Any] = neighbours.predict(unit_test) == labels_N.numpy()
    return {
        "knn_top1": float(found.mean()),
        "linear_probe_top1": top1(torch.from_numpy(probe.logits(test_NC.numpy())), labels_N),
    }


def agreement(student_NK: Tensor, teacher_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """How often both choose the same class, KL(teacher || student) in nats, and the teacher's own accuracy."""
    same = (student_NK.argmax(1) == teacher_NK.argmax(1)).double().mean()
    return {
        "probe_top1": top1(teacher_NK, labels_N),
        "agreement": float(same),
        "kl": float(kd_kl(student_NK, teacher_NK, temperature=1.0)),
    }


def check_classes(samples: Samples, label_names: list[str], model: str) -> None:
    """Compare the classes of a source to those of an exported student.

    Raises:
        ConfigError: they differ; the numbers would be of other classes.
    """
    if list(samples.class_names) != list(label_names):
        raise ConfigError(
            f"--model {model}: was trained on {len(label_names)} classes "
            f"({shorten(label_names)}); the test images have "
            f"{samples.num_classes} ({shorten(samples.class_names)}). Measure it on a source with the same class names."
        )
