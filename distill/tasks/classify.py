"""Task ``classify``: a classifier of images with one label each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distill.lazy import Tensor, torch
from distill.measures.score import CLASSIFICATION, classification_record
from distill.tasks.base import Task

if TYPE_CHECKING:
    from distill.data.pictures import Batch
    from distill.data.samples import Split
    from distill.evaluation.evaluate import Evaluation, Viewer
    from distill.measures.linear_probe import LinearProbe
    from distill.methods.base import Output
    from distill.student.model import Student


class Classify(Task):
    """Cross entropy on labelled images; accuracy on the test part counts."""

    name = "classify"
    measures = CLASSIFICATION
    classes = True
    methods = ("labels", "customkd")
    kind = "image-classification"
    meaning = "the largest value is the answer; softmax over the last axis gives confidences"

    @property
    def num_outputs(self) -> int:
        return self.data.samples.num_classes

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy, the mean over the labelled images."""
        from distill.losses import cross_entropy

        return {"ce": cross_entropy(output.logits, batch.labels)}

    def probe(self, part: Split, seed: int) -> LinearProbe | None:
        """A linear probe on the teacher's features of the run's labelled images; None where none can be fitted."""
        from distill.data.joined import JoinedData

        data = self.data
        if not isinstance(data, JoinedData) or not data.has_probe(part):
            return None
        return data.fit_probe(part, most=self.config.eval.probe_rows, seed=seed)

    def score(self, viewer: Viewer, student: Student, part: Split) -> float:
        """Accuracy on the test part."""
        from distill.measures.feature_similarity import top1

        _, logits = viewer.run(student, part.test)
        return top1(logits, torch.from_numpy(self.data.samples.labels[part.test]))

    def measure(
        self, viewer: Viewer, student: Student, part: Split, *, seed: int, probe: LinearProbe | None
    ) -> Evaluation:
        from distill.evaluation.evaluate import evaluate

        return evaluate(viewer, student, part, seed=seed, probe=probe)

    def record(self, result: dict[str, Any]) -> dict[str, Any]:
        """The score beside the accuracy of the teacher's probe."""
        probe = result.get("teacher", {}).get("probe_top1")
        return {
            # Names of before 0.2, which tables of users may read.
            "top1": result["top1"],
            **({} if probe is None else {"teacher_probe_top1": probe}),
            **classification_record(result),
        }

    def check_names(self, names: Sequence[str], model: str) -> None:
        from distill.evaluation.evaluate import check_classes

        check_classes(self.data.samples, list(names), model)

    def label_names(self) -> Sequence[str]:
        return self.data.samples.class_names
