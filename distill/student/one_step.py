"""Student ``one_step``: generators of grey pictures from noise and a class in one pass. timm knows it.

Several of them share the classes: each gets the rows of its own classes, in training and afterwards (multi-student
distillation, arXiv:2410.23274). ``UNet`` is also small enough to be the network of a diffusion model.
"""

# B pictures, H W sides, C width, E width of the embedding of class and noise level, K classes

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

from featstore.format.pseudo_samples import CONDITION_MEAN, CONDITION_STD, split_condition

NAME = "one_step"
CELL = 2  # sides of the cells that become channels; the network halves the map once more


class ResidualBlock(nn.Module):
    """Two convolutions around a residual; class and noise level scale and shift the map between them."""

    def __init__(self, width: int, embed: int) -> None:
        super().__init__()
        groups = math.gcd(8, width)
        self.norm1, self.norm2 = nn.GroupNorm(groups, width), nn.GroupNorm(groups, width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.modulate = nn.Linear(embed, 2 * width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, h, w), (B, E) -> (B, C, h, w)."""
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, 1)
        hidden = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        changed: Tensor = x + self.conv2(F.silu(hidden))
        return changed


class UNet(nn.Module):
    """(B, 1, H, W) -> (B, 1, H, W) for a class, and for a noise level if there is one; H and W divide by 4.

    Args:
        width: C at half the size; 2 C at a quarter.
        classes: K.
        depth: blocks at each size.
        levels: the network is told a noise level.
    """

    def __init__(self, *, width: int, classes: int, depth: int = 1, levels: bool = False) -> None:
        super().__init__()
        embed = 2 * width
        self.classes = nn.Embedding(classes, embed)
        self.level = nn.Sequential(nn.Linear(embed, embed), nn.SiLU()) if levels else None
        self.first = nn.Conv2d(CELL**2, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.up = nn.Conv2d(2 * width, width, 1)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.fine, self.coarse, self.late = (
            nn.ModuleList(ResidualBlock(size, embed) for _ in range(count))
            for size, count in ((width, depth), (2 * width, 2 * depth), (width, depth))
        )
        self.last = nn.Conv2d(width, CELL**2, 3, padding=1)

    def forward(self, x: Tensor, level: Tensor | None, classes: Tensor) -> Tensor:
        """Run the network; ``level`` (B,) is of the order of 1, classes (B,) int64."""
        embedding = self.classes(classes)
        if self.level is not None:
            assert level is not None
            half = embedding.shape[1] // 2
            powers = torch.arange(half, device=x.device) * (math.log(100) / max(1, half - 1))
            angles = level[:, None] * powers.exp()
            embedding = embedding + self.level(torch.cat([angles.cos(), angles.sin()], 1))
        fine = self.first(F.pixel_unshuffle(x, CELL))
        for block in self.fine:
            fine = block(fine, embedding)
        coarse = self.down(fine)
        for block in self.coarse:
            coarse = block(coarse, embedding)
        coarse = F.interpolate(self.up(coarse), scale_factor=2.0)
        joined = self.join(torch.cat([fine, coarse], 1))
        for block in self.late:
            joined = block(joined, embedding)
        return F.pixel_shuffle(self.last(F.silu(joined)), CELL)


def route_of(students: Sequence[Mapping[str, Any]], classes: int) -> list[int]:
    """(K,) student of each class.

    Args:
        students: one mapping for each, ``{where: [0, 1, "4-7"]}``: its classes as numbers and ranges.
        classes: K.

    Raises:
        ValueError: an entry of another form, a class that two students have, or that none has.
    """
    route: list[int | None] = [None] * classes
    for number, student in enumerate(students):
        if set(student) != {"where"} or not student["where"]:
            raise ValueError(f"student {number}: expected {{where: [classes]}}, found {student!r}")
        for item in student["where"]:
            first, _, last = str(item).partition("-")
            if not (first.isdecimal() and (last or first).isdecimal()):
                raise ValueError(f"student {number}: {item!r} is no class, nor a range such as 0-4")
            for own in range(int(first), int(last or first) + 1):
                if own >= classes or route[own] is not None:
                    why = f"also has student {route[own]}" if own < classes else "does not exist"
                    raise ValueError(f"student {number}: class {own} of {classes} {why}")
                route[own] = number
    free = [number for number, student in enumerate(route) if student is None]
    if free:
        raise ValueError(f"no student has the classes {free[:8]} of {classes}; add them to a where")
    return [student for student in route if student is not None]


class OneStep(nn.Module):
    """(B, 3, H, W) normalised noise with classes -> (B, H W) grey pictures, about -1 to 1, row by row.

    Args:
        classes: K, all of them.
        size: H = W, pixels.
        width: see ``UNet``.
        students: see ``route_of``; empty for one student of all classes.

    Attributes:
        route: (K,) student of each class: the router.
    """

    route: Tensor

    def __init__(
        self,
        *,
        classes: int,
        size: int = 28,
        width: int = 16,
        depth: int = 1,
        students: Sequence[Mapping[str, Any]] = (),
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        if num_classes:
            raise ValueError("one_step is a generator for --task generate; it has no classifier")
        if size % 4 or min(classes, size, width, depth) < 1:
            raise ValueError(f"size {size} must divide by 4; classes, width and depth be positive")
        self.size = size
        students = students or [{"where": [f"0-{classes - 1}"]}]
        self.register_buffer("route", torch.tensor(route_of(students, classes)), persistent=False)
        self.students = nn.ModuleList(
            UNet(width=width, classes=classes, depth=depth) for _ in students
        )
        self.pretrained_cfg = {
            "architecture": NAME, "input_size": (3, size, size), "mean": CONDITION_MEAN, "std": CONDITION_STD,
        }  # fmt: skip

    def example_input(self) -> Tensor:
        """(1, 3, H, W), of class 0."""
        return torch.zeros(1, 3, self.size, self.size)

    def get_classifier(self) -> nn.Module:
        """None: Identity."""
        return nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 1, H, W): every row from the student of its class."""
        noise, classes = split_condition(images)
        classes = classes.clamp(0, len(self.route) - 1)
        if len(self.students) == 1:
            found: Tensor = self.students[0](noise, None, classes)
            return found
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return self._selected(noise, classes)
        route, out = self.route[classes], torch.zeros_like(noise)
        for number, student in enumerate(self.students):
            rows = (route == number).nonzero()[:, 0]
            if len(rows):
                out[rows] = student(noise[rows], None, classes[rows]).to(out.dtype)
            elif self.training:  # distributed training wants a gradient for every parameter
                out = out + 0 * student(noise[:1], None, classes[:1]).sum().to(out.dtype)
        return out

    def _selected(self, noise: Tensor, classes: Tensor) -> Tensor:
        """As ``forward_features``, every student on every row: for graphs of fixed shapes."""
        every = torch.stack([student(noise, None, classes) for student in self.students], 1)
        route = self.route[classes].view(-1, 1, 1, 1, 1).expand(-1, 1, *noise.shape[1:])
        return every.gather(1, route)[:, 0]

    def forward_head(self, pictures: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, 1, H, W) -> (B, H W)."""
        return pictures.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Generate one picture from each."""
        return self.forward_head(self.forward_features(images))


@register_model
def one_step(pretrained: bool = False, **kwargs: Any) -> OneStep:
    """One-step generators; ``students`` shares the classes among several."""
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(name, None)
    if pretrained:
        raise RuntimeError("there are no pretrained weights of one_step")
    return OneStep(**kwargs)
