"""Interface of all partners: losses on the student's own predictions that combine with any method.

A partner gets the student's outputs for the labelled images, the unlabelled ones, and strong views of
the unlabelled ones, all from the one forward pass that the method's loss uses too. It needs no teacher; some partners
can predict labels from the stored vectors.
"""

# L labelled images of a step, U unlabelled ones, K classes

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from distill.lazy import Tensor, nn
from distill.methods.base import Batch, Component, Needs, Output, Setup, Student
from featstore.errors import ConfigError


class Partner(Component, ABC):
    """Base of all partners: semi-supervised losses, and domain adaptation (labelled: source, unlabelled: target).

    Raises:
        ConfigError: There is no unlabelled image.
    """

    NEEDS = Needs(unlabelled=True, vector=False)
    labels: ClassVar[bool] = True
    """Whether it needs classes; without, it also works with tasks that have none."""

    def __init__(self, setup: Setup, options: Any) -> None:
        super().__init__(setup, options)
        if not len(setup.split.unlabelled):
            raise ConfigError(
                f"--partner {setup.config.partner}: there are no unlabelled images for it to work on. Give patterns, "
                "--data.unlabelled '[train/*]'; images drawn as labelled are left out of them."
            )
        self.memory: dict[str, Tensor] = {}
        """State by name: changed in place, equal in all processes, saved and restored."""

    @classmethod
    def strong_views(cls, options: Any) -> int:
        """How many strongly changed copies of each unlabelled image a step shows."""
        return 0

    @abstractmethod
    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        """Weighted terms by name, added to the method's.

        Args:
            weak: U rows, the unlabelled images in the view that the method sees.
            strong: One output per strong view, each with U rows in the same order.
            batch: One piece of an optimiser step; its first L rows are the labelled images.
        """

    def uses_labels(self, epoch: int) -> bool:
        """Whether the method's "ce" term counts in this epoch; source-free adaptation switches it off."""
        return True

    def frozen(self, epoch: int, student: Student) -> list[nn.Parameter]:
        """Parameters of the student that must not change in this epoch."""
        return []

    def state(self) -> dict[str, Any]:
        return dict(self.memory)

    def load_state(self, state: dict[str, Any]) -> None:
        assert state.keys() == self.memory.keys(), "the checkpoint is of other settings"
        for name, tensor in self.memory.items():
            tensor.copy_(state[name])
