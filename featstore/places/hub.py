"""A data set repository of the Hugging Face hub, or a folder of one, as a place.

What is written is sent to the hub at once, but belongs to no revision until it is committed: in groups, so that a
commit stays small, and the last group when ``finish`` is called. The hub compares each file that it gets with its
SHA-256.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from featstore.errors import ConfigError, RemoteError, RemoteNotFound
from featstore.places.base import PIECE_BYTES, AccessRefused, Fault, Place, Retry

COMMIT_FILES = 1000
"""Files of one commit; the hub refuses much larger ones."""

_URL = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")


class HubPlace(Place):
    """Files of a data set repository; it is made when something is written, and read at one revision.

    Options: ``endpoint`` (else HF_ENDPOINT, else huggingface.co), ``token`` (else HF_TOKEN, else the one of ``hf auth
    login``), ``private=true`` for a repository that is made.
    """

    checks = True

    def __init__(self, url: str, retry: Retry, options: Mapping[str, str]) -> None:
        """See the class.

        Raises:
            ConfigError: not such a URL, or huggingface_hub is not installed.
        """
        super().__init__(url.rstrip("/"), retry)
        found = _URL.fullmatch(url.rstrip("/"))
        if found is None:
            raise ConfigError(
                f"{url}: expected hf://datasets/ORGANISATION/NAME, then @REVISION and /FOLDER if wanted."
            )
        unknown = sorted(set(options) - {"endpoint", "token", "private"})
        if unknown:
            raise ConfigError(
                f"{url}: no option {unknown[0]!r}; there are endpoint, token, private."
            )
        _import(self.url)
        self._repo = found[1]
        self._revision = unquote(found[2] or "main")
        self._folder = (found[3] or "").strip("/")
        self._options = dict(options)
        self._pinned = ""
        self._made = False
        self._pending: dict[str, Any] = {}
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, object]:
        """See ``Place``."""
        kept = super().__getstate__()
        del kept["_lock"]
        return {**kept, "_pending": {}}

    def __setstate__(self, state: dict[str, object]) -> None:
        """See ``Place``."""
        super().__setstate__(state)
        self._lock = threading.RLock()

    def _api(self) -> Any:
        hub = _import(self.url)
        endpoint = self._options.get("endpoint") or os.environ.get("HF_ENDPOINT")
        return hub.HfApi(endpoint=endpoint, token=self._options.get("token"))

    def _path(self, name: str) -> str:
        return "/".join(part for part in (self._folder, name) if part)

    def _at(self) -> str:
        """The commit that is read: the same for all files, whatever is pushed meanwhile."""
        with self._lock:
            if not self._pinned:
                info = self._api().repo_info(
                    self._repo, repo_type="dataset", revision=self._revision
                )
                self._pinned = str(info.sha)
            return self._pinned

    def _size(self, name: str) -> int:
        with self._asking(name):
            path = self._path(name)
            found = self._api().get_paths_info(
                self._repo, [path], repo_type="dataset", revision=self._at()
            )
            sizes = [item.size for item in found if item.path == path and hasattr(item, "size")]
            if not sizes:
                raise RemoteNotFound(f"{self.url}/{name}: no such file.")
            return int(sizes[0])

    def _sizes(self, folder: str) -> dict[str, int]:
        prefix = f"{self._folder}/" if self._folder else ""
        try:
            with self._asking(folder):
                found = self._api().list_repo_tree(
                    self._repo,
                    self._path(folder) or None,
                    recursive=True,
                    repo_type="dataset",
                    revision=self._at(),
                )
                return {
                    item.path.removeprefix(prefix): int(item.size)
                    for item in found
                    if hasattr(item, "size")
                }
        except RemoteNotFound:
            return {}

    def _pieces(self, name: str, start: int) -> Iterator[tuple[int, bytes]]:
        with self._asking(name):
            api = self._api()
            hub = _import(self.url)
            system = hub.HfFileSystem(
                endpoint=api.endpoint, token=api.token, skip_instance_cache=True
            )
            path = f"datasets/{self._repo}@{self._at()}/{self._path(name)}"
            # Block size 0 is one request for the whole file; it cannot begin in the middle.
            with system.open(path, "rb", block_size=4 * PIECE_BYTES if start else 0) as file:
                if start:
                    file.seek(start)
                while piece := file.read(PIECE_BYTES):
                    yield start, piece
                    start += len(piece)

    def _write(self, name: str, data: bytes | Path, progress: Callable[[int], None]) -> None:
        hub = _import(self.url)
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        with self._asking(name):
            self._make()
            addition = hub.CommitOperationAdd(self._path(name), data)
            self._api().preupload_lfs_files(
                self._repo, [addition], repo_type="dataset", revision=self._revision
            )
            with self._lock:
                self._pending[name] = addition
                if len(self._pending) >= COMMIT_FILES:
                    self._commit()
        progress(size)

    def _remove(self, name: str) -> None:
        with self._lock:
            self._pending.pop(name, None)
        self._size(name)
        with self._asking(name), self._lock:
            self._pending[name] = _import(self.url).CommitOperationDelete(self._path(name))
            self._commit()

    def finish(self) -> None:
        """See ``Place``."""

        def attempt() -> None:
            with self._asking(""), self._lock:
                self._commit()

        self._persist("", attempt)

    def _make(self) -> None:
        with self._lock:
            if not self._made:
                private = self._options.get("private", "").lower() in ("1", "true", "yes")
                self._api().create_repo(
                    self._repo, repo_type="dataset", private=private, exist_ok=True
                )
                self._made = True

    def _commit(self) -> None:
        if not self._pending:
            return
        self._api().create_commit(
            self._repo,
            list(self._pending.values()),
            commit_message=f"Feature store: {len(self._pending)} files",
            repo_type="dataset",
            revision=self._revision,
        )
        self._pending = {}
        self._pinned = ""

    def _asking(self, name: str) -> "_Asking":
        return _Asking(f"{self.url}/{name}".rstrip("/"))


class _Asking:
    """Says what the hub's errors mean in the words of places."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, RemoteError):
            return
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        missing = (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError)
        if isinstance(error, (*missing, FileNotFoundError)):
            raise RemoteNotFound(f"{self._where}: no such file, repository or revision.") from None
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HfHubHTTPError) and status in (401, 403):
            raise AccessRefused(
                f"{self._where}: access refused ({_first_line(error)}). Log in with `hf auth login`, or set HF_TOKEN."
            ) from None
        if isinstance(error, ValueError) or (
            status and 400 <= status < 500 and status not in (408, 409, 412, 429)
        ):
            raise RemoteError(f"{self._where}: {_first_line(error)}.") from None
        cause = f" ({_first_line(error.__cause__)})" if error.__cause__ is not None else ""
        raise Fault(f"{type(error).__name__}: {_first_line(error)}{cause}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(". ")[:400]


def _import(url: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(
            f"{url}: needs huggingface_hub. Install it with: pip install 'featstore-distill[remote]'"
        ) from None
    return huggingface_hub
