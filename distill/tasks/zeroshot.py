"""Task ``zeroshot``: the student's embedding lies in the teacher's space and is classified against stored texts.

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

from distill.lazy import Tensor, no_grad, torch
from distill.measures.score import Measure, record
from distill.options import CheckedOptions
from distill.tasks.base import Task
from featstore.errors import ConfigError, shorten
from featstore.sources.base import NO_LABEL, matches

if TYPE_CHECKING:
    from distill.data.class_texts import ClassTexts
    from distill.data.joined import Data, JoinedData
    from distill.data.pictures import Batch
    from distill.data.samples import Split
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
    kind = "zero-shot-image-classification"

    def __init__(self, config: Any, data: Data, options: Any = None) -> None:
        from distill.data.class_texts import read_texts
        from distill.data.joined import JoinedData

        super().__init__(config, data, options)
        if not isinstance(data, JoinedData):
            raise ConfigError(
                "--task zeroshot: needs the feature store with the texts; give --store."
            )
        if config.student.feature != "prelogits":
            raise ConfigError(
                f"--student.feature {config.student.feature}: --task zeroshot embeds the input of the last Linear; "
                "leave it out."
            )
        self.joined: JoinedData = data
        self.texts = read_texts(data.features, self.options.table, setting="--zeroshot.table")
        self.classes = self._classes(data.split(config.seeds[0]))

    def _classes(self, part: Split) -> ClassTexts:
        return self.texts.of_classes(self.data.samples, self._without_unseen(part))

    @property
    def num_outputs(self) -> int:
        """D."""
        return self.joined.features.width

    def label_names(self) -> Sequence[str]:
        """Names of the classes: outputs of the finished student."""
        return self.data.samples.class_names

    def split(self, seed: int, *, measured: Literal["test", "validation"] = "test") -> Split:
        """See ``Task.split``; no image that is known to be of an unseen class is trained on."""
        part = self._without_unseen(self.data.split(seed, measured=measured))
        self.classes = self._classes(part)
        count = int(self.classes.seen_K.sum())
        note = f"{self.texts.artefact}: {self.texts.origin}"
        shown = np.unique(self.data.samples.labels[part.test])
        unseen = int((~self.classes.seen_K[shown]).sum())
        notes = [
            *part.notes,
            note,
            f"{count} classes are trained on; {unseen} of the test part are not",
        ]
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

        classes = self.classes.to(output.logits.device)
        logits = classes.logits(output.logits, temperature=self.options.temperature)
        return {"ce": cross_entropy(logits, batch.labels)}

    @no_grad
    def finished(self, student: Student) -> tuple[Student, EmbeddingHead | None]:
        """The same student with the texts folded into its last Linear, (C, K), and its embedding head."""
        from distill.evaluation.embedding import EmbeddingHead

        linear, texts = student.classifier, self.classes.texts_KD.double()
        weight = linear.weight.detach().cpu()
        bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().cpu()
        done = copy.deepcopy(student)
        done.model.reset_classifier(len(texts))  # type: ignore[operator]
        done.num_classes = len(texts)
        done.to(linear.weight.device)
        # In float64, so that two products lose no more than one.
        done.classifier.weight.copy_(texts @ weight.double())
        if done.classifier.bias is not None:
            done.classifier.bias.copy_(texts @ bias.double())
        return done, EmbeddingHead(weight.float(), bias.float())

    def score(self, viewer: Viewer, student: Student, part: Split) -> float:
        """Mean accuracy over the unseen classes among their own texts; over all where all were trained on."""
        done, _ = self.finished(student)
        _, logits = viewer.run(done, part.test)
        return float(self._numbers(logits, part)["zeroshot"])

    def measure(
        self, viewer: Viewer, student: Student, part: Split, *, seed: int, probe: LinearProbe | None
    ) -> Evaluation:
        """Measure a finished student, and the stored features of the same images in the same way."""
        from distill.evaluation.evaluate import Evaluation
        from distill.evaluation.predictions import predictions

        features, logits = viewer.run(student, part.test)
        stored = self.joined.features.take(part.test) @ self.classes.texts_KD.T
        result = {
            "num_images": len(part.test),
            **self._numbers(logits, part),
            "texts": self.texts.artefact,
            "texts_origin": self.texts.origin,
            "teacher": self._numbers(stored, part),
        }
        samples = self.data.samples
        answers = predictions(
            [samples.ids[index] for index in part.test],
            samples.class_names,
            samples.labels[part.test],
            logits.numpy(),
            stored.numpy(),
        )
        return Evaluation(result, features, answers)

    def _numbers(self, logits_NK: Tensor, part: Split) -> dict[str, float]:
        """Mean accuracy over classes: among seen, among unseen, and among all texts."""
        labels = torch.from_numpy(self.data.samples.labels[part.test])
        seen = self.classes.seen_K
        everything = torch.ones_like(seen)
        found = {"all_classes": mean_per_class(logits_NK, labels, everything)}
        for name, among in (("seen", seen), ("unseen", ~seen)):
            if among[labels].any():
                found[name] = mean_per_class(logits_NK, labels, among)
        return {"zeroshot": found.get("unseen", found["all_classes"]), **found}

    def record(self, result: dict[str, Any]) -> dict[str, Any]:
        """The score beside that of the teacher's own features."""
        return record(
            result, self.measures, ("teacher, zero-shot", float(result["teacher"]["zeroshot"]))
        )


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
