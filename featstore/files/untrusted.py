"""Read files of a store that may come from an untrusted source.

A store from another team is a folder of names chosen by others. A link in it could lead anywhere, a pipe would
block a reader, and a file may be larger than the memory of this machine. So only regular files below the folder of the
store are read, and every read has a limit.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

MOST_JSON_BYTES = 64 * 2**20
"""Longest JSON file that is parsed: ten times the manifest of a store that mirrors 100,000 tars of images."""


def plain_size(store: Path, name: str) -> int:
    """Bytes of a regular file inside a store.

    Args:
        store: folder of the store, which may be reached through links.
        name: path below it, "/" between its parts.

    Raises:
        FileNotFoundError: there is none.
        OSError: the file, or a folder on the way to it, is a link; or it is a folder, a pipe or a device.
    """
    folder, *rest = name.split("/")
    at = f"{store}/{folder}"
    for part in rest:
        _check_folder(at)
        at += f"/{part}"
    found = os.lstat(at)
    _check_regular(found.st_mode)
    return found.st_size


def read_plain(store: Path, name: str, *, most_bytes: int = MOST_JSON_BYTES) -> bytes:
    """The bytes of a small file inside a store.

    Raises:
        FileNotFoundError: there is none.
        OSError: see ``plain_size``; also where it is longer than ``most_bytes``.
    """
    size, data = plain_size(store, name), b""
    if size <= most_bytes:
        with os.fdopen(open_plain(store / name), "rb") as file:
            data = file.read(size + 1)  # so many bytes are reserved, so not most_bytes
    if max(size, len(data)) > most_bytes:
        raise OSError(errno.EFBIG, f"longer than the {most_bytes:,} bytes that are read of it")
    return data


def open_plain(path: Path | str, *, dir_fd: int | None = None) -> int:
    """Open a regular file for reading; never waits, as opening a pipe would.

    Raises:
        OSError: see ``plain_size``; folders on the way are not looked at.
    """
    try:
        how = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        handle = os.open(path, how, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _link() from None
        raise
    try:
        _check_regular(os.fstat(handle).st_mode)
    except OSError:
        os.close(handle)
        raise
    return handle


@contextmanager
def folder_below(store: Path, name: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
    """Open the folder of a file, one part of its path after another, so that no link is ever followed.

    Args:
        store: folder of the store, which may be reached through links.
        name: path of the file below it, "/" between its parts.
        create: create missing folders, durably.

    Yields:
        Handle of the folder, for the ``dir_fd`` arguments of ``os``, and the last part of the name.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: a folder on the way is a link, or no folder.
    """
    how = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY
    *parts, last = name.split("/")
    here = os.open(store, how)
    try:
        for part in parts:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=here)
                    os.fsync(here)
            try:
                below = os.open(part, how | os.O_NOFOLLOW, dir_fd=here)
            except NotADirectoryError:
                if stat.S_ISLNK(os.lstat(part, dir_fd=here).st_mode):
                    raise _link(f"{part}/ is ") from None
                raise
            os.close(here)
            here = below
        yield here, last
    finally:
        os.close(here)


def open_below(store: Path, name: str) -> int:
    """Open a regular file inside a store for reading; no link is followed below the store, and nothing waits.

    Raises:
        FileNotFoundError: there is none.
    """
    with folder_below(store, name) as (folder, last):
        return open_plain(last, dir_fd=folder)


def check_real_folder(folder: Path) -> None:
    """Refuse a folder that is a link, or something else; one that is not there is fine. Raises OSError: it is."""
    try:
        mode = folder.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise _link()
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, "not a folder")


def make_real_folders(root: Path, folder: Path) -> None:
    """Make a folder and its parents below a root for this user alone, none of them reached through a link.

    Raises:
        OSError: One of them is a link or not a folder, or cannot be made.
    """
    at = root
    for part in folder.relative_to(root).parts:
        at /= part
        at.mkdir(mode=0o700, exist_ok=True)
        check_real_folder(at)


def check_private_folder(folder: Path) -> None:
    """Refuse a folder in which other users could put or change files.

    Raises:
        OSError: It is missing, a link, not a folder, of another user, or others may write to it.
    """
    found = folder.lstat()
    check_real_folder(folder)
    if found.st_uid != os.geteuid():
        raise PermissionError(
            errno.EPERM, f"a folder of user {found.st_uid}, this is user {os.geteuid()}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise PermissionError(errno.EPERM, f"others may write to it (mode {mode:o})")


@lru_cache(maxsize=4096)  # errors are not kept; shards share most of the folders that lead to them
def _check_folder(folder: str) -> None:
    mode = os.lstat(folder).st_mode
    if stat.S_ISLNK(mode):
        raise _link(f"{folder} is ")


def _check_regular(mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise _link()
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a folder")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe, socket or device")


def _link(where: str = "") -> OSError:
    return OSError(
        errno.ELOOP,
        f"{where}a link, which could lead out of the store; copy the store with cp -rL if you trust what it leads to",
    )
