"""Everything that fsspec knows a file system for, SFTP first of all, as a place."""

import os
import posixpath
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from featstore.errors import ConfigError, RemoteError, RemoteNotFound
from featstore.files.atomic import TEMPORARY_PREFIX
from featstore.places.base import PIECE_BYTES, AccessRefused, Fault, Place, Retry
from featstore.places.buckets import without_secrets

SSH = ("sftp", "ssh")

WHOLE = ("abfs", "abfss", "az", "adl", "memory", "oci", "oss", "tos")
"""File systems where a file is there as a whole or not at all; elsewhere it is written aside and renamed."""


class FilePlace(Place):
    """Files below a folder of a file system that fsspec knows.

    Options go to that file system: for sftp and ssh they are those of asyncssh (``client_keys``, ``known_hosts``, ...),
    which also reads ~/.ssh/config and, unlike the library that fsspec uses by default, checks the key of the host.
    """

    def __init__(self, url: str, retry: Retry, options: Mapping[str, str]) -> None:
        """See the class.

        Raises:
            ConfigError: a package is missing, or nobody knows the scheme.
        """
        super().__init__(without_secrets(url), retry)
        self.scheme = urlsplit(url).scheme
        self._url = url
        self._options = dict(options)
        self._system: Any = None
        self._root = ""
        self._owner = 0
        self._made: set[str] = set()
        self._lock = threading.Lock()
        self._thread = threading.local()
        _import(self.scheme, self.url)

    def __getstate__(self) -> dict[str, object]:
        """See ``Place``; the connection stays here."""
        kept = super().__getstate__()
        del kept["_lock"], kept["_thread"]
        return {**kept, "_system": None, "_made": set()}

    def __setstate__(self, state: dict[str, object]) -> None:
        """See ``Place``."""
        super().__setstate__(state)
        self._lock = threading.Lock()
        self._thread = threading.local()

    def _connect(self) -> Any:
        """The file system; a forked child and a lost connection get a new one."""
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
        with self._asking(name):
            system = self._connect()
            found = system.info(self._path(name))
            if found["type"] == "directory":
                raise FileNotFoundError(name)
            return int(found["size"])

    def _sizes(self, folder: str) -> dict[str, int]:
        with self._asking(folder):
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

    def _pieces(self, name: str, start: int) -> Iterator[tuple[int, bytes]]:
        with self._asking(name):
            system = self._connect()
            with system.open(self._path(name), "rb") as file:
                if start:
                    file.seek(start)
                while piece := file.read(PIECE_BYTES):
                    yield start, piece
                    start += len(piece)

    def _write(self, name: str, data: bytes | Path, progress: Callable[[int], None]) -> None:
        with self._asking(name):
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
                _remove_quietly(system, aside)
                raise

    def _make_folder(self, system: Any, folder: str) -> None:
        with self._lock:
            if folder in self._made:
                return
        system.makedirs(folder, exist_ok=True)
        with self._lock:
            self._made.add(folder)

    def _remove(self, name: str) -> None:
        with self._asking(name):
            self._connect().rm_file(self._path(name))

    def _asking(self, name: str) -> "_Asking":
        return _Asking(self, f"{self.url}/{name}".rstrip("/"))

    def disconnect(self) -> None:
        """Let the next attempt connect again, unless another thread has done so since this one got its connection."""
        with self._lock:
            if self._system is getattr(self._thread, "system", None):
                self._system = None


class _Asking:
    """Says what a file system's errors mean in the words of places."""

    def __init__(self, place: FilePlace, where: str) -> None:
        self._place = place
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception):
            return
        if isinstance(error, RemoteError | ConfigError | Fault | GeneratorExit):
            return
        name = type(error).__name__
        if isinstance(error, FileNotFoundError):
            raise RemoteNotFound(f"{self._where}: no such file.") from None
        if isinstance(error, PermissionError) or name in ("PermissionDenied", "KeyExchangeFailed"):
            raise AccessRefused(
                f"{self._where}: access refused ({error}). Check user and keys, and who may write there."
            ) from None
        if name == "HostKeyNotVerifiable":
            raise RemoteError(
                f"{self._where}: {error}. Connect once with ssh to accept the key of the host, or name a file that has "
                "it: --option known_hosts=FILE."
            ) from None
        if isinstance(error, TypeError | AttributeError | NotImplementedError):
            raise RemoteError(
                f"{self._where}: this file system cannot do that ({error}). Check the options."
            ) from error
        self._place.disconnect()
        raise Fault(f"{name}: {error}".rstrip(": ")) from error


def _send(system: Any, path: str, data: bytes | Path, progress: Callable[[int], None]) -> None:
    if isinstance(data, bytes):
        system.pipe_file(path, data)
        progress(len(data))
        return
    system.put_file(str(data), path, callback=_counter(progress))


def _counter(progress: Callable[[int], None]) -> Any:
    from fsspec.callbacks import Callback

    class Counter(Callback):  # type: ignore[misc]  # no type information
        """Turns totals into steps."""

        told = 0

        def call(self, hook_name: str | None = None, **options: Any) -> None:
            """Called by fsspec after each change."""
            progress(self.value - self.told)
            self.told = self.value

    return Counter()


def _remove_quietly(system: Any, path: str) -> None:
    try:
        system.rm_file(path)
    except Exception:  # the first error is the one that matters
        return


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
            f"{url}: no file system is called {scheme!r}. Known are s3, gs, http(s), sftp, ssh, hf, file, and what "
            "fsspec knows."
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
