"""Parts of the loop that no method changes: optimiser, learning rate, and the loss terms as numbers."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm.optim
import timm.scheduler
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.config import TrainConfig
from featstore.errors import ConfigError, FeatstoreError

FOREACH = ("adam", "adamw", "nadamw", "sgd")
"""Optimisers whose form for lists of tensors gives the same bits as the one tensor by tensor, in fewer calls."""


class TrainingDiverged(FeatstoreError):
    """A term of the loss is no longer a number."""


class OutOfTime(FeatstoreError):
    """The time that a command may take is over; the same command resumes."""


@contextmanager
def clean_errors() -> Iterator[None]:
    """Turn torch's errors on a batch of one image and on compiling into ours.

    Raises:
        ConfigError: batch norm has one value per channel, which has no variance; or the student cannot be compiled.
    """
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        why = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"--train.compile true: {why}. Install a C++ compiler, or train with --train.compile false."
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            "batch norm cannot train on one image at a time: each process sees (--train.labelled_batch + "
            "--train.unlabelled_batch) / (processes x --train.grad_accum) images. Raise the batch, or lower "
            "--train.grad_accum or the number of processes."
        ) from error


def make_optimiser(
    module: nn.Module, config: TrainConfig, *, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, Any]:
    """Build timm's optimiser and its scheduler, which is to be updated at every step.

    Raises:
        ConfigError: timm has no such optimiser.
    """
    try:
        optimiser = timm.optim.create_optimizer_v2(
            module,
            opt=config.opt,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            foreach=True if config.opt in FOREACH else None,
        )
    except (ValueError, AssertionError) as error:
        raise ConfigError(
            f"--train.opt {config.opt}: {error}. Names: adamw, sgd, lamb and others of timm."
        ) from error
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimiser,
        # With decay_rate 1, timm's poly is a straight line and its step is constant.
        sched={"cosine": "cosine", "linear": "poly", "none": "step"}[config.sched],
        num_epochs=config.epochs,
        decay_epochs=config.epochs,
        decay_rate=1.0,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return optimiser, scheduler


def ema_warning(decay: float, steps: int) -> str:
    """What to tell a user whose run is too short for the decay of its moving average; "" if it is not."""
    # timm's warm-up: 1 - (1 + step)^(-2/3).
    needed = (1 - decay) ** -1.5 - 1
    if not decay or steps >= needed:
        return ""
    reached = 1 - (1 + steps) ** (-2 / 3)
    return (
        f"--train.ema {decay} is reached after {needed:,.0f} steps, the run has {steps:,}: its decay rises to "
        f"{reached:.3f} only"
    )


def gradient_norm(
    accelerator: Accelerator, parameters: Sequence[nn.Parameter], limit: float
) -> Tensor:
    """Return the norm of all gradients, and clip them to ``limit`` unless it is 0."""
    if limit:
        return torch.as_tensor(accelerator.clip_grad_norm_(parameters, limit))
    accelerator.unscale_gradients()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # As torch.nn.utils.get_total_norm, which sorts the tensors by device and type at every step.
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm


def read_terms(
    terms: dict[str, Tensor], norm: Tensor | None = None, *, where: str
) -> dict[str, float]:
    """Read the terms of a loss, and a norm of gradients, with one wait for the device.

    Args:
        terms: scalars by name.
        norm: a scalar, not checked.
        where: method, seed, epoch and step, for the message.

    Returns:
        Numbers, by "loss/NAME"; the norm as "grad_norm".

    Raises:
        TrainingDiverged: a term is not finite.
    """
    scalars = [*terms.values(), *([] if norm is None else [norm])]
    numbers = torch.stack([scalar.detach().float() for scalar in scalars]).tolist()
    values = dict(zip(terms, numbers, strict=False))
    bad = {name: value for name, value in values.items() if not abs(value) < float("inf")}
    if bad:
        raise TrainingDiverged(
            f"{where}: loss term {', '.join(f'{name} = {value}' for name, value in bad.items())}. "
            "Lower --train.lr, set --train.clip_grad 1, or use --train.precision bf16 or no."
        )
    found = {f"loss/{name}": value for name, value in values.items()}
    return found if norm is None else {**found, "grad_norm": numbers[-1]}


@dataclass
class TermSums:
    """Sums of the terms since the last logged line."""

    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    count: int = 0

    def add(self, values: dict[str, float]) -> None:
        """Add one piece of a step."""
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes; then starts anew."""
        names = sorted(self.sums)
        own = torch.tensor([self.sums[name] / self.count for name in names], dtype=torch.float32)
        shared: Tensor = accelerator.reduce(own.to(accelerator.device), reduction="mean")
        self.sums, self.count = {}, 0
        return dict(zip(names, shared.tolist(), strict=True))
