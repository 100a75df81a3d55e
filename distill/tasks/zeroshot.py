"""Task ``zeroshot``: the student's embedding is in the teacher's space and is classified against stored texts.

While it trains, the student's last Linear is the embedding head, C -> D. The finished student is a plain classifier of
all classes: cosine to fixed texts has its maximum where text . (W f + b) has, which is one Linear of f. The embedding
head is kept beside it, for texts that come later.
"""

# C student width, D width of the teacher's space, K classes, N test images

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from distill.lazy import Tensor, no_grad, torch
from distill.measures.score import Measure, record
from distill.options import CheckedOptions
from distill.tasks.base import Task
from featstore.errors import ConfigError, shorten
from featstore.sources.base import NO_LABEL, matches

if TYPE_CHECKING:
    from distill.config import DistillConfig
    from distill.data.class_texts import ClassTexts
    from distill.data.joined import Data
    from distill.data.pictures import Batch
    from distill.data.samples import Samples, Split
    from distill.data.stored_features import Features
    from distill.data.targets import Targets
    from distill.evaluation.embedding import EmbeddingHead
    from distill.evaluation.evaluate import Evaluation, Viewer
    from distill.measures.linear_probe import LinearProbe
    from distill.methods.base import Output
    from distill.student.model import Student


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig(CheckedOptions, name="zeroshot", positive=("temperature",)):
    """Task ``zeroshot``: classify images by texts in the teacher's space, also of classes never trained on."""

    table: str = ""
    """Text table of the store with a text for every class; empty takes the only one (featstore text-table)."""
    unseen: list[str] = dataclasses.field(default_factory=list)
    """Shell patterns over class names: no image of these classes is trained on. Empty: the classes without a labelled
    image."""
    temperature: float = 0.07
    """Temperature of the cross entropy on labels."""


