"""How good a student is: accuracy, calibration, its features, its agreement with the teacher's probe, corruptions."""

# N test images, S images shown, C student width, K classes

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from distill.config import CorruptionName, EvalConfig
from distill.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from distill.data.joined import Data, JoinedData, few
from distill.data.pictures import PictureCache, Pictures, load
from distill.data.samples import Samples, Split
from distill.data.schedule import CANONICAL, Indices, Request
from distill.evaluation.embedding import EmbeddingHead
from distill.evaluation.predictions import Predictions, predictions
from distill.measures.feature_similarity import linear_cka, mean_norm, thin_out
from distill.measures.linear_probe import LinearProbe
from distill.measures.metrics import accuracy, agreement, calibration, feature_quality
from distill.student.model import Student, evaluating
from featstore.errors import ConfigError, shorten
from featstore.sources.load import ViewRule

MOST_FOR_CKA = 4096
"""Most test images in the alignment between student and teacher; its cost grows with their widths only."""


@dataclass(frozen=True)
class Evaluation:
    """What is known of a student after it was measured.

    Attributes:
        result: JSON values; shares lie between 0 and 1.
        features: (N, C) float32 of the test images on the CPU.
        predictions: its answers and the teacher's to every test image; None if the student has no classes.
        head: from the student's features to the teacher's; None if none was fitted.
    """

    result: dict[str, Any]
    features: Tensor
    predictions: Predictions | None = None
    head: EmbeddingHead | None = None


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """Shows pictures to students; several processes share the work.

    The region is that of the *teacher's* canonical view, at the student's size, whether or not the store holds it.

    Attributes:
        data: images.
        settings: batch size and other numbers of the measurement.
        workers: loading processes.
        accelerator: device, and the processes that share the work.
        rule: how pictures are cut; None takes that of the data.
        cache: of decoded pictures, if there is one.
    """

    data: Data
    settings: EvalConfig
    workers: int
    accelerator: Accelerator
    rule: ViewRule | None = None
    cache: PictureCache | None = None

    @torch.no_grad()
    def run(self, student: Student, indices: Indices) -> tuple[Tensor, Tensor]:
        """Show the student the canonical view of each image.

        Args:
            student: in any mode; it is run in eval mode.
            indices: (S,) in ``Samples``, on every process the same.

        Returns:
            Features (S, C) and logits (S, K), float32 on the CPU, in the order of ``indices``, on every process.
        """
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = indices[rank::processes]
        maker = self.data.maker(student, self.accelerator.device)
        features = torch.zeros(len(mine), student.width)
        logits = torch.zeros(len(mine), student.num_classes)
        done = 0
        with evaluating(student):
            for pictures in self.pictures(student, mine):
                seen = student(maker.normalise(pictures.pixels))
                rows = slice(done, done := done + len(seen.logits))
                features[rows], logits[rows] = (
                    seen.features.float().cpu(),
                    seen.logits.float().cpu(),
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

    def pictures(self, student: Student, indices: Indices) -> Iterator[Pictures]:
        """Canonical views at the student's size, batch by batch."""
        requests = [Request(int(index), CANONICAL, 0, False) for index in indices]
        size = self.settings.batch_size
        batches = [requests[i : i + size] for i in range(0, len(requests), size)]
        dataset = self.data.dataset(student, rule=self.rule, cache=self.cache)
        return load(dataset, batches, workers=self.workers)


@torch.no_grad()
def corruption_robustness(viewer: Viewer, student: Student, indices: Indices) -> dict[str, Any]:
    """Accuracy on corrupted canonical views. Each image is decoded once, and corrupted by a seed of its own.

    Args:
        viewer: of images with labels; its settings name the corruptions.
        student: in any mode.
        indices: (S,) labelled images in ``Samples``, on every process the same.

    Returns:
        ``top1``: by corruption, the accuracy at severities 1 to 5; ``mean``: by corruption; ``mean_top1``: of all.
    """
    kinds = corruption_names(viewer.settings)
    samples, accelerator = viewer.data.samples, viewer.accelerator
    mine = indices[accelerator.process_index :: accelerator.num_processes]
    maker = viewer.data.maker(student, accelerator.device)
    right = np.zeros((len(kinds), len(SEVERITIES)), np.int64)
    with evaluating(student):
        for pictures in viewer.pictures(student, mine):
            shown = pictures.requests[:, 0].numpy()
            labels = torch.from_numpy(samples.labels[shown])
            ids = [samples.stored_ids[sample] for sample in shown]
            images = pictures.pixels.numpy().transpose(0, 2, 3, 1)
            for row, kind in enumerate(kinds):
                for column, severity in enumerate(SEVERITIES):
                    worse = np.stack(
                        [
                            corrupt(image, kind, severity, seed=sample_id)
                            for image, sample_id in zip(images, ids, strict=True)
                        ]
                    )
                    pixels = torch.from_numpy(worse.transpose(0, 3, 1, 2).copy())
                    answer = student(maker.normalise(pixels)).logits.argmax(1).cpu()
                    right[row, column] += int((answer == labels).sum())
    total = np.sum(gather_object([right.tolist()]), axis=0) / len(indices)
    return {
        "top1": {kind: total[row].tolist() for row, kind in enumerate(kinds)},
        "mean": {kind: float(total[row].mean()) for row, kind in enumerate(kinds)},
        "mean_top1": float(total.mean()),
    }


def corruption_names(settings: EvalConfig) -> list[CorruptionName]:
    """The corruptions that the settings name; ``all`` stands for every one."""
    return [
        kind
        for kind in CORRUPTIONS
        if kind in settings.corruptions or "all" in settings.corruptions
    ]


def evaluate(
    viewer: Viewer, student: Student, part: Split, *, seed: int, probe: LinearProbe | None = None
) -> Evaluation:
    """Measure a classifier on the test part.

    Args:
        viewer: of images with labels, joined to a store if there is one.
        student: in any mode; it is shown pictures in eval mode.
        part: the labelled part fits k-NN and the probe of the student's features; the test part is measured.
        seed: thins out the labelled part where it is too large.
        probe: of the teacher's features; None leaves out the agreement.

    Returns:
        The same on every process, and with any number of processes.
    """
    data, settings = viewer.data, viewer.settings
    fit = few(part.labelled, settings.probe_rows, seed)
    all_features, all_logits = viewer.run(student, np.concatenate([part.test, fit]))
    count = len(part.test)
    features, logits = all_features[:count], all_logits[:count]
    samples = data.samples
    labels = torch.from_numpy(samples.labels[part.test])
    result: dict[str, Any] = {
        "num_images": count,
        **accuracy(logits, labels, samples.class_names),
        **calibration(logits, labels, bins=settings.bins),
        **feature_quality(
            all_features[count:],
            torch.from_numpy(samples.labels[fit]),
            features,
            labels,
            k=settings.knn_k,
            num_classes=samples.num_classes,
        ),
        "feature_norm": mean_norm(features),
    }
    teacher_logits = None
    if probe is not None and isinstance(data, JoinedData):
        teacher = data.features.take(part.test)
        teacher_logits = probe.logits(teacher.numpy())
        rows = thin_out(count, MOST_FOR_CKA, seed=0)
        result["teacher"] = {
            **agreement(logits, torch.from_numpy(teacher_logits), labels),
            "cka": linear_cka(features[rows], teacher[rows]) if count > 1 else 0.0,
        }
    if settings.corruptions:
        result["corruptions"] = corruption_robustness(viewer, student, part.test)
    answers = predictions(
        [samples.ids[index] for index in part.test],
        samples.class_names,
        samples.labels[part.test],
        logits.numpy(),
        teacher_logits,
    )
    return Evaluation(result, features, answers)


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
