"""Fake quantisation of a student while it is trained: its values take the steps that int8 has, its keys stay.

Where onnxruntime puts a QuantizeLinear (``quantise``), a value passes through a ``FakeQuantise``: before every
convolution and Linear, around activations that are not folded into one, and after every normalisation layer, whose
output additions and gates read. Weights are rounded per output channel. A scale per channel commutes with batch norm's
factor per channel, so rounding before the norm is folded in is the same as rounding after.
"""

# B batch, O output channels

import torch
from timm.layers.activations import HardSigmoid, HardSwish, Swish
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distill.student.model import Student

MOMENTUM = 0.05  # weight of a batch in the moving range of its values

ACTIVATIONS = (nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.SiLU, nn.GELU, HardSwish, HardSigmoid, Swish)  # fmt: skip
"""Not ReLU: onnxruntime folds it into the range of what comes before."""

NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


class FakeQuantise(nn.Module):
    """Values to the nearest of 256 steps of a moving range that contains zero; the gradient passes inside the range."""

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("low", "high", "seen"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        """Any shape; same shape and type."""
        exact = values.float()
        if self.training:
            self._watch(exact.detach())
        scale = ((self.high - self.low) / 255).clamp(min=1e-8)
        zero = (-self.low / scale).round().clamp(0, 255).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(exact, scale, zero, 0, 255).to(values.dtype)

    @torch.no_grad()
    def _watch(self, values: Tensor) -> None:
        low, high = values.aminmax()
        weight = torch.where(self.seen > 0, MOMENTUM, 1.0)
        self.low.lerp_(low.clamp(max=0), weight)
        self.high.lerp_(high.clamp(min=0), weight)
        self.seen.fill_(1)

    def before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Hook in front of a module."""
        return (self(inputs[0]), *inputs[1:])

    def after(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Hook behind a module."""
        quantised: Tensor = self(output)
        return quantised


class FakeWeight(nn.Module):
    """Weights to steps of their channel's largest absolute value over ``levels``; the gradient passes."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, weight: Tensor) -> Tensor:
        """(O, ...), same shape."""
        largest = weight.detach().flatten(1).abs().amax(1).float()
        scale = (largest / self.levels).clamp(min=1e-8)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weight.float(), scale, zero, 0, -self.levels, self.levels
        ).to(weight.dtype)


def attach(student: Student, *, levels: int) -> None:
    """Let a student compute as if it were quantised. Statistics of batch norm stay as they are from then on.

    The ranges are in ``student.fake_quantisers``, beside the model.

    Args:
        student: to be changed in place.
        levels: of a weight on either side of zero; 64 for 7 bits, 127 for 8.
    """
    points = nn.ModuleList()

    def point() -> FakeQuantise:
        points.append(made := FakeQuantise())
        return made

    for module in list(student.model.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(point().before)
            if module.bias is not None:
                module.register_forward_hook(point().after)
            parametrize.register_parametrization(module, "weight", FakeWeight(levels))
        elif isinstance(module, ACTIVATIONS):
            module.register_forward_pre_hook(point().before)
            module.register_forward_hook(point().after)
        elif isinstance(module, NORMS):
            module.register_forward_hook(point().after)
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(_keep_statistics)
    student.fake_quantisers = points


def _keep_statistics(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    module.training = False


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict under the names that it had before ``attach``, not rounded."""
    return {
        name.replace("parametrizations.weight.original", "weight"): value
        for name, value in model.state_dict().items()
    }
