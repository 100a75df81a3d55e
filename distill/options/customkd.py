"""Options of CustomKD: what its sources leave open."""

from dataclasses import dataclass
from typing import Literal

from distill.options.common import Norm, not_negative, positive
from distill.options.logits import Target
from featstore.sources.config import require


@dataclass(frozen=True, kw_only=True)
class CustomKDConfig:
    """Method ``customkd``. No source gives these values of the paper: all are choices of this product [I].

    Weights and normalisations are those that did best where they were chosen on held-out images (docs/results).
    """

    w_general: float = 100.0
    """Weight of MSE(P_s(f_s), f_t), the task-general term; 0: specific only."""
    w_specific: float = 10.0
    """Weight of MSE(f_s, P_t(f_t)), the task-specific term; 0: general only, which is ``fitnet``."""
    reduction: Literal["mean", "sum"] = "mean"
    """Of both squared errors over the width of the feature; over images it is always the mean."""
    norm: Norm = "standardize"
    """Normalisation of the stored feature f_t."""
    depth: int = 1
    """Linears in each of P_t and P_s. 1: one Linear, as "projection layer" suggests [S]. 2: a hidden layer between."""
    hidden: int = 0
    """Width of that hidden layer; 0 takes the larger of the teacher's and the student's width."""
    match_activation: Literal["none", "relu", "hardswish"] = "none"
    """What P_t ends in: relu for students whose feature is never negative, hardswish for the MobileNetV3 family."""
    match_norm: Literal["none", "layernorm"] = "layernorm"
    """layernorm: both sides of the task-specific MSE are normalised, which stops a drift of scale."""
    head: Literal["student", "random", "probe"] = "student"
    """What P_t(f_t) is classified by in stage 1. student: the student's own head, frozen [P]. random: a head of the
    teacher's own, trained with P_t, the paper's ablation [S]. probe: a linear probe on the student's features of the
    labelled images, fitted at the start of every stage 1; one forward pass over them [I]."""

    w_logits: float = 0.0
    """Weight of a further term that compares logits; 0 is the method without it."""
    logits_from: Literal["custom", "probe"] = "custom"
    """custom: the head of stage 1 on P_t(f_t). probe: a linear probe on f_t."""
    logits_loss: Literal["kl", "mse", "dkd", "dist"] = "kl"
    """The loss of method kd, logits, dkd (the paper's CustomKD + DKD [S]) or dist."""
    temperature: float = 4.0
    """Of kl, dkd and dist."""
    logits_warmup_epochs: int = 1
    """Epoch e counts the term with (e + 1) / logits_warmup_epochs, at most 1."""
    dkd_alpha: float = 1.0
    """Weight of dkd's target-class term [C]."""
    dkd_beta: float = 2.0
    """Weight of dkd's non-target term [C]."""
    dkd_target: Target = "teacher"
    """Class of an image in dkd. teacher: its label, else the teacher's choice. labels: unlabelled ones are left out."""
    dist_beta: float = 1.0
    """Weight of dist's rows [C]."""
    dist_gamma: float = 1.0
    """Weight of dist's columns [C]."""

    stage1: Literal["cycle", "once", "never"] = "cycle"
    """cycle: a stage 1 at the start of every cycle [P]. once: in the first alone. never: P_t stays random."""
    start: Literal["stage1", "stage2"] = "stage1"
    """stage2: the first cycle goes without a stage 1, so that the head has learnt something before features are
    customised to it; the terms that need P_t wait for it."""
    stage1_epochs: int = 1
    """Passes over the labelled features in each stage 1."""
    stage2_epochs: int = 1
    """Epochs of a cycle; the paper alternates every epoch [P], and 1:1 was its best [S]."""
    stage1_batch: int = 64
    """Features per step of stage 1."""
    stage1_opt: str = "adamw"
    """timm's name of the optimiser of stage 1."""
    stage1_lr: float = 1e-3
    """Learning rate of stage 1, constant."""
    stage1_weight_decay: float = 1e-4
    """Weight decay of stage 1; not applied to biases and normalisation layers."""

    watch_every: int = 1
    """Cycles between two measurements of the alignment (CKA) of student, teacher and customised feature on at most
    1,024 test images, one forward pass over them; 0 is off. It changes nothing that is learnt."""

    def __post_init__(self) -> None:
        not_negative(
            "customkd", self, "w_general", "w_specific", "w_logits", "hidden", "watch_every"
        )
        not_negative("customkd", self, "dkd_alpha", "dkd_beta", "dist_beta", "dist_gamma")
        not_negative("customkd", self, "stage1_weight_decay")
        positive("customkd", self, "temperature", "logits_warmup_epochs")
        positive("customkd", self, "stage1_epochs", "stage2_epochs", "stage1_batch", "stage1_lr")
        require(self.depth in (1, 2), f"--customkd.depth {self.depth} must be 1 or 2.")
        require(
            not (self.stage1 == "never" and self.w_logits and self.logits_from == "custom"),
            "--customkd.stage1 never leaves P_t random, and logits of it tell nothing. Use --customkd.logits_from "
            "probe, or --customkd.w_logits 0.",
        )
        require(
            not (self.stage1 == "never" and self.start == "stage2"),
            "--customkd.stage1 never has no stage 1 to wait for: leave out --customkd.start stage2.",
        )

    @property
    def customises(self) -> bool:
        """Whether any term needs P_t."""
        return bool(self.w_specific or (self.w_logits and self.logits_from == "custom"))

    @property
    def distils(self) -> bool:
        """Whether any term looks at the teacher at all."""
        return bool(self.w_general or self.w_specific or self.w_logits)
