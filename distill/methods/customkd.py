"""``customkd``: CustomKD (Lee et al., CVPR 2025, arXiv:2503.18244) on stored features.

    stage 1   CE(head(P_t(f_t)), y) on D_L                        trained: P_t              frozen: student, f_t
    stage 2   CE(D_L) + w_g MSE(P_s(f_s), f_t)
                      + w_s MSE(f_s, P_t(f_t)) on D_L and D_U     trained: student, P_s     frozen: P_t, f_t

f_t is the stored feature, f_s the student's, head what follows it in the student, P_t and P_s one Linear each. Stage 1
needs no image and no forward pass of the student. Where each part comes from:

- Paper: the teacher's feature is customised with the student's head, both features are imitated, and the stages
  alternate every epoch.
- Summaries of the paper: MSE for both terms, and labelled data alone in stage 1.
- Our choice: the frozen head of stage 1, the frozen P_t of stage 2, P_t kept from cycle to cycle, and every weight,
  rate and size. Where the paper can be read in another way there is an option.
"""

# B batch, D teacher width, C student width, K classes

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from distill.lazy import F, Tensor, nn, torch
from distill.losses import cross_entropy, feature_mse, layernorm_mse
from distill.losses.logits import dist, dkd, kd_kl, logit_mse, ofa
from distill.measures.domains import LEAST, MOST, separability
from distill.measures.feature_similarity import thin_out
from distill.measures.linear_probe import fit_probe
from distill.methods.base import Batch, Needs, Output, Setup, Side, Student, VectorMethod
from distill.methods.customkd_watch import Watch
from distill.methods.probe_logits import (
    classes_of,
    linear_ramp,
    probe_layer,
    set_probe,
    stage_exits,
)
from distill.options import Norm, Target, VectorOptions
from featstore.errors import ConfigError
from featstore.sources.config import require


@dataclass(frozen=True, kw_only=True)
class CustomKDConfig(
    VectorOptions,
    name="customkd",
    positive=(
        "temperature", "ofa_eps", "logits_warmup_epochs", "stage1_epochs", "stage2_epochs", "stage1_batch",
        "stage1_lr",
    ),
):  # fmt: skip
    """Method ``customkd``. No source gives these values of the paper: all are choices of this product.

    Weights and normalisations are those that did best where they were chosen on held-out images (docs/results).
    """

    w_general: float = 100.0
    """Weight of the task-general term MSE(P_s(f_s), f_t); 0 switches it off."""
    w_specific: float = 10.0
    """Weight of the task-specific term MSE(f_s, P_t(f_t)); 0 switches it off, which is method fitnet."""
    reduction: Literal["mean", "sum"] = "mean"
    """Reduction of both squared errors over the feature's width; over images it is always the mean."""
    norm: Norm = "standardize"
    depth: int = 1
    """Linear layers in each of P_t and P_s: 1, or 2 with a hidden layer between them."""
    hidden: int = 0
    """Width of that hidden layer; 0 takes the larger of the teacher's and the student's width."""
    match_activation: Literal["none", "relu", "hardswish"] = "none"
    """Last activation of P_t: relu for students whose feature is never negative, hardswish for MobileNetV3."""
    match_norm: Literal["none", "layernorm"] = "layernorm"
    """layernorm normalises both sides of the task-specific term, so that the scale of the target cannot drift."""
    head: Literal["student", "random", "probe"] = "student"
    """Classifier on P_t(f_t) in stage 1. student: the student's own head, frozen. random: a new head, trained with P_t.
    probe: a linear probe on the student's features of the labelled images, fitted before every stage 1."""

    w_logits: float = 0.0
    """Weight of an additional term that compares logits; 0 switches it off."""
    logits_from: Literal["auto", "custom", "probe"] = "custom"
    """Where the target logits come from. custom: the head of stage 1 on P_t(f_t). probe: a linear probe on f_t. auto:
    custom where the stored features of labelled and unlabelled images are told apart, as across domains; else probe."""
    logits_loss: Literal["kl", "mse", "dkd", "dist", "ofa"] = "kl"
    """Loss on the logits, as in the methods kd (kl), logits (mse), dkd, dist and ofa, which adds an exit at every stage
    of the student and wants a temperature of 1."""
    temperature: float = 4.0
    """Temperature of kl, dkd, dist and ofa."""
    logits_warmup_epochs: int = 1
    """Epochs in which the weight of the logit term rises to w_logits."""
    dkd_alpha: float = 1.0
    """Weight of the target-class term of dkd."""
    dkd_beta: float = 2.0
    """Weight of the non-target term of dkd."""
    dkd_target: Target = "teacher"
    """Class of an image in this loss. teacher: its label where known, else the class with the largest teacher logit.
    labels: its label only; images without one are left out of the term."""
    dist_beta: float = 1.0
    """Weight of the relations between classes (rows) in dist."""
    dist_gamma: float = 1.0
    """Weight of the relations between images (columns) in dist."""
    ofa_eps: float = 1.0
    """Exponent of the target class's probability in ofa."""

    stage1: Literal["cycle", "once", "never"] = "cycle"
    """When stage 1 trains P_t: at the start of every cycle, once in the first cycle, or never (P_t stays random)."""
    start: Literal["stage1", "stage2"] = "stage1"
    """stage2 skips stage 1 in the first cycle, so that the head is trained before features are customised to it; terms
    that need P_t start after the first stage 1."""
    stage1_epochs: int = 1
    """Passes over the labelled features in each stage 1."""
    stage2_epochs: int = 1
    """Epochs of one cycle; the paper alternates the stages every epoch."""
    stage1_batch: int = 64
    """Stored features per optimiser step of stage 1."""
    stage1_opt: str = "adamw"
    """Name of the optimiser of stage 1 in timm."""
    stage1_lr: float = 1e-3
    """Learning rate of stage 1; constant."""
    stage1_weight_decay: float = 1e-4
    """Weight decay of stage 1; not applied to biases and normalisation layers."""

    watch_every: int = 5
    """Cycles between two measurements of the alignment (CKA) of student, teacher and customised feature, on at most
    1,024 test images; 0 switches them off. Does not change the training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.depth in (1, 2), f"--customkd.depth {self.depth} must be 1 or 2.")
        require(
            not (self.stage1 == "never" and self.w_logits and self.logits_from != "probe"),
            "--customkd.stage1 never leaves P_t random, so its logits carry no information. Use --customkd.logits_from "
            "probe, or --customkd.w_logits 0.",
        )
        require(
            not (self.stage1 == "never" and self.start == "stage2"),
            "--customkd.stage1 never has no stage 1 to wait for: leave out --customkd.start stage2.",
        )

    @property
    def customises(self) -> bool:
        """Whether any term needs P_t."""
        return bool(self.w_specific or (self.w_logits and self.logits_from != "probe"))

    @property
    def distils(self) -> bool:
        """Whether any term uses the teacher."""
        return bool(self.w_general or self.w_specific or self.w_logits)


ANOTHER_DOMAIN = 0.8
"""Separability from which on two sets are of different domains: draws from one set came out at .45 to .51, the domains
of PACS at .86 (two labelled images per class) to 1 (docs/decisions/0062-the-default-method.md)."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda feature: feature,
    "relu": lambda feature: F.relu(feature),
    "hardswish": lambda feature: F.hardswish(feature),
}


