"""Logits of the teacher by a linear probe on its stored features, and the checks of stored logits."""

# B batch, D teacher width, K classes

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.lazy import Tensor, nn, no_grad, torch
from distill.losses.logits import target_classes
from distill.measures.linear_probe import LinearProbe
from distill.methods.base import Batch, Method, Needs, Output, Setup, Student
from distill.options import Target
from featstore.errors import ConfigError, shorten
from featstore.format.class_logits import are_probabilities, class_names_of

if TYPE_CHECKING:
    from distill.data.joined import JoinedData
    from distill.methods.modules import Exits

CHECKED_ROWS = 1000
"""Rows of a field that are looked at to tell probabilities from logits."""


def check_class_logits(data: JoinedData, setting: str) -> None:
    """Check that the field of the run holds one logit for each class of the labels, in their order.

    Args:
        data: Images and rows of the run.
    """
    stored, names = data.features, list(data.samples.class_names)
    where = f"{setting}: field {stored.field} of {data.store.address}"
    if len(stored.teachers) > 1:
        raise ConfigError(
            f"{setting}: is for one teacher; this run has {len(stored.teachers)} (--teachers)."
        )
    if stored.width != len(names):
        raise ConfigError(
            f"{where} has {stored.width} numbers per image; the labels have {len(names)} classes ({shorten(names)}). "
            "Name a field with one logit per class, or use --kd.target probe."
        )
    stated = class_names_of(data.store.manifest.teacher_of(stored.field))
    if stated is not None and stated != names:
        raise ConfigError(
            f"{where} is of the classes {shorten(stated, 12)}, the labels are of {shorten(names, 12)}. Names and order "
            "must be the same."
        )
    rows = np.flatnonzero(data.store.valid)[:CHECKED_ROWS]
    if are_probabilities(data.store.gather(stored.field, rows)):
        raise ConfigError(
            f"{where} holds probabilities; logits or log-probabilities are needed. Store their logarithm."
        )


def probe_layer(probe: LinearProbe | None, device: torch.device) -> nn.Linear:
    """A fitted probe as a frozen Linear. Raises ConfigError: the task has no classes, and so no probe."""
    if probe is None:
        raise ConfigError("a method or partner of this run needs classes, which its task has not.")
    layer = nn.utils.skip_init(nn.Linear, probe.weight_KD.shape[1], len(probe.bias_K))
    set_probe(layer, probe)
    return layer.requires_grad_(False).to(device)  # type: ignore[no-any-return]


@no_grad
def set_probe(layer: nn.Linear, probe: LinearProbe) -> None:
    """Write a fitted probe into a Linear of its shape."""
    layer.weight.copy_(torch.from_numpy(probe.weight_KD))
    layer.bias.copy_(torch.from_numpy(probe.bias_K))


def stage_exits(setup: Setup, setting: str, otherwise: str) -> Exits:
    """An exit with logits at every stage of the student, as in OFA-KD; dropped after training.

    Args:
        setting: That asks for them, for the message.
        otherwise: A setting that needs none.
    """
    from distill.methods.modules import Exits

    channels = setup.student.stage_channels
    if not channels:
        raise ConfigError(
            f"{setting}: {setup.student.name} cannot give the maps of its stages. Choose a student whose timm model "
            f"has forward_intermediates, or {otherwise}."
        )
    return Exits(channels, setup.student.num_classes)


def classes_of(target: Target, labels_B: Tensor, logits_BK: Tensor) -> Tensor:
    """(B,) int64: the class that a loss takes an image to be of; see ``options.Target``."""
    return labels_B if target == "labels" else target_classes(labels_B, logits_BK)


def linear_ramp(epoch: int, warmup_epochs: int) -> float:
    """Share of its weight that a term has in an epoch, counted from 0: rises linearly to 1."""
    return min((epoch + 1) / warmup_epochs, 1.0)


class ClassLogits(Method):
    """L = CE(D_L) + a comparison of the student's logits with target logits over all images."""

    NEEDS = Needs(labels=True)

    @abstractmethod
    def target(self, batch: Batch) -> Tensor:
        """(B, K) logits, without gradient."""

    @abstractmethod
    def compare(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        """The weighted term.

        Args:
            student_BK: (B, K) logits of the student.
            target_BK: (B, K) target logits, without gradient.
            labels_B: (B,) int64, ``IGNORE`` where there is no label.
        """

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        return {"logits": self.compare(output.logits, self.target(batch), batch.labels)}


class ProbeLogits(ClassLogits):
    """The target logits are probe(f_t)."""

    def __init__(self, setup: Setup, options: Any) -> None:
        super().__init__(setup, options)
        self.probe = probe_layer(setup.probe, setup.device)

    @no_grad
    def target(self, batch: Batch) -> Tensor:
        """(B, K) logits of the probe on the raw stored features."""
        assert batch.teacher is not None  # needs
        logits: Tensor = self.probe(batch.teacher)
        return logits
