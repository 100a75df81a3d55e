"""Point clouds in phase two: batches of a student's inputs."""

# n clouds of a batch, P most points, C numbers per point

import numpy as np
import torch
from torch import Tensor

from distill.data.pictures import ViewDataset
from distill.data.rules import PointRule
from distill.data.schedule import Request
from featstore.files.array_types import Array
from featstore.sources.load import Frame
from featstore.sources.points import decode_points, prepare_points

WHOLE = Frame((1, 1), (0, 0, 1, 1), False, (1, 1))
"""Frame of every cloud: nothing is cut."""


class PointDataset(ViewDataset):
    """Point clouds by request; the strong copy of a cloud is turned about z by a random angle."""

    rule: PointRule

    @property
    def row_bytes(self) -> int:
        return 4 * self.size[0] * self.size[1]

    def blank(self, count: int) -> Array:
        """(n, P, C) float32."""
        return np.zeros((count, *self.size), np.float32)

    def as_tensor(self, pixels: Array) -> Tensor:
        """As they are."""
        return torch.from_numpy(pixels)

    def cut(self, request: Request, data: bytes) -> tuple[Array, Frame]:
        """Decode and prepare one cloud."""
        points = decode_points(data, self.samples.ids[request.sample])
        return prepare_points(points, self.rule.record), WHOLE


class TurnedAboutZ:
    """Turn strong copies about z by an angle that is a pure function of the request."""

    def __call__(self, points_PC: Array, request: Request) -> Array:
        """(P, C) -> (P, C); what leaves -1..1 is clipped."""
        if not request.strong:
            return points_PC
        angle = np.random.default_rng(request.draw).uniform(0, 2 * np.pi)
        cos, sin = np.cos(angle), np.sin(angle)
        turned = points_PC.copy()
        turned[:, :2] = np.clip(
            points_PC[:, :2] @ np.array([[cos, sin], [-sin, cos]], np.float32), -1, 1
        )
        return turned
