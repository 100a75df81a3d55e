"""``crd``: contrastive representation distillation (Tian et al., ICLR 2020) on stored features.

Both features are embedded by one Linear each and normalised to length 1. Noise-contrastive estimation identifies an
image's embedding of one side as its own embedding of the other side, among those of other images, which two memory
banks over the training images keep. Images that are known to be of the anchor's class are no negatives; an unlabelled
anchor or image may be of the same class.

The negatives of a step are drawn once for all its anchors, not once per anchor as in the authors' code: one matrix
product instead of B * K rows gathered from the bank.
"""

# B batch, E width of the embeddings, n rows of a bank (training images), K negatives; side 0 the student, 1 the teacher

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.lazy import Tensor, no_grad, torch
from distill.losses import IGNORE
from distill.losses.contrast import nce
from distill.losses.features import unit
from distill.methods.base import Batch, Output, Setup, Side, Student, VectorMethod
from distill.options import VectorOptions


@dataclass(frozen=True, kw_only=True)
class CRDConfig(
    VectorOptions,
    name="crd",
    positive=("width", "negatives", "temperature"),
    momentum=("momentum",),
):
    """Method ``crd``: contrast against memory banks over the training images (Tian et al., ICLR 2020)."""

    weight: float = 0.8
    """Weight of the contrastive term beside the cross entropy."""
    width: int = 128
    """Width of both embeddings, each made by one Linear."""
    negatives: int = 16384
    """Memory bank rows that each step is contrasted with; at most the number of training images."""
    temperature: float = 0.07
    """Temperature that similarities are divided by."""
    momentum: float = 0.5
    """Share of the old row that is kept when a memory bank row is updated, 0 to below 1."""


class CRD(VectorMethod):
    """L = CE(D_L) + weight L_NCE over all images. Trained: student, both embeddings. Frozen: the stored f_t.

    Every process draws negatives of its own, but the banks are equal on all: new rows are collected from all of them.
    """

    Options = CRDConfig
    options: CRDConfig

    def __init__(self, setup: Setup, options: CRDConfig) -> None:
        super().__init__(setup, options)
        training = setup.training
        may_be_used = np.isin(training, setup.split.labelled)
        labels = np.where(may_be_used, setup.samples.labels[training], IGNORE)
        self.training = torch.from_numpy(training).to(setup.device)
        self.labels = torch.from_numpy(labels).to(setup.device)
        bound = math.sqrt(3 / self.options.width)  # rows of length about 1
        bank = torch.empty(2, len(training), self.options.width)
        bank.uniform_(-bound, bound, generator=torch.Generator().manual_seed(setup.seed))
        self.bank = bank.to(setup.device)
        self.constants = torch.zeros(2, device=setup.device)
        """Z of both banks, which makes exp(similarity / T) a probability. Estimated in the first step."""
        self.estimated = False

    def student_sides(self) -> dict[str, Side]:
        """Both embeddings."""
        return self.embeddings(self.options.width)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The normalised stored feature."""
        return {"teacher": self.target(batch)}

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.terms``. Changes the banks."""
        indices = batch.indices.to(self.training.device).contiguous()
        own = torch.searchsorted(self.training, indices)
        drawn = torch.randperm(len(self.training), device=own.device)[: self.options.negatives]
        negative = self.negatives(own, drawn)
        mine, theirs = (
            unit(output.projected[f"{side}_embedding"]) for side in ("student", "teacher")
        )
        drawn_from = own, drawn, negative
        contrast = self.contrast(mine, 1, *drawn_from) + self.contrast(theirs, 0, *drawn_from)
        self.estimated = True
        self.remember(own, torch.stack([mine.detach(), theirs.detach()], dim=1))
        return {"contrast": self.options.weight * contrast}

    def negatives(self, own_B: Tensor, drawn_K: Tensor) -> Tensor:
        """(B, K) bool: which of the drawn rows are another image, and not known to be of the anchor's class."""
        classes = self.labels[own_B][:, None]
        alike = (classes != IGNORE) & (classes == self.labels[drawn_K])
        return (own_B[:, None] != drawn_K) & ~alike

    def contrast(
        self, anchor_BE: Tensor, side: int, own_B: Tensor, drawn_K: Tensor, negative_BK: Tensor
    ) -> Tensor:
        """Loss of anchors of one side against the bank of the other."""
        bank, temperature = self.bank[side], self.options.temperature
        positive = ((anchor_BE * bank[own_B]).sum(1) / temperature).exp()
        others = (anchor_BE @ bank[drawn_K].T / temperature).exp()
        rows = len(self.training)
        if not self.estimated:
            counted = torch.cat([positive.detach()[:, None], others.detach() * negative_BK], dim=1)
            mean = counted.sum() / (negative_BK.sum() + len(positive))
            self.constants[side] = self.setup.gather(mean[None]).mean() * rows
        constant = self.constants[side].clone()  # the other side's may yet be estimated in place
        return nce(positive / constant, others / constant, negative_BK, rows=rows)

    @no_grad
    def remember(self, own_B: Tensor, embedding_B2E: Tensor) -> None:
        """Move the rows of the batches of all processes towards their new embeddings.

        An image may be in them more than once; its first embedding counts, which is the same one on every process.
        """
        own, embedding = self.setup.gather(own_B), self.setup.gather(embedding_B2E)
        order = own.argsort(stable=True)
        own = own[order]
        first = torch.ones_like(own, dtype=torch.bool)
        first[1:] = own[1:] != own[:-1]
        own, embedding = own[first], embedding[order[first]]
        kept = self.options.momentum
        for side in range(2):
            row = kept * self.bank[side, own] + (1 - kept) * embedding[:, side]
            self.bank[side, own] = unit(row)

    def state(self) -> dict[str, Any]:
        """Both banks and their constants."""
        return {"bank": self.bank, "constants": self.constants}

    def load_state(self, state: dict[str, Any]) -> None:
        self.bank.copy_(state["bank"])
        self.constants.copy_(state["constants"])
        self.estimated = bool((self.constants > 0).all())