class CustomKD(VectorMethod):
    """Stage 1 in ``begin_epoch``, stage 2 in ``loss``; see the top of this file for what each trains.

    A module that no term needs is not built: without the specific term there is no P_t and no stage 1, and the run is
    that of ``fitnet``; without all three terms it is that of ``labels``.

    Raises:
        ConfigError: the first stage 1 would come after the last epoch, or timm has no such optimiser.
    """

    Options = CustomKDConfig
    options: CustomKDConfig

    def __init__(self, setup: Setup, options: CustomKDConfig) -> None:
        super().__init__(setup, options)
        width, own_width = setup.features.width, setup.student_width
        shape = {"depth": options.depth, "hidden": options.hidden}
        # P_s first: with w_specific 0 the initial weights, and so the run, equal those of ``fitnet``.
        self.general = projection(own_width, width, **shape) if options.w_general else None
        self.logits_from = self._source_of_logits()
        if self.logits_from == "probe":
            self.probe = probe_layer(setup.probe, setup.device)
        with_exits = options.w_logits > 0 and options.logits_loss == "ofa"
        settings = ("--customkd.logits_loss ofa", "--customkd.logits_loss kl")
        self.exits = stage_exits(setup, *settings) if with_exits else None
        self.first = options.stage2_epochs if options.start == "stage2" else 0
        self.epoch = 0
        if not options.customises:
            return
        if self.first >= setup.epochs:
            raise ConfigError(
                f"--customkd.start stage2 with --customkd.stage2_epochs {options.stage2_epochs}: the first stage 1 "
                f"would come after the last of {setup.epochs} epochs. Train longer, or make the cycle shorter."
            )
        self.custom = projection(width, own_width, **shape).to(setup.device)
        self.teacher_side = nn.ModuleDict({"custom": self.custom})
        if options.head != "student":
            head = nn.Linear(own_width, setup.student.num_classes).to(setup.device)
            self.teacher_side["head"] = head.requires_grad_(options.head == "random")
        self.optimiser = _optimiser(self.teacher_side, options)
        self.watch = Watch(setup, self.norm, scale_matters=options.match_norm == "none")

    def _source_of_logits(self) -> str:
        """``--customkd.logits_from``, decided; "" without a term of logits."""
        options, setup = self.options, self.setup
        if not options.w_logits or options.logits_from != "auto":
            return options.logits_from if options.w_logits else ""
        parts = setup.split.labelled, setup.split.unlabelled
        if min(map(len, parts)) < LEAST:  # nothing to tell apart
            return "probe"
        few = (part[thin_out(len(part), MOST, seed=0).numpy()] for part in parts)
        share = separability(*(setup.features.take(part).numpy() for part in few))
        another = share >= ANOTHER_DOMAIN
        setup.student.notes.append(
            f"customkd: stored features tell labelled from unlabelled images in {100 * share:.0f} % of the cases: "
            + (
                "another domain, so the student imitates the logits of the customised features"
                if another
                else "one domain, so the student imitates the logits of the linear probe"
            )
            + " (--customkd.logits_from)"
        )
        return "custom" if another else "probe"

    @classmethod
    def needs(cls, options: CustomKDConfig) -> Needs:
        """Nothing but labelled images if all three terms are off; no label if the general term alone is on."""
        distils = options.distils
        labels = options.customises or options.w_logits > 0 or not distils
        return Needs(unlabelled=distils, vector=distils, labels=labels)

    def student_sides(self) -> dict[str, Side]:
        """P_s: student width -> teacher width; the exits of ofa. P_t is not here: the loop must never train it."""
        sides = {} if self.general is None else {"general": Side(self.general)}
        return sides if self.exits is None else sides | {"exits": Side(self.exits, tap="stages")}

    def owned(self) -> list[nn.Module]:
        """P_t, and the teacher's own head if it has one."""
        return [self.teacher_side] if self.options.customises else []

    def customise(self, feature_BD: Tensor) -> Tensor:
        """f~_t = P_t(norm(f_t)): (B, D) -> (B, C)."""
        width = self.setup.features.width
        if feature_BD.shape[1:] != (width,):
            raise ValueError(
                f"stored feature: shape {tuple(feature_BD.shape)}; expected (B, {width})."
            )
        return ACTIVATIONS[self.options.match_activation](self.custom(self.norm(feature_BD)))

    def customiser(self) -> Callable[[Tensor], Tensor] | None:
        """``customise``, unless no term of the loss needs P_t."""
        return self.customise if self.options.customises else None

    def begin_epoch(self, epoch: int, student: Student) -> dict[str, float]:
        """Stage 1 at the start of a cycle, and measurements of the features after it."""
        options, self.epoch = self.options, epoch
        cycle, inside = divmod(epoch - self.first, options.stage2_epochs)
        if not options.customises or inside or cycle < 0:
            return {}
        numbers: dict[str, float] = {}
        if options.stage1 == "cycle" or (options.stage1 == "once" and cycle == 0):
            numbers = self._stage1(cycle, student)
        look = options.watch_every > 0 and cycle % options.watch_every == 0
        head = self._head(student)
        return numbers | self.watch.customised(self.customise, head, with_cka=look)

    def _stage1(self, cycle: int, student: Student) -> dict[str, float]:
        """Train P_t alone (with ``--customkd.head random`` its head too) on labelled features."""
        options = self.options
        if options.head == "probe":
            self._fit_head()
        head = self._head(student)
        total = torch.zeros(3, dtype=torch.float64, device=self.setup.device)  # loss, right, rows
        for inner in range(options.stage1_epochs):
            number = cycle * options.stage1_epochs + inner
            passed = self.setup.labelled_features(number=number, batch=options.stage1_batch)
            for feature, labels in passed:
                logits = head(self.customise(feature))
                loss = cross_entropy(logits, labels)
                self.optimiser.zero_grad()
                loss.backward()
                self.optimiser.step()
                right = (logits.argmax(1) == labels).sum()
                rows = torch.ones_like(right) * len(labels)
                total += torch.stack([loss.detach() * len(labels), right, rows])
        loss_sum, right_sum, row_sum = total.tolist()
        return {"stage1/loss": loss_sum / row_sum, "stage1/train_top1": right_sum / row_sum}

    def _head(self, student: Student) -> Callable[[Tensor], Tensor]:
        """Classifier of P_t(f_t); never changes the student."""
        return student.frozen_head if self.options.head == "student" else self.teacher_side["head"]

    def _fit_head(self) -> None:
        """A linear probe on the student's present features of the labelled images takes the head's place."""
        setup = self.setup
        labelled = setup.split.labelled
        most, classes = setup.config.eval.probe_rows, setup.student.num_classes
        chosen = labelled[thin_out(len(labelled), most, seed=setup.seed).numpy()]
        features, labels = setup.predict(chosen)[0].numpy(), setup.samples.labels[chosen]
        probe = fit_probe(features, labels, num_classes=classes)
        head = self.teacher_side["head"]
        assert isinstance(head, nn.Linear)
        set_probe(head, probe)

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """Stage 2: P_t and f_t give targets without gradient; student and P_s are trained."""
        options, labels = self.options, batch.labels
        terms: dict[str, Tensor] = {}
        if batch.teacher is None:  # needs: all weights are zero
            return terms
        if self.general is not None:
            general = feature_mse(output.projected["general"], self.target(batch))
            terms["general"] = options.w_general * self._over(batch.teacher) * general
        if self.logits_from == "probe":
            with torch.no_grad():
                target = self.probe(batch.teacher)
            terms |= self._logit_terms(output, target, labels, 1.0)
        if not options.customises:
            return terms
        self.watch.student(output.features)
        ready = float(self.epoch >= self.first)  # P_t is random before its first stage 1
        with torch.no_grad():
            customised = self.customise(batch.teacher)
        if options.w_specific:
            match = layernorm_mse if options.match_norm == "layernorm" else feature_mse
            specific = match(output.features, customised)
            terms["specific"] = ready * options.w_specific * self._over(customised) * specific
        if self.logits_from == "custom":
            with torch.no_grad():
                target = self._head(student)(customised)
            terms |= self._logit_terms(output, target, labels, ready)
        return terms

    def _over(self, target_BD: Tensor) -> float:
        """Factor between a mean over the width and ``--customkd.reduction``."""
        return float(target_BD.shape[1]) if self.options.reduction == "sum" else 1.0

    def _logit_terms(
        self, output: Output, target_BK: Tensor, labels_B: Tensor, weight: float
    ) -> dict[str, Tensor]:
        """The term of the student's logits, and one for each exit."""
        found = {"logits": output.logits}
        found |= {f"exit{n}": logits for n, logits in enumerate(output.projected.get("exits", ()))}
        return {
            name: weight * self._logit_term(logits, target_BK, labels_B)
            for name, logits in found.items()
        }

    def _logit_term(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        options, student, target = self.options, student_BK, target_BK
        temperature = {"temperature": options.temperature}
        if options.logits_loss == "mse":
            value = logit_mse(student, target)
        elif options.logits_loss == "dkd":
            classes = classes_of(options.dkd_target, labels_B, target)
            weights = {"alpha": options.dkd_alpha, "beta": options.dkd_beta}
            value = dkd(student, target, classes, **weights, **temperature)
        elif options.logits_loss == "dist":
            weights = {"beta": options.dist_beta, "gamma": options.dist_gamma}
            value = dist(student, target, **weights, **temperature)
        elif options.logits_loss == "ofa":
            classes = classes_of("teacher", labels_B, target)
            value = ofa(student, target, classes, eps=options.ofa_eps, **temperature)
        else:
            value = kd_kl(student, target, **temperature)
        return options.w_logits * linear_ramp(self.epoch, options.logits_warmup_epochs) * value

    def end_epoch(self, epoch: int) -> dict[str, float]:
        return self.watch.end_epoch() if self.options.customises else {}

    def warnings(self) -> dict[str, str]:
        return self.watch.warnings if self.options.customises else {}

    def state(self) -> dict[str, Any]:
        """The epoch; P_t and its own head with their optimiser, and the state of ``Watch``."""
        state: dict[str, Any] = {"epoch": self.epoch}
        if self.options.customises:
            state["teacher_side"] = self.teacher_side.state_dict()
            state["optimiser"] = self.optimiser.state_dict()
            state["watch"] = self.watch.state()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        if self.options.customises:
            self.teacher_side.load_state_dict(state["teacher_side"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.watch.load_state(state["watch"])


def _optimiser(trained: nn.Module, options: CustomKDConfig) -> torch.optim.Optimizer:
    """timm's optimiser of stage 1. Raises ConfigError: timm has no such optimiser."""
    import timm.optim

    try:
        return timm.optim.create_optimizer_v2(
            trained,
            opt=options.stage1_opt,
            lr=options.stage1_lr,
            weight_decay=options.stage1_weight_decay,
            momentum=0.9,
        )
    except (ValueError, AssertionError) as error:
        raise ConfigError(
            f"--customkd.stage1_opt {options.stage1_opt}: {error}. Names: adamw, sgd, lamb and others of timm."
        ) from error


def projection(from_width: int, to_width: int, *, depth: int, hidden: int) -> nn.Module:
    """(B, from_width) -> (B, to_width): one Linear, or a perceptron with one hidden layer.

    The sources speak of "one projection layer"; a second layer is our choice, with a layer norm between, which works on
    one row at a time, so that neither the batch nor the number of processes matters.
    """
    if depth == 1:
        return nn.Linear(from_width, to_width)
    hidden = hidden or max(from_width, to_width)
    layers = (
        nn.Linear(from_width, hidden),
        nn.LayerNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, to_width),
    )
    return nn.Sequential(*layers)
