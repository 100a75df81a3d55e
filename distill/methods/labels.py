"""``labels``: cross entropy on the labelled images, nothing else. What a teacher must improve on."""

from __future__ import annotations

from distill.lazy import Tensor
from distill.losses import cross_entropy
from distill.methods.base import Batch, Method, Needs, NoOptions, Output, Student


class Labels(Method):
    """L = CE(D_L). As many optimiser steps as the other methods, on the labelled batch alone."""

    @classmethod
    def needs(cls, options: NoOptions) -> Needs:
        """Labelled images, and nothing of the store."""
        return Needs(unlabelled=False, vector=False, labels=True)

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        return {"ce": cross_entropy(output.logits, batch.labels)}
