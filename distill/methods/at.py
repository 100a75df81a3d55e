"""``at``: attention transfer on tokens (after Zagoruyko and Komodakis, ICLR 2017).

The student's last map should have its energy where the stored patch grid has it. Tokens of high norm that some ViTs put
into the background (DINOv2 without registers [M]) are energy too: prefer a teacher without them.
"""

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import Tensor
from distill.losses import cross_entropy
from distill.losses.features import attention_transfer
from distill.methods.base import Batch, Method, Needs, Output, Setup, Student
from distill.options import CheckedOptions
from featstore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ATConfig(CheckedOptions, name="at"):
    """Method ``at``: where the student's last map and the stored grid have their energy (attention transfer)."""

    weight: float = 1000.0
    """Weight of the attention term beside the cross entropy."""


class AttentionTransfer(Method):
    """L = CE(D_L) + weight mean((A_s - A_t)^2) over all images. Trained: student. Frozen: the stored grid.

    Raises:
        ConfigError: the student's map or the stored grid has a single place, where energy cannot be compared.
    """

    Options = ATConfig
    options: ATConfig

    def __init__(self, setup: Setup, options: ATConfig) -> None:
        super().__init__(setup, options)
        assert setup.grid is not None  # needs
        height, width = setup.student.map_size
        if min(height * width, setup.grid.side) == 1:
            raise ConfigError(
                f"--methods at: the last map of {setup.student.name} has {height} x {width} places and the stored grid "
                f"{setup.grid.field} {setup.grid.side} x {setup.grid.side}; energy can only be compared between "
                "several. Use a larger --student.image_size or another --grid_field."
            )

    @classmethod
    def needs(cls, options: ATConfig) -> Needs:
        """The stored grid."""
        return Needs(vector=False, grid=True)

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        assert batch.grid is not None  # needs
        transfer = attention_transfer(output.map, batch.grid.permute(0, 3, 1, 2))
        return {
            "ce": cross_entropy(output.logits, batch.labels),
            "attention": self.options.weight * transfer,
        }
