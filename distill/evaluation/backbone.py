"""Measure a backbone, or the features of any student, on images with labels: k-NN, linear probe, few-shot."""

# S images, n images to fit on, N measured images, C width

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill.config import DataConfig
from distill.data.joined import Data, JoinedData, few
from distill.data.samples import Samples, Split
from distill.data.schedule import Indices, random_bits
from distill.evaluation.evaluate import Viewer
from distill.measures.linear_probe import fit_probe
from distill.measures.metrics import feature_quality
from distill.student.model import Student
from featstore.errors import ConfigError
from featstore.sources.base import NO_LABEL

SHOTS = (1, 2, 5, 10, 20)  # labelled images per class of the few-shot probes
DRAWS = 5  # draws of those images; their mean and standard deviation are reported
HELD_OUT = 0.2  # share of each class that is measured where a user named no test part


def labelled_split(data: Data, *, seed: int, named: bool) -> Split:
    """The images that fit classifiers, and those that they are measured on.

    Args:
        seed: of the draw of labels, where the settings ask for one.
        named: whether the settings say which images are which; otherwise a fifth of each class is measured.
    """
    if named:
        return data.split(seed)
    samples = data.samples
    labels = samples.labels
    measured = np.array(sorted(_fifths(samples)), dtype=np.int64)
    known = np.flatnonzero(labels != NO_LABEL)
    fit = np.setdiff1d(known, measured)
    if len(np.unique(labels[fit])) < 2:
        raise ConfigError(
            f"{samples.source.uri}: {len(known)} images with labels of {len(np.unique(labels[known]))} classes; "
            "expected two classes or more with two images each. Give a source with labels (for folders: one folder "
            "per class, --source.labels_from parent)."
        )
    return Split(fit, np.empty(0, np.int64), measured)


def _fifths(samples: Samples) -> list[int]:
    """A fifth of the images of every class, at least one of two; the same whatever other images there are."""
    chosen: list[int] = []
    for label in np.unique(samples.labels[samples.labels != NO_LABEL]):
        members = np.flatnonzero(samples.labels == label).tolist()
        members.sort(key=lambda index: random_bits("held-out", samples.ids[index]))
        if len(members) > 1:
            chosen += members[: max(1, round(HELD_OUT * len(members)))]
    return chosen


def all_images(settings: DataConfig) -> DataConfig:
    """The same settings with every image of the source in one part."""
    import dataclasses

    return dataclasses.replace(settings, labelled=["*"], unlabelled=[], test=[])


def measure_backbone(viewer: Viewer, student: Student, part: Split, *, seed: int) -> dict[str, Any]:
    """Measure features of images with labels.

    Args:
        viewer: of the images; where they are joined to a store, the teacher's features are measured beside.

    Returns:
        ``num_images`` and ``num_labelled``; ``knn_top1``, ``linear_probe_top1`` and ``few_shot`` of the student, and
        likewise under ``teacher``.
    """
    data = viewer.data
    fit = few(part.labelled, viewer.settings.probe_rows, seed)
    features, _ = viewer.run(student, np.concatenate([part.test, fit]))
    count = len(part.test)
    result: dict[str, Any] = {"num_images": count, "num_labelled": len(fit)}
    result |= _quality(data, fit, part.test, features[count:], features[:count], viewer, seed)
    if isinstance(data, JoinedData):
        stored = [data.features.take(indices) for indices in (fit, part.test)]
        result["teacher"] = _quality(data, fit, part.test, stored[0], stored[1], viewer, seed)
    return result


def _quality(
    data: Data,
    fit: Indices,
    test: Indices,
    fit_nC: Tensor,
    test_NC: Tensor,
    viewer: Viewer,
    seed: int,
) -> dict[str, Any]:
    labels = data.samples.labels
    return {
        **feature_quality(
            fit_nC,
            torch.from_numpy(labels[fit]),
            test_NC,
            torch.from_numpy(labels[test]),
            k=viewer.settings.knn_k,
            num_classes=data.samples.num_classes,
        ),
        "few_shot": few_shot(fit_nC.numpy(), labels[fit], test_NC.numpy(), labels[test], seed=seed),
    }


def few_shot(
    fit_nC: npt.NDArray[np.float32],
    fit_labels: npt.NDArray[np.int64],
    test_NC: npt.NDArray[np.float32],
    test_labels: npt.NDArray[np.int64],
    *,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Accuracy of linear probes that are fitted on a few images per class.

    Returns:
        By number of images per class, as text: ``mean`` and ``std`` over the draws. A number is left out where a class
        has fewer images.
    """
    classes, counts = np.unique(fit_labels, return_counts=True)
    found = {}
    for shots in (shots for shots in SHOTS if shots <= counts.min()):
        right = []
        for draw in range(DRAWS):
            generator = np.random.default_rng([seed, draw])
            rows = np.concatenate(
                [generator.permutation(np.flatnonzero(fit_labels == c))[:shots] for c in classes]
            )
            probe = fit_probe(fit_nC[rows], fit_labels[rows], num_classes=int(classes.max()) + 1)
            right.append(float((probe.logits(test_NC).argmax(1) == test_labels).mean()))
        found[str(shots)] = {"mean": float(np.mean(right)), "std": float(np.std(right, ddof=1))}
    return found
