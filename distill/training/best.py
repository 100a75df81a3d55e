"""Keep the best student of a run by the score of its task, and decide when training ends early."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distill.measures.score import Measure


@dataclass
class Best:
    """The best student so far."""

    measure: Measure  # the score
    patience: int  # measurements without a better score after which ``over`` is true; 0: never
    score: float | None = None  # of the best student; None before the first measurement
    step: int = 0  # optimiser steps that it was trained for
    weights: dict[str, Tensor] | None = None  # its state dict on the CPU
    waited: int = 0  # measurements since then

    @property
    def over(self) -> bool:
        """Whether training ends."""
        return 0 < self.patience <= self.waited

    def is_better(self, score: float) -> bool:
        """Whether a score is better than all before; equal ones are not."""
        return self.score is None or self.measure.rank(score) > self.measure.rank(self.score)

    def update(self, score: float, step: int, weights: dict[str, Tensor] | None) -> None:
        """Take note of a measurement; ``weights`` are those of a better student, else None."""
        if weights is None:
            self.waited += 1
        else:
            self.score, self.step, self.weights, self.waited = score, step, weights, 0

    def state(self) -> dict[str, Any]:
        names = ("score", "step", "weights", "waited")
        return {name: getattr(self, name) for name in names}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` returned."""
        for name, value in state.items():
            setattr(self, name, value)
