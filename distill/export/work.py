"""What the parts of one export share while it is made."""

# N test images, S images, H W student input

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.data.schedule import Indices
from distill.export import images
from distill.export.config import ExportConfig, Format, wants
from distill.export.finished import FinishedRun, RunData
from distill.export.images import Pixels
from distill.export.parity import Logits, Runner, accuracy
from distill.export.preprocessing import InputSpec

Say = Callable[[str], None]


@dataclass
class Work:
    """State of an export while it is made.

    Attributes:
        config: of the command.
        run: that is exported.
        data: its images and store.
        spec: of the graphs' input.
        folder: temporary.
        say: prints a line.
        files: by format.
        runners: by format; "pytorch" is the student itself.
        skipped: why a format was not made, by format.
        notes: notes for the user.
        extra: further values for the manifest, by format.
    """

    config: ExportConfig
    run: FinishedRun
    data: RunData
    spec: InputSpec
    folder: Path
    say: Say
    files: dict[str, list[Path]] = field(default_factory=dict)
    runners: dict[str, Runner] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
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

    def measured(self, logits: Logits) -> dict[str, Any]:
        """Accuracy on the test images."""
        return accuracy(logits, self.labels, self.run.label_names)

    def skip(self, name: Format, why: str) -> None:
        """Record why a format is not made."""
        if wants(self.config, name):
            self.skipped[name] = why
            self.say(f"skipped   {name}: {why}")
