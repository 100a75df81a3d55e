"""An S3-compatible server: moto's, in a process of its own, with path-style addresses.

It checks no signatures. rclone's server, which does, answers range requests with 200 instead of 206 (1.75.2), so that
clients refuse it.
"""

import sys
import urllib.request
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from tests.servers.programs import HOST, program

ANYBODY = "AWS4-HMAC-SHA256 Credential=tester/20260101/us-east-1/s3/aws4_request"
"""The server wants to know who asks, and believes it."""

SPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@dataclass(frozen=True)
class S3:
    """A bucket, seen without the clients that are tested."""

    endpoint: str  # "http://HOST:PORT" of the server
    bucket: str  # its name

    @property
    def url(self) -> str:
        """The bucket as a user writes it."""
        return f"s3://{self.bucket}"

    def environment(self, endpoint: str = "") -> dict[str, str]:
        """Variables by which every S3 client finds the server, or a proxy before it."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def create(self) -> None:
        """Make the bucket."""
        self._call("PUT", "")

    def put(self, name: str, data: bytes) -> None:
        """Make or replace a file."""
        self._call("PUT", name, data)

    def get(self, name: str) -> bytes:
        """A whole file."""
        return self._call("GET", name)

    def delete(self, name: str) -> None:
        """Remove a file."""
        self._call("DELETE", name)

    def names(self) -> list[str]:
        """Names of all files, sorted."""
        found: list[str] = []
        token: str | None = ""
        while token is not None:
            query = {"list-type": "2", **({"continuation-token": token} if token else {})}
            page = xml.fromstring(self._call("GET", "", query=query))
            found += [key.text or "" for key in page.iterfind(f"{SPACE}Contents/{SPACE}Key")]
            token = page.findtext(f"{SPACE}NextContinuationToken")
        return sorted(found)

    def files(self, folder: str = "") -> dict[str, bytes]:
        """Every file whose name begins with a folder, by its name below it."""
        start = f"{folder}/" if folder else ""
        names = [name for name in self.names() if name.startswith(start)]
        return {name[len(start) :]: self.get(name) for name in names}

    def _call(
        self, method: str, name: str, data: bytes | None = None, query: dict[str, str] | None = None
    ) -> bytes:
        address = f"{self.endpoint}/{self.bucket}/{quote(name)}?{urlencode(query or {})}"
        request = urllib.request.Request(address.rstrip("?"), data, method=method)
        request.add_header("Content-Type", "application/octet-stream")
        request.add_header("Authorization", ANYBODY)
        with urllib.request.urlopen(request, timeout=60) as answer:
            body: bytes = answer.read()
            return body


@contextmanager
def serve_s3(folder: Path, address: str = HOST) -> Iterator[str]:
    """Run a server with nothing in it; yields its endpoint on this host.

    Args:
        folder: for its log.
        address: Where it listens; 0.0.0.0 for all interfaces.
    """
    script = Path(__file__).with_name("s3_server.py")
    start = [sys.executable, "-P", str(script), address]
    with program(lambda port: [*start, str(port)], folder / "s3.log") as port:
        yield f"http://{HOST}:{port}"
