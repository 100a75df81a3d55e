"""``customkd``: CustomKD (Lee et al., CVPR 2025, arXiv:2503.18244) on stored features.

    stage 1   CE(head(P_t(f_t)), y) on D_L                        trained: P_t              frozen: student, f_t
    stage 2   CE(D_L) + w_g MSE(P_s(f_s), f_t)
                      + w_s MSE(f_s, P_t(f_t)) on D_L and D_U     trained: student, P_s     frozen: P_t, f_t

f_t is the stored feature, f_s the student's pre-logits, head its last Linear, P_t and P_s one Linear each. That the
teacher's feature is customised with the student's head and that both features are imitated is in the paper [P], as is
the alternation every epoch [P]. MSE for both terms, and labelled data alone in stage 1, come from summaries [S]. The
frozen head of stage 1, the frozen P_t of stage 2, P_t kept from cycle to cycle, and every weight, rate and size are
our reading [I]. Stage 1 needs no image and no forward pass of the student.
"""

# B batch, D teacher width, C student width, K classes

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.alignment import FeatureNorm, check_width, projection
from distill.data import Batch
from distill.diagnostics import linear_cka, mean_norm, mean_variance, thin_out, top1
from distill.losses import cross_entropy, feature_mse, kd_kl, layernorm_mse
from distill.methods.base import Forward, Method, Setup
from distill.methods.probe_kd import probe_layer
from distill.student import Student

WATCHED = 1024
"""Most rows, of the training parts and of the test part, on which norms and variances are watched."""
INFLATED = 2.0
"""||P_t(f_t)|| / ||f_s|| above which the log warns: the student is pulled towards ever longer features."""
COLLAPSED = 0.01
"""Share of its first value below which the variance of P_t(f_t) makes the log warn: nothing is left to imitate."""


