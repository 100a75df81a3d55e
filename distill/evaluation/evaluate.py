"""How good a student is: accuracy, calibration, its features, its agreement with the teacher's probe, corruptions."""

# N test images, S images shown, C student width, K classes

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from distill.config import CorruptionName, EvalConfig
from distill.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from distill.data.joined import Data, JoinedData, few
from distill.data.pictures import PictureCache, Pictures, load_batches
from distill.data.samples import Samples, Split
from distill.data.schedule import CANONICAL, Indices, Request
from distill.evaluation.embedding import EmbeddingHead
from distill.evaluation.predictions import Predictions, predictions
from distill.measures.feature_similarity import linear_cka, mean_norm, thin_out
from distill.measures.linear_probe import LinearProbe
from distill.measures.metrics import accuracy, agreement, calibration, feature_quality
from distill.student.model import Student, StudentOutput, evaluating
from featstore.errors import ConfigError, shorten
from featstore.sources.load import ViewRule

MOST_SHOWN = 24
"""Images with the largest errors that a page shows."""

MOST_FOR_CKA = 4096
"""Most test images in the alignment between student and teacher; its cost grows with their widths only."""


@dataclass(frozen=True)
class Evaluation:
    """What is known of a student after it was measured."""

    result: dict[str, Any]  # JSON values; shares lie between 0 and 1
    features: Tensor  # (N, C) float32 of the test images on the CPU
    # its answers and the teacher's to every test image; None if the student has no classes
    predictions: Predictions | None = None
    # from the student's features to the teacher's; None if none was fitted
    head: EmbeddingHead | None = None
    # (N,) how wrong the student is on each test image, to show the worst; None where predictions say it
    errors: npt.NDArray[np.float64] | None = None
    # (3, h, w) uint8 of those with the largest errors and of ``typical`` ones, drawn by the task, by their place in the
    # test part
    drawn: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """Shows pictures to students; several processes share the work.

    The region is that of the *teacher's* canonical view, at the student's size, whether or not the store holds it.
    """

    data: Data  # images
    settings: EvalConfig  # batch size and other numbers of the measurement
    workers: int  # loading processes
    accelerator: Accelerator  # device, and the processes that share the work
    rule: ViewRule | None = None  # how pictures are cut; None takes that of the data
    cache: PictureCache | None = None  # of decoded pictures, if there is one

    def run(self, student: Student, indices: Indices) -> tuple[Tensor, Tensor]:
        """Show the student the canonical view of each image.

        Args:
            student: in any mode; it is run in eval mode.
            indices: (S,) in ``Samples``, on every process the same.

        Returns:
            Features (S, C) and logits (S, K), float32 on the CPU, in the order of ``indices``, on every process.
        """
        if not len(indices):
            return torch.zeros(0, student.width), torch.zeros(0, student.num_classes)
        features, logits = self.each(
            student, indices, lambda seen, _: (seen.features.float(), seen.logits.float())
        )
        return features, logits

    @torch.no_grad()
    def each(
        self,
        student: Student,
        indices: Indices,
        take: Callable[[StudentOutput, Tensor | None], Sequence[Tensor]],
    ) -> list[Tensor]:
        """Show the student the canonical view of each image, and keep a part of what comes out.

        Args:
            student: in any mode; it is run in eval mode.
            indices: (S,) in ``Samples``, at least one, on every process the same.
            take: from the student's output for some images and their targets (None if the task has none) to the
                tensors to keep, whose first axis is the images.

        Returns:
            The tensors for all images on the CPU, in the order of ``indices``, on every process.
        """
        maker = self.data.maker(student, self.accelerator.device)

        def show(pictures: Pictures) -> Sequence[Tensor]:
            targets = pictures.targets
            seen = student(maker.normalise(pictures.pixels))
            return take(seen, None if targets is None else targets.to(self.accelerator.device))

        with evaluating(student):
            return self._gathered(student, indices, show)

    @torch.no_grad()
    def drawn(
        self,
        student: Student,
        indices: Indices,
        draw: Callable[[Tensor, StudentOutput, Tensor], Tensor],
    ) -> Tensor:
        """(S, 3, h, w) uint8: what ``draw`` makes of pictures (B, 3, H, W) uint8, the student's output and targets."""
        device = self.accelerator.device
        maker = self.data.maker(student, device)

        def show(pictures: Pictures) -> Sequence[Tensor]:
            assert pictures.targets is not None, "the task has no targets"
            seen = student(maker.normalise(pictures.pixels))
            return [draw(pictures.pixels.to(device), seen, pictures.targets.to(device))]

        with evaluating(student):
            return self._gathered(student, indices, show)[0]

    def targets(self, student: Student, indices: Indices) -> Tensor:
        """The targets of each image in its canonical view, on the CPU, on every process; the student is not run."""

        def take(pictures: Pictures) -> Sequence[Tensor]:
            assert pictures.targets is not None, "the task has no targets"
            return [pictures.targets]

        return self._gathered(student, indices, take)[0]

    def _gathered(
        self, student: Student, indices: Indices, make: Callable[[Pictures], Sequence[Tensor]]
    ) -> list[Tensor]:
        """What is made of the pictures, each process taking its share of them, in the order of ``indices``."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        parts = [
            [item.cpu() for item in make(pictures)]
            for pictures in self.pictures(student, indices[rank::processes])
        ]
        mine = [torch.cat(items) for items in zip(*parts, strict=True)]
        if processes == 1:
            return mine
        shares = [share for share in gather_object([[item.numpy() for item in mine]]) if share]
        whole = []
        for items in zip(*shares, strict=True):
            out = torch.zeros(
                len(indices), *items[0].shape[1:], dtype=torch.as_tensor(items[0]).dtype
            )
            for other, item in enumerate(items):
                out[other::processes] = torch.from_numpy(item)
            whole.append(out)
        return whole

    def pictures(self, student: Student, indices: Indices) -> Iterator[Pictures]:
        """Canonical views at the student's size, batch by batch."""
        labelled = self.data.targets is not None  # so that the targets are made, too
        requests = [Request(int(index), CANONICAL, 0, labelled) for index in indices]
        size = self.settings.batch_size
        batches = [requests[i : i + size] for i in range(0, len(requests), size)]
        dataset = self.data.dataset(student, rule=self.rule, cache=self.cache)
        return load_batches(dataset, batches, workers=self.workers)


def largest(errors_N: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Places of the ``MOST_SHOWN`` largest errors, the largest first; NaN comes last."""
    return np.argsort(-errors_N, kind="stable")[:MOST_SHOWN]


def typical(count: int) -> npt.NDArray[np.int64]:
    """At most ``MOST_SHOWN`` of ``count`` places at random, in order; the same for the same ``count``."""
    chosen = np.random.default_rng(0).choice(count, min(count, MOST_SHOWN), replace=False)
    return np.sort(chosen)


@torch.no_grad()
def corruption_robustness(viewer: Viewer, student: Student, indices: Indices) -> dict[str, Any]:
    """Accuracy on corrupted canonical views. Each image is decoded once, and corrupted by a seed of its own.

    Args:
        viewer: of images with labels; its settings name the corruptions.
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
    """Compare the classes of a source to those of an exported student."""
    if list(samples.class_names) != list(label_names):
        raise ConfigError(
            f"--model {model}: was trained on {len(label_names)} classes "
            f"({shorten(label_names)}); the test images have "
            f"{samples.num_classes} ({shorten(samples.class_names)}). Measure it on a source with the same class names."
        )
