"""Task ``keypoints``: coordinates of K named points per image, such as the landmarks of a face.

Targets are in coordinates of the view that is shown (-0.5 to 0.5 from edge to edge), so that they follow every crop,
every size and, with a permutation of the points, mirrored views exactly. Errors are measured in pixels of the image.
"""

# B images of a batch, L of them labelled, N test images, K points

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from distill.lazy import Tensor, torch
from distill.measures.score import Measure
from distill.options import CheckedOptions
from distill.tasks.base import Task
from distill.tasks.tables import by_sample, read_points
from featstore.errors import ConfigError, shorten
from featstore.sources.config import require

if TYPE_CHECKING:
    from distill.data.pictures import Batch
    from distill.data.samples import Samples, Split
    from distill.data.schedule import Indices
    from distill.data.targets import Targets
    from distill.methods.base import Output
    from distill.student.model import Student, StudentOutput

MOST_FOR_MEAN = 256
"""Labelled images whose mean points are the first outputs."""

AUC_STEPS = 1001
"""Thresholds at which the share of images with a smaller error is summed up for the area under the curve."""


@dataclass(frozen=True, kw_only=True)
class KeypointsConfig(
    CheckedOptions, name="keypoints", positive=("weight", "beta", "width", "curvature", "failure")
):
    """Task ``keypoints``: the student's outputs are x and y of every point."""

    points: str = ""
    """CSV or Parquet file with the coordinates in pixels of each image: id, x0, y0, x1, y1, ... (or NAME_x, NAME_y);
    or an .npy of (N, K, 2) beside a .txt of the same name with one id per line. An empty cell is an unknown point."""
    loss: Literal["l1", "l2", "smooth_l1", "wing"] = "l1"
    """Loss of one coordinate, as a share of the view's side: absolute, squared, squared below ``beta`` and absolute
    above, or logarithmic below ``width`` (Wing, Feng et al., CVPR 2018)."""
    weight: float = 100.0
    """Weight of the loss beside a method's terms: 100 counts errors in hundredths of the view's side."""
    beta: float = 0.01
    """smooth_l1 only."""
    width: float = 0.04
    """wing only: w of its paper, 10 of 256 pixels."""
    curvature: float = 0.008
    """wing only: epsilon of its paper, 2 of 256 pixels."""
    normalise: list[str] = field(default_factory=list)
    """Names of two points (numbers where the columns are x0, y0, ...) whose distance the error is divided by, e.g. the
    outer corners of the eyes; empty divides by the root of the area of the box around the points."""
    failure: float = 0.1
    """Normalised error above which an image counts as failed; also the end of the curve whose area is measured."""
    flip: list[int] = field(default_factory=list)
    """For each point, the number of the point that takes its place in a mirrored image; needed for mirrored views."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.normalise) in (0, 2),
            f"--keypoints.normalise {self.normalise} must name two points, or none.",
        )
        require(
            not self.flip or sorted(self.flip) == list(range(len(self.flip))),
            f"--keypoints.flip {self.flip} must hold every number from 0 to {len(self.flip) - 1} once.",
        )


class Keypoints(Task):
    """A loss on coordinates; the normalised mean error on the test part counts."""

    name = "keypoints"
    Options = KeypointsConfig
    options: KeypointsConfig
    measures = (
        Measure("nme", "NME", higher_is_better=False),
        Measure("failure_rate", "failure rate", higher_is_better=False),
        Measure("auc", "AUC"),
        Measure("known_points", "known points"),
    )
    methods: ClassVar[Sequence[str]] = ("labels", "fitnet")
    draws: ClassVar[bool] = True
    kind = "keypoint-detection"
    meaning = "x and y of each point, from -0.5 at the region's left or upper edge to 0.5 at its right or lower one"

    @cached_property
    def table(self) -> tuple[list[str], npt.NDArray[np.float64], list[str]]:
        if not self.options.points:
            raise ConfigError(
                "--task keypoints needs --keypoints.points: a file with the coordinates of each image."
            )
        return read_points(Path(self.options.points), "--keypoints.points")

    @property
    def point_names(self) -> list[str]:
        return self.table[2]

    @property
    def num_outputs(self) -> int:
        return 2 * len(self.point_names)

    def label_names(self) -> Sequence[str]:
        """x and y of every point."""
        return [f"{name}.{axis}" for name in self.point_names for axis in "xy"]

    def targets(self, samples: Samples) -> Targets:
        """Points of the images, with those outside their image left out."""
        from distill.tasks.keypoint_targets import Points

        names, rows, points = self.table
        if unknown := [name for name in self.options.normalise if name not in points]:
            raise ConfigError(
                f"--keypoints.normalise {shorten(unknown)}: no such point; the file has {shorten(points)}."
            )
        flip = self.options.flip
        if flip and len(flip) != len(points):
            raise ConfigError(
                f"--keypoints.flip has {len(flip)} numbers, the file {len(points)} points."
            )
        if self.config.data.mirror and not flip:
            raise ConfigError(
                "--data.mirror true needs --keypoints.flip: in a mirrored image the left eye is a right one."
            )
        found = by_sample(names, rows, samples.ids, f"--keypoints.points {self.options.points}")
        return Points(found, np.array(flip or range(len(points))))

    def begin(self, student: Student, part: Split, targets: Callable[[Indices], Tensor]) -> None:
        """Start at the mean points of some labelled images: an optimiser takes hundreds of steps to get there."""
        from distill.data.joined import few

        layer = student.classifier
        if student.loaded_head or layer.bias is None:
            return
        points = targets(few(part.labelled, MOST_FOR_MEAN, seed=0))[:, :-1].flatten(1)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(torch.nanmean(points, dim=0).nan_to_num(nan=0.0))

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Mean over the known coordinates."""
        assert batch.targets is not None
        wrong, known = residuals(output.logits[: batch.num_labelled], batch.targets)
        return {"points": self.options.weight * mean_loss(wrong, known, self.options)}

    def draw(self, pixels: Tensor, seen: StudentOutput, targets: Tensor) -> Tensor:
        """The true points and the student's."""
        from distill.tasks.drawing import dots, enlarge

        found = seen.logits.float().reshape(len(pixels), -1, 2)
        pictures = [dots(enlarge(pixels), points) for points in (targets[:, :-1].float(), found)]
        return torch.cat(pictures, dim=3)

    def numbers(self, *kept: Tensor) -> dict[str, Any]:
        """NME, failure rate and AUC, of the images whose normalisation is known."""
        outputs, targets = kept
        errors = self.errors(outputs, targets)
        found = errors[np.isfinite(errors)]
        if not len(found):
            raise ConfigError(
                "--task keypoints: no test image has the points that its error is divided by "
                f"({shorten(self.options.normalise) or 'two points or more'})."
            )
        known = torch.isfinite(targets[:, :-1]).all(dim=2).double()
        return {
            "nme": float(found.mean()),
            "failure_rate": float((found > self.options.failure).mean()),
            "auc": area_under_curve(found, self.options.failure),
            "known_points": float(known.mean()),
            "num_measured": len(found),
            "per_point": self._per_point(outputs, targets),
        }

    def errors(self, *kept: Tensor) -> npt.NDArray[np.float64]:
        """(N,) mean distance of the known points over the normalisation; NaN where that is unknown."""
        found = torch.nanmean(self._distances(*kept), dim=1).numpy()
        return np.where(np.isfinite(found), found, np.nan)

    def _per_point(self, *kept: Tensor) -> dict[str, float | None]:
        values = torch.nanmean(self._distances(*kept), dim=0).tolist()
        return {
            name: value if math.isfinite(value) else None
            for name, value in zip(self.point_names, values, strict=True)
        }

    def _distances(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N, K) normalised distances, NaN where a point or the normalisation is unknown."""
        scale = targets[:, -1:].double()  # sides of the view in pixels of the image
        truth = targets[:, :-1].double() * scale
        found = outputs.reshape(len(outputs), -1, 2).double() * scale
        if self.options.normalise:
            one, other = (self.point_names.index(name) for name in self.options.normalise)
            unit = (truth[:, one] - truth[:, other]).norm(dim=1)
        else:
            low = truth.nan_to_num(nan=math.inf).amin(dim=1)
            high = truth.nan_to_num(nan=-math.inf).amax(dim=1)
            unit = (high - low).prod(dim=1).sqrt()
        unit = torch.where((unit > 0) & unit.isfinite(), unit, math.nan)
        distances: Tensor = (found - truth).norm(dim=2) / unit[:, None]
        return distances


def residuals(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Differences to the targets, zero where a target is unknown, and which are known.

    Args:
        outputs: (L, 2 K).
        targets: (L, K + 1, 2), see ``Points.of``.

    Returns:
        (L, K, 2) float32, and (L, K, 2) bool.
    """
    points = targets[:, :-1]
    known = torch.isfinite(points)
    found = outputs.float().reshape(len(points), -1, 2)
    return torch.where(known, found - points.nan_to_num(nan=0.0), 0.0), known


def mean_loss(wrong: Tensor, known: Tensor, options: KeypointsConfig) -> Tensor:
    """Mean of a loss over the known coordinates; zero with a gradient if there are none."""
    size = wrong.abs()
    if options.loss == "l2":
        value = wrong.square()
    elif options.loss == "smooth_l1":
        beta = options.beta
        value = torch.where(size < beta, size.square() / (2 * beta), size - beta / 2)
    elif options.loss == "wing":
        width, curvature = options.width, options.curvature
        offset = width - width * math.log(1 + width / curvature)
        value = torch.where(size < width, width * torch.log(1 + size / curvature), size - offset)
    else:
        value = size
    return (value * known).sum() / known.sum().clamp(min=1)


def area_under_curve(errors: npt.NDArray[np.float64], end: float) -> float:
    """Area under the share of images whose error is at most x, for x from 0 to ``end``, divided by ``end``."""
    steps = np.linspace(0, end, AUC_STEPS)
    shares = np.searchsorted(np.sort(errors), steps, side="right") / len(errors)
    return float(np.trapezoid(shares, steps) / end)
