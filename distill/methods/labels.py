"""``labels``: the supervised loss of the task on the labelled images, nothing else. What a teacher must improve on."""

from __future__ import annotations

from distill.lazy import Tensor
from distill.methods.base import Batch, Method, Needs, Output, Student


class Labels(Method):
    """L = L_task(D_L). As many optimiser steps as the other methods, on the labelled batch alone."""

    NEEDS = Needs(unlabelled=False, vector=False, labels=True, classes=False, labelled_rows=False)

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """None."""
        return {}
