"""Post-training static quantisation: int8 with onnxruntime, as QuantizeLinear and DequantizeLinear around operators.

Activations are uint8 with a zero point per tensor, weights have one scale per output channel. Processors without VNNI
(AVX2, most x86 before 2019) add pairs of products of 8 x 8 bits in 16 bits, which saturates where a weight may have all
of its 8 bits; weights of 7 bits (onnxruntime's ``reduce_range``) are right on every processor. On one without VNNI,
MobileNetV3-small lost 15 points with full int8 weights and none with 7 bits.
"""

# B batch, S images, H W student input

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.export import onnx_model
from distill.export.images import BATCH, Pixels
from distill.export.preprocessing import InputSpec
from distill.export.quiet import quiet, reason
from featstore.errors import ConfigError

Method = Literal["minmax", "entropy", "percentile"]
Weights = Literal["int7", "uint8", "int8"]
KeptBlock = Literal["classifier", "first", "squeeze-excite"]

GATES = ("Sigmoid", "HardSigmoid", "Clip")
POOLS = ("ReduceMean", "GlobalAveragePool", "AveragePool")
LONGEST_GATE = 12  # most operators between the pooling and the gate of a squeeze-excite block


@dataclass(frozen=True)
class Setting:
    """How a model is quantised."""

    method: Method = "minmax"  # how a range follows from the calibration images
    # int7: int8 with values of 7 bits; uint8: with a zero point; int8: all 8 bits
    weights: Weights = "int7"
    keep_float: tuple[KeptBlock, ...] = ()  # blocks that stay as they are

    def __str__(self) -> str:
        kept = f", {' and '.join(self.keep_float)} in float" if self.keep_float else ""
        return f"{self.method}, {self.weights} weights{kept}"

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"keep_float": list(self.keep_float)}


class Reader:
    """Feeds calibration images to onnxruntime; its methods are those that ``quantize_static`` calls.

    All batches have one size: onnxruntime stacks what it saw of them. Of n images in k batches at most k - 1 are left
    out, the last ones of an order without meaning.
    """

    def __init__(self, pixels: Pixels, spec: InputSpec) -> None:
        self.pixels, self.spec = pixels, spec
        self._batches = self._all()

    def _all(self) -> Iterator[dict[str, Any]]:
        size = len(self.pixels) // -(-len(self.pixels) // BATCH)
        for start in range(0, len(self.pixels) - size + 1, size):
            yield {onnx_model.INPUT: self.spec.feed(self.pixels[start : start + size])}

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, or None."""
        return next(self._batches, None)

    def rewind(self) -> None:
        """Begin again."""
        self._batches = self._all()


def quantise(
    path: Path,
    out: Path,
    setting: Setting,
    pixels: Pixels,
    spec: InputSpec,
    *,
    percentile: float,
) -> Path:
    """Quantise one file.

    Args:
        out: of the int8 one; written when it is whole.
        pixels: (S, 3, H, W) uint8 calibration images.

    Returns:
        ``out``.
    """
    onnx_model.require_installed()
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    excluded = excluded_nodes(path, setting.keep_float, baked=spec.baked)
    # A folder on the same disk, so that the last step is a rename.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".partial-") as name, quiet():
        folder = Path(name)
        prepared, made = folder / "prepared.onnx", folder / "int8.onnx"
        try:
            quant_pre_process(
                str(path), str(prepared), skip_optimization=True, skip_symbolic_shape=True
            )
            quantize_static(
                str(prepared),
                str(made),
                Reader(pixels, spec),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=setting.weights == "int7",
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QUInt8 if setting.weights == "uint8" else QuantType.QInt8,
                nodes_to_exclude=excluded,
                calibrate_method=methods[setting.method],
                # Percentiles of both ends: by default the range would be made symmetric.
                extra_options={"CalibPercentile": percentile, "CalibTensorRangeSymmetric": False},
            )
        except OSError:
            raise
        except Exception as error:  # its errors have no common base
            raise ConfigError(
                f"onnxruntime cannot quantise the student ({setting}): {reason(error)}"
            ) from error
        shutil.move(made, out)
    return out


def excluded_nodes(path: Path, blocks: Sequence[KeptBlock], *, baked: bool) -> list[str]:
    """Names of the operators that stay in float.

    Args:
        blocks: that are asked for.
        baked: the graph begins with the normalisation, which is cheap, and wrong in 8 bits.
    """
    import onnx

    graph = Graph(onnx.load(path).graph)
    found: set[str] = set()
    if baked:
        found |= graph.before_first_weights()
    if "classifier" in blocks:
        found |= graph.classifier()
    if "first" in blocks:
        found |= graph.first()
    if "squeeze-excite" in blocks:
        found |= graph.squeeze_excite()
    return sorted(found)


def has_squeeze_excite(path: Path) -> bool:
    """Whether a model has squeeze-excite blocks."""
    import onnx

    return bool(Graph(onnx.load(path).graph).squeeze_excite())


class Graph:
    """An ONNX graph by producers, for finding blocks in it."""

    def __init__(self, graph: Any) -> None:
        self.nodes = list(graph.node)
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.weights = {item.name: tuple(item.dims) for item in graph.initializer}

    def inputs(self, node: Any) -> list[Any]:
        """Operators that a node reads from."""
        return [self.producer[name] for name in node.input if name in self.producer]

    def _weighted(self) -> list[Any]:
        return [
            node
            for node in self.nodes
            if node.op_type in ("Conv", "Gemm", "MatMul")
            and any(name in self.weights for name in node.input)
        ]

    def first(self) -> set[str]:
        """The first operator with weights."""
        return {node.name for node in self._weighted()[:1]}

    def classifier(self) -> set[str]:
        """The last one."""
        return {node.name for node in self._weighted()[-1:]}

    def before_first_weights(self) -> set[str]:
        """All that the first one depends on."""
        return {node.name for node in self._ancestors(self._weighted()[0])} if self.nodes else set()

    def _ancestors(self, node: Any) -> list[Any]:
        found: dict[str, Any] = {}
        waiting = self.inputs(node)
        while waiting:
            one = waiting.pop()
            if one.name not in found:
                found[one.name] = one
                waiting += self.inputs(one)
        return list(found.values())

    def squeeze_excite(self) -> set[str]:
        """Pooling, two small layers, gate and multiplication, of every block."""
        found: set[str] = set()
        for node in self.nodes:
            if node.op_type == "Mul":
                for gate in self.inputs(node):
                    block = self._gate(gate) if gate.op_type in GATES else None
                    if block:
                        found |= {node.name, *block}
        return found

    def _gate(self, gate: Any) -> set[str] | None:
        """From a gate back to the pooling; None if something larger than a 1 x 1 convolution lies between."""
        found: set[str] = set()
        pooled = False
        waiting = [gate]
        while waiting:
            node = waiting.pop()
            if node.name in found:
                continue
            found.add(node.name)
            if node.op_type in POOLS:
                pooled = True
                continue
            shape = next((self.weights[name] for name in node.input if name in self.weights), ())
            if len(found) > LONGEST_GATE or (
                np.prod(shape[2:], initial=1) != 1 and node.op_type == "Conv"
            ):
                return None
            inputs = self.inputs(node)
            if not inputs:
                return None
            waiting += inputs
        return found if pooled else None
