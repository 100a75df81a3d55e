"""The servers and the proxy of the tests do what they say."""

import asyncio
import http.client
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import ROOT
from tests.servers import faults
from tests.servers.cutter import serve_cutter
from tests.servers.faults import Plan
from tests.servers.fixtures import MakeProxy, OwnBucket
from tests.servers.proxy import ENDLESS, Proxy
from tests.servers.s3 import ANYBODY
from tests.servers.sftp import Sftp
from tests.servers.web import Web

BODY = bytes(range(250)) * 4


@pytest.fixture
def shared(web: Web, tmp_path: Path) -> str:
    """URL of a folder with two files."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a").write_bytes(BODY)
    (tmp_path / "files/b").write_bytes(BODY[::-1])
    return web.share(tmp_path / "files")


def ask(
    url: str, *, method: str = "GET", body: bytes | None = None, timeout_s: float = 10
) -> tuple[int, bytes]:
    """One request over a connection of its own -> status, body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
    try:
        connection.request(method, parts.path, body, {"Authorization": ANYBODY})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_s3_keeps_files(s3: OwnBucket) -> None:
    """A client that knows nothing but the environment reads and writes them; listings have several pages."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(s3.bucket, client_options={"allow_http": True})
    obstore.put(store, "a/b", b"data")
    assert bytes(obstore.get_range(store, "a/b", start=1, length=2)) == b"at"
    s3.put("a/c d", b"more")
    assert s3.files("a") == {"b": b"data", "c d": b"more"}
    s3.delete("a/b")
    assert s3.names() == ["a/c d"]


def test_web_answers_ranges(shared: str) -> None:
    """206 with the bytes that were asked for."""
    request = urllib.request.Request(f"{shared}/a", headers={"Range": "bytes=3-5"})
    with urllib.request.urlopen(request) as answer:
        assert (answer.status, answer.read()) == (206, BODY[3:6])
        assert answer.headers["Content-Range"] == f"bytes 3-5/{len(BODY)}"


async def visit(url: str) -> bytes:
    """Write a file over SFTP and read it again."""
    import asyncssh

    parts = urlsplit(url)
    async with (
        asyncssh.connect(parts.hostname, parts.port, username=parts.username) as connection,
        connection.start_sftp_client() as client,
    ):
        async with client.open("/a", "wb") as file:
            await file.write(BODY)
        async with client.open("/a", "rb") as file:
            assert not await client.exists("/../secret")
            found: bytes = await file.read()
            return found


def test_sftp_serves_its_folder_only(sftp: Sftp, tmp_path: Path) -> None:
    """A client needs no options; what lies beside the folder cannot be reached."""
    (tmp_path / "secret").write_bytes(b"")
    assert asyncio.run(visit(sftp.url)) == BODY
    assert (sftp.folder / "a").read_bytes() == BODY


def test_connections_are_cut(sftp: Sftp) -> None:
    """As often as was asked for, after some bytes; then all passes."""
    import asyncssh

    with serve_cutter(sftp.port, seed=0, most=3, after=(0, 3000)) as cutter:
        url = sftp.through(cutter.port)
        for _ in range(3):
            with pytest.raises((OSError, asyncssh.Error)):
                asyncio.run(visit(url))
        assert cutter.cuts == 3
        assert asyncio.run(visit(url)) == BODY


def test_a_server_dies_with_its_process() -> None:
    """Also when that is killed."""
    code = (
        "import pathlib, sys, tempfile, time\n"
        "from tests.servers.programs import program\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "serve = lambda port: [sys.executable, '-m', 'http.server', '--bind', '127.0.0.1', str(port)]\n"
        "with program(serve, folder / 'log') as port:\n"
        "    print(port, flush=True)\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        port = int(child.stdout.readline())
    socket.create_connection(("127.0.0.1", port)).close()
    child.kill()
    child.wait()
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.01)
    pytest.fail("the server lives on")


def test_without_faults_all_passes(shared: str, s3: OwnBucket, faulty: MakeProxy) -> None:
    """Answers and statuses are those of the server; a connection is used again."""
    proxy = faulty(shared, faults.NONE)
    parts = urlsplit(proxy.url)
    connection = http.client.HTTPConnection(parts.netloc)
    for name, expected in (("a", 200), ("none", 404), ("b", 200)):
        connection.request("GET", f"{parts.path}/{name}")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == expected
    assert body == BODY[::-1]
    connection.request("HEAD", f"{parts.path}/a")
    assert connection.getresponse().headers["Content-Length"] == str(len(BODY))
    connection.close()
    beside = faulty(s3.endpoint, faults.NONE)
    assert ask(f"{beside.url}/{s3.bucket}/x", method="PUT", body=BODY)[0] == 200
    assert s3.get("x") == BODY
    assert proxy.injected == beside.injected == []


def outcome(proxy: Proxy, name: str) -> bytes | type[Exception]:
    """What a naive client makes of a file: bytes, or the error that it notices."""
    try:
        status, body = ask(f"{proxy.url}/{name}", timeout_s=0.3)
    except (OSError, http.client.HTTPException) as error:
        return type(error)
    if status >= 300:
        raised: type[Exception] = http.client.HTTPException
        return raised
    return body


@pytest.mark.parametrize("kind", [kind for kind in faults.KINDS if kind not in faults.NEEDS_UPLOAD])
def test_every_fault_happens(kind: str, shared: str, faulty: MakeProxy) -> None:
    """Once where once is asked for, and is recorded; what follows is as it should be."""
    proxy = faulty(
        shared, Plan(kinds=[kind], most=1, stall_s=1, only=lambda _, name: name.endswith("/a"))
    )
    assert outcome(proxy, "b") == BODY[::-1]
    if kind == "endless":
        parts = urlsplit(f"{proxy.url}/a")
        connection = http.client.HTTPConnection(parts.netloc)
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        assert answer.headers["Content-Length"] == str(ENDLESS)
        assert len(answer.read(10**6)) == 10**6
        connection.close()
    else:
        found = outcome(proxy, "a")
        if kind in ("drip", "twice"):
            assert found == BODY
        elif kind in faults.CHANGES:
            assert isinstance(found, bytes)
            assert found != BODY
        elif kind == "cut head":  # http.client takes what it has for all headers
            assert found != BODY
        else:
            assert isinstance(found, type), found
    assert [(fault.kind, fault.method) for fault in proxy.injected] == [(kind, "GET")]
    assert proxy.injected[0].name.endswith("/a")
    assert outcome(proxy, "a") == BODY


@pytest.mark.parametrize("kind", sorted(faults.NEEDS_UPLOAD))
def test_every_fault_of_an_upload_happens(kind: str, s3: OwnBucket, faulty: MakeProxy) -> None:
    """A damaged upload is a success for the client, and only the file shows it."""
    proxy = faulty(s3.endpoint, Plan(kinds=[kind], most=1))
    target = f"{proxy.url}/{s3.bucket}/x"
    if kind == "cut request":
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(target, method="PUT", body=BODY)
        assert s3.names() == []
    else:
        assert ask(target, method="PUT", body=BODY)[0] == 200
        assert s3.get("x") != BODY
    assert [fault.kind for fault in proxy.injected] == [kind]
    assert ask(target, method="PUT", body=BODY)[0] == 200
    assert s3.get("x") == BODY


def test_a_lost_answer_comes_after_the_deed(s3: OwnBucket, faulty: MakeProxy) -> None:
    """The client sees an error, and the file is there."""
    proxy = faulty(s3.endpoint, Plan(kinds=["lost answer"]))
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(f"{proxy.url}/{s3.bucket}/x", method="PUT", body=BODY)
    assert s3.get("x") == BODY


def test_a_plan_is_repeatable(shared: str, faulty: MakeProxy) -> None:
    """The same seed gives every request the same fault, whatever comes between; another seed gives others."""
    kinds = [kind for kind in faults.KINDS if kind not in (*faults.SLOW, "endless")]

    def run(seed: int, order: str) -> set[tuple[str, str, int]]:
        proxy = faulty(shared, Plan(seed=seed, share=0.5, kinds=kinds, most=-1))
        for name in order:
            outcome(proxy, name)
        return {(fault.kind, fault.target, fault.number) for fault in proxy.injected}

    first = run(1, "ab" * 10)
    assert 3 < len(first) < 17
    assert run(1, "a" * 10 + "b" * 10) == first
    assert run(2, "ab" * 10) != first
