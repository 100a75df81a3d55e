"""File systems that fsspec supports, SFTP above all, as a place."""

import os
import posixpath
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from featstore.errors import ConfigError, RemoteError
from featstore.files.atomic import TEMPORARY_PREFIX
from featstore.places.base import PIECE_BYTES, AccessRefused, Count, Fault, Place, Retry, not_found
from featstore.places.buckets import without_secrets

SSH = ("sftp", "ssh")

WHOLE = ("memory", "oci", "oss", "tos")
"""File systems that publish a file as a whole or not at all; elsewhere it is written under a temporary name."""


class FilePlace(Place):
    """Files below a folder of a file system that fsspec supports.

    Options go to that file system: for sftp and ssh they are those of asyncssh (``client_keys``, ``known_hosts``, ...),
    which also reads ~/.ssh/config and, unlike the library that fsspec uses by default, checks the key of the host.
    """

    own: ClassVar = {
        **Place.own,
        "_lock": threading.Lock,
        "_thread": threading.local,
        "_system": lambda: None,
        "_made": set,
    }
    _lock: threading.Lock
    _thread: threading.local
    _system: Any
    _made: set[str]

    def __init__(self, url: str, retry: Retry, options: Mapping[str, str]) -> None:
        """See the class.

        Raises:
            ConfigError: a package is missing, or no file system has this scheme.
        """
        super().__init__(without_secrets(url), retry)
        self.scheme = urlsplit(url).scheme
        self._url = url
        self._options = dict(options)
        self._root = ""
        self._owner = 0
        _import(self.scheme, self.url)

    def _connect(self) -> Any:
        """Return the file system; a forked child and a lost connection get a new one."""
        with self._lock:
            if self._system is None or self._owner != os.getpid():
                self._system, self._root = _open(self._url, self.scheme, self.retry, self._options)
                self._owner = os.getpid()
                self._made = set()
            self._thread.system = self._system
            return self._system

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name) if name else self._root

    def _size(self, name: str) -> int:
        found = self._connect().info(self._path(name))
        if found["type"] == "directory":
            raise FileNotFoundError(name)
        return int(found["size"])

    def _sizes(self, folder: str) -> dict[str, int]:
        system = self._connect()
        try:
            found = system.find(self._path(folder), detail=True)
        except FileNotFoundError:
            return {}
        root = self._root.rstrip("/") + "/"
        return {
            path.removeprefix(root): int(info["size"] or 0)
            for path, info in found.items()
            if path.startswith(root)
        }

    def _pieces(
        self, name: str, start: int, stop: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        most = PIECE_BYTES if stop is None else min(PIECE_BYTES, stop - start)
        with self._connect().open(self._path(name), "rb") as file:
            if start:
                file.seek(start)
            while piece := file.read(most):
                yield start, piece
                start += len(piece)

    def _write(self, name: str, data: bytes | Path, progress: Count) -> None:
        system = self._connect()
        path = self._path(name)
        if self.scheme in WHOLE:
            _send(system, path, data, progress)
            return
        self._make_folder(system, posixpath.dirname(path))
        aside = self._path(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        try:
            _send(system, aside, data, progress)
            system.mv(aside, path)
        except BaseException:
            with suppress(Exception):  # the first error is the one that matters
                system.rm_file(aside)
            raise

    def _make_folder(self, system: Any, folder: str) -> None:
        with self._lock:
            if folder in self._made:
                return
        system.makedirs(folder, exist_ok=True)
        with self._lock:
            self._made.add(folder)

    def _remove(self, name: str) -> None:
        self._connect().rm_file(self._path(name))

    def _meaning(self, error: Exception, where: str) -> Exception | None:
        kind = type(error).__name__
        if isinstance(error, FileNotFoundError):
            return not_found(where)
        if isinstance(error, PermissionError) or kind in ("PermissionDenied", "KeyExchangeFailed"):
            return AccessRefused(
                f"{where}: access refused ({error}). Check user and keys, and the permissions there."
            )
        if kind == "HostKeyNotVerifiable":
            return RemoteError(
                f"{where}: {error}. Connect once with ssh to accept the key of the host, or name a file that has it: "
                "--option known_hosts=FILE."
            )
        if isinstance(error, TypeError | AttributeError | NotImplementedError):
            return RemoteError(
                f"{where}: this file system cannot do that ({error}). Check the options."
            )
        self._disconnect()
        return Fault(f"{kind}: {error}".rstrip(": "))

    def _disconnect(self) -> None:
        """Let the next attempt connect again, unless another thread has done so since this one got its connection."""
        with self._lock:
            if self._system is getattr(self._thread, "system", None):
                self._system = None


def _send(system: Any, path: str, data: bytes | Path, progress: Count) -> None:
    if isinstance(data, bytes):
        system.pipe_file(path, data)
        progress(len(data))
        return
    system.put_file(str(data), path, callback=_counter(progress))


def _counter(progress: Count) -> Any:
    from fsspec.callbacks import Callback

    class Counter(Callback):  # type: ignore[misc]  # no type information
        """Converts totals into differences."""

        told = 0

        def call(self, hook_name: str | None = None, **options: Any) -> None:
            """Called by fsspec after each change."""
            progress(self.value - self.told)
            self.told = self.value

    return Counter()


def _import(scheme: str, url: str) -> Any:
    try:
        if scheme in SSH:
            from sshfs import SSHFileSystem

            return SSHFileSystem
        import fsspec

        return fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise ConfigError(
            f"{url}: needs a package that is not installed ({error}). What s3, gs, http, sftp and hf need comes with: "
            "pip install 'featstore-distill[remote]'"
        ) from None
    except ValueError:
        raise ConfigError(
            f"{url}: no file system is called {scheme!r}. Use s3, gs, az, http(s), sftp, ssh, hf, file, or another one "
            "that fsspec supports."
        ) from None


def _open(url: str, scheme: str, retry: Retry, options: Mapping[str, str]) -> tuple[Any, str]:
    kind = _import(scheme, without_secrets(url))
    if scheme not in SSH:
        found = kind._get_kwargs_from_urls(url)
        system = kind(**{**found, **options, "skip_instance_cache": True})
        return system, str(kind._strip_protocol(url))
    parts = urlsplit(url)
    settings: dict[str, Any] = {
        # asyncssh's own default, the user's known hosts; the file system's default is to believe every host.
        "known_hosts": (),
        "connect_timeout": retry.timeout_s,
        "keepalive_interval": max(1, retry.timeout_s / 3),
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
        "port": parts.port,
        **options,
    }
    if settings["known_hosts"] == "none":
        settings["known_hosts"] = None
    else:
        settings = {key: value for key, value in settings.items() if value is not None}
    system = kind(parts.hostname, skip_instance_cache=True, **settings)
    return system, unquote(parts.path) or "."
