"""Allocate arrays of the size that a manifest states, with a clear error if this machine has less memory.

A few hundred bytes of a store can state a row of a terabyte, and zeros compress to nothing. Linux hands out more memory
than there is and ends the process when it is used, so large amounts are compared with what is free first.
"""

import math

import numpy as np
import numpy.typing as npt

from featstore.display.text import format_bytes
from featstore.errors import StoreError
from featstore.files.array_types import Array
from featstore.files.limits import free_memory

LARGE_BYTES = 256 * 2**20  # less is asked for without a look at what is free


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike, *, where: object) -> Array:
    """An array that is about to be filled, its numbers not set. Raises StoreError: there is not so much memory."""
    check_memory(shape, dtype, where=where)
    try:
        return np.empty(shape, dtype=dtype)
    except (MemoryError, ValueError):  # ValueError: more than there are addresses
        raise too_little(where, shape, dtype) from None


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike, *, where: object) -> Array:
    """An array of zeros of which little will be touched: what is not touched takes no memory.

    Raises:
        StoreError: there are not so many addresses.
    """
    try:
        return np.zeros(shape, dtype=dtype)
    except (MemoryError, ValueError):
        raise too_little(where, shape, dtype) from None


def check_memory(shape: tuple[int, ...], dtype: npt.DTypeLike, *, where: object) -> None:
    """Refuse an array that is larger than the memory that is free. Raises StoreError: it is."""
    size = _bytes(shape, dtype)
    if size > LARGE_BYTES and size > free_memory():
        raise too_little(where, shape, dtype)


def too_little(where: object, shape: tuple[int, ...], dtype: npt.DTypeLike) -> StoreError:
    """Build the error for an array that there is no memory for."""
    return StoreError(
        f"{where}: what it states takes {format_bytes(_bytes(shape, dtype))} of memory at once, and this machine has "
        f"{format_bytes(free_memory())} free. Ask for fewer rows or use a larger machine; if the "
        "size is absurd, the manifest is wrong."
    )


def _bytes(shape: tuple[int, ...], dtype: npt.DTypeLike) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize
