"""The one interface of all tasks: what a student is trained for, what is measured, and which number counts.

The loop, the checkpoint and the tables know nothing of classes or labels beyond this file. Files of tasks are read
without torch, because their options are settings: heavy imports stand inside functions.
"""

# B images of a batch, L of them labelled, N test images

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from distill.measures.score import Measure, record
from distill.options import NoOptions
from featstore.errors import ConfigError, shorten
from featstore.sources.base import NO_LABEL

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill.config import DataConfig, DistillConfig
    from distill.data.joined import Data
    from distill.data.pictures import Batch
    from distill.data.samples import Samples, Split
    from distill.data.schedule import Indices
    from distill.data.targets import Targets
    from distill.evaluation.embedding import EmbeddingHead
    from distill.evaluation.evaluate import Evaluation, Viewer
    from distill.measures.linear_probe import LinearProbe
    from distill.methods.base import Needs, Output
    from distill.student.model import Student, StudentOutput


class Task(ABC):
    """What the students of one command are trained for.

    A task of your own needs ``num_outputs``, ``loss``, ``targets`` and ``numbers``; the rest has defaults that fit
    targets per image. It is registered with ``distill.register_task``.

    Attributes:
        name: Value of ``--task``, and the name of its options' section.
        Options: Frozen dataclass of its options, whose fields have defaults.
        measures: What is measured; the first is the score, by which runs are compared.
        supervised: Whether labels or targets teach.
        classes: Whether each label is one class, which methods with logits and partners need.
        every: Epochs between two measurements of the score where ``--eval.every`` is 0; 0 measures at the end only.
        methods: What is run where ``--methods`` names none.
        draws: Whether ``draw`` gives pictures for the page.
        own_head: Whether ``head`` gives the last layers; False takes the student's own last Linear.
        kind: Of the exported model, as the Hugging Face hub names it.
        meaning: What the outputs of the exported model are, in words.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = NoOptions
    measures: Sequence[Measure]
    supervised: ClassVar[bool] = True
    classes: ClassVar[bool] = False
    every: ClassVar[int] = 0
    methods: ClassVar[Sequence[str]] = ("labels", "fitnet")
    own_head: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    kind: ClassVar[str] = "image-feature-extraction"
    meaning: ClassVar[str] = "the outputs of the task"

    def __init__(self, config: DistillConfig, data: Data, options: Any = None) -> None:
        self.config = config
        self.options = self.Options() if options is None else options
        self.data = self.prepare(data)

    # What a task says.

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Outputs of the student's last layer; 0 for a backbone."""

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The weighted supervised terms by name; a method's term of the same name takes its place.

        Args:
            output: Of the student for all images of a batch; the labelled ones come first.
            batch: ``num_labelled`` is L, ``targets`` (L, ...) what ``Targets.of`` gave of the very same views.

        Returns:
            Zero with a gradient where L is zero, so that distributed training sees every parameter.
        """
        return {}

    def targets(self, samples: Samples) -> Targets | None:
        """Targets of the images; None where the labels of the source are the targets.

        Raises:
            ConfigError: They cannot be read or do not fit the images. Nothing has been trained yet.
        """
        return None

    def take(self, seen: StudentOutput, targets: Tensor | None) -> Sequence[Tensor]:
        """What is kept of some measured images for ``numbers``: tensors whose first axis is the images."""
        assert targets is not None
        return seen.logits.float(), targets

    def numbers(self, *kept: Tensor) -> dict[str, Any]:
        """Numbers of the measured images, with those of ``measures``.

        Args:
            kept: What ``take`` returned, for all images.
        """
        raise NotImplementedError

    def errors(self, *kept: Tensor) -> npt.NDArray[np.float64] | None:
        """(N,) how wrong the student is on each image; the page shows the worst. None shows none."""
        return None

    def draw(self, pixels: Tensor, seen: StudentOutput, targets: Tensor) -> Tensor:
        """Pictures for the page, with ``draws``: the target on the left, what the student says on the right.

        Args:
            pixels: (B, 3, H, W) uint8, as the student sees them.
            seen: Output of the student.
            targets: (B, ...).

        Returns:
            (B, 3, h, w) uint8.
        """
        raise NotImplementedError

    @classmethod
    def head(cls, student: Student, outputs: int, options: Any) -> nn.Module:
        """Last layers of a student, with ``own_head``: called as head(features (B, C), map (B, M, h, w),
        stages), where stages are the maps of the student's stages if the module's attribute ``stages`` is true.

        Args:
            student: Widths and input size.
            outputs: ``num_outputs``.
            options: Of the task.
        """
        raise NotImplementedError

    def label_names(self) -> Sequence[str]:
        """Names of the student's outputs."""
        return ()

    # What follows from it.

    def prepare(self, data: Data) -> Data:
        """Data with the targets of the task. A sample has a label if it has a target."""
        targets = data.targets or self.targets(data.samples)
        if targets is None or data.targets is not None:
            return data
        if not targets.known.any():
            raise ConfigError(
                f"--task {self.name}: none of the {len(data.samples.ids)} images of {data.samples.source.uri} has a "
                f"target. Its ids look like {shorten(data.samples.ids, 3)}."
            )
        return dataclasses.replace(
            data, targets=targets, samples=self.labelled(data.samples, targets)
        )

    def labelled(self, samples: Samples, targets: Targets) -> Samples:
        """Samples whose labels say which have a target, so that parts are cut by it: all of one class."""
        labels = np.where(targets.known, 0, NO_LABEL).astype(np.int64)
        return dataclasses.replace(samples, labels=labels, class_names=())

    def student(self, seed: int = 0) -> Student:
        """Build a student with the head of this task."""
        from distill.student.model import build_student

        outputs = 0 if self.own_head else self.num_outputs
        if self.config.student.freeze and not (outputs or self.own_head):
            raise ConfigError(
                f"--task {self.name} trains the backbone, which --student.freeze true keeps as it is; leave it out."
            )
        student = build_student(self.config.student, outputs, seed=seed)
        if self.own_head:
            student.task_head = self.head(student, self.num_outputs, self.options)
        return student

    def begin(  # noqa: B027 - most tasks do nothing
        self, student: Student, part: Split, targets: Callable[[Indices], Tensor]
    ) -> None:
        """Set the first weights of a head that was not loaded; the same on every process. Does nothing by default.

        Args:
            student: That was just built.
            part: Parts of the run.
            targets: Gives the targets of some samples in their canonical view.
        """

    def split(self, seed: int, *, measured: Literal["test", "validation"] = "test") -> Split:
        """The images that a run trains on, and those that it is measured on.

        Args:
            seed: Seed of the run.
            measured: Part that takes the place of the test part.

        Raises:
            ConfigError: A part that the task needs is empty.
        """
        return self.data.split(seed, measured=measured)

    def finished(self, student: Student) -> tuple[Student, EmbeddingHead | None]:
        """The student that is measured and exported, and a head from its feature to the teacher's space.

        Args:
            student: As it was trained; not to be changed.
        """
        return student, None

    def probe(self, part: Split, seed: int) -> LinearProbe | None:
        """A linear probe on the stored features, for tasks with classes."""
        return None

    def score(self, viewer: Viewer, student: Student, part: Split) -> float:
        """The number that counts, during training; the same on every process.

        Args:
            viewer: Shows pictures to the student.
            student: In any mode.
            part: Parts of the run.
        """
        found = self.numbers(*viewer.each(student, part.test, self.take))
        return float(found[self.measures[0].name])

    def measure(
        self, viewer: Viewer, student: Student, part: Split, *, seed: int, probe: LinearProbe | None
    ) -> Evaluation:
        """All numbers at the end of a run; the same on every process.

        Args:
            viewer: Shows pictures to the student.
            student: In any mode.
            part: Parts of the run.
            seed: Seed of the run; decides which images are drawn where there are too many.
            probe: See ``probe``.
        """
        from distill.evaluation.evaluate import Evaluation, largest, typical

        def take(seen: StudentOutput, targets: Tensor | None) -> Sequence[Tensor]:
            return (seen.features.float(), *self.take(seen, targets))

        features, *kept = viewer.each(student, part.test, take)
        result = {"num_images": len(part.test), **self.numbers(*kept)}
        errors, drawn = self.errors(*kept), {}
        if self.draws and errors is not None:
            places = np.union1d(largest(errors), typical(len(errors)))
            pictures = viewer.drawn(student, part.test[places], self.draw)
            drawn = dict(zip(places.tolist(), pictures, strict=True))
        return Evaluation(result, features, errors=errors, drawn=drawn)

    def record(self, result: dict[str, Any]) -> dict[str, Any]:
        """Values of run.json for the numbers.

        Args:
            result: ``Evaluation.result``.
        """
        return record(result, self.measures)

    def check_names(self, names: Sequence[str], model: str) -> None:
        """Compare the outputs of an exported student to those of these images and options.

        Args:
            names: ``label_names`` of the student's run.
            model: Its folder, for the message.

        Raises:
            ConfigError: They differ; the numbers would be of other outputs.
        """
        own = list(self.label_names())
        if own != list(names):
            raise ConfigError(
                f"--model {model}: was trained on {len(names)} outputs ({shorten(list(names))}); these images have "
                f"{len(own)} ({shorten(own)}). Measure it on a source with the same names."
            )

    @classmethod
    def settings(cls, data: DataConfig) -> DataConfig:
        """The settings of the data as the task reads them.

        Raises:
            ConfigError: A part that the task needs is empty.
        """
        if not data.labelled or not (data.test or data.holdout):
            part = "test" if data.labelled else "labelled"
            raise ConfigError(
                f"--task {cls.name}: --data.{part} is empty. Name images with labels (or --data.holdout 0.2), or use "
                "--task none, which needs no label."
            )
        return data

    @classmethod
    def fits(cls, needs: Needs) -> bool:
        """Whether a method with these needs works with the task."""
        return cls.classes or not needs.labels or (cls.supervised and not needs.classes)

    @classmethod
    def check(cls, methods: Sequence[type[Any]], options: Sequence[Any], partner: str) -> None:
        """Refuse methods and partners that need what the task does not have, before anything is built.

        Args:
            methods: Classes of the methods.
            options: What ``needs`` of each is given.
            partner: Name of the partner, or none.

        Raises:
            ConfigError: Names them.
        """
        if cls.classes:
            return
        unfit = [
            method.__name__
            for method, given in zip(methods, options, strict=True)
            if not cls.fits(method.needs(given))
        ]
        if unfit or partner != "none":
            named = [*unfit, *([f"partner {partner}"] if partner != "none" else [])]
            lacking = "one class per image" if cls.supervised else "labels"
            raise ConfigError(
                f"--task {cls.name}: trains without {lacking}, which {', '.join(named)} cannot do. Choose methods that "
                "imitate features (--methods '[fitnet]'), or name images with one label each (--data.labelled, "
                "--data.test) for --task classify."
            )
