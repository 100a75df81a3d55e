"""``queue_kl``: similarities to many stored features as pseudo-classes (the distillation of LightlyTrain, v1) [C].

There the queue fills with the teacher's features of past batches; a store can give it whole, from the first step on:
it is drawn anew in every epoch from all training images, by the seed.
"""

# B batch, C student width, D teacher width, Q rows of the queue

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.lazy import Tensor, nn, torch
from distill.losses import cross_entropy
from distill.losses.contrast import queue_kl
from distill.methods.base import Batch, Method, Output, Setup, Side, Student
from distill.options import CheckedOptions, Norm


@dataclass(frozen=True, kw_only=True)
class QueueKLConfig(
    CheckedOptions,
    name="queue_kl",
    positive=(
        "size",
        "temperature",
    ),
):
    """Method ``queue_kl``: similarities to a queue of stored features as pseudo-classes (LightlyTrain, v1)."""

    weight: float = 1.0
    """Weight of the KL term beside the cross entropy."""
    size: int = 8192
    """Stored features in the queue, drawn again in every epoch; at most the number of training images."""
    temperature: float = 0.07
    """Temperature of both softmaxes."""
    norm: Norm = "none"
    """Normalisation of the stored feature before it is compared: none, standardize (zero mean and unit variance per
    channel over the training images), layernorm (per image) or l2 (length 1)."""


class QueueKL(Method):
    """L = CE(D_L) + weight KL(softmax(f_t Q^T / T) || softmax(P_s(f_s) Q^T / T)) over all images, at length 1 each.

    Trained: student, P_s. Frozen: the stored f_t and Q. The queue is the same on every process.
    """

    Options = QueueKLConfig
    options: QueueKLConfig

    def __init__(self, setup: Setup, options: QueueKLConfig) -> None:
        super().__init__(setup, options)
        self.norm = setup.norm(self.options.norm)
        self.epoch = -1
        self.queue_QD = torch.zeros(0, setup.features.width, device=setup.device)

    def student_sides(self) -> dict[str, Side]:
        """P_s: student width -> teacher width, with weights from a truncated normal distribution of 0.02 [C]."""
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

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        assert batch.teacher is not None  # needs
        kl = queue_kl(
            output.projected["queue"],
            self.norm(batch.teacher),
            self.queue_QD,
            temperature=self.options.temperature,
        )
        return {
            "ce": cross_entropy(output.logits, batch.labels),
            "queue": self.options.weight * kl,
        }

    def state(self) -> dict[str, Any]:
        """The epoch, which decides the queue."""
        return {"epoch": self.epoch}

    def load_state(self, state: dict[str, Any]) -> None:
        """See ``Component.load_state``. Draws the queue of that epoch again."""
        if state["epoch"] >= 0:
            self.begin_epoch(state["epoch"], self.setup.student)
