"""``dan``: multi-kernel MMD between source and target features (Long et al. 2015, arXiv:1502.02791; DeepDA [C]).

    weight (mean K_ss + mean K_tt - 2 mean K_st)

on the student's feature, over a process's batch. The sources put it on a 256-d bottleneck, which would change what is
exported and what methods compare; none is added.
"""

from collections.abc import Sequence

from torch import Tensor

from distill.data.pictures import Batch
from distill.losses.adaptation import mk_mmd
from distill.methods.base import Output
from distill.partners.base import Partner
from distill.student.model import Student


class DAN(Partner):
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
        weight = self.setup.config.dan.weight
        return {"mmd": weight * mk_mmd(labelled.features, weak.features)}
