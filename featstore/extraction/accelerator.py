"""Start accelerate so that the processes of every launcher find each other; both phases do."""

import importlib
import os
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator

from featstore.errors import ConfigError
from featstore.files.limits import asked_threads, share_of_cores

OWN_LOOPS = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")
"""Ways to train for which accelerate replaces model and optimiser, so that checkpoints here would not hold them."""


def use_cores(workers: int) -> int:
    """Let torch use the cores that are there, unless the user asked for a number of threads; returns that number.

    Args:
        workers: loading processes of this process.
    """
    threads = asked_threads() or share_of_cores(workers)
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return threads


def start_accelerator(*, workers: int = 0, **settings: Any) -> Accelerator:
    """Build accelerate's front end, and let torch use the cores that are there.

    On a machine without an accelerator accelerate 1.15 takes every process that torchrun starts for the only one,
    unless it is told to stay on the CPU: two processes would do the same work and write the same files.

    What accelerate would take from its command line, its config file or the environment is compared with the settings
    of this project, which decide; a difference is printed once.

    Args:
        workers: loading processes of this process, which share the cores with it.
        settings: further arguments of ``Accelerator``.
    """
    use_cores(workers)
    unfit = [name for name in OWN_LOOPS if _asked(f"USE_{name}", "false").lower() == "true"]
    if unfit:
        raise ConfigError(
            f"accelerate was told to use {', '.join(unfit)}, which is not supported: models here fit on one device. "
            "Launch without it (accelerate launch --multi_gpu, or a config file without it: --config_file FILE)."
        )
    notes = [
        f"accelerate's {option} {asked} is ignored: --train.{setting} is {value}"
        for option, name, setting, value in (
            ("--mixed_precision", "MIXED_PRECISION", "precision", settings.get("mixed_precision")),
            (
                "--gradient_accumulation_steps",
                "GRADIENT_ACCUMULATION_STEPS",
                "grad_accum",
                settings.get("gradient_accumulation_steps"),
            ),
        )
        if value is not None and (asked := _asked(name, str(value))).lower() != str(value)
    ]
    if (backend := _asked("DYNAMO_BACKEND", "no")).lower() != "no":
        notes.append(f"accelerate's --dynamo_backend {backend} is ignored: --train.compile decides")
    # These two win over arguments.
    for name in ("GRADIENT_ACCUMULATION_STEPS", "DYNAMO_BACKEND"):
        os.environ.pop(f"ACCELERATE_{name}", None)
    launched = "LOCAL_RANK" in os.environ
    if launched:
        # Its functions have the group of the time of their import as a default. Imported later, as torchmetrics does,
        # they keep the group's threads beyond its end, and now and then these abort a process that has done its work.
        importlib.import_module("torch.distributed.nn.functional")
    accelerator = Accelerator(cpu=launched and not torch.accelerator.is_available(), **settings)
    if accelerator.is_main_process:
        for note in notes:
            _print_once(f"note: {note}")
    return accelerator


def _asked(name: str, default: str) -> str:
    """What accelerate's launcher or the user has put into the environment."""
    return os.environ.get(f"ACCELERATE_{name}", default)


@cache
def _print_once(text: str) -> None:
    print(text, flush=True)
