"""``labels``: cross entropy on the labelled images, nothing else. What a teacher must improve on."""

from typing import ClassVar

from torch import Tensor

from distill.data import Batch
from distill.losses import cross_entropy
from distill.methods.base import Forward, Method
from distill.student import Student


class Labels(Method):
    """L = CE(D_L). As many optimiser steps as the other methods, on the labelled batch alone."""

    uses_unlabelled: ClassVar[bool] = False
    uses_features: ClassVar[bool] = False

    def loss(self, forward: Forward, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        output = forward(batch.images)
        return {"ce": cross_entropy(output.logits, batch.labels)}
