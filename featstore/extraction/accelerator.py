"""Start accelerate so that the processes of every launcher find each other; both phases do."""

import os
from typing import Any

import torch
from accelerate import Accelerator


def start_accelerator(**settings: Any) -> Accelerator:
    """Build accelerate's front end.

    On a machine without an accelerator accelerate 1.15 takes every process that torchrun starts for the only one,
    unless it is told to stay on the CPU: two processes would do the same work and write the same files.

    Args:
        settings: further arguments of ``Accelerator``.
    """
    launched = "LOCAL_RANK" in os.environ
    return Accelerator(cpu=launched and not torch.accelerator.is_available(), **settings)
