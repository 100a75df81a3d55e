"""Frozen timm and open_clip teachers: built from a config, hashed, and asked for fields.

Everything here runs in phase one only; nothing in ``distill`` imports this file (a test holds that).
"""

# B images, N tokens, D teacher width, H W input pixels, h w patch grid, C classes or projection width

import difflib
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from featstore.errors import TeacherError, shorten
from featstore.extraction.config import TeacherConfig
from featstore.format.manifest import (
    FieldRecord,
    FloatType,
    PreprocessingRecord,
    TeacherRecord,
    TopKEncoding,
)
from featstore.format.views import CropMode, Interpolation
from featstore.sources.decode import DECODE_RULE

Precision = Literal["fp32", "bf16", "fp16"]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

_GRID = re.compile(r"grid([1-9][0-9]*)")
_TOP_K = re.compile(r"logits_top([1-9][0-9]{0,4})")


class Tower(nn.Module):
    """A frozen image encoder that returns everything fields are made of.

    Attributes:
        layout: of its input in memory. Pictures arrive as (H, W, 3), which suits CNNs (ResNet-50 takes 0.8 times as
            long); a ViT's patch embedding takes four times as long over it on a CPU, 4 % of ViT-S at batches of 32.
    """

    layout: torch.memory_format = torch.channels_last

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Run the encoder.

        Args:
            images: (B, 3, H, W) normalised.

        Returns:
            Some of: ``cls`` (B, D); ``map`` (B, h, w, D) patch features; ``tokens`` (B, N, D);
            ``pooled`` (B, D); ``projected`` (B, C); ``logits`` (B, C).
        """
        raise TypeError(f"{type(self).__name__} does not encode")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Same as ``encode``; the entry that torch.compile sees."""
        return self.encode(images)


class TimmTower(Tower):
    """Any timm model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        if hasattr(model, "patch_embed"):
            self.layout = torch.contiguous_format

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """See ``Tower.encode``."""
        model = cast(Any, self.model)
        features = model.forward_features(images)
        out = spatial_parts(model, features)
        out["pooled"] = model.forward_head(features, pre_logits=True)
        if model.num_classes:
            out["logits"] = model.forward_head(features)
        return out


def spatial_parts(model: Any, features: Tensor) -> dict[str, Tensor]:
    """Split what timm's ``forward_features`` returns: (B, N, D) of a ViT, or a map of a CNN or hierarchical ViT."""
    if features.ndim == 4:
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        grid = features if channels_last else features.permute(0, 2, 3, 1)
        return {"map": grid, "tokens": grid.flatten(1, 2)}
    if features.ndim != 3:
        return {}
    out = {"tokens": features}
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    if getattr(model, "cls_token", None) is not None:
        out["cls"] = features[:, 0]
    size = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if size is not None and size[0] * size[1] == features.shape[1] - prefix:
        out["map"] = features[:, prefix:].reshape(len(features), *size, -1)
    return out