class CustomKD(Method):
    """Stage 1 in ``begin_epoch``, stage 2 in ``loss``; see the top of this file for what each trains."""

    uses_unlabelled: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.options = setup.config.customkd
        width = setup.features.width
        # P_s first: with w_specific 0 the initial weights, and so the run, equal those of ``features``.
        self.general = projection(setup.student_width, width)
        self.custom = projection(width, setup.student_width).to(setup.device)
        self.norm = FeatureNorm(self.options.norm, setup.statistics(self.options.norm)).to(
            setup.device
        )
        self.optimiser = torch.optim.AdamW(
            self.custom.parameters(),
            lr=self.options.stage1_lr,
            weight_decay=self.options.stage1_weight_decay,
        )
        self.probe = (
            probe_layer(setup.probe, setup.device) if self.options.logits_from == "probe" else None
        )
        self.first_variance = 0.0
        self.variance, self.custom_norm = 0.0, 0.0
        self.student_norm = torch.zeros(2, dtype=torch.float64, device=setup.device)  # sum, count
        self._warnings: dict[str, str] = {}

    def student_sides(self) -> dict[str, nn.Module]:
        """P_s: student width -> teacher width. P_t is not here: the loop must never train it."""
        return {"general": self.general}

    def owned(self) -> list[nn.Module]:
        """P_t."""
        return [self.custom]

    def customise(self, feature_BD: Tensor) -> Tensor:
        """f~_t = P_t(norm(f_t)): (B, D) -> (B, C)."""
        check_width("stored feature", feature_BD, self.setup.features.width)
        customised: Tensor = self.custom(self.norm(feature_BD))
        return F.relu(customised) if self.options.match_activation == "relu" else customised

    def begin_epoch(self, epoch: int, student: Student) -> dict[str, float]:
        """Stage 1: train P_t alone, through the student's detached head, at the start of every cycle."""
        if epoch % self.options.stage2_epochs:
            return {}
        weight, bias = _detached_head(student)
        total = torch.zeros(3, dtype=torch.float64, device=weight.device)  # loss, right, rows
        for inner in range(self.options.stage1_epochs):
            number = epoch // self.options.stage2_epochs * self.options.stage1_epochs + inner
            for feature, labels in self.setup.labelled_features(
                number=number, batch=self.options.stage1_batch
            ):
                logits = F.linear(self.customise(feature), weight, bias)
                loss = cross_entropy(logits, labels)
                self.optimiser.zero_grad()
                loss.backward()
                self.optimiser.step()
                right = (logits.argmax(1) == labels).sum()
                total += torch.stack(
                    [loss.detach() * len(labels), right, torch.ones_like(right) * len(labels)]
                )
        loss_sum, right, rows = total.tolist()
        return {
            "stage1/loss": loss_sum / rows,
            "stage1/train_top1": right / rows,
            **self._watch(weight, bias),
        }

    def loss(self, forward: Forward, batch: Batch, student: Student) -> dict[str, Tensor]:
        """Stage 2: P_t and f_t give targets without gradient; student and P_s are trained."""
        output = forward(batch.images)
        assert batch.teacher is not None  # uses_features
        with torch.no_grad():
            customised = self.customise(batch.teacher)
            norms = output.features.detach().double().norm(dim=1)
            self.student_norm += torch.stack([norms.sum(), torch.ones_like(norms).sum()])
        match = layernorm_mse if self.options.match_norm == "layernorm" else feature_mse
        terms = {
            "ce": cross_entropy(output.logits, batch.labels),
            "general": self.options.w_general
            * feature_mse(output.projected["general"], self.norm(batch.teacher)),
            "specific": self.options.w_specific * match(output.features, customised),
        }
        if self.options.w_logits:
            with torch.no_grad():
                custom = F.linear(customised, *_detached_head(student))
                target = custom if self.probe is None else self.probe(batch.teacher)
            kl = kd_kl(output.logits, target, temperature=self.options.temperature)
            terms["logits"] = self.options.w_logits * kl
        return terms

    @torch.no_grad()
    def _watch(self, weight: Tensor, bias: Tensor) -> dict[str, float]:
        """Measure P_t after stage 1, on fixed rows: does it still carry knowledge, and at which scale."""
        split, setup = self.setup.split, self.setup
        training = np.union1d(split.labelled, split.unlabelled)
        seen = training[thin_out(len(training), WATCHED, seed=0).numpy()]
        held_out = split.test[thin_out(len(split.test), WATCHED, seed=0).numpy()]
        feature = setup.features.take(seen).to(setup.device)
        customised = self.customise(feature)
        logits = F.linear(
            self.customise(setup.features.take(held_out).to(setup.device)), weight, bias
        )
        self.custom_norm, self.variance = mean_norm(customised), mean_variance(customised)
        self.first_variance = self.first_variance or self.variance
        return {
            "stage1/test_top1": top1(logits, setup.labels_of(held_out)),
            "norm/f_t": mean_norm(self.norm(feature)),
            "norm/P_t(f_t)": self.custom_norm,
            "variance/P_t(f_t)": self.variance,
            "cka/P_t(f_t),f_t": linear_cka(customised, feature),
        }

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Mean length of the student's feature over the epoch, beside that of its target."""
        total, count = self.student_norm.tolist()
        self.student_norm.zero_()
        length = total / max(count, 1)
        ratio = self.custom_norm / length if length else 0.0
        self._warnings = {}
        if ratio > INFLATED and self.options.match_norm == "none":  # else scale does not matter
            self._warnings["inflation"] = (
                f"||P_t(f_t)|| is {ratio:.1f} times ||f_s||; if that does not pass within a few "
                "epochs the target inflates. "
                "Try --customkd.match_norm layernorm, or fewer --customkd.stage1_epochs."
            )
        if self.variance < COLLAPSED * self.first_variance:
            self._warnings["collapse"] = (
                f"the variance of P_t(f_t) fell from {self.first_variance:.3g} to "
                f"{self.variance:.3g}; the target collapses. "
                "Try a lower --customkd.stage1_weight_decay, or --customkd.norm standardize."
            )
        return {"norm/f_s": length, "norm/P_t(f_t)/f_s": ratio}

    def warnings(self) -> dict[str, str]:
        """See ``Method.warnings``."""
        return self._warnings

    def state(self) -> dict[str, Any]:
        """P_t with its optimiser, and what is watched."""
        return {
            "custom": self.custom.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "student_norm": self.student_norm,
            "watched": [self.first_variance, self.variance, self.custom_norm],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """See ``Method.load_state``."""
        self.custom.load_state_dict(state["custom"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.student_norm.copy_(state["student_norm"])
        self.first_variance, self.variance, self.custom_norm = state["watched"]


def _detached_head(student: Student) -> tuple[Tensor, Tensor]:
    """The student's last Linear as numbers: nothing that is computed with them can change the student."""
    head = student.head
    bias: Tensor | None = (
        head.bias
    )  # None for a Linear without one; torch's annotation forgets that
    if bias is None:
        return head.weight.detach(), torch.zeros(head.out_features, device=head.weight.device)
    return head.weight.detach(), bias.detach()
