"""``pointdistiller``: local graphs of important places (PointDistiller, Zhang et al., CVPR 2023).

    G_ij = relu(norm(W cat(z_j, z_i)))     j among the K nearest places of i, in the teacher's space, of the same sample
    L    = mean_i w_i mean_j (G^s_ij - G^t_ij)^2        w = N softmax(importance / temperature) over a sample's N places

Places are the occupied cells of a point cloud (``--pointdistiller.field``; importance: number of points), or patches of
an image (importance: the teacher's largest channel). W is one matrix for the student and one for the teacher. The paper
trains both; the teacher's then loses its variance, so that the loss falls and nothing is learnt. Here the teacher's W
is random and frozen unless asked otherwise, and norm has no parameters of its own.
"""

# B samples of a step, T places of all of them, D teacher width, E width of G, M h w the student's last map

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from distill.lazy import Tensor, nn, torch
from distill.losses.features import resize_map
from distill.losses.local_graph import graph_features, local_graph, local_graph_loss
from distill.methods.base import Batch, Method, Needs, Output, Setup, Side, Student
from distill.options import CheckedOptions
from featstore.errors import ConfigError, shorten

if TYPE_CHECKING:
    from distill.config import DistillConfig
    from distill.data.joined import JoinedData

COORDS, COUNTS = "voxel_coords", "voxel_counts"
"""Ragged fields beside that of the features: (z, y, x) of each cell, and its number of points."""


@dataclass(frozen=True, kw_only=True)
class PointDistillerConfig(
    CheckedOptions, name="pointdistiller", positive=("queries", "neighbours")
):
    """Method ``pointdistiller``: pairs of near places are alike in student and teacher (PointDistiller)."""

    weight: float = 1.0
    """Weight of the loss beside the cross entropy."""
    field: str = ""
    """Ragged field with the features of a cloud's occupied cells, e.g. voxel_features; voxel_coords and voxel_counts
    belong to it. Empty: samples are images, places are the patches of the stored grid (--grid_field)."""
    queries: int = 64
    """Most places of a sample that are compared, the most important first; the paper takes 6000 of a LiDAR frame."""
    neighbours: int = 16
    """Neighbours of each, itself among them; the paper takes 128."""
    temperature: float = 5.0
    """Of the weights, in units of the importance (points of a cell, or a feature's value); 0 weighs all alike. The
    published code takes 0.01 of counts up to 32, which leaves weight to the fullest cells alone."""
    width: int = 0
    """Width E of the compared features; 0 takes that of the student's map, as the paper does."""
    adapter: Literal["frozen", "trained"] = "frozen"
    """The teacher's W: a random matrix, or trained with the student as in the paper."""


class GraphPlaces(NamedTuple):
    """The places of the samples of a batch, on the device, those of a sample together."""

    features: Tensor  # (T, D) float32
    importance: Tensor  # (T,)
    sizes: list[int]  # (B,) places of each sample
    cells: (
        Tensor | None
    )  # (T,) place on the student's map, (sample * h + y) * w + x; None: every place of it


