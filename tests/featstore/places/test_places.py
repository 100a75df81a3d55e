"""Every kind of place does the same; what fails is tried again, goes on where it stopped, and ends in one error."""

import errno
import os
import pickle
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import GenericError

from featstore.errors import (
    ConfigError,
    RemoteError,
    RemoteNotFound,
    StoreError,
    StoreWriteError,
)
from featstore.places import base
from featstore.places.base import PIECE_BYTES, AccessRefused, Fault, FileSink, Place, Retry
from featstore.places.buckets import WHOLE_BYTES, ObjectPlace
from featstore.places.open_place import is_url, open_place
from tests.featstore.processes import fork, wait
from tests.servers.answers import serve_answers
from tests.servers.cutter import serve_cutter
from tests.servers.fixtures import OwnBucket
from tests.servers.hub import serve_hub
from tests.servers.programs import HOST
from tests.servers.sftp import Sftp
from tests.servers.web import Web

pytestmark = pytest.mark.filterwarnings(
    # huggingface_hub uploads large files so (2.4).
    "ignore:Use 'content=:DeprecationWarning"
)

QUICK = Retry(attempts=3, first_s=0.001, most_s=0.01, timeout_s=5)

SLOW = Retry(first_s=10, most_s=10)  # a second attempt would take longer than a test may

NAMES = ("a/b/plain.bin", "shards/\xe4 b#1?%41&.tar", "empty")
"""What image tars may be called, and so shards."""

KINDS = ("path", "file", "s3", "sftp", "memory", "hub")

XET = "huggingface_hub.constants.HF_HUB_DISABLE_XET"


