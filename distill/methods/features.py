"""``fitnet``, ``fitnet_grid``, ``at``: the student's feature or last map imitates the stored one, image by image."""

# B batch, D teacher width, M channels and h w sides of the student's map, g side of the stored grid

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import Tensor, nn, torch
from distill.losses.contrast import symmetric_info_nce
from distill.losses.features import attention_transfer, feature_mse, map_mse, smooth_l1
from distill.methods.base import Batch, Method, Needs, Output, Setup, Side, Student, VectorMethod
from distill.options import CheckedOptions, Norm, VectorOptions
from featstore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FitNetConfig(VectorOptions, name="fitnet", positive=("temperature",)):
    """Method ``fitnet``: the student's feature, through one Linear, imitates the stored feature (MSE)."""

    weight: float = 100.0
    """Weight of the squared error beside the cross entropy; 10 did better on photographs (docs/results)."""
    norm: Norm = "standardize"
    beta: float = 0.0
    """Threshold of smooth L1 in place of the squared error, as in DC-CLIP; 0: squared error."""
    contrast: float = 0.0
    """Weight of symmetric InfoNCE over the batch beside it: the own stored feature against the others' (CLIP)."""
    temperature: float = 0.07
    """Divides the cosines of the contrast."""


class FitNet(VectorMethod):
    """L = CE(D_L) + weight MSE(P_s(f_s), f_t) + contrast InfoNCE(P_s(f_s), f_t) over all images.

    Trained: student, P_s. Frozen: the stored f_t. Samples that share a stored row are no negatives of each other.

    FitNets (Romero et al., ICLR 2015) match middle layers through a regressor; a store holds the last one.
    """

    Options = FitNetConfig
    options: FitNetConfig

    def student_sides(self) -> dict[str, Side]:
        """P_s: student width -> teacher width."""
        return {"general": Side(nn.Linear(self.setup.student_width, self.setup.features.width))}

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        own, target = output.projected["general"], self.target(batch)
        beta = self.options.beta
        error = smooth_l1(own, target, beta=beta) if beta else feature_mse(own, target)
        terms = {"general": self.options.weight * error}
        if self.options.contrast:
            rows = torch.from_numpy(self.setup.samples.rows[batch.indices.cpu().numpy()])
            same = (rows[:, None] == rows[None]).to(own.device)
            term = symmetric_info_nce(own, target, same, temperature=self.options.temperature)
            terms["contrast"] = self.options.contrast * term
        return terms


class GridMethod(Method):
    """Base of the methods that compare the student's last map with the stored grid."""

    NEEDS = Needs(vector=False, grid=True)

    @staticmethod
    def target(batch: Batch) -> Tensor:
        """(B, D, g, g) stored grids."""
        assert batch.grid is not None  # needs
        return batch.grid.permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class FitNetGridConfig(VectorOptions, name="fitnet_grid"):
    """Method ``fitnet_grid``: the student's last map, through a 1x1 convolution, imitates the stored grid (MSE)."""

    weight: float = 10.0
    """Weight of the squared error beside the cross entropy; published code for maps uses 100."""
    norm: Norm = "standardize"
    """Normalisation of every place of the stored grid before it is compared: none, standardize (zero mean and unit
    variance per channel over places and training images), layernorm (per place) or l2 (length 1)."""


class FitNetGrid(GridMethod):
    """L = CE(D_L) + weight MSE(P_s(F_s), F_t) over all images. Trained: student, P_s. Frozen: the stored grid F_t.

    P_s is a convolution and batch norm without the ReLU of the paper, since stored features are signed (our choice).
    """

    Options = FitNetGridConfig
    options: FitNetGridConfig

    def __init__(self, setup: Setup, options: FitNetGridConfig) -> None:
        super().__init__(setup, options)
        assert setup.grid is not None  # needs
        norm = setup.grid.norm(options.norm, setup.training, setup.picker.columns)
        self.norm = norm.to(setup.device)

    def student_sides(self) -> dict[str, Side]:
        """P_s: the student's last map -> the stored grid."""
        from distill.methods.modules import MapProjection

        grid = self.setup.grid
        assert grid is not None  # needs
        channels = self.setup.student.map_channels
        return {"grid": Side(MapProjection(channels, grid.width, grid.side), "map")}

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        assert batch.grid is not None  # needs
        places = self.norm(batch.grid.flatten(0, 2)).view_as(batch.grid)
        imitation = map_mse(output.projected["grid"], places.permute(0, 3, 1, 2))
        return {"grid": self.options.weight * imitation}


@dataclass(frozen=True, kw_only=True)
class ATConfig(CheckedOptions, name="at"):
    """Method ``at``: the energy at each place of the student's last map imitates that of the stored grid
    (attention transfer)."""

    weight: float = 1000.0
    """Weight of the attention term beside the cross entropy."""


class AttentionTransfer(GridMethod):
    """L = CE(D_L) + weight mean((A_s - A_t)^2) over all images. Trained: student. Frozen: the stored grid.

    After Zagoruyko and Komodakis (ICLR 2017). Some ViTs (DINOv2 without registers) have tokens of high norm in the
    background, which count as energy: prefer a teacher without them.

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

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        transfer = attention_transfer(output.map, self.target(batch))
        return {"attention": self.options.weight * transfer}
