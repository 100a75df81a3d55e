"""The one interface of all tasks: what a student is trained for, what is measured, and which number counts.

The loop, the checkpoint and the tables know nothing of classes or labels beyond this file.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from distill.config import DistillConfig
from distill.data.joined import JoinedData
from distill.data.samples import Split
from distill.evaluation.evaluate import Evaluation, Viewer
from distill.measures import score
from distill.measures.linear_probe import LinearProbe
from distill.measures.score import Measure
from distill.student.model import Student
from featstore.errors import ConfigError


class Task(ABC):
    """What the students of one command are trained for.

    Attributes:
        name: value of ``--task``.
        measures: what is measured; the first is the score, by which runs are compared.
        supervised: whether labels teach; without, a method's cross entropy on labels is left out.
        every: epochs between two measurements of the score where ``--eval.every`` is 0; 0 measures at the end only.
        methods: what is run where ``--methods`` names none.
    """

    name: ClassVar[str]
    measures: Sequence[Measure]
    supervised: ClassVar[bool]
    every: ClassVar[int] = 0
    methods: ClassVar[Sequence[str]]

    def __init__(self, config: DistillConfig, data: JoinedData) -> None:
        self.config = config
        self.data = data

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Outputs of the student's last layer; 0 for a backbone."""

    @abstractmethod
    def split(self, seed: int, *, measured: Literal["test", "validation"] = "test") -> Split:
        """The images that a run trains on, and those that it is measured on.

        Args:
            seed: Seed of the run.
            measured: Part that takes the place of the test part.

        Raises:
            ConfigError: a part that the task needs is empty.
        """

    def probe(self, part: Split, seed: int) -> LinearProbe | None:
        """A linear probe on the stored features, for tasks with classes."""
        return None

    @abstractmethod
    def score(self, viewer: Viewer, student: Student, part: Split) -> float:
        """The number that counts, during training; the same on every process.

        Args:
            viewer: Shows pictures to the student.
            student: In any mode.
            part: Parts of the run.
        """

    @abstractmethod
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

    def record(self, result: dict[str, Any]) -> dict[str, Any]:
        """Values of run.json for the numbers.

        Args:
            result: ``Evaluation.result``.
        """
        return score.record(result, self.measures)

    def label_names(self) -> Sequence[str]:
        """Names of the student's outputs."""
        return ()

    @classmethod
    def check(cls, methods: Sequence[type[Any]], options: Sequence[Any], partner: str) -> None:
        """Refuse methods and partners that need what the task does not have, before anything is built.

        Args:
            methods: Classes of the methods.
            options: What ``needs`` of each is given.
            partner: Name of the partner, or none.

        Raises:
            ConfigError: names them.
        """
        if cls.supervised:
            return
        unfit = [
            method.__name__
            for method, given in zip(methods, options, strict=True)
            if method.needs(given).labels
        ]
        if unfit or partner != "none":
            named = [*unfit, *([f"partner {partner}"] if partner != "none" else [])]
            raise ConfigError(
                f"--task {cls.name}: trains without labels, which {', '.join(named)} cannot do. Choose methods that "
                "imitate features (--methods '[fitnet]'), or name images with labels (--data.labelled, --data.test) "
                "for --task classify."
            )
