"""Measure CustomKD during training: accuracy, scale and variance of P_t(f_t), and similarity of the features.

Nothing here affects the training. The images are the same in every cycle; test labels only count correct predictions.
"""

# N measured images, D teacher width, C student width, K classes

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distill.lazy import Tensor, no_grad, torch
from distill.measures.feature_similarity import (
    gram,
    gram_cka,
    mean_norm,
    mean_variance,
    thin_out,
    top1,
)
from distill.methods.base import FeatureNorm, Setup

WATCHED = 1024  # most training rows, and most test rows, that are measured
INFLATED = 2.0  # ||P_t(f_t)|| / ||f_s|| above which the log warns that the target inflates
COLLAPSED = 0.01
"""Share of the first variance of P_t(f_t) below which the log warns that the target collapses."""

Function = Callable[[Tensor], Tensor]


class Watch:
    """Norms, variances, accuracy and alignment of f_t, P_t(f_t) and f_s.

    Args:
        setup: See ``Setup``.
        scale_matters: Whether the loss depends on the length of P_t(f_t), so that a growing one is warned of.
    """

    def __init__(self, setup: Setup, norm: FeatureNorm, *, scale_matters: bool) -> None:
        self.setup = setup
        self.norm = norm
        self.scale_matters = scale_matters
        self.seen, self.held_out = (
            part[thin_out(len(part), WATCHED, seed=0).numpy()]
            for part in (setup.training, setup.split.test)
        )
        self.first_variance = 0.0
        self.variance, self.custom_norm = 0.0, 0.0
        self.student_norm = torch.zeros(2, dtype=torch.float64, device=setup.device)  # sum, count
        self.warnings: dict[str, str] = {}

    @no_grad
    def customised(
        self, customise: Function, head: Function, *, with_cka: bool
    ) -> dict[str, float]:
        """Measure at the start of a cycle, after its stage 1 if it has one.

        Args:
            customise: (N, D) raw stored features -> (N, C).
            head: (N, C) -> (N, K), the head of stage 1.
            with_cka: run the student on the test list, too, and compare the three features.

        Returns:
            Numbers for the log. "cka/" are on the test list, with f_t as it is stored.
        """
        setup = self.setup
        feature = setup.features.take(self.seen).to(setup.device)
        custom = customise(feature)
        self.custom_norm, self.variance = mean_norm(custom), mean_variance(custom)
        self.first_variance = self.first_variance or self.variance
        test_feature = setup.features.take(self.held_out).to(setup.device)
        test_custom = customise(test_feature)
        numbers = {
            "stage1/test_top1": top1(head(test_custom), setup.labels_of(self.held_out)),
            "norm/f_t": mean_norm(self.norm(feature)),
            "norm/P_t(f_t)": self.custom_norm,
            "variance/P_t(f_t)": self.variance,
        }
        if with_cka and len(self.held_out) > 1:
            stored, custom = gram(test_feature), gram(test_custom)
            student = gram(setup.predict(self.held_out)[0].to(setup.device))
            numbers["cka/P_t(f_t),f_t"] = gram_cka(custom, stored)
            numbers["cka/f_s,f_t"] = gram_cka(student, stored)
            numbers["cka/f_s,P_t(f_t)"] = gram_cka(student, custom)
        return numbers

    @no_grad
    def student(self, features: Tensor) -> None:
        """Record the norms of the student's features (B, C) of one step."""
        norms = features.detach().double().norm(dim=1)
        self.student_norm += torch.stack([norms.sum(), torch.ones_like(norms).sum()])

    def end_epoch(self) -> dict[str, float]:
        """Mean length of the student's feature over the epoch, beside that of its target."""
        total, count = self.student_norm.tolist()
        self.student_norm.zero_()
        length = total / max(count, 1)
        ratio = self.custom_norm / length if length else 0.0
        self.warnings = {}
        if ratio > INFLATED and self.scale_matters:
            self.warnings["inflation"] = (
                f"||P_t(f_t)|| is {ratio:.1f} times ||f_s||; if that does not pass within a few "
                "epochs the target inflates. "
                "Try --customkd.match_norm layernorm, or fewer --customkd.stage1_epochs."
            )
        if self.variance < COLLAPSED * self.first_variance:
            self.warnings["collapse"] = (
                f"the variance of P_t(f_t) fell from {self.first_variance:.3g} to "
                f"{self.variance:.3g}; the target collapses. "
                "Try a lower --customkd.stage1_weight_decay, or --customkd.norm standardize."
            )
        return {"norm/f_s": length, "norm/P_t(f_t)/f_s": ratio}

    def state(self) -> dict[str, Any]:
        return {
            "student_norm": self.student_norm,
            "numbers": [self.first_variance, self.variance, self.custom_norm],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` returned."""
        self.student_norm.copy_(state["student_norm"])
        self.first_variance, self.variance, self.custom_norm = state["numbers"]
