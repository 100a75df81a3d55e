"""``simkd``: the student's feature imitates the stored one, and the teacher's head is reused on it.

SimKD (Chen et al., CVPR 2022, arXiv:2203.14001). In the paper the projector is a stack of convolutions with
nonlinearities on the last map, and it stays, together with the teacher's head, at inference [C]. Ours is the linear,
foldable form on the pooled feature [I]: the head is the linear probe, and probe(P_s(f_s)) is again one Linear of f_s,
which takes the place of the student's own, so that the exported student is the plain model.
"""

# C student width, D teacher width, K classes

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.lazy import Tensor, nn, no_grad
from distill.losses import cross_entropy, feature_mse
from distill.methods.base import Batch, Method, Needs, Output, Setup, Side, Student
from distill.methods.probe_logits import probe_layer
from distill.options import CheckedOptions
from featstore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SimKDConfig(CheckedOptions, name="simkd", positive=("weight",)):
    """Method ``simkd``: the student's feature, through one Linear, imitates f_t; the probe is reused as the head."""

    weight: float = 1.0
    """Weight of MSE(P_s(f_s), f_t), the only term of this method; it matters beside that of a partner."""


class SimKD(Method):
    """L = weight MSE(P_s(f_s), f_t) over all images, without any cross entropy [C].

    Trained: student without its head, P_s. Frozen: probe, stored f_t. The labels enter through the probe alone. A
    partner's loss acts on the student's own head, which is not what is exported, and through it on the feature.

    Raises:
        ConfigError: the student's head is not one Linear with a bias, or labels alone are to train it in the end.
    """

    Options = SimKDConfig
    options: SimKDConfig

    def __init__(self, setup: Setup, options: SimKDConfig) -> None:
        super().__init__(setup, options)
        self.weight = options.weight
        self.probe = probe_layer(setup.probe, setup.device)
        head = setup.student.head
        if not isinstance(head, nn.Linear) or head.bias is None:
            raise ConfigError(
                f"--methods simkd: the head of {setup.student.name} is not one Linear with a bias on its feature, and "
                "probe(P_s(f_s)) cannot take its place. Use --student.feature prelogits, or another student."
            )
        if setup.config.train.finetune_epochs:
            raise ConfigError(
                "--methods simkd: has no cross entropy, so that nothing would be trained in the "
                f"{setup.config.train.finetune_epochs} --train.finetune_epochs. Set 0."
            )

    @classmethod
    def needs(cls, options: Any) -> Needs:
        """A classifier: its logits are compared."""
        return Needs(labels=True)

    def student_sides(self) -> dict[str, Side]:
        """P_s: student width -> teacher width."""
        return {"general": Side(nn.Linear(self.setup.student_width, self.setup.features.width))}

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        assert batch.teacher is not None  # needs
        return {
            # Times zero: distributed training wants a gradient for every parameter, those of the unused head too.
            "ce": 0.0 * cross_entropy(output.logits, batch.labels),
            "general": self.weight * feature_mse(output.projected["general"], batch.teacher),
        }

    @no_grad
    def fold(self, student: Student, sides: Mapping[str, nn.Module]) -> None:
        """head(f) = probe(P_s(f)): weight W_t W_s (K, C), bias W_t b_s + b_t."""
        general, head = sides["general"], student.head
        assert isinstance(general, nn.Linear)
        assert isinstance(head, nn.Linear)
        # In float64, so that two products lose no more than one.
        weight, bias = self.probe.weight.double(), self.probe.bias.double()
        head.weight.copy_(weight @ general.weight.double())
        head.bias.copy_(weight @ general.bias.double() + bias)
