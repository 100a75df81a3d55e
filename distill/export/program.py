"""torch.export: a graph of plain operators with a dynamic batch, the root of all other formats but safetensors."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distill.export.images import Pixels
from distill.export.parity import Logits, Runner
from distill.export.preprocessing import InputSpec
from featstore.errors import ConfigError
from featstore.files.atomic import write_bytes

NAME = "model.pt2"

Program = torch.export.ExportedProgram

MOST_IMAGES = 64  # largest batch of a program whose batch is bounded


def trace(module: nn.Module, spec: InputSpec, *, most: int | None = None) -> Program:
    """Trace a model in eval mode.

    Args:
        module: one input, one output or a tuple of them.
        most: largest batch; None sets no bound. Runtimes that plan their memory ahead need one.
    """
    batch = torch.export.Dim("batch", min=1, max=most)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(
                module.eval(), (spec.example(2),), dynamic_shapes=({0: batch},)
            )
    except Exception as error:  # torch.export raises many unrelated types
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ConfigError(
            f"torch.export cannot trace the student: {type(error).__name__}: {first[:300]}. Choose a student without "
            "that operator; --formats '[safetensors]' needs no trace."
        ) from error


def write_program(folder: Path, program: Program) -> Path:
    """Save a program.

    Returns:
        The file.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer)
    write_bytes(folder / NAME, buffer.getvalue())
    return folder / NAME


def runner(path: Path, spec: InputSpec) -> Runner:
    """Load the file and feed it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: Any = torch.export.load(path).module()

    def run(pixels: Pixels) -> Logits:
        with torch.no_grad():
            output = module(torch.from_numpy(np.ascontiguousarray(spec.feed(pixels))))
        found: Logits = (output[0] if isinstance(output, tuple) else output).numpy()
        return found

    return run
