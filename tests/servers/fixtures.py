"""Fixtures of the servers; see the package's docstring. tests/conftest.py registers this file as a plugin."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.servers.azure import INSTALL as INSTALL_AZURITE
from tests.servers.azure import Azure, azurite, serve_azure
from tests.servers.faults import Plan
from tests.servers.proxy import Proxy, serve_proxy
from tests.servers.s3 import S3, serve_s3
from tests.servers.sftp import Sftp, serve_sftp
from tests.servers.web import INSTALL, Web, nginx, serve_folder

MakeProxy = Callable[[str, Plan], Proxy]


@dataclass(frozen=True)
class OwnBucket(S3):
    """A bucket whose address is in the environment."""

    patch: pytest.MonkeyPatch = field(repr=False)

    def through(self, proxy: Proxy) -> None:
        """Let clients that are made from here on go through a proxy."""
        self.patch.setenv("AWS_ENDPOINT_URL", proxy.url)


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The S3 server of this test process."""
    pytest.importorskip("moto", reason="no S3 server: pip install 'moto[server]'")
    with serve_s3(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture
def s3(
    s3_endpoint: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> OwnBucket:
    """An empty bucket, named after the test; address and keys are in the environment."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    plain = re.sub(r"[^a-z0-9]+", "-", f"{request.path.stem}-{request.node.name}".lower())
    bucket = OwnBucket(s3_endpoint, plain.strip("-")[-63:].strip("-"), monkeypatch)
    for name, value in bucket.environment().items():
        monkeypatch.setenv(name, value)
    bucket.create()
    return bucket


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    """An Azure Blob server with one container, ``az://box``; address and key are in the environment."""
    if azurite() is None:
        pytest.skip(f"no Azurite: {INSTALL_AZURITE}")
    folder = tmp_path / "azurite"
    folder.mkdir()
    with serve_azure(folder) as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        running.create("box")
        yield running


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """The nginx of this test process."""
    if nginx() is None:
        pytest.skip(f"no nginx: {INSTALL}")
    with serve_folder(tmp_path_factory.mktemp("web")) as running:
        yield running


@pytest.fixture
def sftp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sftp]:
    """An SFTP server on an empty folder; HOME has the keys for it."""
    pytest.importorskip("asyncssh", reason="no SFTP server: pip install asyncssh")
    home, folder = tmp_path / "home", tmp_path / "served"
    home.mkdir()
    folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with serve_sftp(folder, home) as running:
        yield running


@pytest.fixture
def faulty() -> Iterator[MakeProxy]:
    """``faulty(upstream, plan)`` starts a proxy that lives as long as the test."""
    with ExitStack() as stack:

        def start(upstream: str, plan: Plan) -> Proxy:
            return stack.enter_context(serve_proxy(upstream, plan))

        yield start
