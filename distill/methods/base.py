"""Interface of all methods: what a method needs of the data, which modules it adds, and its loss.

The loop, the checkpoint and the export use nothing but this interface. Modules that get gradients from the loop's loss
(the student, and what a method or a partner adds to it) live in one ``Trainee``, so that distributed training wraps one
module and every parameter in it gets a gradient at every step. What a method trains by itself (stage 1) stays outside.
"""

# B images of a step, D teacher width, C student width, K classes, M h w the student's last map, g side of a stored grid

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from distill.lazy import Tensor, nn, torch
from distill.options import NoOptions as NoOptions
from distill.options import Norm

if TYPE_CHECKING:
    from distill.config import DistillConfig
    from distill.data.feature_norm import FeatureNorm as FeatureNorm
    from distill.data.joined import JoinedData
    from distill.data.pictures import Batch as Batch
    from distill.data.samples import Samples, Split
    from distill.data.schedule import Indices as Indices
    from distill.data.schedule import ViewPicker
    from distill.data.stored_features import Features, Grid
    from distill.measures.linear_probe import LinearProbe
    from distill.student.model import Student as Student
else:
    # Names for annotations in the files of the methods, which are read without torch.
    Batch = FeatureNorm = Indices = Student = Any

Tap = Literal["feature", "map", "stages"]
"""Input of a side module: the student's pre-logits, its last feature map, or the maps of all stages."""

COPIES = "copies"
"""Name among ``Method.inputs`` of further images, any number; their features come back in ``Output.projected``. They
pass through the student on their own, with their own batch statistics, but inside the wrapped module."""

ADAPTER = "adapter"
"""Name of a side whose output takes the feature's place in front of the head; ``Method.fold`` must fold it away."""


@dataclass(frozen=True)
class Needs:
    """What a method or a partner asks of the data, known before modules are built.

    Attributes:
        unlabelled: a step also shows unlabelled images.
        vector: a batch carries the stored vector of every image.
        grid: a batch carries the stored patch grid of every image (``--grid_field``).
        labels: it needs labelled images or a classifier.
        classes: where it needs labels, they must be classes, one per image; False works with every supervised task.
        labelled_rows: what is stored of labelled images is read too; False allows ``--data.stored unlabelled``.
        fields: further fields of the store that a batch carries (``Batch.fields``).
    """

    unlabelled: bool = True
    vector: bool = True
    grid: bool = False
    labels: bool = False
    classes: bool = True
    labelled_rows: bool = True
    fields: tuple[str, ...] = ()

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.unlabelled or other.unlabelled,
            self.vector or other.vector,
            self.grid or other.grid,
            self.labels or other.labels,
            (self.labels and self.classes) or (other.labels and other.classes),
            self.labelled_rows or other.labelled_rows,
            tuple(dict.fromkeys(self.fields + other.fields)),
        )


@dataclass(frozen=True)
class Side:
    """A module that is trained together with the student and dropped (or folded into it) after training.

    Attributes:
        module: called with what ``tap`` names; its output appears in ``Output.projected``.
        tap: a ``Tap``, or the name of a tensor that ``Method.inputs`` returns.
    """

    module: nn.Module
    tap: str = "feature"


class Output(NamedTuple):
    """What a trainee's forward pass returns; rows are images."""

    features: Tensor
    """(B, C) pre-logits."""
    logits: Tensor
    """(B, K)."""
    projected: dict[str, Any]
    """By name of the side: what its module returned."""
    map: Tensor
    """(B, M, h, w), the student's last feature map."""

    def rows(self, start: int, stop: int) -> Output:
        """The images from start to stop - 1. Sides on ``Method.inputs`` must have as many rows as there are images
        without strong views, and are cut alike."""
        return Output(
            self.features[start:stop],
            self.logits[start:stop],
            {name: _cut(value, start, stop) for name, value in self.projected.items()},
            self.map[start:stop],
        )


