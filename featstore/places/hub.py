"""A data set repository of the Hugging Face hub, or a folder of one, as a place.

Files are uploaded at once, but belong to no revision until they are committed: in groups, so that a commit stays small,
and the last group when ``finish`` is called. The hub compares each upload with its SHA-256.
"""

import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

from featstore.errors import ConfigError, RemoteError, RemoteNotFound, first_line
from featstore.places.base import PIECE_BYTES, AccessRefused, Count, Fault, Place, Retry, not_found

COMMIT_FILES = 1000
"""Files of one commit; the hub refuses much larger ones."""

_URL = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")


class HubPlace(Place):
    """Files of a data set repository; it is created at the first write, and read at one revision.

    Options: ``endpoint`` (else HF_ENDPOINT, else huggingface.co), ``token`` (else HF_TOKEN, else the one of ``hf auth
    login``), ``private=true`` for a repository that is created.
    """

    checks = True
    own: ClassVar = {**Place.own, "_lock": threading.RLock, "_pending": dict}
    _lock: Any
    _pending: dict[str, Any]

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

    def _api(self) -> Any:
        hub = _import(self.url)
        endpoint = self._options.get("endpoint") or os.environ.get("HF_ENDPOINT")
        return hub.HfApi(endpoint=endpoint, token=self._options.get("token"))

    def _path(self, name: str) -> str:
        return "/".join(part for part in (self._folder, name) if part)

    def _at(self) -> str:
        """Return the commit that is read: the same for all files, whatever is pushed meanwhile."""
        with self._lock:
            if not self._pinned:
                info = self._api().repo_info(
                    self._repo, repo_type="dataset", revision=self._revision
                )
                self._pinned = str(info.sha)
            return self._pinned

    def _size(self, name: str) -> int:
        return self._stamp(name)[0]

    def _stamp(self, name: str) -> tuple[int, str]:
        path = self._path(name)
        found = self._api().get_paths_info(
            self._repo, [path], repo_type="dataset", revision=self._at()
        )
        files = [item for item in found if item.path == path and hasattr(item, "size")]
        if not files:
            raise not_found(f"{self.url}/{name}")
        return int(files[0].size), f"{files[0].size} {files[0].blob_id}"

    def _sizes(self, folder: str) -> dict[str, int]:
        prefix = f"{self._folder}/" if self._folder else ""
        try:
            with self._translated(folder):
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

    def _pieces(
        self, name: str, start: int, stop: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        api = self._api()
        system = _import(self.url).HfFileSystem(
            endpoint=api.endpoint, token=api.token, skip_instance_cache=True
        )
        path = f"datasets/{self._repo}@{self._at()}/{self._path(name)}"
        # Block size 0 is one request for the whole file; it cannot begin in the middle. Small reads cost nothing there,
        # and notice a server that sends a byte a minute.
        block = min(4 * PIECE_BYTES, stop - start) if stop else 4 * PIECE_BYTES if start else 0
        with system.open(path, "rb", block_size=block) as file:
            if start:
                file.seek(start)
            while piece := file.read(min(PIECE_BYTES, block) or 2**16):
                yield start, piece
                start += len(piece)

    def _write(self, name: str, data: bytes | Path, progress: Count) -> None:
        hub = _import(self.url)
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
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
        with self._lock:
            self._pending[name] = _import(self.url).CommitOperationDelete(self._path(name))
            if len(self._pending) >= COMMIT_FILES:
                self._commit()

    def finish(self) -> None:

        def attempt() -> None:
            with self._lock:
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

    def _meaning(self, error: Exception, where: str) -> Exception | None:
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        missing = (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError)
        if isinstance(error, (*missing, FileNotFoundError)):
            return RemoteNotFound(f"{where}: no such file, repository or revision.")
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HfHubHTTPError) and status in (401, 403):
            return AccessRefused(
                f"{where}: access refused ({first_line(error)}). Log in with `hf auth login`, or set HF_TOKEN."
            )
        if isinstance(error, ValueError) or (
            status and 400 <= status < 500 and status not in (408, 409, 412, 429)
        ):
            return RemoteError(f"{where}: {first_line(error)}.")
        cause = f" ({first_line(error.__cause__)})" if error.__cause__ is not None else ""
        return Fault(f"{type(error).__name__}: {first_line(error)}{cause}")


def _import(url: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(
            f"{url}: needs huggingface_hub. Install it with: pip install 'featstore-distill[remote]'"
        ) from None
    return huggingface_hub
