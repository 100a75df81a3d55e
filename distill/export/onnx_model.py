"""ONNX: one file with a dynamic batch, checked by onnx and run by onnxruntime."""

# B batch, H W student input, K classes

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.export.images import Pixels
from distill.export.parity import Logits, Runner
from distill.export.preprocessing import InputSpec
from distill.export.program import Program
from distill.export.quiet import quiet, reason
from featstore.errors import ConfigError
from featstore.files.atomic import write_bytes

NAME = "model.onnx"
INT8 = "model.int8.onnx"
INPUT, OUTPUT, BATCH = "image", "logits", "batch"
BACKBONE = ("features", "embedding")  # outputs of a backbone with its embedding head

OPSET = 18
"""Low enough for runtimes of 2023 and later (onnxruntime 1.14); hard-swish needs 14, layer normalisation 17."""

MISSING = "pip install 'featstore-distill[export]'"


def write_onnx(
    folder: Path, program: Program, spec: InputSpec, *, outputs: Sequence[str] = (OUTPUT,)
) -> Path:
    """Translate an exported program.

    Returns:
        The file.

    Raises:
        ConfigError: an operator has no ONNX form, or the package is not installed.
    """
    path = folder / NAME
    write_bytes(path, translate(program, spec, outputs=outputs))
    check_onnx(path)
    return path


def translate(program: Program, spec: InputSpec, *, outputs: Sequence[str] = (OUTPUT,)) -> bytes:
    """An exported program as the bytes of an ONNX model, without paths of this machine."""
    require_installed()
    with quiet():
        try:
            made: Any = torch.onnx.export(
                program,
                (spec.example(2),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(outputs),
                optimize=True,
                verbose=False,
            )
        except Exception as error:  # the exporter's errors have no common base
            raise ConfigError(
                f"ONNX: the student has an operator without an ONNX form: {reason(error)}. Choose a student without "
                "it, or leave onnx and int8 out of --formats."
            ) from error
    model = made.model_proto
    _clean(model)
    content: bytes = model.SerializeToString()
    return content


def _clean(model: Any) -> None:
    """Remove stack traces with paths of this machine, and call the batch axis by its name."""
    graph = model.graph
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for part in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = BATCH
    model.producer_name, model.producer_version = "featstore-distill", ""


def check_onnx(path: Path) -> None:
    """Let onnx check a file, shapes included. Raises ConfigError: it is not a valid model."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConfigError(f"{path.name}: onnx finds it invalid: {reason(error)}.") from error


def session(path: Path, *, exact: bool = False) -> Any:
    """An onnxruntime session on the CPU.

    Args:
        exact: compute quantised operators in float between their QuantizeLinear and DequantizeLinear, without integer
            sums that may saturate.
    """
    require_installed()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise ConfigError(f"{path.name}: onnxruntime cannot run it: {reason(error)}.") from error


def runner(path: Path, spec: InputSpec, *, exact: bool = False) -> Runner:
    """Feed a file and take its first output; see ``session``."""
    opened = session(path, exact=exact)
    first = opened.get_outputs()[0].name

    def run(pixels: Pixels) -> Logits:
        found: Logits = opened.run([first], {INPUT: np.ascontiguousarray(spec.feed(pixels))})[0]
        return found

    return run


def require_installed() -> None:
    """Refuse where onnx, onnxscript or onnxruntime is missing. Raises ConfigError: names them and the extra."""
    missing = missing_packages()
    if missing:
        raise ConfigError(f"the formats onnx and int8 need {', '.join(missing)}: {MISSING}.")


def missing_packages() -> list[str]:
    return [
        name
        for name in ("onnx", "onnxscript", "onnxruntime")
        if importlib.util.find_spec(name) is None
    ]
