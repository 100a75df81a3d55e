"""Supervised targets other than one class per image: arrays that may follow the view of the image."""

# n samples, S points

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.sources.load import Frame

Array = npt.NDArray[Any]


class Targets(ABC):
    """Targets of the images of one task. Picklable, so that loading processes can make them.

    Attributes:
        known: (n,) whether a sample has a target.
    """

    known: npt.NDArray[np.bool_]

    @abstractmethod
    def of(self, sample: int, frame: Frame) -> Array:
        """The target of one view; of equal shape and type for all views of one size. Without one: all unknown.

        Args:
            sample: Index in ``Samples``.
            frame: Which part of the image the view shows.

        Raises:
            SourceError: The target cannot be read or does not fit the image; names the file.
        """


class Values(Targets):
    """Targets that are the same in every view.

    Args:
        values: (n, ...) float; a sample whose values are all NaN has none.
    """

    def __init__(self, values: Array) -> None:
        self.values = np.asarray(values, np.float32)
        self.known = np.any(np.isfinite(self.values).reshape(len(values), -1), axis=1)

    def of(self, sample: int, frame: Frame) -> Array:
        found: Array = self.values[sample]
        return found


def in_view(points_S2: Array, frame: Frame) -> Array:
    """Pixel coordinates of an image in coordinates of a view: -0.5 is its left or upper edge, 0.5 the right or lower.

    Args:
        points_S2: (S, 2) x and y in pixels of the upright image; NaN where unknown.
        frame: Of the view.

    Returns:
        (S, 2) float32; a mirrored view mirrors x.
    """
    left, upper, right, lower = frame.box
    points = (points_S2 - (left, upper)) / (right - left, lower - upper) - 0.5
    if frame.mirrored:
        points = points * (-1, 1)
    return points.astype(np.float32)
