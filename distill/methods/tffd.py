"""``tffd``: teacher-free feature distillation, the control that uses no teacher and nothing of the store.

Published are: within a stage, an MSE between the weaker and the stronger half of the channels, sorted by activation;
between stages, an MSE on the channels that both have; their weights 8e-4 and 5e-4. Our choices: strength is the mean
absolute activation of a channel in an image; the weakest channel is paired with the first of the stronger half, and so
on; the stronger half and the deeper stage are targets without gradient; neighbouring stages are compared, on their
first channels, at the smaller of both sizes; terms are summed over stages and pairs.
"""

# B batch, M_i channels and h_i w_i sides of stage i

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, starmap

from distill.lazy import Tensor, nn, torch
from distill.losses.features import between_stages, within_stage
from distill.methods.base import Batch, Method, Needs, Output, Side, Student
from distill.options import CheckedOptions


@dataclass(frozen=True, kw_only=True)
class TfFDConfig(CheckedOptions, name="tffd"):
    """Method ``tffd``: the student's own maps teach each other; no teacher is used (a control)."""

    w_inter: float = 5e-4
    """Weight of the squared error between neighbouring stages."""
    w_intra: float = 8e-4
    """Weight of the squared error between weaker and stronger channels of a stage."""


class TfFD(Method):
    """L = CE(D_L) + w_intra L_intra + w_inter L_inter over all images. Trained: student. No teacher."""

    Options = TfFDConfig
    options: TfFDConfig
    NEEDS = Needs(vector=False)

    def student_sides(self) -> dict[str, Side]:
        """The student's stages, as they are."""
        return {"stages": Side(nn.Identity(), "stages")}

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        stages: tuple[Tensor, ...] = output.projected["stages"]
        intra = torch.stack([within_stage(stage) for stage in stages]).sum()
        inter = torch.stack([stages[0].sum() * 0, *starmap(between_stages, pairwise(stages))]).sum()
        return {"intra": self.options.w_intra * intra, "inter": self.options.w_inter * inter}
