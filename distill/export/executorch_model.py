"""ExecuTorch: a .pte file whose operators run on the phone's CPU through XNNPACK. Needs the package executorch."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distill.export import program
from distill.export.images import Pixels
from distill.export.parity import Logits, Runner
from distill.export.preprocessing import InputSpec
from distill.export.quiet import quiet, reason, silent_c
from featstore.errors import ConfigError
from featstore.files.atomic import write_bytes

NAME = "model.pte"
MISSING = "executorch is not installed: pip install 'featstore-distill[executorch]'"


def installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("executorch") is not None


def write_executorch(
    folder: Path, module: nn.Module, spec: InputSpec
) -> tuple[Path, dict[str, Any]]:
    """Lower a model to XNNPACK.

    Args:
        module: in eval mode.

    Returns:
        The file, and of it: ``xnnpack_parts`` of the graph that XNNPACK took, ``portable_operators`` that it left,
        and ``most_images`` of one call, for which its memory is planned.
    """
    if not installed():
        raise ConfigError(MISSING)
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        traced = program.trace(module, spec, most=program.MOST_IMAGES)
        try:
            edge: Any = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
            left = left_to_portable(edge.exported_program())
            made: Any = edge.to_executorch()
        except Exception as error:  # its errors have no common base
            raise ConfigError(f"ExecuTorch cannot lower the student: {reason(error)}.") from error
    write_bytes(folder / NAME, bytes(made.buffer))
    _, method = _load(folder / NAME)
    return folder / NAME, {**left, "most_images": most_images(method)}


def most_images(method: Any) -> int:
    """Largest batch of a loaded method. It may be below what was traced, where lowering has lost the bound."""
    return int(method.metadata.input_tensor_meta(0).sizes()[0])


def _load(path: Path) -> tuple[Any, Any]:
    """The program and its method; without the program, the method's memory would be freed."""
    # Its C library writes guesses about the processor to standard error.
    with silent_c():
        from executorch.runtime import Runtime

        loaded: Any = Runtime.get().load_program(path)
        return loaded, loaded.load_method("forward")


def left_to_portable(exported: Any) -> dict[str, Any]:
    """What XNNPACK took and what it did not."""
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    names = [name.removeprefix("<EdgeOpOverload: ").partition(">")[0] for name in targets]
    taken = [name for name in names if "delegate" in name]
    others = {name for name in names if "delegate" not in name and "getitem" not in name}
    return {"xnnpack_parts": len(taken), "portable_operators": sorted(others)}


def runner(path: Path, spec: InputSpec) -> Runner:
    """Load the file and feed it, a bounded number of pictures at a time."""
    loaded, method = _load(path)
    most = most_images(method)

    def run(pixels: Pixels) -> Logits:
        fed = torch.from_numpy(np.ascontiguousarray(spec.feed(pixels)))
        # An output lives in memory that the next call uses again.
        parts = [method.execute([part.contiguous()])[0].clone().numpy() for part in fed.split(most)]
        found: Logits = np.concatenate(parts)
        assert loaded is not None
        return found

    return run
