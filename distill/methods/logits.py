"""``kd``, ``logits``, ``dkd``, ``dist``, ``ofa``: the student's logits imitate those of a linear probe, or stored ones.

L = CE(D_L) + a comparison of the student's logits z_s with probe(f_t) over all images. Trained: student, and the exits
of ``ofa``. Frozen: the probe and the stored f_t. The probe is a logistic regression on the stored features of the
labelled images, fitted once per seed (``probe_logits``). ``kd`` also takes stored logits as they are.
"""

# B batch, K classes, M_i h_i w_i the map of stage i

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from distill.lazy import Tensor, no_grad
from distill.losses.logits import dist, dkd, kd_kl, logit_mse, ofa
from distill.methods.base import Batch, Needs, Output, Setup, Side, Student
from distill.methods.probe_logits import (
    ClassLogits,
    ProbeLogits,
    check_class_logits,
    classes_of,
    linear_ramp,
    probe_layer,
    stage_exits,
)
from distill.options import CheckedOptions, Target

if TYPE_CHECKING:
    from distill.config import DistillConfig
    from distill.data.joined import JoinedData


@dataclass(frozen=True, kw_only=True)
class KDConfig(CheckedOptions, name="kd", positive=("temperature",)):
    """Method ``kd``: T^2 KL towards the logits of a linear probe on the stored features (Hinton et al. 2015)."""

    weight: float = 1.0
    """Weight of the KL term beside the cross entropy; published code uses 9 on CIFAR and 1 on ImageNet."""
    temperature: float = 4.0
    """Temperature T of both softmaxes; 4 is common on CIFAR, 1 on ImageNet."""
    target: Literal["probe", "field"] = "probe"
    """Where the target logits come from. probe: a linear probe on --field. field: --field holds them, logits or
    log-probabilities of every class in the order of the labels, as ``featstore fuse`` or the head of a teacher wrote
    them; no probe is fitted."""