def _cut(value: Any, start: int, stop: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value[start:stop] if value.dim() else value
    if isinstance(value, list | tuple):
        return type(value)(_cut(item, start, stop) for item in value)
    return value


@dataclass(frozen=True)
class Setup:
    """Arguments of the constructors of methods and partners.

    Attributes:
        config: Settings of the whole run.
        seed: Seed of the run, 0 or above; decides initial weights, order, views and the draw of labels.
        samples: Images that take part, with their ids, labels and class names.
        split: Indices of the labelled, unlabelled and test images of this run.
        features: Stored vectors; of all teachers, side by side, if there are several.
        grid: Stored patch grids; None for methods that do not need them.
        picker: Chooses the view of a sample in each pass.
        probe: Linear probe on the raw (not normalised) stored features of the labelled images; None where the task has
            no classes, or these images need no row (``--data.stored``).
        student: Read only: widths, shapes of maps. Not wrapped, on the CPU while methods are built.
        device: Device of the student and of every batch.
        processes: Number of training processes.
        epochs: Number of epochs of the run.
        steps_per_epoch: Optimiser steps per epoch.
        gather: Collects a tensor of equal shape from all processes along the first axis; equal on each of them.
        predict: Runs the student in eval mode on the canonical view of some samples: (features, logits) on the CPU.
        targets: The task's targets of some samples in their canonical view, on the CPU; see ``Batch.targets``.
    """

    config: DistillConfig
    seed: int
    samples: Samples
    split: Split
    features: Features
    grid: Grid | None
    picker: ViewPicker
    probe: LinearProbe | None
    student: Student
    device: torch.device
    processes: int
    epochs: int
    steps_per_epoch: int
    gather: Callable[[Tensor], Tensor]
    predict: Callable[[Indices], tuple[Tensor, Tensor]]
    targets: Callable[[Indices], Tensor]

    @property
    def student_width(self) -> int:
        return self.student.width  # type: ignore[no-any-return]

    @property
    def training(self) -> Indices:
        """Indices of all training images, labelled or not, in ``Samples``."""
        return np.union1d(self.split.labelled, self.split.unlabelled)

    def norm(self, kind: Norm) -> FeatureNorm:
        """Normalisation of the stored vector, with the statistics of the training rows if it needs them."""
        return self.features.norm(kind, self.training, self.picker.columns).to(self.device)

    def labels_of(self, indices: Indices) -> Tensor:
        """(n,) int64 classes on the device."""
        return torch.from_numpy(self.samples.labels[indices]).to(self.device)

    def labelled_features(self, *, number: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled pass over the stored features of the labelled part: no image, no student.

        Args:
            number: Number of the pass; decides order and views, together with the seed.
            batch: Largest number of rows at a time.

        Yields:
            (n, D) float32 features and (n,) int64 classes, on the device.
        """
        members = self.split.labelled
        order = np.random.default_rng([self.seed, number]).permutation(len(members))
        for start in range(0, len(order), batch):
            indices = members[order[start : start + batch]]
            columns = np.array([self.picker(int(index), number)[0] for index in indices])
            yield self.features.take(indices, columns).to(self.device), self.labels_of(indices)


class Component:
    """Base of methods and partners: modules, epochs, state.

    Attributes:
        Options: Dataclass of its options; a subclass names its own. They become settings under the name that the method
            is registered with.
        NEEDS: What it asks of the data, where that does not depend on the options.
        setup: See ``Setup``.
        options: Instance of ``Options`` with the values of the run.
    """

    Options: ClassVar[type] = NoOptions
    NEEDS: ClassVar[Needs] = Needs()
    options: Any

    def __init__(self, setup: Setup, options: Any) -> None:
        self.setup = setup
        self.options = options

    @classmethod
    def needs(cls, options: Any) -> Needs:
        """What a run with these options asks of the data; ``NEEDS`` unless overridden."""
        return cls.NEEDS

    @classmethod
    def check(cls, options: Any, config: DistillConfig, data: JoinedData) -> None:
        """Refuse data that do not fit the options, before any run of the command is trained.

        Raises:
            ConfigError: Says what does not fit.
        """

    def student_sides(self) -> dict[str, Side]:
        """Modules on the student's side, by name; trained by the loop together with the student."""
        return {}

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Inputs of sides that do not take the student's output, by the name of their tap, e.g. the stored feature."""
        return {}

    def begin_epoch(self, epoch: int, student: Student) -> dict[str, float]:
        """Called before an epoch's first step; modules that the loop does not train are trained here.

        Args:
            epoch: Number of the epoch that begins, from 0.
            student: The bare student, read only.

        Returns:
            Numbers for the log.
        """
        return {}

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Called after an epoch's last step. Returns numbers for the log."""
        return {}

    def warnings(self) -> dict[str, str]:
        """Warnings about the epoch that just ended, by kind; each kind is printed once."""
        return {}

    def owned(self) -> list[nn.Module]:
        """Modules outside the trainee that all processes must hold equal after ``begin_epoch``."""
        return []

    def state(self) -> dict[str, Any]:
        """Everything that changes during training and is not in the trainee: tensors and plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` returned."""
        assert not state, "a component with a state must also restore it"


class Method(Component, ABC):
    """Base of all distillation methods. A subclass has ``terms``, or ``loss`` where the cross entropy is another."""

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """Compare the student's output for labelled and unlabelled images (no strong views) with what is stored.

        Args:
            output: Output of the trainee; gradients flow only through it. Its rows are those of ``batch.labels``.
            batch: One piece of an optimiser step (``--train.grad_accum``).
            student: The bare student, read only, e.g. its head.

        Returns:
            The weighted terms of the loss by name; the loop minimises their sum with the task's supervised terms. A
            term of the same name takes the place of the task's; for classes, a method that overrides ``loss`` returns
            "ce" itself, or trains without.
        """
        return self.terms(output, batch, student)

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """The weighted terms beside the supervised ones, by name; arguments as of ``loss``."""
        raise NotImplementedError(f"{type(self).__name__} has neither terms() nor loss()")

    def customiser(self) -> Callable[[Tensor], Tensor] | None:
        """Function from raw stored vectors (B, D) to customised ones (B, C); None if the method has none."""
        return None

    def fold(self, student: Student, sides: Mapping[str, nn.Module]) -> None:
        """Change a copy of the student so that it alone makes the predictions of student and sides, with the same keys.

        Called on the copy that is measured and exported. Most methods drop their sides and do not override this.

        Args:
            student: Copy that is changed in place.
            sides: Trained modules by name.
        """


class VectorMethod(Method):
    """Base of the methods that compare with the normalised stored vector; their options have ``norm``."""

    def __init__(self, setup: Setup, options: Any) -> None:
        super().__init__(setup, options)
        self.norm = setup.norm(options.norm)

    def target(self, batch: Batch) -> Tensor:
        """(B, D) float32 normalised stored vectors."""
        assert batch.teacher is not None  # needs
        normalised: Tensor = self.norm(batch.teacher)
        return normalised

    def embeddings(self, width: int) -> dict[str, Side]:
        """One Linear on the student's feature and one on ``target``; for methods that embed both sides."""
        own, stored = self.setup.student_width, self.setup.features.width
        return {
            "student_embedding": Side(nn.Linear(own, width)),
            "teacher_embedding": Side(nn.Linear(stored, width), "teacher"),
        }
