"""``fitnet`` and ``fitnet_grid``: the student's feature or last map imitates the stored one (FitNets).

Romero et al., ICLR 2015 match middle layers through a regressor; here the vector goes through one Linear, and the map
through a 1x1 convolution with batch norm, at the last layer, as that is what a store holds. No ReLU follows, since
stored features are signed [I].
"""

# B batch, D teacher width, M channels and h w sides of the student's map, g side of the stored grid

from torch import Tensor, nn

from distill.config import DistillConfig
from distill.data.pictures import Batch
from distill.losses import cross_entropy
from distill.losses.features import feature_mse, map_mse, resize_map
from distill.methods.base import Method, Needs, Output, Setup, Side
from distill.methods.projection import projection
from distill.student.model import Student


class FitNet(Method):
    """L = CE(D_L) + weight MSE(P_s(f_s), f_t) over all images. Trained: student, P_s. Frozen: the stored f_t."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.weight = setup.config.fitnet.weight
        self.norm = setup.norm(setup.config.fitnet.norm)

    def student_sides(self) -> dict[str, Side]:
        """P_s: student width -> teacher width."""
        return {"general": Side(projection(self.setup.student_width, self.setup.features.width))}

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        assert batch.teacher is not None  # needs
        general = feature_mse(output.projected["general"], self.norm(batch.teacher))
        return {
            "ce": cross_entropy(output.logits, batch.labels),
            "general": self.weight * general,
        }


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


class FitNetGrid(Method):
    """L = CE(D_L) + weight MSE(P_s(F_s), F_t) over all images. Trained: student, P_s. Frozen: the stored grid F_t."""

    @classmethod
    def needs(cls, config: DistillConfig) -> Needs:
        """The stored grid."""
        return Needs(vector=False, grid=True)

    def student_sides(self) -> dict[str, Side]:
        """P_s: the student's last map -> the stored grid."""
        grid = self.setup.grid
        assert grid is not None  # needs
        channels = self.setup.student.map_channels
        return {"grid": Side(MapProjection(channels, grid.width, grid.side), "map")}

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        assert batch.grid is not None  # needs
        imitation = map_mse(output.projected["grid"], batch.grid.permute(0, 3, 1, 2))
        return {
            "ce": cross_entropy(output.logits, batch.labels),
            "grid": self.setup.config.fitnet_grid.weight * imitation,
        }
