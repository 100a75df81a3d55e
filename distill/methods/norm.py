"""``norm``: N-to-one representations (NORM, Liu et al., ICLR 2023), on the pooled feature.

    e = BN(W_1 f_s)                 (B, N * D)    imitates the stored feature N times: L = N MSE(e, repeat(f_t, N))
    logits = head(f_s + BN(W_2 e))                no non-linearity anywhere between f_s and head

The paper expands the student's last map with 1x1 convolutions; here the stored vector and f_s count as maps of one
place. What is trained is linear, so after training it is merged into the student's last Linear, exactly, and the
exported student is the plain model. Over a stored grid that would only hold for students whose last map is averaged
and then classified: most edge models have further layers after pooling, so only the pooled form is offered.
"""

# B batch, C student width, D teacher width, N copies, K classes

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distill.lazy import Tensor, nn, no_grad
from distill.losses.features import many_to_one_mse
from distill.methods.base import ADAPTER, Batch, Needs, Output, Setup, Side, Student, VectorMethod
from distill.options import VectorOptions
from featstore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NORMConfig(VectorOptions, name="norm", positive=("copies",)):
    """Method ``norm``: many representations of the student imitate one feature (NORM, Liu et al., ICLR 2023)."""

    weight: float = 1.0
    """Weight of N times the squared error beside the cross entropy; published code uses 1 to 16."""
    copies: int = 8
    """Number N of student representations per stored feature."""


class NORM(VectorMethod):
    """L = CE(D_L) + weight N MSE(e, f_t) over all images. Trained: student, expansion, contraction. Frozen: f_t.

    Raises:
        ConfigError: the student's head is more than one Linear with a bias, so that nothing could be merged into it.
    """

    Options = NORMConfig
    options: NORMConfig
    NEEDS = Needs(labels=True)

    def __init__(self, setup: Setup, options: NORMConfig) -> None:
        super().__init__(setup, options)
        head = setup.student.head
        if not isinstance(head, nn.Linear) or head.bias is None:
            raise ConfigError(
                f"--methods norm: the head of {setup.student.name} is {head}; expected one Linear with a bias, "
                "into which the expansion is merged. Use --student.feature prelogits, another student, or "
                "--methods fitnet."
            )

    def student_sides(self) -> dict[str, Side]:
        """The residual expansion in front of the head."""
        from distill.methods.modules import Expanded, ManyToOne

        adapter = ManyToOne(
            self.setup.student_width, self.options.copies * self.setup.features.width
        )
        return {ADAPTER: Side(adapter), "expanded": Side(Expanded(adapter))}

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        imitation = many_to_one_mse(output.projected["expanded"], self.target(batch))
        return {"many_to_one": self.options.weight * imitation}

    @no_grad
    def fold(self, student: Student, sides: Mapping[str, nn.Module]) -> None:
        """head(f + contract(expand(f))) as one Linear, with the batch statistics of eval mode; see ``Method.fold``."""
        from distill.methods.modules import ManyToOne

        adapter, head = sides[ADAPTER], student.head
        assert isinstance(adapter, ManyToOne)
        assert isinstance(head, nn.Linear)
        first, first_shift = _merged(adapter.expand)
        second, second_shift = _merged(adapter.contract)
        weight = head.weight.double()
        head.bias.add_(weight @ (second @ first_shift + second_shift))
        head.weight.add_(weight @ second @ first)


def _merged(part: nn.Module) -> tuple[Tensor, Tensor]:
    """Linear and batch norm, as one matrix and one shift, in float64."""
    linear, norm = part.children()
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    matrix = scale[:, None] * linear.weight.double()
    return matrix, norm.bias.double() - scale * norm.running_mean.double()
