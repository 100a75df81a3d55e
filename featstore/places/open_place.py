"""Open the place that a URL names."""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from featstore.errors import ConfigError
from featstore.places.base import Place, Retry
from featstore.places.buckets import SCHEMES, ObjectPlace
from featstore.places.fsspec import FilePlace
from featstore.places.hub import HubPlace
from featstore.places.local import LocalPlace

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_ONE_SLASH = re.compile(r"(s3|gs|az|hf|sftp|ssh|https?|file):/(?!/)")


def is_url(text: str) -> bool:
    """Whether a text is a URL and not the path of a folder.

    Raises:
        ConfigError: It is a URL that has lost a slash, as ``pathlib.Path`` makes it.
    """
    if cut := _ONE_SLASH.match(text):
        root = "/" if cut[1] == "file" else ""
        raise ConfigError(
            f"{text}: is neither a URL nor a folder. Write {cut[1]}://{root}{text[cut.end() :]}"
        )
    return _URL.match(text) is not None


def open_place(
    url: str,
    *,
    retry: Retry = Retry(),  # noqa: B008
    options: Mapping[str, str] | None = None,
) -> Place:
    """Open the place below a URL; no request is made yet.

    Args:
        url: folder of a store: a path, file://, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix,
            http(s)://, sftp:// or ssh://user@host/path, hf://datasets/org/name[@revision][/path], or another scheme
            that fsspec supports.
        options: of the client, see ``ObjectPlace``, ``FilePlace`` and ``HubPlace``.

    Raises:
        ConfigError: no such scheme, options that it does not know, or a package is missing.
    """
    options = options or {}
    if not is_url(url):
        return LocalPlace(Path(url), retry=retry)
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(
                f"{url}: file:// names a folder of this machine, as in file:///data/store."
            )
        return LocalPlace(Path(unquote(parts.path)), url=url.rstrip("/"), retry=retry)
    if scheme in SCHEMES:
        return ObjectPlace(url, retry, options)
    if scheme == "hf":
        return HubPlace(url, retry, options)
    return FilePlace(url, retry, options)