class ZeroShot(Task):
    """Cross entropy by cosine to the texts of the classes trained on; accuracy on the other classes counts."""

    name = "zeroshot"
    Options = ZeroShotConfig
    options: ZeroShotConfig
    measures = (
        Measure("zeroshot", "zero-shot, mean over classes"),
        Measure("seen", "seen classes"),
        Measure("unseen", "unseen classes"),
        Measure("all_classes", "all classes together"),
        Measure("teacher.seen", "teacher, seen classes"),
        Measure("teacher.unseen", "teacher, unseen classes"),
    )
    methods = ("labels", "embedding", "vlm_ood")
    kind = "image-classification"
    meaning = "one value per class, embedding times text; the largest is the answer"

    def __init__(self, config: DistillConfig, data: Data, options: Any = None) -> None:
        from distill.data.class_texts import read_texts
        from distill.data.joined import JoinedData

        super().__init__(config, data, options)
        if config.student.feature != "prelogits":
            raise ConfigError(
                f"--student.feature {config.student.feature}: --task zeroshot embeds the input of the last Linear; "
                "leave it out."
            )
        self.features: Features | None = (
            None  # without a store, a finished student is measured alone
        )
        self.class_texts: ClassTexts | None = None
        if isinstance(data, JoinedData):
            self.features = data.features
            self.texts = read_texts(data.features, self.options.table, setting="--zeroshot.table")
        self.split(config.seeds[0])

    @property
    def num_outputs(self) -> int:
        """D, of the student that is trained; the finished one has K."""
        assert self.features is not None  # only finished students are measured without a store
        return self.features.width

    def targets(self, samples: Samples) -> Targets:
        """(n, 1) classes, NaN where there is none."""
        from distill.data.targets import Values

        known = samples.labels != NO_LABEL
        return Values(np.where(known, samples.labels, np.nan)[:, None])

    def labelled(self, samples: Samples, targets: Targets) -> Samples:
        """The same: parts are cut by class."""
        return samples

    def label_names(self) -> Sequence[str]:
        """Names of the classes: outputs of the finished student."""
        return self.data.samples.class_names

    def split(self, seed: int, *, measured: Literal["test", "validation"] = "test") -> Split:
        """See ``Task.split``; no image that is known to be of an unseen class is trained on."""
        part = self._without_unseen(self.data.split(seed, measured=measured))
        samples = self.data.samples
        self.seen_K = torch.zeros(samples.num_classes, dtype=torch.bool)
        self.seen_K[np.unique(samples.labels[part.labelled])] = True
        unseen = int((~self.seen_K[np.unique(samples.labels[part.test])]).sum())
        notes = [
            *part.notes,
            f"{int(self.seen_K.sum())} classes are trained on; {unseen} of the test part are not",
        ]
        if self.features is not None:
            self.class_texts = self.texts.of_classes(samples, part)
            notes.append(f"{self.texts.artefact}: {self.texts.origin}")
        return dataclasses.replace(part, notes=notes)

    def _without_unseen(self, part: Split) -> Split:
        samples, patterns = self.data.samples, self.options.unseen
        hidden = np.array([matches(name, patterns) for name in samples.class_names], np.bool_)
        idle = [p for p in patterns if not any(matches(n, [p]) for n in samples.class_names)]
        if idle:
            raise ConfigError(
                f"--zeroshot.unseen {shorten(idle)}: no such class; there are {shorten(samples.class_names)}."
            )
        usable = (samples.labels == NO_LABEL) | ~hidden[samples.labels]
        labelled, unlabelled = (rows[usable[rows]] for rows in (part.labelled, part.unlabelled))
        if not len(labelled):
            raise ConfigError(
                f"--zeroshot.unseen {shorten(patterns)}: all classes are unseen, no labelled image is left to train on."
            )
        return dataclasses.replace(part, labelled=labelled, unlabelled=unlabelled)

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy among the classes trained on, by cosine over the temperature."""
        from distill.losses import cross_entropy

        assert self.class_texts is not None
        classes = self.class_texts.to(output.logits.device)
        logits = classes.logits(output.logits, temperature=self.options.temperature)
        return {"ce": cross_entropy(logits, batch.labels)}

    @no_grad
    def finished(self, student: Student) -> tuple[Student, EmbeddingHead | None]:
        """The same student with the texts folded into its last Linear, (C, K), and its embedding head."""
        from distill.evaluation.embedding import EmbeddingHead

        assert self.class_texts is not None
        linear, texts = student.classifier, self.class_texts.texts_KD.double()
        weight = linear.weight.detach().cpu()
        own: Tensor | None = linear.bias
        bias = torch.zeros(len(weight)) if own is None else own.detach().cpu()
        done = copy.deepcopy(student)
        with torch.random.fork_rng():  # measuring does not change what training draws
            done.model.reset_classifier(len(texts))  # type: ignore[operator]
        done.num_classes = len(texts)
        done.to(linear.weight.device)
        # In float64, so that two products lose no more than one.
        done.classifier.weight.copy_(texts @ weight.double())
        if own is not None:
            done.classifier.bias.copy_(texts @ bias.double())
        return done, EmbeddingHead(weight.float(), bias.float())

    def score(self, viewer: Viewer, student: Student, part: Split) -> float:
        """Mean accuracy over the unseen classes among their own texts; over all where all were trained on."""
        return super().score(viewer, self.finished(student)[0], part)

    def measure(
        self, viewer: Viewer, student: Student, part: Split, *, seed: int, probe: LinearProbe | None
    ) -> Evaluation:
        """Measure a finished student, and the stored features of the same images in the same way."""
        from distill.evaluation.evaluate import Evaluation
        from distill.evaluation.predictions import predictions

        features, logits = viewer.run(student, part.test)
        samples = self.data.samples
        labels = samples.labels[part.test]
        result: dict[str, Any] = {"num_images": len(labels), **self._numbers(logits, labels)}
        stored = None
        if self.features is not None and self.class_texts is not None:
            stored = self.features.take(part.test) @ self.class_texts.texts_KD.T
            result["teacher"] = self._numbers(stored, labels)
            result["texts"] = {"artefact": self.texts.artefact, "origin": self.texts.origin}
        answers = predictions(
            [samples.ids[index] for index in part.test],
            samples.class_names,
            labels,
            logits.numpy(),
            None if stored is None else stored.numpy(),
        )
        return Evaluation(result, features, answers)

    def numbers(self, *kept: Tensor) -> dict[str, Any]:
        """Of a finished student: mean accuracy over classes among seen, among unseen, and among all texts."""
        logits, targets = kept
        return self._numbers(logits, targets[:, 0].long().numpy())

    def _numbers(self, logits_NK: Tensor, labels_N: npt.NDArray[np.int64]) -> dict[str, float]:
        labels = torch.from_numpy(labels_N)
        found = {"all_classes": mean_per_class(logits_NK, labels, torch.ones_like(self.seen_K))}
        for name, among in (("seen", self.seen_K), ("unseen", ~self.seen_K)):
            if among[labels].any():
                found[name] = mean_per_class(logits_NK, labels, among)
        return {"zeroshot": found.get("unseen", found["all_classes"]), **found}

    def record(self, result: dict[str, Any]) -> dict[str, Any]:
        """The score beside that of the teacher's own features."""
        teacher = result.get("teacher")
        reference = teacher and ("teacher, zero-shot", float(teacher["zeroshot"]))
        return record(result, self.measures, reference)


def mean_per_class(logits_NK: Tensor, labels_N: Tensor, among_K: Tensor) -> float:
    """Accuracy on the images of some classes among the texts of the same classes; the mean over the classes.

    Args:
        logits_NK: (N, K).
        labels_N: (N,) int64.
        among_K: (K,) bool; at least one image is of one of them.
    """
    rows = among_K[labels_N]
    answers = logits_NK[rows].masked_fill(~among_K, -torch.inf).argmax(1)
    labels = labels_N[rows]
    right = (answers == labels).double()
    classes = labels.unique()
    return float(torch.stack([right[labels == number].mean() for number in classes]).mean())
