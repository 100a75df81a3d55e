"""Machines with nothing but a bucket in common: network namespaces with own folders, on a bridge to the server.

Images are tars in the bucket, the store is extracted into the bucket, one machine is killed, and a student is trained
from where both are.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

import pytest

from tests.conftest import ROOT
from tests.featstore.extraction.test_ranks import write_recipe
from tests.featstore.stores import snapshot
from tests.servers.s3 import S3, serve_s3
from tests.test_engines import run, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None,
        reason="not root, or no ip: apt-get install iproute2",
    ),
]

NET = "10.199.77"
BRIDGE = "fsbridge"
COPIES = 4
"""How often each of the 26 pictures is in the tars."""


@dataclass(frozen=True)
class Machine:
    """A network namespace, with a home and a scratch folder of its own.

    Attributes:
        name: Of the namespace.
        folder: Its home, with everything that it writes.
        bucket: What it has in common with the others.
    """

    name: str
    folder: Path
    bucket: S3

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Start a script of the checkout on this machine."""
        scratch = self.folder / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        port = urlsplit(self.bucket.endpoint).port
        environment = {
            **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
            **self.bucket.environment(f"http://{NET}.1:{port}"),
            "HOME": str(self.folder),
            "TMPDIR": str(scratch),
            "OMP_NUM_THREADS": "1",
        }
        log = (self.folder / "log").open("a")
        with log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, sys.executable, *words],
                cwd=ROOT, env=environment, text=True, stdout=log, stderr=log,
            )  # fmt: skip

    def run(self, *words: str) -> None:
        """Run a script of the checkout on this machine."""
        self.check(self.start(*words))

    def check(self, process: "subprocess.Popen[str]") -> None:
        """Wait for a script that must succeed."""
        assert process.wait(900) == 0, (self.folder / "log").read_text()[-3000:]


def ip(words: str) -> None:
    """Run the command ``ip``."""
    subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True)


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[S3]:
    """A server that the machines reach, and its bucket."""
    pytest.importorskip("moto", reason="no S3 server: pip install 'moto[server]'")
    with serve_s3(tmp_path, "0.0.0.0") as endpoint:
        found = S3(endpoint, "machines")
        found.create()
        yield found


@pytest.fixture
def machines(bucket: S3, tmp_path: Path) -> Iterator[list[Machine]]:
    """Three machines on one bridge."""
    names = [f"fsmachine{number}" for number in range(3)]
    try:
        try:
            ip(f"link add {BRIDGE} type bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr}")
        ip(f"addr add {NET}.1/24 dev {BRIDGE}")
        ip(f"link set {BRIDGE} up")
        for number, name in enumerate(names):
            ip(f"netns add {name}")
            ip(f"link add fsveth{number} type veth peer name eth0 netns {name}")
            ip(f"link set fsveth{number} master {BRIDGE} up")
            ip(f"-n {name} addr add {NET}.{10 + number}/24 dev eth0")
            ip(f"-n {name} link set eth0 up")
            ip(f"-n {name} link set lo up")
        yield [Machine(name, tmp_path / name, bucket) for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)


def write_tars(images: Path, folder: Path) -> list[Path]:
    """Three tars with all pictures, several times under other names."""
    files = sorted(path for path in images.rglob("*") if path.is_file())
    tars = []
    folder.mkdir()
    for number in range(3):
        tars.append(folder / f"{number}.tar")
        with tarfile.open(tars[-1], "w") as tar:
            for copy in range(COPIES):
                for at in range(number, len(files), 3):
                    data = files[at].read_bytes()
                    member = tarfile.TarInfo(f"{copy}-{at:02d}{files[at].suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return tars


def train_flags(store: str, source: str, out: Path) -> list[str]:
    """A short run of phase two, on images without labels."""
    return [
        "pipelines/distill.py", "--store", store, "--out", str(out), "--source.kind", "tars",
        "--source.path", source, "--task", "none", "--data.labelled", "[]", "--data.test", "[]",
        "--data.unlabelled", "['*']", "--data.labels_per_class", "0", "--methods", "[fitnet]", "--seeds", "[0]",
        "--student.name", "test_convnext", "--student.pretrained", "false", "--student.image_size", "32",
        "--train.epochs", "1", "--train.min_epoch_steps", "0", "--train.warmup_epochs", "0", "--train.workers", "0",
        "--trackers", "[]", "--report", "false",
    ]  # fmt: skip


def test_three_machines_and_a_bucket(
    machines: list[Machine], bucket: S3, image_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    """One is killed in the middle of a shard; the store is sound where it is, equal to the one of a single process in a
    folder, and the student that is trained from the bucket is equal too.
    """
    tars = write_tars(image_folder, tmp_path / "tars")
    for tar in tars:
        bucket.put(f"images/{tar.name}", tar.read_bytes())
    url, source = f"{bucket.url}/stores/s", f"{bucket.url}/images/{{0..2}}.tar"

    def recipe(name: str, images: str, store: str) -> str:
        path = write_recipe(tmp_path / f"{name}.json", image_folder, tmp_path, teacher_file)
        values = json.loads(path.read_text())
        values["source"] = {"kind": "tars", "path": images}
        values["views"]["seeded"] = 100  # leases live for seconds, not for less than a look
        values["store"] |= {"path": store, "lease_s": 5}
        path.write_text(json.dumps(values))
        return str(path)

    ours = recipe("bucket", source, url)
    running = [machine.start("pipelines/extract.py", "--config", ours) for machine in machines]
    killed = -1

    def one_holds_a_lease() -> bool:
        nonlocal killed
        assert all(process.poll() is None for process in running), [
            (machine.folder / "log").read_text()[-2000:] for machine in machines
        ]
        with suppress(HTTPError):  # deleted after it was listed
            held = b"".join(bucket.files("stores/s/leases").values()).decode()
            holders = [n for n, one in enumerate(running) if f'"pid": {one.pid},' in held]
            killed = holders[0] if holders else -1
        return killed >= 0

    wait_until(one_holds_a_lease, seconds=600)
    running[killed].send_signal(signal.SIGKILL)
    running[killed].wait()
    for number, machine in enumerate(machines):
        if number != killed:
            machine.check(running[number])

    found = bucket.files("stores/s")
    assert not [name for name in found if "lease" in name or "partial" in name]
    machines[0].run("-m", "featstore", "verify", url)
    local, here = tmp_path / "local", tmp_path / "copy"
    run(
        [
            sys.executable,
            "pipelines/extract.py",
            "--config",
            recipe("local", f"{tars[0].parent}", str(local)),
        ]
    )
    for name, data in found.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(data)
    stores = [snapshot(folder) for folder in (here, local)]
    for store in stores:
        del store["manifest.json"]["source"]["uri"]
    assert stores[0] == stores[1]

    machines[1].run(*train_flags(url, source, machines[1].folder / "run"))
    run([sys.executable, *train_flags(str(local), str(tars[0].parent), tmp_path / "run")])
    student = "fitnet/seed0/student.safetensors"
    assert (machines[1].folder / "run" / student).read_bytes() == (
        tmp_path / "run" / student
    ).read_bytes()
