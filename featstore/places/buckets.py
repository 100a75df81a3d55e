"""Object stores (S3 and compatible servers, Google Cloud, Azure) and web servers, through obstore."""

import atexit
import base64
import datetime
import json
import os
import re
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from featstore.errors import ConfigError, RemoteError, first_line
from featstore.places.after_fork import Answer, Helper, run
from featstore.places.base import (
    PIECE_BYTES,
    AccessRefused,
    Count,
    Fault,
    NotFollowed,
    NotSupported,
    Place,
    Retry,
    Tag,
    file_pieces,
    not_found,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

WHOLE_BYTES = 8 * 2**20
"""Files up to this size are sent in one request; larger ones in parts of this size, or as few as S3 allows."""

STREAM_BYTES = 2**18
"""Downloads are passed on in pieces of about this size."""

PART_REPEATS = 2
"""How often a part of a large file is sent again alone; after that, the file is sent again from its first byte."""

MOST_PARTS = 9_000
"""S3 takes 10,000."""

WEB = ("http", "https")
AZURE = ("az", "azure", "adl", "abfs", "abfss")
SCHEMES = ("s3", "s3a", "gs", *AZURE, *WEB)

AWS_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

CREDENTIALS = {
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    **dict.fromkeys(AZURE, "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"),
}
"""Environment variables with the credentials, by scheme; for the others those of AWS."""

METADATA_SERVICES = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
"""Hosts that obstore asks for credentials when it was given none; only machines of a cloud have them."""

REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
"""Error codes of a bucket in another region."""

FULL = ("XMinioStorageFull", "QuotaExceeded", "InsufficientStorage")
"""Error codes of a bucket that is full."""

CODE_ADVICE = {
    "ExpiredToken": "Get new credentials, then run the same command again: it resumes.",
    "RequestTimeTooSkewed": "Set the clock of this machine (NTP), then run the same command again.",
}
"""What to do, by error code; the answers with these codes have the same status as those to wrong credentials."""

T = TypeVar("T")


class ObjectPlace(Place):
    """Files below a prefix of a bucket, or below the URL of a web server, which can be read only.

    Options are those of obstore (``endpoint``, ``region``, ``skip_signature``, ...); what is not given is taken from
    the usual environment variables (``AWS_*``, ``GOOGLE_*``, ``AZURE_*``), for S3 also from boto3's profiles where
    boto3 is installed.
    """

    own: ClassVar = {**Place.own, "_stores": dict}
    # Connections by how often they repeat a request.
    _stores: "dict[int, ObjectStore]"

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
        self.scheme = parts.scheme.lower()
        self.lists = self.writes = self.conditional = self.scheme not in WEB
        self._url = url.rstrip("/")
        self._options = dict(options)
        if not _state.forked:
            self._connect()

    def _connect(self, repeats: int = 0) -> "ObjectStore":
        if repeats not in self._stores:
            self._stores[repeats] = _open(self._url, self.retry, self._options, repeats)
        return self._stores[repeats]

    def _size(self, name: str) -> int:
        if _state.forked:
            return int(self._pass_on("size", name))
        return int(self._connect().head(name)["size"])

    def _stamp(self, name: str) -> tuple[int, str]:
        if _state.forked:
            size, stamp = self._pass_on("stamp", name)
            return int(size), str(stamp)
        found = self._connect().head(name)
        return int(found["size"]), f"{found['size']} {found['e_tag'] or found['last_modified']}"

    def _sizes(self, folder: str) -> dict[str, int]:
        if _state.forked:
            return dict(self._pass_on("sizes", folder))
        batches = self._connect().list(folder or None, chunk_size=1000)
        return {item["path"]: int(item["size"]) for batch in batches for item in batch}

    def _pieces(
        self, name: str, start: int, stop: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        if _state.forked:
            for answer, piece in helper().parts(
                self._request("pieces", name, start=start, stop=stop)
            ):
                if "start" in answer:
                    yield answer["start"], piece
            return
        import obstore.exceptions as errors

        store, found = self._connect(), None
        if start or stop is not None:
            try:
                found = store.get(
                    name, options={"range": {"offset": start} if stop is None else (start, stop)}
                )
                start = found.range[0]
            except (errors.NotSupportedError, errors.GenericError) as error:
                if isinstance(self._meaning(error, name), Fault):
                    raise
                # No ranges here, or none after the last byte: from the beginning, then.
        if found is None:
            start, found = 0, store.get(name)
        # Taken as they arrive, and passed on once a second or more often: a server that drips bytes is noticed.
        pieces, size, since = list[bytes](), 0, time.monotonic()
        for piece in found.stream(min_chunk_size=1):
            pieces.append(bytes(piece))
            size += len(piece)
            if size >= STREAM_BYTES or time.monotonic() - since > 1:
                yield start, b"".join(pieces)
                pieces, start, size, since = [], start + size, 0, time.monotonic()
        if pieces:
            yield start, b"".join(pieces)

    def _own_pieces(self, name: str) -> Iterator[tuple[int, bytes]]:
        if self.scheme not in WEB:
            yield from self._pieces(name, 0, None)
            return
        # obstore cannot be told not to follow redirects.
        parts = urlsplit(self._url)
        request = urllib.request.Request(f"{without_secrets(self._url)}/{quote(name)}")
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            request.add_header("Authorization", f"Basic {base64.b64encode(user).decode()}")
        opener, start = urllib.request.build_opener(_SameHost), 0
        try:
            with opener.open(request, timeout=self.retry.timeout_s) as answer:
                while piece := answer.read1(PIECE_BYTES):
                    yield start, piece
                    start += len(piece)
                if start < int(answer.headers.get("Content-Length") or 0):
                    raise Fault(f"the connection ended after {start:,} bytes")
        except HTTPError as error:
            error.close()
            raise

    def _write(self, name: str, data: bytes | Path, progress: Count) -> None:
        if _state.forked:
            path, content = ("", data) if isinstance(data, bytes) else (str(data.absolute()), b"")
            request = self._request("write", name, path=path)
            helper().ask(request, content, lambda answer: progress(answer["moved"]))
            return
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        store = self._connect()
        if isinstance(data, bytes) or size <= WHOLE_BYTES:
            sent: list[int] = []
            content = data if isinstance(data, bytes) else b"".join(file_pieces(data, sent.append))
            store.put(name, content, use_multipart=False)
            progress(size)
        else:
            part = max(WHOLE_BYTES, -(-size // MOST_PARTS))
            # One part at a time of each file: several files are sent at once, and memory stays small.
            store = self._connect(repeats=min(PART_REPEATS, self.retry.attempts - 1))
            store.put(name, file_pieces(data, progress), chunk_size=part, max_concurrency=1)

    def _put_if(self, name: str, data: bytes, tag: Tag | None) -> Tag | None:
        if _state.forked:
            found = helper().ask(self._request("put_if", name, tag=tag), data)
            return None if found is None else (found[0], found[1])
        import obstore.exceptions as errors

        parts = {} if tag is None else {"e_tag": tag[0], "version": tag[1]}
        mode: Any = {key: text for key, text in parts.items() if text} or "create"
        try:
            return _tag_of(self._connect().put(name, data, mode=mode, use_multipart=False))
        except (errors.AlreadyExistsError, errors.PreconditionError):
            return None

    def _tag(self, name: str) -> Tag:
        if _state.forked:
            e_tag, version = self._pass_on("tag", name)
            return e_tag, version
        return _tag_of(self._connect().head(name))

    def _entity_tags(self, folder: str) -> dict[str, str]:
        if _state.forked:
            return dict(self._pass_on("entity_tags", folder))
        batches = self._connect().list(folder or None, chunk_size=1000)
        # Azure's list leaves out the quotation marks.
        found = {item["path"]: item["e_tag"] or "" for batch in batches for item in batch}
        return {name: tag.strip('"') for name, tag in found.items()}

    def _remove(self, name: str) -> None:
        if _state.forked:
            self._pass_on("remove", name)
        else:
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
        """Make one attempt for a forked process."""
        name = request["name"]
        with self._translated(name):
            match request["call"]:
                case "size":
                    return self._size(name)
                case "stamp":
                    return self._stamp(name)
                case "sizes":
                    return self._sizes(name)
                case "remove":
                    return self._remove(name)
                case "put_if":
                    tag = request["tag"]
                    return self._put_if(name, data, None if tag is None else (tag[0], tag[1]))
                case "tag":
                    return self._tag(name)
                case "entity_tags":
                    return self._entity_tags(name)
                case "pieces":
                    for start, piece in self._pieces(name, request["start"], request["stop"]):
                        say({"start": start}, piece)
                case "write":
                    content = Path(request["path"]) if request["path"] else data
                    self._write(name, content, lambda count: say({"moved": count}, b""))
        return None

    def _run(self, attempt: Callable[[], T]) -> T:
        if threading.current_thread() is not threading.main_thread():
            return attempt()
        # obstore waits for servers without looking at signals.
        done: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()

        def work() -> None:
            try:
                done.put(([attempt()], None))
            except BaseException as error:  # raised in the main thread
                done.put(([], error))

        threading.Thread(target=work, daemon=True).start()
        found, error = done.get()
        if error is not None:
            raise error
        return found[0]

    def _meaning(self, error: Exception, where: str) -> Exception | None:
        import obstore.exceptions as errors

        text = _plain(error)
        if "NoSuchBucket" in text or "BucketNotFound" in text or "ContainerNotFound" in text:
            return RemoteError(
                f"{self.url}: no such bucket. Create it first, or check the URL and --option endpoint=... ({text})"
            )
        if isinstance(error, HTTPError):
            if error.code in (404, 410):
                return not_found(where)
            if error.code in (401, 403):
                return AccessRefused(f"{where}: access refused ({text}).")
            if error.code in range(300, 400):
                return NotFollowed(f"{where}: {text}.")
            return Fault(text)
        if isinstance(error, FileNotFoundError):
            return not_found(where)
        if any(host in str(error) for host in METADATA_SERVICES):
            return AccessRefused(
                f"{where}: no credentials were found. Set {self._credentials()}; for a public bucket, commands that "
                "have it take --option skip_signature=true."
            )
        if "without LOCATION" in text or any(code in text for code in REGION):
            return RemoteError(
                f"{where}: the bucket is in another region than was asked. Set AWS_REGION, or --option "
                f"region=... ({text})"
            )
        if self.scheme in ("s3", "s3a") and "performing HEAD" in text and "400 Bad Request" in text:
            # Such answers have no body.
            return AccessRefused(
                f"{where}: access refused, without a reason (400). Expired credentials are answered so, and those of "
                "another region: get new ones, or set AWS_REGION; then run the same command again: it resumes."
            )
        if any(code in text for code in FULL):
            return RemoteError(
                f"{where}: the bucket is full ({text}). Make room, then run the same command again: it resumes."
            )
        for code, advice in CODE_ADVICE.items():
            if code in text:
                return AccessRefused(f"{where}: access refused ({text}). {advice}")
        if isinstance(error, errors.PermissionDeniedError | errors.UnauthenticatedError):
            return AccessRefused(
                f"{where}: access refused ({text}). Check the credentials ({self._credentials()}); for a "
                "public bucket, commands that have it take --option skip_signature=true."
            )
        if isinstance(error, errors.NotSupportedError) or "status code: 501" in str(error):
            return NotSupported(f"{where}: not supported by the server ({text}).")
        if isinstance(error, errors.BaseError):
            passing = isinstance(error, errors.GenericError) and not _refused_for_good(error)
            return Fault(text) if passing else RemoteError(f"{where}: {text}.")
        if isinstance(error, OSError):  # of urllib; a time-out and a lost connection are such
            return Fault(text)
        return None

    def _credentials(self) -> str:
        return CREDENTIALS.get(self.scheme, AWS_CREDENTIALS)


def _tag_of(found: Any) -> Tag:
    """Tag of a file from what a request has returned."""
    return found["e_tag"] or "", found["version"] or ""


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not to other hosts."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            fp.close()
            raise HTTPError(
                req.full_url,
                code,
                f"redirects to another host, {without_secrets(newurl)}, which is not followed for a file without "
                "checksum",
                headers,
                fp,
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _plain(error: object) -> str:
    """Return the first line of an error; code and message of an answer in XML instead of the XML."""
    text = str(error)
    found = [re.search(f"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message")]
    if any(found):
        return ": ".join(first_line(item[1])[:300] for item in found if item)
    line = first_line(text.split("<", 1)[0]).rstrip(": ")
    return re.sub(r"^(?:Generic \w+ error|Object at location .* not found): ", "", line)


def _refused_for_good(error: Exception) -> bool:
    """Whether a request that failed with a status will fail again: 400 to 499, but for time-outs and rate limits."""
    status = re.search(r"status code: (\d+)", str(error))
    return status is not None and 400 <= int(status[1]) < 500 and int(status[1]) not in (408, 429)


class _State:
    """Whether this process may use obstore.

    Attributes:
        forked: it may not, because a parent may have used it.
        helper: the process that makes the requests instead.
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
    """Return the helper of this process, started when it is needed first."""
    with _state.lock:
        if _state.helper is None or _state.helper.ended():
            _state.helper = Helper("featstore.places.buckets:help_others")
            atexit.register(_state.helper.close)
        return _state.helper


def help_others() -> None:
    """Run as a helper process, see ``featstore.places.after_fork``."""
    places: dict[str, ObjectPlace] = {}

    def serve(request: Answer, data: bytes, say: Callable[[Answer, bytes], None]) -> Any:
        settings = request["url"], request["timeout_s"], request["options"]
        key = json.dumps(settings)
        if key not in places:
            url, timeout_s, options = settings
            places[key] = ObjectPlace(url, Retry(timeout_s=timeout_s), options)
        return places[key].serve(request, data, say)

    run(serve)


def without_secrets(url: str) -> str:
    """Return a URL without the user and password before its host, and without the slash at its end."""
    parts = urlsplit(url)
    if parts.username is None and parts.password is None:
        return url.rstrip("/")
    host = parts.netloc.rpartition("@")[2]
    user = f"{parts.username}@" if parts.username and parts.scheme in ("sftp", "ssh") else ""
    return urlunsplit(parts._replace(netloc=f"{user}{host}")).rstrip("/")


def _open(url: str, retry: Retry, options: Mapping[str, str], repeats: int) -> "ObjectStore":
    """Connect to a bucket or web server.

    Args:
        repeats: How often obstore itself repeats a request. Others are repeated in one place, ``Place``, which also
            knows at which byte to resume.
    """
    try:
        import obstore.exceptions as errors
        from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store
    except ImportError:
        raise ConfigError(
            f"{without_secrets(url)}: needs obstore. Install it with: pip install 'featstore-distill[remote]'"
        ) from None
    scheme = urlsplit(url).scheme
    patience = datetime.timedelta(seconds=retry.timeout_s)
    common: dict[str, Any] = {
        "retry_config": {
            "max_retries": repeats,
            "backoff": {
                "init_backoff": datetime.timedelta(seconds=retry.first_s),
                "max_backoff": datetime.timedelta(seconds=retry.most_s),
                "base": 2,
            },
        },
        "client_options": {
            "timeout": datetime.timedelta(days=7),  # of a whole body; it may be large
            "read_timeout": patience,
            "connect_timeout": min(patience, datetime.timedelta(seconds=30)),
            "allow_http": True,
        },
    }
    try:
        if scheme in WEB:
            if options:
                raise ConfigError(f"{without_secrets(url)}: takes no options, given {[*options]}.")
            return HTTPStore.from_url(url, **common)
        if scheme == "gs":
            return GCSStore.from_url(url, config=dict(options), **common)  # type: ignore[arg-type]
        if scheme in AZURE:
            return AzureStore.from_url(url, config=dict(options), **common)  # type: ignore[arg-type]
        bucket = "s3://" + url.partition("://")[2]
        return S3Store.from_url(bucket, **_s3_settings(options), **common)
    except errors.BaseError as error:
        names = CREDENTIALS.get(scheme, AWS_CREDENTIALS)
        found = _plain(error).rstrip(".")
        raise ConfigError(
            f"{without_secrets(url)}: {found}. Check --option and the credentials ({names})."
        ) from None


def _s3_settings(options: Mapping[str, str]) -> dict[str, Any]:
    """Find credentials and region: options, the environment, then boto3's profiles; obstore reads the first two."""
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
