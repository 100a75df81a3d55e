"""A frozen teacher: what every library's model is wrapped into, and what is recorded of it."""

# B images, N tokens, D teacher width, H W input pixels, h w patch grid, C classes or projection width

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from featstore.errors import TeacherError
from featstore.extraction.config import TeacherConfig
from featstore.extraction.field_names import split_prefix
from featstore.extraction.teachers.fields import describe_field, describe_ragged, select_field
from featstore.extraction.teachers.intermediate import watch
from featstore.files.array_types import Array
from featstore.format.manifest_records import (
    FloatType,
    PointRecord,
    PreprocessingRecord,
    TeacherRecord,
    TextRecord,
)
from featstore.format.views import CropMode, Interpolation
from featstore.sources.decode import DECODE_RULE

Precision = Literal["fp32", "bf16", "fp16"]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Tokenizer(Protocol):
    """Turn one text into token numbers with special tokens, cut to the longest input. Picklable."""

    def __call__(self, text: str) -> list[int]: ...


class Tower(nn.Module):
    """A frozen image or text encoder that returns everything fields are made of."""

    # memory layout of its input. Pictures arrive as (H, W, 3), which suits CNNs (ResNet-50 takes 0.8 times as long); a
    # ViT's patch embedding takes four times as long over it on a CPU, 4 % of ViT-S at batches of 32.
    layout: torch.memory_format = torch.channels_last

    def __init__(self) -> None:
        super().__init__()
        self._watched: dict[str, Tensor] = {}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Run the encoder.

        Args:
            images: (B, 3, H, W) normalised; of a text encoder (B, L) int32 token numbers; of an encoder of point
                clouds (B, P, C) float32.

        Returns:
            Some of: ``cls`` (B, D); ``map`` (B, h, w, D) patch features; ``tokens`` (B, N, D); ``registers``
            (B, R, D); ``pooled`` (B, D); ``projected`` (B, C); ``logits`` (B, C).
        """
        raise TypeError(f"{type(self).__name__} does not encode")

    def split(self, tokens: Tensor) -> dict[str, Tensor]:
        """Split the (B, N, D) tokens of any block into ``cls``, ``registers``, ``map`` and ``tokens``."""
        return {"tokens": tokens}

    def classifier(self) -> nn.Module | None:
        """The module that makes ``logits`` of ``pooled``; None if there is none, or not known to."""
        return None

    def watch(self, fields: Sequence[str]) -> None:
        """Prepare for fields of intermediate blocks and for queries, keys and values.

        Raises:
            TeacherError: the model has no such block.
        """
        prefixes = {split_prefix(name)[0] for name in fields} - {""}
        if prefixes:
            watch(self, prefixes, self._watched)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """As ``encode``, with the parts of watched blocks as ``block8.cls``; torch.compile starts here."""
        self._watched.clear()
        parts = self.encode(images)
        for prefix, tokens in self._watched.items():
            parts |= {f"{prefix}.{name}": part for name, part in self.split(tokens).items()}
        return parts


@dataclass(frozen=True)
class Head:
    """A small part of a model that stays live in phase two, kept as an artefact of the store."""

    meaning: str  # for the manifest
    tensors: dict[str, Array]  # its weights, and what rebuilds it


@dataclass
class Built:
    """What a library's module makes of a config."""

    tower: Tower  # the model, with its weights
    preprocessing: PreprocessingRecord | TextRecord | PointRecord  # how a sample becomes its input
    licence: str = ""  # of the weights, where the library states one
    # name in the manifest, where the config's is a path; "" for the config's
    recorded_name: str = ""
    # ``model_args`` as the manifest records them; None for those of the config
    recorded_args: dict[str, Any] | None = None
    weights_sha256: str = ""  # hash of the weights, where it is not that of the tower's state dict
    tokenizer: Tokenizer | None = None  # of a text teacher; None where inputs are images
    notes: list[str] = field(default_factory=list)  # sentences for the user
    heads: dict[str, Head] = field(default_factory=dict)  # by name of the artefact


