"""Object stores (S3 and what speaks its language, Google Cloud) and web servers, through obstore."""

import atexit
import datetime
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from featstore.errors import ConfigError, RemoteError, RemoteNotFound
from featstore.places.after_fork import Answer, Helper, run
from featstore.places.base import PIECE_BYTES, AccessRefused, Fault, Place, Retry, file_pieces

if TYPE_CHECKING:
    from obstore.store import ObjectStore

WHOLE_BYTES = 8 * 2**20
"""Files up to this size are sent in one request; larger ones in parts of this size, or as few as S3 allows."""

MOST_PARTS = 9_000
"""S3 takes 10,000."""

SCHEMES = ("s3", "s3a", "gs", "http", "https")


class ObjectPlace(Place):
    """Files below a prefix of a bucket, or below the URL of a web server, which can be read only.

    Options are those of obstore (``endpoint``, ``region``, ``skip_signature``, ...); what is not given is taken from
    the usual environment variables (``AWS_*``, ``GOOGLE_*``), for S3 also from boto3's profiles where boto3 is there.
    """

    def __init__(self, url: str, retry: Retry, options: Mapping[str, str]) -> None:
        """See the class.

        Raises:
            ConfigError: obstore is not installed, or does not know an option.
        """
        super().__init__(without_secrets(url), retry)
        parts = urlsplit(url)
        if parts.query or parts.fragment:
            raise ConfigError(
                f"{self.url}: the URL of a store is that of a folder; it has no ? or # part."
            )
        self.lists = self.writes = parts.scheme not in ("http", "https")
        self._url = url.rstrip("/")
        self._options = dict(options)
        self._store: ObjectStore | None = None
        if not _state.forked:
            self._connect()

    def __getstate__(self) -> dict[str, object]:
        """See ``Place``; also obstore's object stays here."""
        return {**super().__getstate__(), "_store": None}

    def _connect(self) -> "ObjectStore":
        if self._store is None:
            self._store = _open(self._url, self.retry, self._options)
        return self._store

    def _size(self, name: str) -> int:
        if _state.forked:
            return int(self._pass_on("size", name))
        with self._asking(name):
            return int(self._connect().head(name)["size"])

    def _sizes(self, folder: str) -> dict[str, int]:
        if _state.forked:
            return dict(self._pass_on("sizes", folder))
        with self._asking(folder):
            batches = self._connect().list(folder or None, chunk_size=1000)
            return {item["path"]: int(item["size"]) for batch in batches for item in batch}

    def _pieces(self, name: str, start: int) -> Iterator[tuple[int, bytes]]:
        if _state.forked:
            request = self._request("pieces", name, start=start)
            for answer, piece in helper().parts(request):
                if "start" in answer:
                    yield answer["start"], piece
            return
        import obstore.exceptions as errors

        with self._asking(name):
            store = self._connect()
            if start:
                try:
                    found = store.get(name, options={"range": {"offset": start}})
                    start = found.range[0]
                except (errors.NotSupportedError, errors.GenericError) as error:
                    # No ranges here, or none after the last byte: from the beginning, then.
                    if _passing(error) and "416" not in str(error):
                        raise
                    start = 0
            if not start:
                found = store.get(name)
            for piece in found.stream(min_chunk_size=PIECE_BYTES):
                yield start, bytes(piece)
                start += len(piece)

    def _write(self, name: str, data: bytes | Path, progress: Callable[[int], None]) -> None:
        if _state.forked:
            path, content = ("", data) if isinstance(data, bytes) else (str(data.absolute()), b"")
            request = self._request("write", name, path=path)
            helper().ask(request, content, lambda answer: progress(answer["moved"]))
            return
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        with self._asking(name):
            store = self._connect()
            if isinstance(data, bytes) or size <= WHOLE_BYTES:
                content = data if isinstance(data, bytes) else data.read_bytes()
                store.put(name, content, use_multipart=False)
                progress(size)
            else:
                part = max(WHOLE_BYTES, -(-size // MOST_PARTS))
                # One part at a time of each file: several files travel at once, and memory stays small.
                store.put(name, file_pieces(data, progress), chunk_size=part, max_concurrency=1)

    def _remove(self, name: str) -> None:
        if _state.forked:
            self._pass_on("remove", name)
            return
        with self._asking(name):
            self._connect().delete(name)

    def _request(self, call: str, name: str, **more: Any) -> dict[str, Any]:
        return {
            "url": self._url,
            "timeout_s": self.retry.timeout_s,
            "options": self._options,
            "call": call,
            "name": name,
            **more,
        }

    def _pass_on(self, call: str, name: str) -> Any:
        return helper().ask(self._request(call, name))

    def serve(self, request: Answer, data: bytes, say: Callable[[Answer, bytes], None]) -> Any:
        """Do for a forked process what it asks for; one attempt."""
        name = request["name"]
        match request["call"]:
            case "size":
                return self._size(name)
            case "sizes":
                return self._sizes(name)
            case "remove":
                return self._remove(name)
            case "pieces":
                for start, piece in self._pieces(name, request["start"]):
                    say({"start": start}, piece)
            case "write":
                content = Path(request["path"]) if request["path"] else data
                self._write(name, content, lambda count: say({"moved": count}, b""))
        return None

    def _asking(self, name: str) -> "_Asking":
        return _Asking(f"{self.url}/{name}".rstrip("/"))


class _State:
    """Of this process.

    Attributes:
        forked: obstore cannot be used here, because a parent may have used it.
        helper: the process that is asked instead.
    """

    def __init__(self) -> None:
        self.forked = False
        self.helper: Helper | None = None
        self.lock = threading.Lock()


_state = _State()


def _note_fork() -> None:
    forked = _state.forked or "obstore" in sys.modules
    _state.__init__()  # type: ignore[misc]  # the helper is the parent's, and the lock may be held
    _state.forked = forked


os.register_at_fork(after_in_child=_note_fork)


def helper() -> Helper:
    """The helper of this process, started when it is needed first."""
    with _state.lock:
        if _state.helper is None or _state.helper.ended():
            _state.helper = Helper("featstore.places.buckets:help_others")
            atexit.register(_state.helper.close)
        return _state.helper


def help_others() -> None:
    """What a helper does, see ``featstore.places.after_fork``."""
    places: dict[str, ObjectPlace] = {}

    def serve(request: Answer, data: bytes, say: Callable[[Answer, bytes], None]) -> Any:
        settings = request["url"], request["timeout_s"], request["options"]
        key = json.dumps(settings)
        if key not in places:
            url, timeout_s, options = settings
            places[key] = ObjectPlace(url, Retry(timeout_s=timeout_s), options)
        return places[key].serve(request, data, say)

    run(serve)


class _Asking:
    """Says what obstore's errors mean in the words of places."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import obstore.exceptions as errors

        if isinstance(error, FileNotFoundError):
            raise RemoteNotFound(f"{self._where}: no such file.") from None
        if isinstance(error, errors.PermissionDeniedError | errors.UnauthenticatedError):
            raise AccessRefused(
                f"{self._where}: access refused ({_first_line(error)}). Check the credentials (environment variables "
                "AWS_* or GOOGLE_*), or --option skip_signature=true for a public bucket."
            ) from None
        if isinstance(error, errors.BaseError):
            if _passing(error):
                raise Fault(_first_line(error)) from error
            raise RemoteError(f"{self._where}: {_first_line(error)}.") from None
        if isinstance(error, TimeoutError | ConnectionError):
            raise Fault(str(error)) from error


def _passing(error: BaseException) -> bool:
    """Whether a request that failed may succeed when it is made again."""
    import obstore.exceptions as errors

    if not isinstance(error, errors.GenericError):
        return False
    text = str(error)
    refusals = ("status code: 400", "status code: 405", "status code: 411", "status code: 416")
    return not any(refusal in text for refusal in refusals)


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0].rstrip(". ")[:400]


def without_secrets(url: str) -> str:
    """A URL without the name and password that may stand before its host, and without the slash at its end."""
    parts = urlsplit(url)
    if parts.username is None and parts.password is None:
        return url.rstrip("/")
    host = parts.netloc.rpartition("@")[2]
    user = f"{parts.username}@" if parts.username and parts.scheme in ("sftp", "ssh") else ""
    return urlunsplit(parts._replace(netloc=f"{user}{host}")).rstrip("/")


def _open(url: str, retry: Retry, options: Mapping[str, str]) -> "ObjectStore":
    try:
        import obstore.exceptions as errors
        from obstore.store import GCSStore, HTTPStore, S3Store
    except ImportError:
        raise ConfigError(
            f"{without_secrets(url)}: needs obstore. Install it with: pip install 'featstore-distill[remote]'"
        ) from None
    scheme = urlsplit(url).scheme
    # Trying again is done in one place, ours, which also knows where to go on.
    patience = datetime.timedelta(seconds=retry.timeout_s)
    common: dict[str, Any] = {
        "retry_config": {"max_retries": 0},
        "client_options": {
            "timeout": datetime.timedelta(days=7),  # of a whole body; it may be large
            "read_timeout": patience,
            "connect_timeout": min(patience, datetime.timedelta(seconds=30)),
            "allow_http": True,
        },
    }
    try:
        if scheme in ("http", "https"):
            if options:
                raise ConfigError(f"{without_secrets(url)}: takes no options, given {[*options]}.")
            return HTTPStore.from_url(url, **common)
        if scheme == "gs":
            return GCSStore.from_url(url, config=dict(options), **common)  # type: ignore[arg-type]
        bucket = "s3://" + url.partition("://")[2]
        return S3Store.from_url(bucket, **_s3_settings(options), **common)
    except errors.BaseError as error:
        raise ConfigError(f"{without_secrets(url)}: {_first_line(error)}.") from None


def _s3_settings(options: Mapping[str, str]) -> dict[str, Any]:
    """Credentials and region: from options, the environment, then boto3's profiles; obstore reads the first two."""
    config = dict(options)
    given = {key.removeprefix("aws_").lower() for key in config}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and not {"endpoint", "endpoint_url"} & given:
        config["endpoint"] = endpoint
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region and "region" not in given:
        config["region"] = region
    signed = not {"skip_signature", "access_key_id"} & given
    if signed and "AWS_ACCESS_KEY_ID" not in os.environ:
        try:
            import boto3
            from obstore.auth.boto3 import Boto3CredentialProvider
        except ImportError:
            return {"config": config}
        session = boto3.session.Session()
        if session.get_credentials() is not None:
            if session.region_name and "region" not in {*given, *config}:
                config["region"] = session.region_name
            return {"config": config, "credential_provider": Boto3CredentialProvider(session)}
    return {"config": config}
