"""``featstore doctor``."""

import argparse
import dataclasses
import json
from pathlib import Path

from featstore.cli.arguments import value
from featstore.planning.doctor import examine

DESCRIPTION = "Check what extraction needs of this machine: versions, processor, accelerator, memory, disk, hub."

ARGUMENTS = {
    "--path": value("folder for stores (default: the working directory)", Path, default=Path())
}


def run(arguments: argparse.Namespace) -> int:
    """Check the machine."""
    found = []
    for check in examine(arguments.path):
        found.append(check)
        if not arguments.json:
            advice = f"\n{'':22}{check.advice}" if check.advice else ""
            print(f"{check.state:6}{check.name:14}  {check.found}{advice}", flush=True)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(check) for check in found], indent=2))
    return 1 if any(check.state == "fail" for check in found) else 0
