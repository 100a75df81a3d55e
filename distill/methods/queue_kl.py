"""``queue_kl``: similarities to many stored features as pseudo-classes (the distillation of LightlyTrain, v1).

There the queue fills with the teacher's features of past batches. Here it is full from the first step on: it is drawn
from the stored features of all training images, again in every epoch, by the seed of the run.
"""

# B batch, C student width, D teacher width, Q rows of the queue

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.lazy import Tensor, nn, torch
from distill.losses.contrast import queue_kl
from distill.methods.base import Batch, Output, Setup, Side, Student, VectorMethod
from distill.options import VectorOptions


@dataclass(frozen=True, kw_only=True)
class QueueKLConfig(VectorOptions, name="queue_kl", positive=("size", "temperature")):
    """Method ``queue_kl``: similarities to a queue of stored features as pseudo-classes (LightlyTrain, v1)."""

    weight: float = 1.0
    """Weight of the KL term beside the cross entropy."""
    size: int = 8192
    """Stored features in the queue, drawn again in every epoch; at most the number of training images."""
    temperature: float = 0.07
    """Temperature of both softmaxes."""


class QueueKL(VectorMethod):
    """L = CE(D_L) + weight KL(softmax(f_t Q^T / T) || softmax(P_s(f_s) Q^T / T)) over all images, at length 1 each.

    Trained: student, P_s. Frozen: the stored f_t and Q. The queue is the same on every process.
    """

    Options = QueueKLConfig
    options: QueueKLConfig

    def __init__(self, setup: Setup, options: QueueKLConfig) -> None:
        super().__init__(setup, options)
        self.epoch = -1
        self.queue_QD = torch.zeros(0, setup.features.width, device=setup.device)

    def student_sides(self) -> dict[str, Side]:
        """P_s: student width -> teacher width, with weights from a truncated normal distribution of 0.02."""
        linear = nn.Linear(self.setup.student_width, self.setup.features.width)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        return {"queue": Side(linear)}

    def begin_epoch(self, epoch: int, student: Student) -> dict[str, float]:
        """Draw the queue: the stored features of some training images, in the reference view of each."""
        self.epoch = epoch
        training = self.setup.training
        generator = np.random.default_rng([self.setup.seed, epoch])
        size = min(self.options.size, len(training))
        chosen = np.sort(generator.choice(training, size, replace=False))
        self.queue_QD = self.norm(self.setup.features.take(chosen).to(self.setup.device))
        return {}

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        own, temperature = output.projected["queue"], self.options.temperature
        kl = queue_kl(own, self.target(batch), self.queue_QD, temperature=temperature)
        return {"queue": self.options.weight * kl}

    def state(self) -> dict[str, Any]:
        """The epoch, which decides the queue."""
        return {"epoch": self.epoch}

    def load_state(self, state: dict[str, Any]) -> None:
        """See ``Component.load_state``. Draws the queue of that epoch again."""
        if state["epoch"] >= 0:
            self.begin_epoch(state["epoch"], self.setup.student)
