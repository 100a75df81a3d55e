"""Fill one store with Ray: as many tasks as asked for, each of which runs the script of phase one.

    python pipelines/launch/ray_tasks.py --tasks 64 --gpus 1 --cpus 16 -- --config recipe.yaml

Tasks share nothing but the file system of the store. Ray runs a task again whose worker or node is lost, and one that
ends with an error, up to --retries times.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="of each task")
    parser.add_argument("--cpus", type=float, default=1, help="of each task")
    parser.add_argument("--retries", type=int, default=5, help="of each task")
    parser.add_argument("--address", default=None, help="of a running cluster; default: a new one")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of pipelines/extract.py, after --")
    return parser.parse_args()


def extract(flags: list[str]) -> None:
    """Run the script of phase one in a process of its own."""
    script = ROOT / "pipelines" / "extract.py"
    subprocess.run([sys.executable, str(script), *flags], check=True, cwd=ROOT)


def main() -> None:
    """Start the tasks and wait for all of them."""
    import ray

    chosen = options()
    flags = [flag for flag in chosen.flags if flag != "--"]
    ray.init(address=chosen.address, include_dashboard=False)
    task = ray.remote(extract).options(
        num_gpus=chosen.gpus,
        num_cpus=chosen.cpus,
        max_retries=chosen.retries,
        retry_exceptions=True,
        # Tasks spread over the nodes instead of filling one.
        scheduling_strategy="SPREAD",
    )
    ray.get([task.remote(flags) for _ in range(chosen.tasks)])


if __name__ == "__main__":
    main()
