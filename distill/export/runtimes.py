"""One file, opened by the runtime that it is for: what is timed, and what is weighed in a process of its own.

A runtime is imported where a file of its kind is opened and nowhere else: a device has onnxruntime without torch.
"""

# B batch, H W student input, K classes

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Runtime = Literal["PyTorch", "ONNX Runtime", "ExecuTorch"]
Precision = Literal["fp32", "int8"]
Dtype = Literal["float32", "uint8"]
Array = npt.NDArray[Any]
Call = Callable[[], object]  # one forward pass of a batch that is there already


@dataclass(frozen=True)
class ModelFile:
    """A model as a file."""

    name: str  # for tables; different for all that are compared
    runtime: Runtime  # that opens it
    precision: Precision  # of its weights and sums, for tables
    path: Path  # of the file; for PyTorch the folder of a run, with its student.safetensors
    size: tuple[int, int]  # (H, W) of the input, pixels
    dtype: Dtype = "float32"  # of the input; PyTorch is fed float32 always
    most_images: int = 0  # of one call; 0 for any number

    def batch(self, images: int, seed: int = 0) -> Array:
        """(B, 3, H, W) noise: the time of these models does not depend on what they are shown."""
        draw = np.random.default_rng(seed)
        shape = (images, 3, *self.size)
        if self.dtype == "uint8" and self.runtime != "PyTorch":
            return draw.integers(0, 256, shape, np.uint8)
        return draw.standard_normal(shape, np.float32)


Feed = Callable[[Array], Call]  # takes a batch, gives back what runs it


def load_runtime(runtime: Runtime) -> None:
    """Import what a runtime needs, without a model."""
    names = {
        "PyTorch": "distill.training.saved_student",
        "ONNX Runtime": "onnxruntime",
        "ExecuTorch": "executorch.runtime",
    }
    importlib.import_module(names[runtime])


def open_model(candidate: ModelFile, threads: int) -> Feed:
    """Open a file for a number of threads.

    Raises:
        ConfigError: the folder is not that of a run (PyTorch).
        Exception: the runtime cannot open the file.
    """
    openers = {"PyTorch": _pytorch, "ONNX Runtime": _onnxruntime, "ExecuTorch": _executorch}
    return openers[candidate.runtime](candidate.path, threads)


def _pytorch(path: Path, threads: int) -> Feed:
    import torch

    from distill.training.saved_student import load_exported

    model = load_exported(path)[0].plain().eval()

    def feed(batch: Array) -> Call:
        images = torch.from_numpy(batch)

        def call() -> object:
            # Its threads belong to the process, not to the model.
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            with torch.inference_mode():
                return model(images)

        return call

    return feed


def _onnxruntime(path: Path, threads: int) -> Feed:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: lambda: session.run(None, {name: batch})


def _executorch(path: Path, threads: int) -> Feed:
    import torch

    # Not installed everywhere, and without types.
    library: Any = importlib.import_module("executorch.extension.pybindings.portable_lib")
    executor: Any = importlib.import_module("executorch.runtime").Runtime.get()
    program = executor.load_program(path)
    method = program.load_method("forward")

    def feed(batch: Array) -> Call:
        images = torch.from_numpy(batch)

        def call() -> object:
            # One pool for the process; making it anew takes a while, which is why a turn begins with an untimed call.
            if _pool["threads"] != threads:
                library._unsafe_reset_threadpool(threads)
                _pool["threads"] = threads
            assert program is not None  # keeps the memory of its method
            return method.execute([images])

        return call

    return feed


_pool = {"threads": 0}  # threads of ExecuTorch's pool as they were set here; 0: as it started
