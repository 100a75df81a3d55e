"""``kd3``: a student of a pool of images of any classes: which of them teach is chosen anew at every epoch.

Tang et al., ICCV 2023 ("Distribution shift matters for knowledge distillation with webly collected images",
arXiv:2307.11469). The paper's equations could not be read: selection by teacher and student together, the shared
classifier, weighted alignment and the contrast with images of another distribution follow its abstract; how each is
computed is our reading. The teacher's classifier is the linear probe on the labelled images, which do not train.
"""

# B batch, n images of the run, U images of the pool, K classes

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from distill.lazy import F, Tensor, no_grad, torch
from distill.losses import cross_entropy
from distill.methods.base import COPIES, Batch, Output, Setup, Student
from distill.methods.teacher_head import FoldedHead
from distill.options import CheckedOptions
from featstore.errors import ConfigError
from featstore.sources.base import NO_LABEL


@dataclass(frozen=True, kw_only=True)
class KD3Config(
    CheckedOptions,
    name="kd3",
    positive=("temperature", "contrast_temperature", "keep"),
    share=("keep",),
):
    """Method ``kd3``: distillation from web images, chosen by teacher and student together (Tang et al., ICCV 2023)."""

    select: Literal["both", "teacher", "random", "all"] = "both"
    """Which unlabelled images teach: the most confident by the mean of the teacher's and the student's softmax, by the
    teacher's alone, as many at random, or all."""
    keep: float = 0.5
    """Share of the unlabelled images that teach, above 0 to 1."""
    align: float = 1.0
    """Weight of the squared error to the stored feature, each image weighted by its confidence."""
    kd: float = 1.0
    """Weight of T^2 KL towards the teacher's logits, each image weighted by its confidence."""
    contrast: float = 0.1
    """Weight of the contrast between an image and a copy with the colour statistics of other images; 0 is off."""
    temperature: float = 4.0
    """Temperature T of the KL."""
    contrast_temperature: float = 0.5
    """Temperature of the contrast."""


class KD3(FoldedHead):
    """L = align w |P_s(f_s) - f_t|^2 + kd w KL + contrast, over the unlabelled images.

    w is the confidence of a chosen image, divided by the mean over the pool, and 0 of the others: the mean over a batch
    does not depend on how it is cut into processes or accumulated pieces. The contrast is between the chosen images
    of one process and piece.

    Trained: student without its head, P_s. Frozen: probe, stored f_t. The probe on P_s is the head that is exported.

    Raises:
        ConfigError: there are no unlabelled images; or see ``FoldedHead``.
    """

    name = "kd3"
    Options = KD3Config
    options: KD3Config

    def __init__(self, setup: Setup, options: KD3Config) -> None:
        super().__init__(setup, options)
        self.pool = setup.split.unlabelled
        if not len(self.pool):
            raise ConfigError("--methods kd3: no unlabelled images. Name them: --data.unlabelled.")
        self.weights = torch.zeros(len(setup.samples.ids), device=setup.device)
        self.teacher: Tensor | None = None

    @no_grad
    def begin_epoch(self, epoch: int, student: Student) -> dict[str, float]:
        """Choose the images of this epoch. Returns their share and, where labels are known, how many are of a class
        that the teacher knows (labels of the pool are used for this number alone)."""
        if self.teacher is None:
            features = self.setup.features.take(self.pool).to(self.setup.device)
            self.teacher = F.softmax(self.probe(features), dim=1).cpu()
        seen = self.teacher
        if self.options.select == "both" and epoch:
            _, logits = self.setup.predict(self.pool)
            seen = (seen + F.softmax(logits, dim=1)) / 2
        confidence = seen.amax(1)
        chosen = self._chosen(confidence)
        self.weights.zero_()
        rows = torch.from_numpy(self.pool[chosen]).to(self.weights.device)
        self.weights[rows] = confidence[chosen].to(self.weights.device)
        samples = self.setup.samples
        labels = samples.labels[self.pool[chosen]]
        known = labels != NO_LABEL
        numbers = {"selection/share": len(chosen) / len(self.pool)}
        if known.any():
            taught = np.unique(samples.labels[self.setup.split.labelled])
            numbers["selection/purity"] = float(np.isin(labels[known], taught).mean())
        return numbers

    def _chosen(self, confidence_U: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
        count = max(1, round(self.options.keep * len(confidence_U)))
        if self.options.select == "all":
            count = len(confidence_U)
        if self.options.select == "random":
            return np.random.default_rng(self.setup.seed).permutation(len(confidence_U))[:count]
        return confidence_U.argsort(descending=True, stable=True)[:count].numpy()

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        assert batch.teacher is not None  # needs
        options, own = self.options, output.projected["general"].float()
        weight = self.weights[batch.indices.to(self.weights.device)]
        weight = weight * len(self.pool) / self.weights.sum().clamp(min=1e-6)
        count = max(batch.num_unlabelled, 1)
        error = (own - batch.teacher.float()).square().mean(1)
        divergence = F.kl_div(
            F.log_softmax(self.probe(own) / options.temperature, dim=1),
            F.log_softmax(self.probe(batch.teacher) / options.temperature, dim=1),
            reduction="none",
            log_target=True,
        ).sum(1)
        terms = {
            # Times zero: distributed training wants a gradient for every parameter, those of the unused head too.
            "ce": 0.0 * cross_entropy(output.logits, batch.labels),
            "align": options.align * (weight * error).sum() / count,
            "kd": options.kd * options.temperature**2 * (weight * divergence).sum() / count,
        }
        if options.contrast:
            terms["contrast"] = options.contrast * self._contrast(output, batch)
        return terms

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Copies of the chosen images in another distribution of colours; none if fewer than two were chosen."""
        rows = self._teaching(batch)
        if not self.options.contrast or int(rows.sum()) < 2:
            return {}
        return {COPIES: mix_distribution(batch.images[: len(rows)][rows])}

    def _teaching(self, batch: Batch) -> Tensor:
        return self.weights[batch.indices.to(self.weights.device)] > 0

    def _contrast(self, output: Output, batch: Batch) -> Tensor:
        from distill.losses.alignment import batch_contrast

        copies = output.projected.get(COPIES)
        if copies is None:
            return 0 * output.features.float().sum()
        features, temperature = (
            output.features[self._teaching(batch)],
            self.options.contrast_temperature,
        )
        return (
            batch_contrast(features, copies, temperature=temperature)
            + batch_contrast(copies, features, temperature=temperature)
        ) / 2

    def state(self) -> dict[str, Any]:
        """The choice of this epoch."""
        return {"weights": self.weights}

    def load_state(self, state: dict[str, Any]) -> None:
        self.weights.copy_(state["weights"])


def mix_distribution(images: Tensor) -> Tensor:
    """Images whose mean and deviation per channel are moved towards those of other images by a random share.

    Args:
        images: (B, 3, H, W).
    """
    mean, std = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True) + 1e-6
    order = torch.randperm(len(images), device=images.device)
    share = torch.rand(len(images), 1, 1, 1, device=images.device)
    return (images - mean) / std * torch.lerp(std, std[order], share) + torch.lerp(
        mean, mean[order], share
    )
