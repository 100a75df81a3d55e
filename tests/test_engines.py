"""The scripts of pipelines/launch, run by real engines on this machine: each fills one store, equal to one process's.

They skip where an engine is missing, with the command that installs it.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.featstore.extraction.test_ranks import write_recipe
from tests.featstore.stores import snapshot

pytestmark = [pytest.mark.slow, pytest.mark.engine]

LAUNCH = ROOT / "pipelines" / "launch"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # sums depend on the number of threads in the last bit
    "PYTHON": sys.executable,
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # 15 gets next to nothing of a machine that does other work
}

Recipe = Callable[[str], Path]


def write(path: Path, images: Path, teacher: Path) -> Path:
    """A recipe of seven shards, its store named like the file; leases end soon after their process.

    With so many views seven shards take seconds: a task that is killed once there are leases has not finished.
    """
    write_recipe(path, images, path.with_suffix(""), teacher)
    settings = json.loads(path.read_text())
    settings["views"]["seeded"] = 500
    settings["store"]["lease_s"] = 5
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture
def recipe(image_folder: Path, teacher_file: Path, tmp_path: Path) -> Recipe:
    """A recipe by the name of its store."""
    return lambda name: write(tmp_path / f"{name}.json", image_folder, teacher_file)


@pytest.fixture(scope="module")
def expected(
    image_folder: Path, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """The store that one process makes."""
    path = write(tmp_path_factory.mktemp("one") / "one.json", image_folder, teacher_file)
    run([sys.executable, "pipelines/extract.py", "--config", str(path)])
    return snapshot(path.with_suffix(""))


def run(words: list[str], *, timeout_s: float = 400, **environment: str) -> str:
    """Run a command from the root of the checkout; returns what it printed."""
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, **ENVIRONMENT, **environment}, text=True, timeout=timeout_s,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_until(
    holds: Callable[[], bool], *, seconds: float = 300, state: Callable[[], str] = str
) -> None:
    """Ask again and again; a failure with the ``state`` of things where it takes too long."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"took too long. {state()}"
        time.sleep(0.05)