def fetched(place: Place, name: str, to: Path, **options: Any) -> int:
    """Copy a file of a place into a local one; returns its bytes."""
    with to.open("wb") as file:
        return place.stream(name, FileSink(file), **options)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty place of each kind that can be written."""
    kind = request.param
    if kind == "path":
        yield open_place(str(tmp_path / "there"), retry=QUICK)
    elif kind == "file":
        yield open_place(f"file://{tmp_path}/the%20re", retry=QUICK)
    elif kind == "s3":
        yield open_place(f"{request.getfixturevalue('s3').url}/some/where", retry=QUICK)
    elif kind == "sftp":
        yield open_place(f"{request.getfixturevalue('sftp').url}/some/where", retry=QUICK)
    elif kind == "memory":
        pytest.importorskip("fsspec")
        yield open_place(f"memory://{tmp_path.name}/there", retry=QUICK)
    else:
        pytest.importorskip("huggingface_hub")
        # The hub's own protocol for large files needs more of a server than there is here.
        request.getfixturevalue("monkeypatch").setattr(XET, True)
        with serve_hub() as running:
            options = {"endpoint": running.endpoint, "token": "secret"}
            yield open_place("hf://datasets/team/name/there", retry=QUICK, options=options)


def test_what_is_written_is_there(place: Place, tmp_path: Path) -> None:
    """Bytes and files, of any name, large and empty; sizes, whole reads, fetched files, and reading from the middle."""
    assert place.sizes() == {}
    assert place.size(NAMES[0]) is None
    big = tmp_path / "big"
    # Object stores get a file in several requests, the others in several pieces.
    most = WHOLE_BYTES if isinstance(place, ObjectPlace) else PIECE_BYTES
    data = bytes(range(256)) * (most // 256) + b"the end"
    big.write_bytes(data)
    moved: list[int] = []
    place.write(NAMES[0], big, progress=moved.append)
    place.write(NAMES[1], b"old")
    place.write(NAMES[1], b"new one")
    place.write(NAMES[2], b"")
    place.finish()
    sizes = dict(zip(NAMES, (len(data), 7, 0), strict=True))
    assert sum(moved) == len(data)
    assert place.sizes() == sizes
    assert place.sizes("a") == {NAMES[0]: len(data)}
    assert place.sizes("nowhere") == {}
    assert {name: place.size(name) for name in NAMES} == sizes
    assert place.size("a") is None
    assert place.read(NAMES[1], most_bytes=7) == b"new one"
    assert place.read(NAMES[2], most_bytes=0) == b""
    arrived: list[int] = []
    assert fetched(place, NAMES[0], big, most_bytes=len(data), progress=arrived.append) == len(data)
    assert sum(arrived) == len(data)
    assert big.read_bytes() == data
    parts = list(place._pieces(NAMES[0], most))
    assert parts[0][0] == most
    assert b"".join(piece for _, piece in parts) == b"the end"
    assert place.read_part(NAMES[0], range(most - 2, most + 3)) == b"\xfe\xffthe"
    assert place.read_part(NAMES[0], range(most + 4, most + 99)) == b"end"
    place.remove([*NAMES[1:], "nowhere"])
    place.finish()
    assert place.sizes() == {NAMES[0]: len(data)}


def test_what_is_not_there_and_what_is_too_long(place: Place) -> None:
    """A missing file is told from one that cannot be had; a file longer than it may be is not read to its end."""
    place.write("a/long", bytes(5000))
    place.finish()
    with pytest.raises(RemoteNotFound, match="a/missing"):
        place.read("a/missing", most_bytes=10)
    with pytest.raises(RemoteError, match="4,999"):
        place.read("a/long", most_bytes=4999)


def test_another_process_connects_again(place: Place) -> None:
    """A place travels to another process, and works in a forked child whose parent has used it, as in a data loader."""
    place.write("file", b"content")
    place.finish()
    assert pickle.loads(pickle.dumps(place)).url == place.url
    if place.url.startswith("memory://"):
        return

    def work() -> None:
        again = pickle.loads(pickle.dumps(place))
        assert [item.read("file", most_bytes=7) for item in (place, again)] == [b"content"] * 2
        with pytest.raises(RemoteNotFound):
            place.read("missing", most_bytes=7)
        place.write("more", b"from the child")
        place.finish()

    child = fork(work)
    deadline = time.monotonic() + 60
    done = (0, 0)
    while done[0] == 0 and time.monotonic() < deadline:
        done = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if done[0] == 0:
        os.kill(child, 9)
        wait(child)
        raise AssertionError("the child waits for ever")
    assert os.waitstatus_to_exitcode(done[1]) == 0
    if not place.url.startswith("hf://"):  # which is read at the commit that was there first
        assert place.read("more", most_bytes=100) == b"from the child"


def test_web_servers_are_read_only(web: Web, tmp_path: Path) -> None:
    """Plain http has neither listing nor writing; all else is as everywhere."""
    folder = tmp_path / "shared"
    data = bytes(PIECE_BYTES + 7)
    for name, content in zip(NAMES, (data, b"new one", b""), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    place = open_place(web.share(folder), retry=QUICK)
    assert not place.lists
    assert place.size(NAMES[0]) == len(data)
    assert place.size("missing") is None
    assert place.read(NAMES[1], most_bytes=7) == b"new one"
    assert place.read(NAMES[2], most_bytes=0) == b""
    assert [start for start, _ in place._pieces(NAMES[0], PIECE_BYTES)] == [PIECE_BYTES]
    with pytest.raises(RemoteError, match="read only"):
        place.write("x", b"")
    with pytest.raises(RemoteError):
        place.remove(["x"])


class Broken(Place):
    """A place whose file comes in pieces of one byte, with faults where the test says."""

    def __init__(self, data: bytes, faults: list[int], *, ranges: bool = True) -> None:
        super().__init__("broken://place", QUICK)
        self.data, self.faults, self.ranges = data, faults, ranges
        self.asked: list[int] = []

    def _size(self, name: str) -> int:
        raise Fault("a 500")

    def _sizes(self, folder: str) -> dict[str, int]:
        raise AccessRefused("not for you")

    def _pieces(
        self, name: str, start: int, stop: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        self.asked.append(start)
        for at in range(start if self.ranges else 0, len(self.data)):
            if self.faults and self.faults[0] == at:
                self.faults.pop(0)
                raise Fault(f"cut at {at}")
            yield at, self.data[at : at + 1]

    def _write(self, name: str, data: bytes | Path, progress: Callable[[int], object]) -> None:
        progress(3)
        if self.faults:
            raise Fault(f"cut {self.faults.pop()}")

    def _remove(self, name: str) -> None:
        raise NotImplementedError

    def _meaning(self, error: Exception, where: str) -> Exception | None:
        return None


def test_a_cut_transfer_goes_on_where_it_was(tmp_path: Path) -> None:
    """Bytes that have arrived do not travel again; attempts count anew when one has come further."""
    place = Broken(b"0123456789", [2, 2, 5, 5, 9])
    moved: list[int] = []
    assert fetched(place, "x", tmp_path / "x", most_bytes=10, progress=moved.append) == 10
    assert (tmp_path / "x").read_bytes() == b"0123456789"
    assert place.asked == [0, 2, 2, 5, 5, 9]
    assert moved == [1] * 10


def test_a_place_without_ranges_begins_again(tmp_path: Path) -> None:
    """What came before is thrown away, and counts no more."""
    place = Broken(b"0123456789", [7], ranges=False)
    moved: list[int] = []
    assert fetched(place, "x", tmp_path / "x", most_bytes=10, progress=moved.append) == 10
    assert (tmp_path / "x").read_bytes() == b"0123456789"
    assert sum(moved) == 10


def test_in_the_end_there_is_one_error() -> None:
    """It names the file, how often it was tried, and the last thing that was wrong."""
    place = Broken(b"0123456789", [2, 2, 2, 2])
    with pytest.raises(RemoteError, match=r"broken://place/x.*\b3\b.*\b2\b"):
        place.read("x", most_bytes=10)
    assert place.asked == [0, 2, 2]
    with pytest.raises(RemoteError, match=r"\b3\b"):
        place.size("x")
    with pytest.raises(AccessRefused):
        place.sizes()
    place.faults = [1, 1]
    moved: list[int] = []
    place.write("x", b"123", progress=moved.append)
    assert sum(moved) == 3


def test_stop_ends_what_waits() -> None:
    """Also a call that waits for its next attempt."""
    place = Broken(b"0", [])
    place.retry = Retry(attempts=3, first_s=60, most_s=60)
    threading.Timer(0.05, place.stop).start()
    start = time.monotonic()
    with pytest.raises(RemoteError, match="stopped"):
        place.size("x")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://host/path", "'nonsense'"),
        ("hf://models/team/name", "hf://datasets/"),
        ("file://host/path", "a folder of this machine"),
        ("https://host/path?token=1", "no . or # part"),
    ],
)
def test_urls_that_name_no_place(url: str, message: str) -> None:
    """An error before anything is asked of anybody."""
    pytest.importorskip("fsspec")
    with pytest.raises(ConfigError, match=message):
        open_place(url)


def test_options_that_nobody_knows() -> None:
    """They are errors, not ignored."""
    with pytest.raises(ConfigError, match="colour"):
        open_place("s3://bucket/store", options={"colour": "red"})
    with pytest.raises(ConfigError, match="colour"):
        open_place("https://host/store", options={"colour": "red"})
    with pytest.raises(ConfigError, match="colour"):
        open_place("hf://datasets/team/name", options={"colour": "red"})


@pytest.mark.parametrize(
    ("url", "module"),
    [
        ("s3://bucket/store", "obstore.store"),
        ("sftp://host/store", "sshfs"),
        ("hf://datasets/team/name", "huggingface_hub"),
    ],
)
def test_missing_packages_are_named(url: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that brings them."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"featstore-distill\[remote\]"):
        open_place(url)


def test_secrets_are_not_shown() -> None:
    """Neither name nor password of a URL turn up in messages."""
    assert open_place("https://me:secret@host/store/").url == "https://host/store"
    assert open_place("sftp://me:secret@host/store").url == "sftp://me@host/store"


def test_paths_and_urls() -> None:
    """What is a URL, and what is a folder with an odd name."""
    for cut, whole in (
        ("s3:/b/x", "s3://b/x"),
        ("file:/x", "file:///x"),
        ("https:/h", "https://h"),
    ):
        with pytest.raises(ConfigError, match=f"Write {whole}"):
            is_url(cut)
    assert [is_url(text) for text in ("s3://b/x", "file:///x", "hf://datasets/a/b")] == [True] * 3
    assert [is_url(text) for text in ("x", "/a//b", "a:b", "C:/x", "://x", "./s3://b")] == [
        False
    ] * 6


def test_a_bucket_that_does_not_exist(s3: OwnBucket) -> None:
    """One attempt, one error without XML, for reading, writing and listing."""
    place = open_place("s3://no-such-bucket-anywhere/store", retry=SLOW)
    for call in (
        lambda: place.read("manifest.json", most_bytes=10),
        lambda: place.write("manifest.json", b""),
        place.sizes,
    ):
        with pytest.raises(RemoteError, match=r"no-such-bucket-anywhere.*NoSuchBucket") as caught:
            call()
        assert not isinstance(caught.value, RemoteNotFound)
        assert "<" not in str(caught.value)


def test_a_part_that_is_cut_is_sent_again_alone(s3: OwnBucket, tmp_path: Path) -> None:
    """Two cut connections within a large upload: no byte of the parts before is sent twice."""
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * (2 * WHOLE_BYTES // 256) + b"the end")
    port = int(s3.endpoint.rpartition(":")[2])
    with serve_cutter(port, seed=0, most=2, after=(5 * 2**20, 6 * 2**20)) as cutter:
        s3.patch.setenv("AWS_ENDPOINT_URL", f"http://{HOST}:{cutter.port}")
        place, moved = open_place(f"{s3.url}/there", retry=QUICK), list[int]()
        place.write("big", big, progress=moved.append)
        assert cutter.cuts == 2
    assert min(moved) == 0
    assert sum(moved) == big.stat().st_size
    assert s3.get("there/big") == big.read_bytes()


@pytest.mark.parametrize(
    ("status", "code", "found"),
    [
        (301, "PermanentRedirect", "region"),
        (400, "AuthorizationHeaderMalformed", "AWS_REGION"),
        (400, "ExpiredToken", "ExpiredToken"),
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (404, "NoSuchBucket", "no such bucket"),
    ],
)
def test_errors_that_stay(
    status: int, code: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong regions, keys and buckets: one request for each call, and a message without XML."""
    text = f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>told so</Message></Error>"
    with serve_answers(lambda request: (status, {}, text.encode())) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        place = open_place("s3://bucket/store", retry=SLOW)
        for call in (lambda: place.read("x", most_bytes=9), lambda: place.write("x", b"")):
            server.requests.clear()
            with pytest.raises(RemoteError, match=found) as caught:
                call()
            assert len(server.requests) == 1
            assert "<" not in str(caught.value)