class PointDistiller(Method):
    """L = CE(D_L) + weight L_graph over all samples. Trained: student, its W. Frozen: stored features, the teacher's W.

    Raises:
        ConfigError: the student's map has another grid than the cells of the teacher.
    """

    Options = PointDistillerConfig
    options: PointDistillerConfig

    def __init__(self, setup: Setup, options: PointDistillerConfig) -> None:
        super().__init__(setup, options)
        store, student = setup.features.store, setup.student
        if options.field:
            self.teacher_width = store.manifest.fields[options.field].shape[0]
            grid = getattr(store.manifest.teacher_of(options.field).preprocessing, "grid", None)
            if grid != student.map_size:
                raise ConfigError(
                    f"--methods pointdistiller: the last map of {student.name} has {student.map_size} places, the "
                    f"cells of {options.field} lie on a grid of {grid}. Give the student the teacher's grid "
                    "(--student.model_args), or choose a map of this size (--student.map)."
                )
        else:
            assert setup.grid is not None  # needs
            self.teacher_width = setup.grid.width
        self.width = options.width or student.map_channels
        generator = torch.Generator().manual_seed(setup.seed)
        weight = torch.randn(2 * self.width, self.teacher_width, generator=generator)
        self.frozen = (weight / self.teacher_width**0.5).to(setup.device)
        self.places: GraphPlaces | None = None

    @classmethod
    def needs(cls, options: PointDistillerConfig) -> Needs:
        """A stored grid where samples are images."""
        return Needs(vector=False, grid=not options.field)

    @classmethod
    def check(cls, options: PointDistillerConfig, config: DistillConfig, data: JoinedData) -> None:
        fields = data.store.manifest.fields
        wanted = [(options.field, 1), (COORDS, 1), (COUNTS, 0)] if options.field else []
        wrong = [
            name
            for name, axes in wanted
            if name not in fields
            or fields[name].encoding.kind != "ragged"
            or len(fields[name].shape) != axes
        ]
        if wrong:
            ragged = [name for name, record in fields.items() if record.encoding.kind == "ragged"]
            raise ConfigError(
                f"--pointdistiller.field {options.field}: {data.store.address} has no ragged {shorten(wrong)}. "
                f"Its ragged fields: {shorten(ragged) or 'none'}. Extract with --store.fields "
                f"'[pooled,{options.field},{COORDS},{COUNTS}]'."
            )

    def student_sides(self) -> dict[str, Side]:
        """W of the student on its last map; with ``adapter: trained`` also that of the teacher."""
        channels = self.setup.student.map_channels
        sides = {"student": Side(nn.Conv2d(channels, 2 * self.width, 1, bias=False), "map")}
        if self.options.adapter == "trained":
            layer = nn.Linear(self.teacher_width, 2 * self.width, bias=False)
            sides["teacher"] = Side(layer, "places")
        return sides

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Features of the places, (B, most places, D), zeros behind the last, for a teacher's W that is trained."""
        self.places = self._cells(batch) if self.options.field else _patches(batch)
        if self.options.adapter == "frozen":
            return {}
        parts = self.places.features.split(self.places.sizes)
        return {"places": nn.utils.rnn.pad_sequence(parts, batch_first=True)}

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        places, options = self.places, self.options
        assert places is not None  # inputs
        graph = local_graph(
            places.features,
            places.sizes,
            places.importance,
            queries=options.queries,
            neighbours=options.neighbours,
            temperature=options.temperature,
        )
        if "teacher" in output.projected:
            padded = output.projected["teacher"]
            parts = [row[:size] for row, size in zip(padded, places.sizes, strict=True)]
            teacher = torch.cat(parts)
        else:
            teacher = places.features @ self.frozen.T
        mapped = output.projected["student"]
        if places.cells is None:
            side = round((len(places.features) / len(mapped)) ** 0.5)
            mapped = resize_map(mapped, (side, side))
        flat = mapped.permute(0, 2, 3, 1).flatten(0, 2)
        own = flat if places.cells is None else flat[places.cells]
        loss = local_graph_loss(
            graph_features(own, graph), graph_features(teacher, graph), graph.weights
        )
        return {"graph": options.weight * loss}

    def _cells(self, batch: Batch) -> GraphPlaces:
        """Stored features of the occupied cells of the clouds of a batch."""
        store, samples = self.setup.features.store, self.setup.samples
        rows = samples.rows[batch.indices.numpy()]
        stored = [store.gather_ragged(name, rows) for name in (self.options.field, COORDS, COUNTS)]
        sizes = np.diff(stored[0].offsets)
        y, x = stored[1].values[:, -2:].astype(np.int64).T
        height, width = self.setup.student.map_size
        outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
        if outside.any() or any((part.offsets != stored[0].offsets).any() for part in stored):
            raise ConfigError(
                f"{store.address}: {COORDS} and {COUNTS} do not belong to {self.options.field}: other numbers of "
                f"cells, or {outside.sum()} cells outside of {height} x {width}. Extract them together."
            )
        cells = (np.repeat(np.arange(len(sizes)), sizes) * height + y) * width + x
        features, counts = (
            torch.from_numpy(stored[place].values.astype(np.float32)).to(self.setup.device)
            for place in (0, 2)
        )
        return GraphPlaces(
            features, counts, sizes.tolist(), torch.from_numpy(cells).to(features.device)
        )


def _patches(batch: Batch) -> GraphPlaces:
    """Every patch of the stored grids; its importance is its largest channel."""
    assert batch.grid is not None  # needs
    count, side, _, _ = batch.grid.shape
    features = batch.grid.flatten(0, 2).float()
    return GraphPlaces(features, features.amax(1), [side * side] * count, None)
