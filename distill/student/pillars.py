"""Student ``pillars``: an encoder of point clouds after PointPillars, in plain torch, also as a teacher. timm knows it.

Points are grouped by the cell of a grid over x and y that they lie in (a pillar). A small network on every point and a
maximum over each pillar give the pillar's feature; convolutions on the grid give the last map; its mean and maximum
over all cells are the feature of the cloud.

    --student.name pillars --student.model_args '{width: 8}'
    --teacher.library python --teacher.name distill.student.pillars:teacher --teacher.model_args '{width: 64}'
"""

# B clouds, P most points, C numbers per point, T points of all clouds, n occupied cells, W width, h w cells, K classes

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.models import register_model
from torch import Tensor, nn

from featstore.format.manifest_records import PointRecord

NAME = "pillars"
OFFSETS = 6  # numbers that are added to each point: from its pillar's centre and mean point, and the pillar's count


class Grouped(NamedTuple):
    """The points of some clouds by pillar."""

    points: Tensor  # (T, C + OFFSETS)
    pillar: Tensor  # (T,) of each point, in ``cells``
    cells: Tensor  # (n,) occupied cells, ascending, as (cloud * h + y) * w + x
    counts: Tensor  # (n,) points of each


def group(clouds_BPC: Tensor, grid: tuple[int, int]) -> Grouped:
    """Group points by the cell that they lie in.

    Args:
        clouds_BPC: x, y and z within -1..1; NaN behind the last point of a cloud.
        grid: (h, w).
    """
    known = ~clouds_BPC[..., 0].isnan()
    points, cloud = clouds_BPC[known], known.nonzero()[:, 0]
    sizes = torch.tensor([grid[1], grid[0]], device=points.device)
    place = (
        ((points[:, :2] + 1) / 2 * sizes).long().clamp(min=torch.zeros_like(sizes), max=sizes - 1)
    )
    key = (cloud * grid[0] + place[:, 1]) * grid[1] + place[:, 0]
    cells, pillar, counts = key.unique(return_inverse=True, return_counts=True)
    sums = points.new_zeros(len(cells), 3).index_add_(0, pillar, points[:, :3])
    centre = (place + 0.5) / sizes * 2 - 1
    from_centre, from_mean = (
        points[:, :2] - centre,
        points[:, :3] - (sums / counts[:, None])[pillar],
    )
    count = counts[pillar, None].to(points.dtype).log()
    return Grouped(torch.cat([points, from_centre, from_mean, count], 1), pillar, cells, counts)


class Pillars(nn.Module):
    """(B, P, C) points -> (B, K) logits, or (B, 2 W) without classes.

    Args:
        num_classes: K; 0 for a backbone.
        width: W, of the pillars and of all convolutions.
        depth: convolutions.
        grid: (h, w).
        columns, most_points, bounds: see ``PointRecord``.

    Attributes:
        points: how a cloud becomes the input.
    """

    def __init__(
        self,
        num_classes: int = 0,
        *,
        width: int = 32,
        depth: int = 3,
        grid: Sequence[int] = (32, 32),
        columns: int = 3,
        most_points: int = 1024,
        bounds: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if min(width, depth) < 1:
            raise ValueError("width and depth must be positive")
        self.points = PointRecord.model_validate(
            {"columns": columns, "most_points": most_points, "grid": grid, "bounds": bounds}
        )
        self.encoder = nn.Sequential(
            nn.Linear(columns + OFFSETS, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
                for _ in range(depth)
            )
        )  # fmt: skip
        self.classifier = nn.Linear(2 * width, num_classes) if num_classes else nn.Identity()
        self.pretrained_cfg = {
            "architecture": NAME,
            "input_size": (1, most_points, columns),
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
        }

    def example_input(self) -> Tensor:
        """(1, P, C) of some cloud."""
        shape = (1, self.points.most_points, self.points.columns)
        return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def get_classifier(self) -> nn.Module:
        """The last Linear; Identity of a backbone."""
        return self.classifier

    def scatter(self, grouped: Grouped, count: int) -> Tensor:
        """Encode the pillars of ``count`` clouds: (B, W, h, w), zeros where a cell is empty."""
        encoded = self.encoder(grouped.points)
        height, width = self.points.grid
        index = grouped.pillar[:, None].expand_as(encoded)
        pillars = encoded.new_zeros(len(grouped.cells), encoded.shape[1])
        # Encoded numbers are not negative, so zeros change no maximum.
        pillars = pillars.scatter_reduce(0, index, encoded, "amax")
        flat = encoded.new_zeros(count * height * width, encoded.shape[1])
        flat = flat.index_copy(0, grouped.cells, pillars)
        mapped: Tensor = flat.reshape(count, height, width, -1).permute(0, 3, 1, 2)
        return mapped

    def forward_features(self, clouds_BPC: Tensor) -> Tensor:
        """(B, W, h, w)."""
        grouped = group(clouds_BPC, self.points.grid)
        return self.blocks(self.scatter(grouped, len(clouds_BPC)))  # type: ignore[no-any-return]

    def forward_head(self, map_BWhw: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, K), or the feature (B, 2 W) with ``pre_logits``."""
        features = torch.cat([map_BWhw.mean((2, 3)), map_BWhw.amax((2, 3))], 1)
        return features if pre_logits else self.classifier(features)

    def forward(self, clouds_BPC: Tensor) -> Any:
        """(B, K), or (B, 2 W) of a backbone."""
        return self.forward_head(self.forward_features(clouds_BPC))


class PillarTeacher(Pillars):
    """The same network with all that a store keeps of a cloud: vectors, and features of the occupied cells."""

    def forward(self, clouds_BPC: Tensor) -> dict[str, Any]:
        """Return ``pooled``, ``logits`` if there are classes, and lists of the cells: coordinates, counts, features."""
        count = len(clouds_BPC)
        height, width = self.points.grid
        grouped = group(clouds_BPC, self.points.grid)
        last = self.blocks(self.scatter(grouped, count))
        pooled = self.forward_head(last, pre_logits=True)
        cell = grouped.cells % (height * width)
        coords = torch.stack([torch.zeros_like(cell), cell // width, cell % width], 1)
        features = last.permute(0, 2, 3, 1).flatten(0, 2)[grouped.cells]
        sizes = torch.bincount(grouped.cells // (height * width), minlength=count).tolist()
        return {
            "pooled": pooled,
            **(
                {"logits": self.classifier(pooled)}
                if self.classifier.__class__ is nn.Linear
                else {}
            ),
            "voxel_coords": list(coords.to(torch.int16).split(sizes)),
            "voxel_counts": list(grouped.counts.to(torch.int32).split(sizes)),
            "voxel_features": list(features.split(sizes)),
        }


def teacher(**model_args: Any) -> PillarTeacher:
    """A teacher for ``--teacher.library python``; arguments are those of ``Pillars``."""
    return PillarTeacher(**model_args)


@register_model
def pillars(pretrained: bool = False, **kwargs: Any) -> Pillars:
    """Pillars of 32 channels and three convolutions; 28 thousand parameters by default."""
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(name, None)
    if pretrained:
        raise RuntimeError("there are no pretrained weights of pillars")
    return Pillars(**kwargs)