class Teacher:
    """A frozen model with its own preprocessing; eval mode, no gradients.

    Attributes:
        record: which model this is, with the hash of its weights.
        preprocessing: how a sample becomes its input.
        tokenizer: of a text teacher; None where inputs are images.
        fields: what it was asked for, by name.
        notes: sentences for the user about how it was built.
        heads: parts that are kept as artefacts of the store, by name.
    """

    def __init__(
        self,
        tower: Tower,
        *,
        record: TeacherRecord,
        preprocessing: PreprocessingRecord | TextRecord | PointRecord,
        fields: Sequence[str],
        dtype: FloatType,
        device: torch.device,
        tokenizer: Tokenizer | None = None,
        compile_tower: bool = False,
        notes: Sequence[str] = (),
        heads: Mapping[str, Head] | None = None,
    ) -> None:
        self.heads = dict(heads or {})
        self.record = record
        self.preprocessing = preprocessing
        self.tokenizer = tokenizer
        self.device = device
        self.notes = list(notes)
        self._tower = tower.eval().requires_grad_(False).to(device)
        tower.watch(fields)
        self._run = torch.compile(self._tower) if compile_tower else self._tower
        self._names = tuple(fields)
        if isinstance(preprocessing, TextRecord):
            inputs = torch.zeros(1, min(2, preprocessing.max_tokens), dtype=torch.int32)
            if preprocessing.pooling == "model":  # a context of fixed length
                inputs = torch.zeros(1, preprocessing.max_tokens, dtype=torch.int32)
        elif isinstance(preprocessing, PointRecord):
            inputs = torch.zeros(1, preprocessing.most_points, preprocessing.columns)
        else:
            self._mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1)
            self._std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1)
            rows = 2 if record.mode == "batch" else 1  # one row has no variance
            inputs = torch.zeros(rows, 3, *preprocessing.size, dtype=torch.uint8)
        trial = self.features(inputs)
        self.fields = {
            name: describe_field(name, value.shape[1:], dtype, texts=tokenizer is not None)
            if isinstance(value, Tensor)
            else describe_ragged(name, value[0], dtype, preprocessing)
            for name, value in trial.items()
        }

    @torch.inference_mode()
    def features(self, inputs: Tensor) -> dict[str, Any]:
        """Run the teacher on one batch.

        Args:
            inputs: (B, 3, H, W) uint8, RGB, of the size that ``preprocessing`` states; or (B, L) int32 token numbers;
                or (B, P, C) float32 points.

        Returns:
            By field name, (B, *shape) in the precision of the forward pass, on the teacher's device; of a ragged
            field a list of B tensors.
        """
        ready = inputs.to(self.device, non_blocking=True)
        if isinstance(self.preprocessing, PreprocessingRecord):
            ready = ready.to(torch.float32, memory_format=self._tower.layout)
            ready = ready.div_(255).sub_(self._mean).div_(self._std)
        precision = self.record.precision
        if precision == "fp32":
            parts = self._run(ready)
        else:
            with torch.autocast(self.device.type, dtype=AUTOCAST[precision]):
                parts = self._run(ready)
        return {name: select_field(name, parts) for name in self._names}


def use_batch_statistics(tower: Tower, name: str) -> None:
    """Let batch normalisation use the statistics of the batch, also in eval mode; its own are dropped.

    Raises:
        TeacherError: the model has no batch normalisation.
    """
    layers = [part for part in tower.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        raise TeacherError(
            f"teacher {name}: has no batch normalisation; use --teacher.bn_mode eval."
        )
    for layer in layers:
        layer.running_mean = layer.running_var = None


def best_precision(device: torch.device) -> Precision:
    """The fastest arithmetic that the hardware has: emulated bf16 is an order of magnitude slower than fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
    return "fp32"


def make_preprocessing(
    config: TeacherConfig,
    *,
    size: Sequence[int],
    crop_pct: float,
    crop_mode: str,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> PreprocessingRecord:
    """The model's own preprocessing, with what the config states in its place.

    Raises:
        TeacherError: views cannot be cut as this model wants it.
    """
    if crop_mode not in ("center", "squash"):
        raise TeacherError(
            f"teacher {config.name}: crop mode {crop_mode!r} is not one that views support (center, squash)."
        )
    red, green, blue = (float(value) for value in config.mean or mean)
    red_std, green_std, blue_std = (float(value) for value in config.std or std)
    return PreprocessingRecord(
        size=(int(size[0]), int(size[-1])),
        crop_pct=config.crop_pct or float(crop_pct),
        crop_mode=cast(CropMode, crop_mode),
        interpolation=cast(Interpolation, config.interpolation or interpolation),
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
        decode=DECODE_RULE,
    )


def stated_preprocessing(
    config: TeacherConfig, own: dict[str, Any], *, size: int = 0
) -> PreprocessingRecord:
    """Preprocessing of a model whose library states none: from what the model or the config says.

    Args:
        own: size, mean, std, crop_pct, crop_mode and interpolation, as far as the model states them.
        size: side of the input in pixels, where the model fixes it.

    Raises:
        TeacherError: nobody states the size, mean or standard deviation.
    """
    usual: dict[str, Any] = {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"}
    own = usual | own
    side = config.image_size or size or own.get("size", 0)
    missing = [
        f"--teacher.{name}"
        for name, known in (
            ("image_size", side),
            ("mean", config.mean or own.get("mean")),
            ("std", config.std or own.get("std")),
        )
        if not known
    ]
    if missing:
        raise TeacherError(
            f"teacher {config.name}: {' and '.join(missing)} must be given, because nothing states how this model's "
            "input is normalised, e.g. --teacher.image_size 224 --teacher.mean '[0.485,0.456,0.406]' "
            "--teacher.std '[0.229,0.224,0.225]'."
        )
    return make_preprocessing(
        config,
        size=side if isinstance(side, list | tuple) else (side, side),
        crop_pct=own["crop_pct"],
        crop_mode=own["crop_mode"],
        interpolation=own["interpolation"],
        mean=own.get("mean", ()),
        std=own.get("std", ()),
    )


def brief(error: BaseException) -> str:
    """An error in one line, with its kind."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
