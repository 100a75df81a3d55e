"""``fitnet`` and ``fitnet_grid``: the student's feature or last map imitates the stored one (FitNets).

Romero et al., ICLR 2015 match middle layers through a regressor; here the vector goes through one Linear, and the map
through a 1x1 convolution with batch norm, at the last layer, as that is what a store holds. No ReLU follows, since
stored features are signed [I].
"""

# B batch, D teacher width, M channels and h w sides of the student's map, g side of the stored grid

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import Tensor
from distill.losses import cross_entropy
from distill.losses.features import feature_mse, map_mse
from distill.methods.base import Batch, Method, Needs, Output, Setup, Side, Student
from distill.methods.projection import projection
from distill.options import CheckedOptions, Norm


@dataclass(frozen=True, kw_only=True)
class FitNetConfig(CheckedOptions, name="fitnet"):
    """Method ``fitnet``: the student's feature, through one Linear, imitates the stored feature (MSE)."""

    weight: float = 100.0
    """Weight of the squared error beside the cross entropy; 10 did better on photographs (docs/results)."""
    norm: Norm = "standardize"
    """Normalisation of the stored feature before it is compared: none, standardize (zero mean and unit variance per
    channel over the training images), layernorm (per image) or l2 (length 1)."""


@dataclass(frozen=True, kw_only=True)
class FitNetGridConfig(CheckedOptions, name="fitnet_grid"):
    """Method ``fitnet_grid``: the student's last map, through a 1x1 convolution, imitates the stored grid (MSE)."""

    weight: float = 1.0
    """Weight of the squared error beside the cross entropy; published code for maps uses 100."""


class FitNet(Method):
    """L = CE(D_L) + weight MSE(P_s(f_s), f_t) over all images. Trained: student, P_s. Frozen: the stored f_t."""

    Options = FitNetConfig
    options: FitNetConfig

    def __init__(self, setup: Setup, options: FitNetConfig) -> None:
        super().__init__(setup, options)
        self.weight = options.weight
        self.norm = setup.norm(options.norm)

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


class FitNetGrid(Method):
    """L = CE(D_L) + weight MSE(P_s(F_s), F_t) over all images. Trained: student, P_s. Frozen: the stored grid F_t."""

    Options = FitNetGridConfig
    options: FitNetGridConfig

    @classmethod
    def needs(cls, options: FitNetGridConfig) -> Needs:
        """The stored grid."""
        return Needs(vector=False, grid=True)

    def student_sides(self) -> dict[str, Side]:
        """P_s: the student's last map -> the stored grid."""
        from distill.methods.modules import MapProjection

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
            "grid": self.options.weight * imitation,
        }
