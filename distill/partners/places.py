"""Positions of samples in a part of the split, for state that is kept per image."""

# N members of a part, n some of them

from __future__ import annotations

import numpy as np

from distill.lazy import Tensor, torch
from distill.methods.base import Indices


class Places:
    """Position of a sample in one part of the split, for state that is kept per image.

    Args:
        members: (N,) indices in ``Samples`` of the images of the part.
        device: Device of the returned positions.
    """

    def __init__(self, members: Indices, device: torch.device) -> None:
        self.members: Indices = np.sort(members)
        self._sorted = torch.from_numpy(self.members).to(device)

    def __len__(self) -> int:
        return len(self.members)

    def __call__(self, indices: Tensor) -> Tensor:
        """(n,) indices in ``Samples``, all members -> (n,) int64, 0 to N - 1, on the device."""
        return torch.searchsorted(self._sorted, indices.to(self._sorted.device))


def last_of_each(places: Tensor) -> Tensor:
    """Positions at which each value is found for the last time: a small part may fill a batch more than once."""
    values, which = places.unique(return_inverse=True)
    positions = torch.arange(len(places), device=places.device)
    return torch.zeros_like(values).scatter_reduce(0, which, positions, "amax")