class OpenClipTower(Tower):
    """The image side of any open_clip model; its text side is thrown away."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.projection = getattr(visual, "proj", None)
        self.is_vit = hasattr(visual, "output_tokens") and hasattr(visual, "grid_size")
        if self.is_vit or hasattr(getattr(visual, "trunk", None), "patch_embed"):
            self.layout = torch.contiguous_format
        if self.is_vit:
            # With the projection taken out, open_clip returns the pooled feature before it, and the tokens.
            cast(Any, visual).proj = None
            cast(Any, visual).output_tokens = True

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """See ``Tower.encode``."""
        visual = cast(Any, self.visual)
        if hasattr(visual, "trunk"):
            features = visual.trunk.forward_features(images)
            pooled = visual.trunk.forward_head(features)
            return {
                **spatial_parts(visual.trunk, features),
                "pooled": pooled,
                "projected": visual.head(pooled),
            }
        if not self.is_vit:
            return {"projected": visual(images)}
        pooled, patches = visual(images)
        out = {"pooled": pooled, "map": patches.reshape(len(images), *visual.grid_size, -1)}
        if getattr(visual, "pool_type", "") == "tok":
            out["cls"] = pooled
            out["tokens"] = torch.cat([pooled[:, None], patches], dim=1)
        if self.projection is not None:
            out["projected"] = pooled @ self.projection
        return out


def select_field(name: str, parts: Mapping[str, Tensor]) -> Tensor:
    """Make one field from a tower's output.

    Raises:
        TeacherError: this teacher cannot give the field; the message lists what it can.
    """
    grid = _GRID.fullmatch(name)
    if grid and "map" in parts:
        side = int(grid.group(1))
        full = parts["map"]
        if side <= min(full.shape[1:3]):
            pooled = nn.functional.adaptive_avg_pool2d(full.permute(0, 3, 1, 2).float(), side)
            return pooled.permute(0, 2, 3, 1)
        raise TeacherError(
            f"field {name!r}: the teacher's patch grid is {full.shape[1]} x {full.shape[2]}, smaller than asked for."
        )
    if name == "mean" and "map" in parts:
        return parts["map"].float().mean(dim=(1, 2))
    if _TOP_K.fullmatch(name) and "logits" in parts:
        return parts["logits"]  # all of them: the largest are kept when they are stored
    if name in parts and name != "map":
        return parts[name]
    known = sorted(parts.keys() - {"map"}) + (["mean", "gridK"] if "map" in parts else [])
    known += ["logits_topK"] if "logits" in parts else []
    hint = (
        " timm keeps CLIP's projection as the classifier: ask for logits."
        if name == "projected"
        else ""
    )
    raise TeacherError(f"field {name!r}: this teacher can give {shorten(known, 10)}.{hint}")


_MEANINGS = {
    "cls": "class token after the final norm",
    "mean": "mean of the patch features",
    "pooled": "the model's own pooled feature, before classifier or projection",
    "tokens": "all tokens after the final norm, prefix tokens first, then patches row by row",
    "projected": "image embedding after the contrastive projection, not normalised",
    "logits": "output of the model's classifier",
}


def describe_field(name: str, shape: Sequence[int], dtype: FloatType) -> FieldRecord:
    """Record of a field whose single-view, single-row shape is known.

    Raises:
        TeacherError: more logits are to be kept than there are.
    """
    top_k = _TOP_K.fullmatch(name)
    if top_k:
        kept, classes = int(top_k.group(1)), shape[0]
        if kept > classes:
            raise TeacherError(
                f"field {name!r}: the teacher has {classes} classes, fewer than asked for."
            )
        return FieldRecord(
            shape=(kept,),
            dtype=dtype,
            dims=("rank",),
            meaning=f"the {kept} largest outputs of the model's classifier, largest first",
            encoding=TopKEncoding(num_classes=classes),
        )
    dims = {1: ("channel",), 2: ("token", "channel"), 3: ("y", "x", "channel")}[len(shape)]
    if name == "logits":
        dims = ("class",)
    meaning = (
        _MEANINGS.get(name) or f"patch grid averaged to {shape[0]} x {shape[1]}, top row first"
    )
    return FieldRecord(shape=tuple(shape), dtype=dtype, dims=dims, meaning=meaning)


class Teacher:
    """A frozen model with its own preprocessing; eval mode, no gradients.

    Attributes:
        record: which model this is, with the hash of its weights.
        preprocessing: how a picture becomes its input.
        fields: what it was asked for, by name.
    """

    def __init__(
        self,
        tower: Tower,
        *,
        record: TeacherRecord,
        preprocessing: PreprocessingRecord,
        fields: Sequence[str],
        dtype: FloatType,
        device: torch.device,
        compile_tower: bool = False,
    ) -> None:
        self.record = record
        self.preprocessing = preprocessing
        self.device = device
        self._tower = tower.eval().requires_grad_(False).to(device)
        self._run = torch.compile(self._tower) if compile_tower else self._tower
        self._names = tuple(fields)
        self._mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1)
        height, width = preprocessing.size
        trial = self.features(torch.zeros(1, 3, height, width, dtype=torch.uint8))
        self.fields = {
            name: describe_field(name, value.shape[1:], dtype) for name, value in trial.items()
        }

    @torch.inference_mode()
    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Run the teacher on one batch.

        Args:
            images: (B, 3, H, W) uint8, RGB, of the size that ``preprocessing`` states.

        Returns:
            By field name, (B, *shape) in the precision of the forward pass, on the teacher's device.
        """
        pixels = images.to(self.device, non_blocking=True)
        pixels = pixels.to(torch.float32, memory_format=self._tower.layout)
        pixels = pixels.div_(255).sub_(self._mean).div_(self._std)
        precision = self.record.precision
        if precision == "fp32":
            parts = self._run(pixels)
        else:
            with torch.autocast(self.device.type, dtype=AUTOCAST[precision]):
                parts = self._run(pixels)
        return {name: select_field(name, parts) for name in self._names}