def test_an_answer_without_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers a HEAD with expired credentials by 400 and nothing else."""
    with serve_answers(lambda request: (400, {}, b"")) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        with pytest.raises(AccessRefused, match=r"credentials.*AWS_REGION"):
            open_place("s3://bucket/store", retry=SLOW).size("x")


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One attempt at the cloud's own service for them, then what to set."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    place = open_place("s3://bucket/store", retry=SLOW)
    error = "Error performing PUT http://169.254.169.254/latest/api/token in 2s: cannot connect"

    def fail(*arguments: Any) -> Any:
        raise GenericError(error)

    monkeypatch.setattr(place, "_size", fail)
    with pytest.raises(AccessRefused, match=r"AWS_ACCESS_KEY_ID.*skip_signature"):
        place.size("x")


def test_a_server_that_drips() -> None:
    """A byte now and then is no progress: the transfer ends after the set number of attempts."""
    retry = Retry(attempts=2, first_s=0.001, most_s=0.01, timeout_s=0.4, least_rate=1000)

    def drip(request: Any) -> Any:
        yield 200, {"content-length": "1000000"}
        while True:
            time.sleep(0.05)
            yield b"x"

    with serve_answers(drip) as server:
        start = time.monotonic()
        with pytest.raises(RemoteError, match=r"failed 2 times .* 1,000 a second"):
            open_place(server.url, retry=retry).read("x", most_bytes=10**6)
        assert time.monotonic() - start < 20
        assert len(server.requests) == 3  # the second attempt asked for a range first
    with serve_answers(lambda request: (200, {}, b"all")) as server:
        assert open_place(server.url, retry=retry).read("x", most_bytes=3) == b"all"


def test_redirects_to_other_hosts(tmp_path: Path) -> None:
    """Files with a checksum may come from another host; for those without one it is an error that names the host."""
    opened = (tmp_path / "sink").open("wb")
    with opened, serve_answers(lambda request: (200, {}, b"secret")) as other:

        def redirect(request: Any) -> Any:
            if request.path == "/moved":
                return 200, {}, b"mine"
            return 302, {"location": other.url if request.path == "/away" else "/moved"}, b""

        with serve_answers(redirect) as server:
            place = open_place(server.url, retry=SLOW)
            assert place.read("away", most_bytes=9) == b"secret"
            sink = FileSink(opened)
            assert place.stream("here", sink, most_bytes=9, same_host=True) == 4
            requests = len(other.requests)
            with pytest.raises(RemoteError, match=re.escape(other.url)):
                place.stream("away", sink, most_bytes=9, same_host=True)
            assert len(other.requests) == requests


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is repeated, and ends in one error that names the file; listing is not silent about it."""
    (tmp_path / "x").write_bytes(b"content")
    place = open_place(str(tmp_path), retry=QUICK)
    calls = []

    def fail(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        raise OSError(code, os.strerror(code))

    for name, call in (
        ("open", lambda: place.read("x", most_bytes=9)),
        ("open", lambda: place.size("x")),
        ("scandir", place.sizes),
        ("open", lambda: place.remove(["x"])),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            calls.clear()
            with pytest.raises(RemoteError, match=f"3 times .*{os.strerror(code)}"):
                call()
            assert len(calls) == 3
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreWriteError, match=os.strerror(code)):
            place.write("x", b"new")
    assert place.read("x", most_bytes=9) == b"content"
    with monkeypatch.context() as patch:
        patch.setattr(base, "open_plain", fail)
        with pytest.raises(StoreError, match=os.strerror(code)):
            place.write("y", tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


def test_links_below_a_folder(tmp_path: Path) -> None:
    """Nothing is read, written or removed through a link, at the end of a name or on the way."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    (outside / "c").mkdir(parents=True)
    (outside / "c/secret").write_bytes(b"secret")
    root.mkdir()
    (root / "file").symlink_to(outside / "c/secret")
    (root / "folder").symlink_to(outside)
    place = open_place(str(root), retry=QUICK)
    assert place.sizes() == {}
    for name in ("file", "folder/c/secret"):
        for call in (
            lambda name=name: place.read(name, most_bytes=9),
            lambda name=name: place.size(name),
        ):
            with pytest.raises(RemoteError, match="link"):
                call()
    for name in ("folder/c/secret", "folder/new"):
        with pytest.raises(StoreWriteError, match="link"):
            place.write(name, b"mine")
        with pytest.raises(RemoteError, match="link"):
            place.remove([name])
    place.write("file", b"mine")  # the link is replaced, what it leads to is not
    place.remove(["file"])
    assert [path.name for path in outside.rglob("*")] == ["c", "secret"]
    assert (outside / "c/secret").read_bytes() == b"secret"


def test_an_unknown_host_is_not_believed(sftp: Sftp, tmp_path: Path) -> None:
    """The key of the host is compared with those that the user has accepted."""
    (tmp_path / "home/.ssh/known_hosts").write_text("")
    with pytest.raises(RemoteError, match="known_hosts=FILE"):
        open_place(f"{sftp.url}/store", retry=QUICK).size("x")


def test_a_server_that_is_not_there() -> None:
    """Refused connections are tried again, then said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = open_place(f"http://127.0.0.1:{port}/store", retry=QUICK)
    with pytest.raises(RemoteError, match=r"/store/x.*\b3\b"):
        place.read("x", most_bytes=10)


def test_pipes_and_folders_are_no_files(tmp_path: Path) -> None:
    """A pipe would make a reader wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    place = open_place(str(tmp_path), retry=QUICK)
    for name in ("pipe", "folder"):
        assert place.size(name) is None
        with pytest.raises(RemoteNotFound):
            place.read(name, most_bytes=10)


def test_hub_commits_are_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of what is written can be seen before the commit, and one revision is read throughout."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(XET, True)
    with serve_hub() as running:
        options: dict[str, Any] = {"endpoint": running.endpoint, "token": "secret"}
        place = open_place("hf://datasets/team/name", retry=QUICK, options=options)
        place.write("small", b"one")
        place.write("large", bytes(1000))
        assert set(running.files("team/name")) == {".gitattributes"}
        place.finish()
        assert len(running.commits["team/name"]) == 2
        reader = open_place("hf://datasets/team/name", retry=QUICK, options=options)
        assert reader.read("small", most_bytes=10) == b"one"
        place.write("small", b"two")
        place.finish()
        assert reader.read("small", most_bytes=10) == b"one"
        old = open_place("hf://datasets/team/name@0000001", retry=QUICK, options=options)
        assert old.read("small", most_bytes=10) == b"one"
        place.write("dropped", b"")
        place.remove(["dropped", "small"])
        place.finish()
        assert set(running.files("team/name")) == {".gitattributes", "large"}
        assert len(running.uploads) == 1
