"""``deepcoral``: source and target features get one covariance (Sun and Saenko 2016, arXiv:1607.01719; DeepDA [C]).

    weight ||cov(f_s) - cov(f_t)||_F^2 / (4 C^2)

on the student's feature, C wide, over a process's batch; no bottleneck is added.
"""

from collections.abc import Sequence

from torch import Tensor

from distill.data.pictures import Batch
from distill.losses.adaptation import coral
from distill.methods.base import Output
from distill.partners.base import Partner
from distill.student.model import Student


class DeepCORAL(Partner):
    """See the top of this file."""

    def loss(
        self,
        labelled: Output,
        weak: Output,
        strong: Sequence[Output],
        batch: Batch,
        student: Student,
    ) -> dict[str, Tensor]:
        """See ``Partner.loss``."""
        weight = self.setup.config.deepcoral.weight
        return {"coral": weight * coral(labelled.features, weak.features)}
