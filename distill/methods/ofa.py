"""``ofa``: OFA-KD (Hao et al., NeurIPS 2023, arXiv:2310.19444): every stage of the student learns the teacher's logits.

Where teacher and student are built unlike each other (a ViT and a CNN), features are hard to match; logits are not. So
each stage of the student gets an exit of its own, and every exit imitates the logits of a linear probe on the stored
features. The exits are dropped after training.
"""

# B batch, K classes, M_i h_i w_i the map of stage i

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import Tensor
from distill.losses.logits import ofa
from distill.methods.base import Batch, Output, Setup, Side, Student
from distill.methods.probe_logits import ProbeLogits, classes_of
from distill.options import CheckedOptions, Target
from featstore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OFAConfig(
    CheckedOptions,
    name="ofa",
    positive=(
        "eps",
        "temperature",
    ),
):
    """Method ``ofa``: OFA-KD (Hao et al., NeurIPS 2023), the logits of every stage towards those of the probe."""

    weight: float = 1.0
    """Weight of each exit beside the cross entropy."""
    eps: float = 1.0
    """Exponent of the target class's probability; the authors use 1 on CIFAR and 1.5 on ImageNet."""
    temperature: float = 1.0
    """Temperature of both softmaxes."""
    stages: bool = True
    """Add an exit at every stage of the student; false compares the final logits only."""
    target: Target = "teacher"
    """Class of an image in this loss. teacher: its label where known, else the class with the largest teacher logit.
    labels: its label only; images without one are left out of the term."""


class OFA(ProbeLogits):
    """L = CE(D_L) + weight (OFA(z_s) + sum over stages OFA(exit)) over all images.

    Trained: student, exits. Frozen: probe, stored f_t.

    Raises:
        ConfigError: the student cannot give the maps of its stages.
    """

    Options = OFAConfig
    options: OFAConfig

    def __init__(self, setup: Setup, options: OFAConfig) -> None:
        super().__init__(setup, options)
        from distill.methods.modules import Exits

        channels = setup.student.stage_channels
        if self.options.stages and not channels:
            raise ConfigError(
                f"--ofa.stages true: {setup.student.name} cannot give the maps of its stages. Choose a student whose "
                "timm model has forward_intermediates, or --ofa.stages false."
            )
        self.exits = Exits(channels, setup.student.num_classes) if self.options.stages else None

    def student_sides(self) -> dict[str, Side]:
        """One exit per stage."""
        return {} if self.exits is None else {"exits": Side(self.exits, tap="stages")}

    def compare(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        """The term of one exit."""
        options = self.options
        return options.weight * ofa(
            student_BK,
            target_BK,
            classes_of(options.target, labels_B, target_BK),
            eps=options.eps,
            temperature=options.temperature,
        )

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        terms = super().loss(output, batch, student)
        target = self.target(batch)
        for number, logits in enumerate(output.projected.get("exits", ())):
            terms[f"exit{number}"] = self.compare(logits, target, batch.labels)
        return terms
