"""What the parts of one export share while it is made."""

# N test images, S images, H W student input

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distill.data.schedule import Indices
from distill.export import images, onnx_model
from distill.export.config import ExportConfig, Format, wants
from distill.export.finished import FinishedRun, RunData
from distill.export.images import Pixels
from distill.export.parity import Logits, Runner, compare_answers, top1_by_class
from distill.export.preprocessing import InputSpec
from distill.measures.score import Measure
from distill.student.model import StudentOutput
from distill.tasks.none import Backbone

Say = Callable[[str], None]


@dataclass
class Work:
    """State of an export while it is made."""

    config: ExportConfig  # of the command
    run: FinishedRun  # that is exported
    data: RunData  # its images and store
    spec: InputSpec  # of the graphs' input
    folder: Path  # temporary
    say: Say  # prints a line
    files: dict[str, list[Path]] = field(default_factory=dict)  # by format
    # by format; "pytorch" is the student itself
    runners: dict[str, Runner] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # why a format was not made, by format
    notes: list[str] = field(default_factory=list)  # notes for the user
    # further values for the manifest, by format
    extra: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) of the test images."""
        return self.data.images.samples.labels[self.data.part.test]

    def pictures(self, indices: Indices) -> Iterator[Pixels]:
        """Pictures of some samples, batch by batch."""
        return images.pictures(
            self.data.images, self.run.student, indices, rule=self.run.rule, workers=self.config.workers
        )  # fmt: skip

    def pixels(self, indices: Indices) -> Pixels:
        """Pictures of a few samples at once, (S, 3, H, W)."""
        return np.concatenate(list(self.pictures(indices)))

    @property
    def measure(self) -> Measure:
        """The number that counts."""
        return self.data.task.measures[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of a graph."""
        head = self.run.embedding_head is not None
        return onnx_model.BACKBONE if head else (onnx_model.OUTPUT,)

    @property
    def classes(self) -> bool:
        """Whether the outputs are classes, of an image or of its pixels; see ``parity.compare_answers``."""
        return self.data.task.classes or self.data.task.kind == "image-segmentation"

    @cached_property
    def targets(self) -> torch.Tensor:
        """Targets of the test images in the canonical view; of a backbone the stored features."""
        if isinstance(self.data.task, Backbone):
            return self.data.task.data.features.take(self.data.part.test)
        return images.targets(
            self.data.images, self.run.student, self.data.part.test, rule=self.run.rule, workers=self.config.workers
        )  # fmt: skip

    def measured(self, logits: Logits) -> dict[str, Any]:
        """The score of some answers on the test images; of a classifier also the accuracy of every class."""
        if self.data.task.classes:
            found = top1_by_class(logits, self.labels, self.run.label_names)
            return {"score": found["top1"], **found}
        outputs = torch.from_numpy(np.ascontiguousarray(logits))
        seen = StudentOutput(outputs, outputs, outputs, ())
        numbers = self.data.task.numbers(*self.data.task.take(seen, self.targets))
        return {
            "score": float(numbers[self.measure.name]),
            **{
                item.name: numbers[item.name]
                for item in self.data.task.measures
                if item.name in numbers
            },
        }

    def compare(self, logits: Logits, reference: Logits) -> dict[str, float]:
        return compare_answers(logits, reference, classes=self.classes)

    def lost(self, before: float, after: float) -> float:
        """How much worse a score is: in points of a share, else in percent of the score; negative if it is better."""
        worse = self.measure.rank(before) - self.measure.rank(after)
        return 100 * worse / (1 if self.measure.percent else max(abs(before), 1e-12))

    def skip(self, name: Format, why: str) -> None:
        """Record why a format is not made."""
        if wants(self.config, name):
            self.skipped[name] = why
            self.say(f"skipped   {name}: {why}")