def best_precision(device: torch.device) -> Precision:
    """The fastest arithmetic that the hardware has: emulated bf16 is an order of magnitude slower than fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
    return "fp32"


def build_teacher(
    config: TeacherConfig,
    *,
    fields: Sequence[str],
    dtype: FloatType,
    precision: Precision,
    device: torch.device,
) -> Teacher:
    """Build the frozen teacher that a config names.

    Args:
        config: what to build; its ``precision`` may still be "auto".
        fields: names of the fields that it will be asked for.
        dtype: of the stored fields.
        precision: of the forward pass, resolved.
        device: where it runs.

    Raises:
        TeacherError: unknown name, weights that cannot be had or do not fit, a field it cannot give.
    """
    if config.weights and not Path(config.weights).is_file():
        raise TeacherError(f"--teacher.weights {config.weights}: no such file.")
    build = {"timm": _build_timm, "open_clip": _build_open_clip}[config.library]
    tower, preprocessing, licence = build(config)
    record = TeacherRecord(
        library=config.library,
        name=config.name,
        tag=config.tag,
        model_args=config.model_args,
        weights_sha256=state_sha256(tower),
        licence=config.licence or licence,
        precision=precision,
        preprocessing=preprocessing,
    )
    return Teacher(
        tower,
        record=record,
        preprocessing=preprocessing,
        fields=fields,
        dtype=dtype,
        device=device,
        compile_tower=config.compile,
    )


def state_sha256(module: nn.Module) -> str:
    """Hash the weights a module runs with, independent of the file they came from.

    SHA-256 over, for each key of the state dict in sorted order: the key, a zero byte, dtype and shape as text, a zero
    byte, the little-endian bytes.
    """
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key}\0{tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _build_timm(config: TeacherConfig) -> tuple[Tower, PreprocessingRecord, str]:
    import timm
    import timm.data

    base = config.name.split(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3)
        raise TeacherError(
            f"--teacher.name {config.name}: timm has no such model; did you mean {shorten(near)}?"
        )
    model_args = dict(config.model_args)
    published = _published(config)
    if config.image_size and published is not None and published.fixed_input_size:
        model_args["img_size"] = config.image_size
    model = (
        _timm_from_file(config, model_args)
        if config.weights
        else _timm_from_hub(config, model_args, published)
    )
    data = cast(Any, timm.data).resolve_model_data_config(model)
    size = (
        (config.image_size, config.image_size)
        if config.image_size
        else tuple(data["input_size"][1:])
    )
    preprocessing = _preprocessing(
        config,
        size=size,
        crop_pct=data["crop_pct"],
        crop_mode=data["crop_mode"],
        interpolation=data["interpolation"],
        mean=data["mean"],
        std=data["std"],
    )
    licence = getattr(published, "license", None) if not config.weights else None
    return TimmTower(model), preprocessing, licence or ""


def _published(config: TeacherConfig) -> Any:
    """What timm publishes under this name and tag; the untagged default when local weights replace it."""
    import timm

    base = config.name.split(".")[0]
    try:
        return timm.get_pretrained_cfg(base if config.weights else config.name)
    except RuntimeError:
        raise TeacherError(
            f"--teacher.name {config.name}: timm knows {base}, but not this tag; it has "
            f"{shorten(timm.list_pretrained(base + '.*'), 10)}."
        ) from None


def _timm_from_hub(config: TeacherConfig, model_args: dict[str, Any], published: Any) -> nn.Module:
    import timm
    from huggingface_hub.constants import HF_HUB_CACHE

    if published is None or not published.has_weights:
        raise TeacherError(
            f"--teacher.name {config.name}: timm publishes no weights under this name. Pass --teacher.weights PATH."
        )
    try:
        return timm.create_model(config.name, pretrained=True, **model_args)
    except (
        Exception
    ) as error:  # the hub's client, its HTTP library and timm each raise their own kinds
        place = published.hf_hub_id or published.url or published.file
        raise TeacherError(
            f"teacher {config.name}: its weights could not be loaded ({_brief(error)}). Looked for {place} in "
            f"{HF_HUB_CACHE} and on the hub. Fetch model.safetensors from {place} on a machine with a network and "
            "pass --teacher.weights PATH, or bring that cache along and set HF_HOME."
        ) from error


def _timm_from_file(config: TeacherConfig, model_args: dict[str, Any]) -> nn.Module:
    import timm

    base = config.name.split(".")[0]
    state = _read_state(config.weights)
    try:
        model: Any = timm.create_model(base, pretrained=False, **model_args)
    except Exception as error:
        raise TeacherError(
            f"teacher {base}: cannot be built with model_args {model_args} ({_brief(error)})."
        ) from error
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    # Needed for the layout of a model's first publication, and to resample position embeddings.
    foreign = not state.keys() & model.state_dict().keys()
    if adapt is not None and (foreign or "img_size" in model_args):
        state = adapt(state, model)
    classes = _num_classes(model, state)
    if classes != model.num_classes:
        model.reset_classifier(classes)
    _load(model, state, where=f"--teacher.weights {config.weights}", name=base)
    return cast(nn.Module, model)


def _num_classes(model: Any, state: Mapping[str, Tensor]) -> int:
    """Classes of the head that the weights carry; 0 without one."""
    names = model.pretrained_cfg.get("classifier", "")
    name = names if isinstance(names, str) else names[0]
    weight = state.get(f"{name}.weight")
    return 0 if weight is None else int(weight.shape[0])


def _read_state(path: str) -> dict[str, Tensor]:
    from timm.models import load_state_dict

    try:
        state = dict(load_state_dict(path, use_ema=True, weights_only=True))
    except Exception as error:  # safetensors, zipfile and torch each raise their own kinds
        raise TeacherError(
            f"--teacher.weights {path}: cannot be read as safetensors or as a PyTorch file of plain tensors "
            f"({_brief(error)}). Pickled Python objects are refused; save the state dict as safetensors."
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise TeacherError(f"--teacher.weights {path}: holds no state dict (tensors by name).")
    return {
        key: value.float() if value.is_floating_point() else value for key, value in state.items()
    }


def _load(model: nn.Module, state: Mapping[str, Tensor], *, where: str, name: str) -> None:
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    if missing or unknown or shapes:
        problems = [
            f"missing: {shorten(missing)}" if missing else "",
            f"not in the model: {shorten(unknown)}" if unknown else "",
            f"of another shape: {shorten(shapes, 3)}" if shapes else "",
        ]
        raise TeacherError(
            f"{where}: these weights do not fit {name}; {'; '.join(item for item in problems if item)}. "
            "Check --teacher.name, --teacher.image_size and --teacher.model_args."
        )
    model.load_state_dict(dict(state), strict=True)


def _build_open_clip(config: TeacherConfig) -> tuple[Tower, PreprocessingRecord, str]:
    import open_clip
    from huggingface_hub.constants import HF_HUB_CACHE

    if config.name not in open_clip.list_models() and ":" not in config.name:
        near = difflib.get_close_matches(config.name, open_clip.list_models(), n=3)
        raise TeacherError(
            f"--teacher.name {config.name}: open_clip has no such model; did you mean {shorten(near)}?"
        )
    published = dict(open_clip.get_pretrained_cfg(config.name, config.tag) or {})
    if config.tag and not published:
        tags = open_clip.list_pretrained_tags_by_model(config.name)
        raise TeacherError(
            f"--teacher.tag {config.tag}: {config.name} has the tags {shorten(tags, 10)}."
        )
    if not config.tag and not config.weights and ":" not in config.name:
        raise TeacherError(
            f"teacher {config.name}: neither --teacher.tag nor --teacher.weights; a random teacher teaches nothing."
        )
    keys = ("mean", "std", "interpolation", "resize_mode")
    known = {key: published[key] for key in keys if published.get(key)}
    model_args = dict(config.model_args)
    if config.image_size:
        model_args["force_image_size"] = config.image_size
    if published.get("quick_gelu"):
        model_args["force_quick_gelu"] = True
    try:
        model = open_clip.create_model(
            config.name,
            pretrained=config.weights or config.tag,
            force_preprocess_cfg=known if config.weights else None,
            weights_only=True,
            **model_args,
        )
    except Exception as error:  # hub client, HTTP library and open_clip each raise their own kinds
        place = config.weights or published.get("hf_hub") or published.get("url") or config.name
        raise TeacherError(
            f"teacher {config.name} {config.tag}: its weights could not be loaded ({_brief(error)}). Looked for "
            f"{place} in {HF_HUB_CACHE} and on the hub. Without a network, fetch them elsewhere and pass "
            "--teacher.weights PATH; if PATH was given, check that it belongs to --teacher.name."
        ) from error
    data = open_clip.get_model_preprocess_cfg(model)
    if data.get("resize_mode", "shortest") == "longest":
        raise TeacherError(
            f"teacher {config.name}: pads pictures to a square, which views do not support."
        )
    size = data["size"]
    preprocessing = _preprocessing(
        config,
        size=(size, size) if isinstance(size, int) else tuple(size),
        crop_pct=1.0,
        crop_mode="squash" if data.get("resize_mode") == "squash" else "center",
        interpolation=data.get("interpolation", "bicubic"),
        mean=data["mean"],
        std=data["std"],
    )
    return OpenClipTower(model.visual), preprocessing, ""


def _preprocessing(
    config: TeacherConfig,
    *,
    size: tuple[int, ...],
    crop_pct: float,
    crop_mode: str,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> PreprocessingRecord:
    if crop_mode not in ("center", "squash"):
        raise TeacherError(
            f"teacher {config.name}: crop mode {crop_mode!r} is not one that views support (center, squash)."
        )
    red, green, blue = (float(value) for value in config.mean or mean)
    red_std, green_std, blue_std = (float(value) for value in config.std or std)
    return PreprocessingRecord(
        size=(int(size[0]), int(size[1])),
        crop_pct=config.crop_pct or float(crop_pct),
        crop_mode=cast(CropMode, crop_mode),
        interpolation=cast(Interpolation, config.interpolation or interpolation),
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
        decode=DECODE_RULE,
    )


def _brief(error: BaseException) -> str:
    """An error in one line, with its kind."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
