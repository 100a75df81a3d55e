"""Map the payloads of many files side by side into one address range, so that they are one array.

The range is reserved first, which costs nothing, and a file is mapped into its place when it is first needed. Rows of a
hundred million images are then gathered by one ``numpy.take``, whatever their shards.
"""

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from featstore.files.array_types import Bytes

PAGE_BYTES = mmap.ALLOCATIONGRANULARITY

HUGE_PAGE_BYTES = 2**21
"""Memory that Linux can map by one entry; at such a boundary of the range a file can be mapped that way."""

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_PROT_NONE = 0
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class SideBySide:
    """A read-only range of ``count`` payloads of ``payload_bytes`` each, the last one possibly shorter.

    Bytes of a place that nothing was attached to must not be touched: that is a segmentation fault, not an exception.
    The owner of the array keeps a list of what is attached.

    Args:
        payload_bytes: of one payload; a multiple of ``PAGE_BYTES``.

    Raises:
        OSError: the system refuses to reserve the range.
    """

    def __init__(self, count: int, payload_bytes: int) -> None:
        assert payload_bytes % PAGE_BYTES == 0, payload_bytes
        self.payload_bytes = payload_bytes
        self.size = count * payload_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        reserved = self.size + HUGE_PAGE_BYTES
        first = _map(None, reserved, _PROT_NONE, flags, -1)
        self.start = -(-first // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        self._release = weakref.finalize(self, _libc.munmap, first, reserved)

    def attach(self, number: int, handle: int, payload_bytes: int) -> None:
        """Map the first ``payload_bytes`` of an open file into place ``number``; a file that was there before goes.

        Raises:
            OSError: The system's limit on mappings is reached.
        """
        length = -(-payload_bytes // PAGE_BYTES) * PAGE_BYTES
        at = self.start + number * self.payload_bytes
        map_over(at, length, handle)

    def bytes(self) -> Bytes:
        """The whole range, without a copy; it lives as long as this object, so keep it."""
        pointer: Any = (ctypes.c_uint8 * self.size).from_address(self.start)
        view: Bytes = np.frombuffer(pointer, dtype=np.uint8)
        view.flags.writeable = False
        return view


class EndToEnd:
    """Files of any size, mapped one after another into one range; what is not mapped must not be touched.

    Args:
        sizes: Bytes to reserve, the first that the system grants.

    Raises:
        OSError: The system refuses all of them.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._range = _first_granted(sizes)
        self.bytes = self._range.bytes()
        self._used = 0
        self._bases: dict[int, int] = {}

    def attach(self, number: int, handle: int, size: int) -> int:
        """Map an open file, in place of another one of the same number; returns where it begins.

        Raises:
            OSError: The range is full, or the system's limit on mappings is reached.
        """
        base = self._bases.get(number, self._used)
        if base + size > len(self.bytes):
            raise OSError(errno.ENOMEM, f"no addresses left after {base:,} bytes")
        self._range.attach(base // PAGE_BYTES, handle, size)
        if number not in self._bases:
            self._bases[number] = base
            self._used += -(-size // PAGE_BYTES) * PAGE_BYTES
        return base


def _first_granted(sizes: Sequence[int]) -> SideBySide:
    for size in sizes[:-1]:
        with suppress(OSError):
            return SideBySide(size // PAGE_BYTES, PAGE_BYTES)
    return SideBySide(sizes[-1] // PAGE_BYTES, PAGE_BYTES)


def map_over(at: int, size: int, handle: int) -> None:
    """Map the beginning of an open file, read-only, in place of addresses that are mapped already.

    Raises:
        OSError: The system's limit on mappings is reached.
    """
    _map(at, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, handle)


def _map(at: int | None, size: int, protection: int, flags: int, handle: int) -> int:
    address = _libc.mmap(at, size, protection, flags, handle, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(address)
