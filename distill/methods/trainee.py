"""All that the loop's optimiser trains, as one module: distributed training wraps one module."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from distill.methods.base import ADAPTER, COPIES, Output, Side
from distill.student.model import Student


class Trainee(nn.Module):
    """The student and the modules on its side: all that the loop's optimiser trains."""

    def __init__(self, student: Student, sides: dict[str, Side]) -> None:
        super().__init__()
        self.student = student
        self.taps = {name: side.tap for name, side in sides.items()}
        self.sides = nn.ModuleDict({name: side.module for name, side in sides.items()})

    def forward(self, images: Tensor, inputs: Mapping[str, Tensor] | None = None) -> Output:
        """Run the student on (B, 3, H, W), then every side on what it taps.

        Args:
            images: normalised.
            inputs: tensors of ``Method.inputs``, for sides that do not take the student's output.
        """
        seen = self.student(
            images,
            adapter=dict(self.sides.items()).get(ADAPTER),
            stages="stages" in self.taps.values(),
        )
        at: dict[str, Any] = {
            **(inputs or {}),
            "feature": seen.features,
            "map": seen.map,
            "stages": seen.stages,
        }
        projected = {
            name: side(at[self.taps[name]]) for name, side in self.sides.items() if name != ADAPTER
        }
        if COPIES in at:
            projected[COPIES] = self.student(at[COPIES]).features
        return Output(seen.features, seen.logits, projected, seen.map)
