"""An Azure Blob server: Azurite, Microsoft's emulator, with one account."""

import base64
import hashlib
import hmac
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from tests.servers.programs import HOST, program

INSTALL = "npm install --global azurite"

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of the emulator's account; every Azurite has it."""


@dataclass(frozen=True)
class Azure:
    """A running server."""

    endpoint: str

    def environment(self) -> dict[str, str]:
        """Variables with which clients find it."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": self.endpoint,
        }

    def create(self, container: str) -> None:
        """Create a container, by a request signed with the account's key."""
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        lines = [f"{name}:{value}" for name, value in headers.items()]
        resource = f"/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container"
        text = "\n".join(["PUT", *[""] * 11, *lines, resource])
        digest = hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)
        headers["Content-Length"] = "0"
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        url = f"{self.endpoint}/{ACCOUNT}/{container}?restype=container"
        urllib.request.urlopen(urllib.request.Request(url, headers=headers, method="PUT")).close()


def azurite() -> str | None:
    """The program, None where it is not installed."""
    return shutil.which("azurite-blob")


@contextmanager
def serve_azure(folder: Path) -> Iterator[Azure]:
    """Run Azurite, its data in a folder."""

    def command(port: int) -> list[str]:
        options = ["--silent", "--skipApiVersionCheck", "--disableTelemetry"]
        return [
            str(azurite()), "--location", str(folder), "--blobHost", HOST, "--blobPort", str(port),
            *options,
        ]  # fmt: skip

    with program(command, folder / "log.txt") as port:
        yield Azure(f"http://{HOST}:{port}")
