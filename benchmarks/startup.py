"""Start-up: seconds from the command to the first optimiser step of the digits.

    python pipelines/extract.py; python benchmarks/startup.py            about a minute

``--train.log_every 1`` writes a line of metrics.jsonl after the first step; then the command is stopped. CPU seconds
are those of all its processes; wall time on a busy machine contains its other work.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._measure import Spread

STARTS = 3
FLAGS = ["--methods", "[labels]", "--seeds", "[0]", "--train.log_every", "1"]


def start(out: Path) -> tuple[float, float]:
    """Wall and CPU seconds until the first step of one start."""
    command = ["accelerate", "launch", "pipelines/distill.py", *FLAGS, "--out", str(out)]
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not any('"loss/' in file.read_text() for file in out.rglob("metrics.jsonl")):
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(command)}: ended with status {process.returncode}")
        time.sleep(0.02)
    wall = time.monotonic() - began
    launcher = psutil.Process(process.pid)
    times = [part.cpu_times() for part in (launcher, *launcher.children(recursive=True))]
    os.killpg(process.pid, signal.SIGINT)
    process.wait()
    return wall, sum(part.user + part.system for part in times)


def main() -> None:
    """Start several times and print the spread; the first start also reads the files from disk."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = [start(Path(folder) / str(number)) for number in range(STARTS)]
    for name, values in zip(("wall", "CPU"), zip(*seconds, strict=True), strict=True):
        print(f"{name} seconds until the first optimiser step: {Spread.of(values)}")


if __name__ == "__main__":
    main()
