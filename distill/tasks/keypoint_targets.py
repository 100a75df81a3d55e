"""Points of images in the coordinates of a view."""

# n samples, K points

import numpy as np
import numpy.typing as npt

from distill.data.targets import Array, Targets, in_view
from featstore.sources.load import Frame


class Points(Targets):
    """Points that follow the view.

    Args:
        points: (n, K, 2) in pixels of the upright images; NaN where unknown.
        flip: (K,) number of the point that takes the place of each in a mirrored image.
    """

    def __init__(self, points: npt.NDArray[np.float64], flip: npt.NDArray[np.int64]) -> None:
        self.points = points
        self.flip = flip
        whole: npt.NDArray[np.bool_] = np.isfinite(points[:, :, 0]) & np.isfinite(points[:, :, 1])
        self.known = np.any(whole, axis=1)

    def of(self, sample: int, frame: Frame) -> Array:
        """(K + 1, 2): points in the view, NaN where unknown or outside it; then the view's sides in image pixels."""
        points = self.points[sample]
        if frame.mirrored:
            points = points[self.flip]
        found = in_view(points, frame)
        with np.errstate(invalid="ignore"):
            outside = ~(np.abs(found) <= 0.5).all(axis=1)
        found[outside] = np.nan
        left, upper, right, lower = frame.box
        return np.vstack([found, [(right - left, lower - upper)]]).astype(np.float32)
