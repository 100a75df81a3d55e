"""Teachers in ONNX: one image input, any number of outputs; run by onnxruntime.

Each output is a field of its own name. With ``--teacher.model_args '{prefix_tokens: 1}'`` outputs of (B, N, D) are
split into class token and patch grid: ``cls``, ``grid7`` of the only such output or of one called last_hidden_state,
``NAME.cls``, ``NAME.grid7`` of any. An output of (B, C, h, w) gives ``NAME.grid7`` likewise.
"""

# B images, N tokens, D teacher width

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featstore.errors import TeacherError, shorten
from featstore.extraction.config import TeacherConfig
from featstore.extraction.teachers.base import Built, Tower, brief, stated_preprocessing
from featstore.extraction.teachers.python_teacher import split_tokens

INSTALL = "pip install 'featstore-distill[export]'"
MAIN_OUTPUT = "last_hidden_state"


class OnnxTower(Tower):
    """A session of onnxruntime. A batch size that the model fixes is kept; the last batch is filled with zeros."""

    def __init__(self, path: Path, *, prefix: int | None, cuda: bool) -> None:
        super().__init__()
        self.layout = torch.contiguous_format
        self.prefix = prefix
        self.session = open_session(path, cuda=cuda)
        inputs = self.session.get_inputs()
        shapes = [f"{item.name} {item.type} {item.shape}" for item in inputs]
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] not in (3, "3"):
            raise TeacherError(
                f"--teacher.name {path}: its inputs are {shorten(shapes)}; expected one, (B, 3, H, W) images."
            )
        if inputs[0].type not in ("tensor(float)", "tensor(float16)"):
            raise TeacherError(f"--teacher.name {path}: its input is {shapes[0]}; expected floats.")
        self.input = inputs[0]
        self.takes_half = inputs[0].type == "tensor(float16)"
        self.outputs = [item.name for item in self.session.get_outputs()]

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) that the model fixes, pixels; None if it takes any."""
        height, width = self.input.shape[2:]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        pixels = images.float().cpu().contiguous().numpy()
        if self.takes_half:
            pixels = pixels.astype(np.float16)
        fixed = self.input.shape[0]
        step = fixed if isinstance(fixed, int) and fixed > 0 else len(pixels)
        runs = [
            self._run(pixels[start : start + step], step) for start in range(0, len(pixels), step)
        ]
        values = [np.concatenate(part) for part in zip(*runs, strict=True)]
        found = {
            name: torch.from_numpy(value).float().to(images.device)
            for name, value in zip(self.outputs, values, strict=True)
        }
        return self._parts(found)

    def _run(self, pixels: Any, step: int) -> list[Any]:
        count = len(pixels)
        if count < step:
            pixels = np.concatenate(
                [pixels, np.zeros((step - count, *pixels.shape[1:]), pixels.dtype)]
            )
        return [value[:count] for value in self.session.run(None, {self.input.name: pixels})]

    def _parts(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        tokens = [name for name, value in found.items() if value.ndim == 3]
        for name, value in found.items():
            out[name] = value
            split: dict[str, Tensor] = {}
            if value.ndim == 4:
                split = {"map": value.permute(0, 2, 3, 1)}
            elif value.ndim == 3 and self.prefix is not None:
                split = split_tokens(value, self.prefix)
            out |= {f"{name}.{part}": item for part, item in split.items()}
            if name == MAIN_OUTPUT or tokens == [name]:
                out |= {part: item for part, item in split.items() if part not in found}
        return out


def open_session(path: Path, *, cuda: bool) -> Any:
    """A session of onnxruntime, on the GPU if wanted and possible. Raises TeacherError: the file cannot be loaded."""
    import onnxruntime

    wanted = ["CUDAExecutionProvider"] if cuda else []
    able = onnxruntime.get_available_providers()
    providers = [name for name in wanted if name in able] + ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(str(path), providers=providers)
    except Exception as error:  # onnxruntime's own errors have no common base
        raise TeacherError(
            f"--teacher.name {path}: onnxruntime cannot load it ({brief(error)})."
        ) from error


def find_model(config: TeacherConfig) -> Path:
    """The model file that a config names. Raises TeacherError: onnxruntime is not installed, or no such file."""
    path = Path(config.name)
    if not path.is_file():
        raise TeacherError(f"--teacher.name {config.name}: no such file {path.absolute()}.")
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise TeacherError(
            f"--teacher.library onnx: onnxruntime cannot be imported ({error}). {INSTALL}"
        ) from None
    if config.weights:
        raise TeacherError("--teacher.weights: an ONNX model has its weights in it; leave it out.")
    return path


def build(config: TeacherConfig, *, cuda: bool = False) -> Built:
    """Open the model file that a config names."""
    path = find_model(config)
    prefix = config.model_args.get("prefix_tokens")
    unknown = sorted(config.model_args.keys() - {"prefix_tokens"})
    if unknown or not (prefix is None or isinstance(prefix, int)):
        raise TeacherError(
            f"--teacher.model_args {config.model_args}: with library onnx there is prefix_tokens, an integer."
        )
    tower = OnnxTower(path, prefix=prefix, cuda=cuda)
    size = tower.size
    if size is not None and config.image_size not in (0, *size):
        raise TeacherError(
            f"--teacher.image_size {config.image_size}: {path} takes {size[0]} x {size[1]} pixels only."
        )
    preprocessing = stated_preprocessing(config, {"size": size} if size else {})
    return Built(tower, preprocessing, recorded_name=path.name, weights_sha256=file_sha256(path))


def file_sha256(path: Path) -> str:
    """SHA-256 over the model file and the files with external data that it names, in the order of their names."""
    digest = hashlib.sha256()
    try:
        for part in [path, *_external_files(path)]:
            with part.open("rb") as file:
                while block := file.read(2**22):
                    digest.update(block)
    except OSError as error:
        raise TeacherError(
            f"{path}: cannot be read: {error.strerror} ({error.filename})."
        ) from None
    return digest.hexdigest()


def _external_files(path: Path) -> list[Path]:
    try:
        import onnx
        from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data
    except ImportError as error:
        raise TeacherError(f"--teacher.library onnx: {error}. {INSTALL}") from None
    model = onnx.load(str(path), load_external_data=False)
    names = {
        ExternalDataInfo(tensor).location
        for tensor in _get_all_tensors(model)
        if uses_external_data(tensor)
    }
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        raise TeacherError(
            f"{path}: its weights lie outside of its folder: {shorten(sorted(names))}."
        )
    return [path.parent / name for name in sorted(names)]