class KD(ClassLogits):
    """weight T^2 KL(z_t || z_s), also called Soft Target ("Distilling the knowledge in a neural network").

    z_t is probe(f_t), or what is stored (``--kd.target field``): softmax(z_t / T) is the same for logits and for their
    log-probabilities. With ``--data.stored unlabelled`` the term is over the unlabelled images alone.
    """

    Options = KDConfig
    options: KDConfig

    def __init__(self, setup: Setup, options: KDConfig) -> None:
        super().__init__(setup, options)
        stored = options.target == "field"
        self.probe = None if stored else probe_layer(setup.probe, setup.device)

    @classmethod
    def needs(cls, options: KDConfig) -> Needs:
        """Stored logits of the unlabelled images suffice; a probe is fitted on those of the labelled ones."""
        return Needs(labels=True, labelled_rows=options.target == "probe")

    @classmethod
    def check(cls, options: KDConfig, config: DistillConfig, data: JoinedData) -> None:
        if options.target == "field":
            check_class_logits(data, "--kd.target field")

    @no_grad
    def target(self, batch: Batch) -> Tensor:
        assert batch.teacher is not None  # needs
        if self.probe is None:
            return batch.teacher
        logits: Tensor = self.probe(batch.teacher)
        return logits

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        first = batch.num_labelled if self.setup.config.data.stored == "unlabelled" else 0
        target = self.target(batch)[first:]
        return {"logits": self.compare(output.logits[first:], target, batch.labels[first:])}

    def compare(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        options = self.options
        return options.weight * kd_kl(student_BK, target_BK, temperature=options.temperature)


@dataclass(frozen=True, kw_only=True)
class LogitsConfig(CheckedOptions, name="logits"):
    """Method ``logits``: mean squared error towards the probe's logits (Ba & Caruana 2014)."""

    weight: float = 1.0
    """Weight of the squared error beside the cross entropy."""


class Logits(ProbeLogits):
    """weight MSE(z_s, probe(f_t)) ("Do deep nets really need to be deep?", arXiv:1312.6184)."""

    Options = LogitsConfig
    options: LogitsConfig

    def compare(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        return self.options.weight * logit_mse(student_BK, target_BK)


@dataclass(frozen=True, kw_only=True)
class DKDConfig(CheckedOptions, name="dkd", positive=("temperature", "warmup_epochs")):
    """Method ``dkd``: decoupled KD (Zhao et al., CVPR 2022) towards the probe's logits."""

    alpha: float = 1.0
    """Weight of the target-class term TCKD."""
    beta: float = 2.0
    """Weight of the non-target term NCKD; the authors use 2 to 8 on CIFAR, 0.5 or 2 on ImageNet."""
    temperature: float = 4.0
    """Temperature of both softmaxes; the authors use 4 on CIFAR and 1 on ImageNet."""
    warmup_epochs: int = 1
    """Epochs in which the weight of both terms rises linearly; the authors use 20 of 240 on CIFAR, 1 on ImageNet."""
    target: Target = "teacher"
    """Class of an image in this loss. teacher: its label where known, else the class with the largest teacher logit.
    labels: its label only; images without one are left out of the term."""


class DKD(ProbeLogits):
    """ramp (alpha TCKD + beta NCKD) over the images that have a class (arXiv:2203.08679).

    The paper assumes labels for all images; the class of an unlabelled one is our choice (``--dkd.target``).
    """

    Options = DKDConfig
    options: DKDConfig

    def __init__(self, setup: Setup, options: DKDConfig) -> None:
        super().__init__(setup, options)
        self.epoch = 0

    def begin_epoch(self, epoch: int, student: Student) -> dict[str, float]:
        """Note the epoch, which the ramp depends on."""
        self.epoch = epoch
        return {}

    def compare(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        options, classes = self.options, classes_of(self.options.target, labels_B, target_BK)
        weights = {"alpha": options.alpha, "beta": options.beta}
        loss = dkd(student_BK, target_BK, classes, temperature=options.temperature, **weights)
        return linear_ramp(self.epoch, options.warmup_epochs) * loss

    def state(self) -> dict[str, Any]:
        """The epoch: a run may resume in the middle of one."""
        return {"epoch": self.epoch}

    def load_state(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]


@dataclass(frozen=True, kw_only=True)
class DISTConfig(CheckedOptions, name="dist", positive=("temperature",)):
    """Method ``dist``: correlations of rows and columns with the probe's softmax (Huang et al., NeurIPS 2022)."""

    weight: float = 2.0
    """Weight of both terms together beside the cross entropy."""
    beta: float = 1.0
    """Weight of the relations between the classes of an image (rows)."""
    gamma: float = 1.0
    """Weight of the relations between the images of a batch (columns); each process compares its own images."""
    temperature: float = 1.0
    """Temperature of both softmaxes; the authors use 4 on CIFAR and 1 on ImageNet."""


class DIST(ProbeLogits):
    """weight T^2 (beta (1 - r of rows) + gamma (1 - r of columns)), r Pearson's correlation (arXiv:2205.10536)."""

    Options = DISTConfig
    options: DISTConfig

    def compare(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        options = self.options
        weights = {"beta": options.beta, "gamma": options.gamma}
        loss = dist(student_BK, target_BK, temperature=options.temperature, **weights)
        return options.weight * loss


@dataclass(frozen=True, kw_only=True)
class OFAConfig(CheckedOptions, name="ofa", positive=("eps", "temperature")):
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
    """weight (OFA(z_s) + sum over stages OFA(exit)) (arXiv:2310.19444).

    Where teacher and student are of different kinds (a ViT and a CNN), features are hard to match; logits are not. Each
    stage of the student gets an exit that imitates the probe's logits. The exits are dropped after training.

    Raises:
        ConfigError: the student cannot give the maps of its stages.
    """

    Options = OFAConfig
    options: OFAConfig

    def __init__(self, setup: Setup, options: OFAConfig) -> None:
        super().__init__(setup, options)
        settings = ("--ofa.stages true", "--ofa.stages false")
        self.exits = stage_exits(setup, *settings) if options.stages else None

    def student_sides(self) -> dict[str, Side]:
        """One exit per stage."""
        return {} if self.exits is None else {"exits": Side(self.exits, tap="stages")}

    def compare(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        """The term of one exit."""
        options, classes = self.options, classes_of(self.options.target, labels_B, target_BK)
        settings = {"eps": options.eps, "temperature": options.temperature}
        return options.weight * ofa(student_BK, target_BK, classes, **settings)

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """The term of the final logits, and one per exit."""
        terms = super().terms(output, batch, student)
        target = self.target(batch)
        for number, logits in enumerate(output.projected.get("exits", ())):
            terms[f"exit{number}"] = self.compare(logits, target, batch.labels)
        return terms
