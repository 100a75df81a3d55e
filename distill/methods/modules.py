"""Modules that methods add to the student; apart from the methods, so that those are read without torch."""

# B batch, C student width, D teacher width, N copies, K classes, M_i h_i w_i the map of stage i, g side of a grid

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from distill.losses.features import resize_map
from distill.student.slimmable import Slimmable


class MapProjection(nn.Module):
    """(B, M, h, w) -> (B, D, g, g): a 1x1 convolution with batch norm at the smaller of both sizes."""

    def __init__(self, channels: int, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.project = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, map_BMhw: Tensor) -> Tensor:
        """Area averages where the map shrinks, bilinear where it grows."""
        height, width = map_BMhw.shape[2:]
        smaller = resize_map(map_BMhw, (min(height, self.side), min(width, self.side)))
        return resize_map(self.project(smaller), (self.side, self.side))


class ManyToOne(nn.Module):
    """Residual linear expansion of a feature, (B, C) -> (B, C); keeps the expanded one of its last pass."""

    def __init__(self, width: int, expanded_width: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(
            nn.Linear(width, expanded_width, bias=False), nn.BatchNorm1d(expanded_width)
        )
        self.contract = nn.Sequential(
            nn.Linear(expanded_width, width, bias=False), nn.BatchNorm1d(width)
        )
        self.expanded: Tensor | None = None

    def forward(self, feature_BC: Tensor) -> Tensor:
        """f + contract(expand(f))."""
        self.expanded = self.expand(feature_BC)
        return feature_BC + self.contract(self.expanded)  # type: ignore[no-any-return]


class Expanded(nn.Module):
    """The side that returns what ``ManyToOne`` expanded in the same pass, so that nothing is computed twice."""

    def __init__(self, of: ManyToOne) -> None:
        super().__init__()
        self._of = (of,)  # in a tuple: its parameters belong to the adapter alone

    def forward(self, feature_BC: Tensor) -> Tensor:
        """(B, N * D); whatever it is called with."""
        expanded, self._of[0].expanded = self._of[0].expanded, None
        assert expanded is not None, "the adapter runs before the sides"
        return expanded


class Exits(nn.Module):
    """From the maps of all stages to logits, one exit per stage.

    An exit goes through the channels of the later stages by separable convolutions that halve the map, is averaged over
    places, and ends in a Linear. The parts are the paper's, the number of convolutions and their widths are our choice.

    Args:
        channels: M_i of every stage, from the input on.
        num_classes: K.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.exits = nn.ModuleList(
            nn.Sequential(
                *(_halve(wide, wider) for wide, wider in pairwise(channels[stage:])),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(channels[-1], num_classes),
            )
            for stage in range(len(channels))
        )

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(B, M_i, h_i, w_i) of every stage -> (B, K) of every stage."""
        return tuple(leave(seen) for leave, seen in zip(self.exits, stages, strict=True))


def _halve(channels: int, to_channels: int) -> nn.Sequential:
    """Separable convolution: (B, channels, h, w) -> (B, to_channels, ceil(h / 2), ceil(w / 2))."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, to_channels, 1, bias=False),
        nn.BatchNorm2d(to_channels),
        nn.ReLU(),
    )


class Basis(nn.Module):
    """Mean and principal axes of a feature, largest variance first; without parameters."""

    mean_D: Tensor
    axes_DD: Tensor

    def __init__(self, mean_D: Tensor, axes_DD: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_D", mean_D)
        self.register_buffer("axes_DD", axes_DD)

    def forward(self, feature_BD: Tensor) -> Tensor:
        """(B, D) -> (B, D) float32 coefficients."""
        return (feature_BD.float() - self.mean_D) @ self.axes_DD


class PatientLinear(nn.Linear):
    """A Linear that, while it is ``alone``, sends no gradient to what it is given."""

    alone = False

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.detach() if self.alone else input)


class Sandwich(nn.Module):
    """Queries, keys and values at the sizes of a step: the largest, the smallest, and some at random.

    Those of the largest size are kept from the student's own pass over the same inputs.

    Args:
        model: A slimmable student, also an ``nn.Module``.
        randoms: Sizes that are drawn.
    """

    def __init__(self, model: Slimmable, randoms: int) -> None:
        super().__init__()
        self._of = (model,)  # in a tuple: its parameters belong to the student alone
        self.randoms = randoms
        self._largest: Tensor | None = None
        last: Any = model.blocks[-1]
        last.attn.qkv.register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        if layer.training:
            self._largest = output

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """(B, N, 3 C) of every size; the smallest is left out where it is the largest."""
        model, kept = self._of[0], self._largest
        self._largest = None
        found = [model.qkv(model.largest, inputs) if kept is None else kept[: len(inputs)]]
        if model.smallest == model.largest:
            return found
        drawn = torch.randint(len(model.sizes), (self.randoms,)).tolist()
        sizes = [model.smallest, *(model.sizes[place] for place in drawn)]
        return found + [model.qkv(size, inputs) for size in sizes]
