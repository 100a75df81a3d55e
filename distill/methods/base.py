"""The one interface of all methods: what it needs, which modules it adds, and its loss.

The loop, the checkpoint and the export know nothing beyond this file. Modules that get gradients from the loop's loss
(the student, and projections on its side) live in one ``Trainee``, so that distributed training wraps one module and
every parameter in it gets a gradient at every step. Whatever a method trains by itself (stage 1) stays outside.
"""

# B batch, D teacher width, C student width, K classes

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from distill.alignment import Statistics, measure
from distill.config import DistillConfig, Norm
from distill.data import Batch, Features
from distill.join import Samples, Split
from distill.probe import LinearProbe
from distill.sampler import Indices, ViewPicker
from distill.student import Student


class Output(NamedTuple):
    """What a trainee's forward pass returns."""

    features: Tensor
    """(B, C) pre-logits."""
    logits: Tensor
    """(B, K)."""
    projected: dict[str, Tensor]
    """By name of the projection; each module of ``Trainee.sides`` applied to ``features``."""


Forward = Callable[[Tensor], Output]
"""A trainee, possibly wrapped for several processes or a lower precision."""


class Trainee(nn.Module):
    """The student and the modules on its side: all that the loop's optimiser trains."""

    def __init__(self, student: Student, sides: dict[str, nn.Module]) -> None:
        super().__init__()
        self.student = student
        self.sides = nn.ModuleDict(sides)

    def forward(self, images: Tensor) -> Output:
        """Run the student on (B, 3, H, W), then every projection on its feature."""
        features, logits = self.student(images)
        return Output(features, logits, {name: side(features) for name, side in self.sides.items()})


@dataclass(frozen=True)
class Setup:
    """What a method may look at when it is built; the same for every method.

    Attributes:
        config: of the whole run.
        seed: of the run.
        samples: the images that take part.
        split: the parts of this run.
        features: the stored features.
        columns: of the view axis that training picks from.
        picker: which view of a sample is used in which pass.
        probe: linear probe on the stored features of the labelled part.
        student_width: C.
        device: where tensors live.
    """

    config: DistillConfig
    seed: int
    samples: Samples
    split: Split
    features: Features
    columns: list[int]
    picker: ViewPicker
    probe: LinearProbe
    student_width: int
    device: torch.device

    def statistics(self, norm: Norm) -> Statistics | None:
        """Statistics of the training rows over the views in use, if the normalisation needs them."""
        if norm != "standardize":
            return None
        training = np.union1d(self.split.labelled, self.split.unlabelled)
        return measure(self.features.chunks(training, self.columns))

    def labels_of(self, indices: Indices) -> Tensor:
        """(n,) int64 classes on the device."""
        return torch.from_numpy(self.samples.labels[indices]).to(self.device)

    def labelled_features(self, *, number: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled pass over the stored features of the labelled part: no image, no student.

        Args:
            number: of the pass; decides order and views, together with the seed.
            batch: largest number of rows at a time.

        Yields:
            (n, D) float32 features and (n,) int64 classes, on the device.
        """
        members = self.split.labelled
        order = np.random.default_rng([self.seed, number]).permutation(len(members))
        for start in range(0, len(order), batch):
            indices = members[order[start : start + batch]]
            columns = np.array([self.picker(int(index), number)[0] for index in indices])
            yield self.features.take(indices, columns).to(self.device), self.labels_of(indices)


class Method(ABC):
    """Base of all methods.

    Attributes:
        uses_unlabelled: whether a step also shows unlabelled images.
        uses_features: whether a batch carries stored features.
    """

    uses_unlabelled: ClassVar[bool]
    uses_features: ClassVar[bool]

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def student_sides(self) -> dict[str, nn.Module]:
        """Projections on the student's side, by name; trained by the loop together with the student."""
        return {}

    def begin_epoch(self, epoch: int, student: Student) -> dict[str, float]:
        """Called before an epoch's first step; a method that trains something by itself does so here.

        Args:
            epoch: number of the epoch that begins.
            student: to be read only.

        Returns:
            Numbers for the log.
        """
        return {}

    @abstractmethod
    def loss(self, forward: Forward, batch: Batch, student: Student) -> dict[str, Tensor]:
        """Run the trainee on a batch and compare.

        Args:
            forward: the trainee as the loop wrapped it (precision, processes); gradients flow only through it.
            batch: one piece of a step.
            student: the bare student, to be read only, e.g. its head.

        Returns:
            The weighted terms of the loss by name; the loop minimises their sum.
        """

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Called after an epoch's last step. Returns numbers for the log."""
        return {}

    def warnings(self) -> dict[str, str]:
        """What a user should be told about the epoch that just ended, by kind; each kind is printed once."""
        return {}

    def owned(self) -> list[nn.Module]:
        """Modules outside the trainee that all processes must hold equal after ``begin_epoch``."""
        return []

    def state(self) -> dict[str, Any]:
        """All that changes during training and is not in the trainee: tensors and plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` returned."""
        assert not state, "a method with a state must also take it back"
