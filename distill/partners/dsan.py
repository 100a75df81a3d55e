"""``dsan``: MMD within every class that source and target share in a batch (Zhu et al. 2020; DeepDA [C]).

    weight (2 / (1 + exp(-gamma p)) - 1) LMMD,   p = 0 to 1 over training

on the student's feature, over a process's batch; classes of the target are its predicted probabilities. Small batches
with many classes share few: use a large --train.unlabelled_batch. No bottleneck is added. The authors let p rise by
epoch, here it rises by step, as in DeepDA.
"""

from collections.abc import Sequence

from torch import Tensor

from distill.data.pictures import Batch
from distill.losses.adaptation import lmmd, ramp
from distill.losses.semisupervised import probabilities
from distill.methods.base import Output, Setup
from distill.partners.base import Partner
from distill.partners.progress import Progress
from distill.student.model import Student


class DSAN(Partner):
    """See the top of this file."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.options = setup.config.dsan
        self.progress = Progress(setup)
        self.memory["calls"] = self.progress.count

    def loss(
        self,
        labelled: Output,
        weak: Output,
        strong: Sequence[Output],
        batch: Batch,
        student: Student,
    ) -> dict[str, Tensor]:
        """See ``Partner.loss``."""
        weight = self.options.weight * ramp(self.progress.share, self.options.gamma)
        self.progress.advance()
        labels = batch.labels[: batch.num_labelled]
        discrepancy = lmmd(labelled.features, weak.features, labels, probabilities(weak.logits))
        return {"lmmd": weight * discrepancy}