def test_two_machines_under_one_launcher(
    recipe: Recipe, expected: dict[str, object], tmp_path: Path
) -> None:
    """Two ``accelerate launch --num_machines 2`` on the loopback device, each for one machine of the job.

    Both belong to one job: each counts the images of both.
    """
    path = recipe("two")
    words = [str(LAUNCH / "machine.sh"), "pipelines/extract.py", "--config", str(path)]
    job = {**os.environ, **ENVIRONMENT, "MACHINES": "2", "MAIN": "127.0.0.1"}
    job["PORT"] = str(free_ports(1)[0])
    machines = [
        subprocess.Popen(
            words, cwd=ROOT, env={**job, "RANK": str(rank)}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    for machine in machines:
        output, _ = machine.communicate(timeout=400)
        assert machine.returncode == 0, output[-3000:]
        assert "26 of them from this run" in output
    assert snapshot(tmp_path / "two") == expected


SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""Two nodes of one processor each, both this machine."""


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster of one controller and two nodes; SLURM_CONF leads to it."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch")
    if any(shutil.which(name) is None for name in programs) or os.geteuid() != 0:
        pytest.skip("no Slurm, or not root: apt-get install --no-install-recommends slurm-wlm")
    first = next(p for p in range(20_000, 60_000, 97) if all(map(_is_free, range(p, p + 3))))
    # Sockets have short paths.
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/slurm.XXXX"], text=True).strip())
    folder.chmod(0o755)
    (folder / "munge").mkdir(mode=0o700)
    (folder / "state").mkdir()
    key = folder / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    host = socket.gethostname().split(".")[0]
    text = SLURM.format(host=host, user="root", folder=folder, ports=range(first, first + 3))
    (folder / "slurm.conf").write_text(text)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    munge = folder / "munge"
    daemons = [
        [
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        ],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ]  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []
    try:
        for words in daemons:
            log = (folder / f"{len(running)}.log").open("w")
            with log:
                running.append(subprocess.Popen(words, stdout=log, stderr=log))
            if words[0] == "munged":
                wait_until((munge / "socket").exists, seconds=60)
        wait_until(lambda: "idle" in _output("sinfo", "--noheader", "--format=%D %t"), seconds=120)
        yield
    finally:
        for daemon in reversed(running):
            daemon.terminate()
            daemon.wait(30)
        shutil.rmtree(folder)


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


def _output(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=ROOT)
    return done.stdout


@pytest.mark.usefixtures("slurm")
def test_a_slurm_array_that_loses_a_task(
    recipe: Recipe, expected: dict[str, object], tmp_path: Path
) -> None:
    """Four tasks on two nodes; the first is killed as soon as a shard is taken, and the others make what it leaves."""
    path = recipe("slurm")
    answer = run(
        [
            "sbatch", "--array=0-3", "--cpus-per-task=1", f"--output={tmp_path}/%a.log",
            str(LAUNCH / "slurm.sbatch"), "--config", str(path),
        ]
    )  # fmt: skip
    number = re.findall(r"[0-9]+", answer)[-1]
    store = tmp_path / "slurm"

    def state() -> str:
        logs = "".join(path.read_text()[-1000:] for path in tmp_path.glob("*.log"))
        return _output("squeue", "--long") + _output("sinfo", "--long") + logs

    wait_until((store / "leases").exists, state=state)
    run(["scancel", "--signal=KILL", "--full", f"{number}_0"])
    wait_until(lambda: not _output("squeue", "--noheader", f"--jobs={number}").strip(), state=state)
    assert snapshot(store) == expected


def test_ray_tasks(recipe: Recipe, expected: dict[str, object], tmp_path: Path) -> None:
    """Three tasks of a Ray that the script starts itself."""
    pytest.importorskip("ray", reason="no Ray: pip install 'ray[default]'")
    path = recipe("ray")
    words = [
        sys.executable,
        str(LAUNCH / "ray_tasks.py"),
        "--tasks",
        "3",
        "--",
        "--config",
        str(path),
    ]
    run(words)
    assert snapshot(tmp_path / "ray") == expected


RAY_NODE_LOST = """
import json, subprocess, sys, time
from contextlib import suppress
from pathlib import Path
import psutil
from ray.cluster_utils import Cluster

leases, (python, script, *words) = Path(sys.argv[1], "leases"), sys.argv[2:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
job = subprocess.Popen([python, script, "--address", cluster.address, *words])
raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)

def works_on_a_shard():
    with suppress(OSError, ValueError):
        holders = {json.loads(path.read_text())["pid"] for path in leases.glob("*.json")}
        return bool(holders & {one.pid for one in raylet.children(recursive=True)})

while not works_on_a_shard():
    assert job.poll() is None, "the job ended before"
    time.sleep(0.1)
lost = [raylet, *raylet.children(recursive=True)]
for one in lost:
    one.kill()
print(f"LOST {len(lost)} processes", flush=True)
status = job.wait()
cluster.remove_node(node, allow_graceful=False)
cluster.shutdown()
sys.exit(status)
"""
"""Two nodes of one task each; all processes of the second are killed while one of them holds a shard."""


def test_a_ray_node_that_is_lost(
    recipe: Recipe, expected: dict[str, object], tmp_path: Path
) -> None:
    """Ray runs the task of the lost node again, and what that node had begun is made by others."""
    pytest.importorskip("ray", reason="no Ray: pip install 'ray[default]'")
    script = [sys.executable, str(LAUNCH / "ray_tasks.py"), "--tasks", "2"]
    words = [str(tmp_path / "ray"), *script, "--", "--config", str(recipe("ray"))]
    printed = run(
        [sys.executable, "-c", RAY_NODE_LOST, *words],
        timeout_s=900,
        # Ray takes a node for lost after five missed checks of 3 s otherwise.
        RAY_health_check_period_ms="1000",
        RAY_health_check_failure_threshold="3",
    )
    assert "LOST" in printed
    assert snapshot(tmp_path / "ray") == expected


def test_the_script_for_a_gpu(tmp_path: Path) -> None:
    """Every command of benchmarks/gpu.sh runs, at sizes for a CPU."""
    printed = run(["benchmarks/gpu.sh", str(tmp_path)], timeout_s=1500, TINY="1")
    assert "rows are equal to the last bit" in printed
    assert printed.count("== ") == 7
