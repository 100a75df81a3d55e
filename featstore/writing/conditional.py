"""Create files at a place by requests with a condition, and compare what has arrived with what was sent."""

import hashlib
import secrets
from contextlib import suppress

from featstore.errors import ConfigError, RemoteError, RemoteNotFound
from featstore.files.atomic import TEMPORARY_PREFIX
from featstore.places.base import NotSupported, Place, Tag, TooLong
from featstore.writing.leases import LEASE_FOLDER

TRIES = 4
"""Attempts to write a file that arrives damaged, and others that fail where answers are lost."""


def check_conditions(place: Place) -> None:
    """Check with a file of its own that the server heeds the conditions of requests."""
    names = [f"{LEASE_FOLDER}/{TEMPORARY_PREFIX}probe-{secrets.token_hex(8)}" for _ in range(TRIES)]
    try:
        heeded = any(_heeds_conditions(place, name) for name in names)
    except NotSupported:
        heeded = False
    if not heeded:
        raise ConfigError(
            f"{place.url}: the server does not support conditional writes (If-None-Match, If-Match), without which "
            "processes could overwrite each other's shards. Extract to a folder, then run: featstore push FOLDER "
            f"{place.url}"
        )


def _heeds_conditions(place: Place, name: str) -> bool:
    """One try; where the answer of a request is lost, it may fail for that."""
    try:
        first = place.put_if(name, b"1", None)
        return (
            first is not None
            and place.put_if(name, b"2", None) is None
            and place.put_if(name, b"3", first) is not None
            and place.put_if(name, b"4", first) is None
        )
    finally:
        with suppress(RemoteError):  # what is left is deleted when the store is complete
            place.remove([name])


def create_file(place: Place, name: str, data: bytes) -> bool:
    """Create a file; False if another process has created another one.

    Raises:
        RemoteError: It arrives damaged each time.
    """
    tag = place.put_if(name, data, None)
    for _ in range(TRIES):
        if tag is None:
            return _equals(place, name, data)
        if is_stored(place, name, tag, data):
            return True
        tag = place.put_if(name, data, tag)
    raise arrives_damaged(place, name)


def is_stored(place: Place, name: str, tag: Tag, data: bytes) -> bool:
    """Whether a file holds these bytes: by its tag, where that is their MD5 (as on S3), else by reading it."""
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return tag[0].strip('"') == md5 or _equals(place, name, data)


def arrives_damaged(place: Place, name: str) -> RemoteError:
    """Build the error for a file that is not what was sent."""
    return RemoteError(
        f"{place.url}/{name}: is not what was sent, {TRIES} times. Check the network, then run the same command again: "
        "it resumes."
    )


def _equals(place: Place, name: str, data: bytes) -> bool:
    """Whether a file holds these bytes; it is read and compared piece by piece."""
    sink = _Comparison(data)
    try:
        size = place.stream(name, sink, most_bytes=len(data))
    except (RemoteNotFound, TooLong):
        return False
    return sink.same and size == len(data)


class _Comparison:
    """Compares what it is sent with bytes in memory."""

    def __init__(self, expected: bytes) -> None:
        self._expected = memoryview(expected)
        self.restart()

    def write(self, piece: bytes) -> None:
        self.same &= self._expected[self._bytes : self._bytes + len(piece)] == piece
        self._bytes += len(piece)

    def restart(self) -> None:
        self.same, self._bytes = True, 0
