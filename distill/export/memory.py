"""Peak memory of one model, in a process of its own that loads nothing but its runtime.

python -m distill.export.memory '{"name": ..., "runtime": ..., ...}'
"""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from distill.export.runtimes import ModelFile, load_runtime, open_model
from featstore.errors import ConfigError

CALLS = 3  # runtimes plan their memory in the first call and keep it from the second one on
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Of one process, in MB of 10^6 bytes."""

    peak_mb: float  # most resident memory of the process, its runtime included
    # how much of it came after the runtime was imported: weights, activations, plans
    model_mb: float


def weigh(candidate: ModelFile) -> Memory | None:
    """Run a batch of one on one thread in a fresh process. None where the system does not tell (no /proc)."""
    if not STATUS.exists():
        return None
    told = json.dumps({**dataclasses.asdict(candidate), "path": str(candidate.path.absolute())})
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", __name__, told],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"{candidate.path}: {candidate.runtime} cannot run it alone: {last}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def _resident(key: str) -> float:
    """A line of the process' status: VmRSS, or VmHWM, its peak."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024 / 1e6


def main(told: str) -> None:
    """What the process does."""
    values = json.loads(told)
    candidate = ModelFile(**{**values, "path": Path(values["path"]), "size": tuple(values["size"])})
    load_runtime(candidate.runtime)
    before = _resident("VmRSS")
    call = open_model(candidate, 1)(candidate.batch(1))
    for _ in range(CALLS):
        call()
    peak = _resident("VmHWM")
    print(json.dumps({"peak_mb": peak, "model_mb": max(0.0, peak - before)}))


if __name__ == "__main__":
    main(sys.argv[1])
