"""Progress of training, for weights that rise, phases and reversed gradients."""

from __future__ import annotations

from distill.lazy import Tensor, torch
from distill.methods.base import Setup
from featstore.errors import ConfigError


class Progress:
    """Count the calls of a partner's loss, one per piece of an optimiser step, in ``Partner.memory``."""

    def __init__(self, setup: Setup, memory: dict[str, Tensor]) -> None:
        self.count = memory["calls"] = torch.zeros((), dtype=torch.int64)
        self._per_epoch = setup.steps_per_epoch * setup.config.train.grad_accum
        self._epochs = setup.epochs

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next call belongs to; unlike the loop's, known right after a resume."""
        return int(self.count) // self._per_epoch

    @property
    def share(self) -> float:
        """Share of the training that is done, 0 to 1."""
        return int(self.count) / (self._per_epoch * self._epochs)

    def advance(self) -> None:
        """Count one call."""
        self.count += 1


def check_source_epochs(name: str, source_epochs: int, setup: Setup) -> None:
    """Raise ConfigError unless epochs are left after those on the source alone."""
    if source_epochs >= setup.epochs:
        raise ConfigError(
            f"--{name}.source_epochs {source_epochs} must be below --train.epochs {setup.epochs}: no epoch would adapt."
        )
