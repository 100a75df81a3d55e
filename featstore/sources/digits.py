"""The 1,797 handwritten digits that scikit-learn ships: a data set without any download."""

import numpy as np
import numpy.typing as npt

from featstore.errors import SourceError
from featstore.sources.base import Source

NUM_TRAIN = 1437  # four fifths of the 1,797 digits, chosen by one fixed permutation

PGM_HEADER = b"P5\n8 8\n255\n"


class DigitsSource(Source):
    """8 x 8 grey digits as binary PGM files, split into ``train/`` and ``test/``.

    The bytes are made by integer arithmetic alone, so they are equal on every machine.

    Raises:
        SourceError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        images, targets = _load()
        order = np.random.default_rng(0).permutation(len(images))
        rows = sorted(
            (f"{'train' if position < NUM_TRAIN else 'test'}/{index:04d}", int(index))
            for position, index in enumerate(order)
        )
        indices = np.array([index for _, index in rows], dtype=np.int64)
        self.kind = "digits"
        self.uri = "scikit-learn:digits"
        self.sample_ids = [sample_id for sample_id, _ in rows]
        self.labels = targets[indices]
        self.class_names = tuple("0123456789")
        self._pixels = images[indices]

    def read(self, row: int) -> bytes:
        """Return one digit as a binary PGM file."""
        return PGM_HEADER + bytes(self._pixels[row].tobytes())


def _load() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return (N, 8, 8) pixels scaled from 0..16 to 0..255, and (N,) classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SourceError(
            f"source of kind digits: scikit-learn cannot be imported ({error}). "
            "Install it: pip install scikit-learn"
        ) from None
    digits = load_digits()
    levels = np.asarray(digits.images).astype(np.int64)
    # round(v * 255 / 16) without floats; the only tie, 127.5 for v = 8, is 128 either way.
    pixels = ((levels * 255 + 8) // 16).astype(np.uint8)
    return pixels, np.asarray(digits.target).astype(np.int64)
