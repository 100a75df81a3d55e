"""Task ``classify``: a classifier of images with one label each."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from distill.data.samples import Split
from distill.evaluation.evaluate import Evaluation, Viewer, evaluate
from distill.measures.feature_similarity import top1
from distill.measures.linear_probe import LinearProbe
from distill.measures.score import CLASSIFICATION, classification_record
from distill.student.model import Student
from distill.tasks.base import Task


class Classify(Task):
    """Cross entropy on labelled images; accuracy on the test part counts."""

    name = "classify"
    measures = CLASSIFICATION
    supervised = True
    methods = ("labels", "customkd")

    @property
    def num_outputs(self) -> int:
        """K."""
        return self.data.samples.num_classes

    def split(self, seed: int, *, measured: Literal["test", "validation"] = "test") -> Split:
        """See ``Task.split``."""
        return self.data.split(seed, measured=measured)

    def probe(self, part: Split, seed: int) -> LinearProbe:
        """What the teacher's features say of the classes, read out with the run's labels."""
        return self.data.fit_probe(part, most=self.config.eval.probe_rows, seed=seed)

    def score(self, viewer: Viewer, student: Student, part: Split) -> float:
        """Accuracy on the test part."""
        _, logits = viewer.run(student, part.test)
        return top1(logits, torch.from_numpy(self.data.samples.labels[part.test]))

    def measure(
        self, viewer: Viewer, student: Student, part: Split, *, seed: int, probe: LinearProbe | None
    ) -> Evaluation:
        """See ``evaluate``."""
        return evaluate(viewer, student, part, seed=seed, probe=probe)

    def record(self, result: dict[str, Any]) -> dict[str, Any]:
        """The score beside the accuracy of the teacher's probe."""
        return {
            # Names of before 0.2, which tables of users may read.
            "top1": result["top1"],
            "teacher_probe_top1": result["teacher"]["probe_top1"],
            **classification_record(result),
        }

    def label_names(self) -> Sequence[str]:
        """Names of the classes."""
        return self.data.samples.class_names
