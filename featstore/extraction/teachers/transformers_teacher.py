"""Teachers from transformers: ``AutoModel`` by name or from a local folder; of CLIP and SAM, the image side."""

# B images, N tokens, D teacher width, C projection width

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featstore.errors import TeacherError, shorten
from featstore.extraction.config import TeacherConfig
from featstore.extraction.teachers.base import Built, Head, Tower, brief, stated_preprocessing
from featstore.extraction.teachers.hub import go_offline_if_unreachable
from featstore.format import mask_decoder

INSTALL = "pip install 'featstore-distill[transformers]'"

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, as preprocessor_config.json has them."""


class TransformersTower(Tower):
    """The image encoder inside an AutoModel, and the projection after it where there is one."""

    def __init__(self, model: Any, *, size: tuple[int, int]) -> None:
        super().__init__()
        self.vision = getattr(model, "vision_model", getattr(model, "vision_encoder", model))
        self.projection = getattr(model, "visual_projection", None)
        settings = self.vision.config
        self.layout = torch.contiguous_format
        patch = getattr(settings, "patch_size", None)
        patch = patch if isinstance(patch, list | tuple) else (patch, patch)
        self.grid = (size[0] // patch[0], size[1] // patch[-1]) if patch[0] else (0, 0)
        self.registers = int(getattr(settings, "num_register_tokens", 0) or 0)
        # CLIP's tokens leave the model before the norm that its pooled feature gets.
        clip = str(settings.model_type).startswith("clip")
        self.norm = getattr(self.vision, "post_layernorm", None) if clip else None

    def split(self, tokens: Tensor) -> dict[str, Tensor]:
        """See ``Tower.split``; what is more than the patches are prefix tokens, the class token first."""
        if tokens.ndim == 4:
            return {"map": tokens.permute(0, 2, 3, 1), "tokens": tokens.flatten(2).transpose(1, 2)}
        out = {"tokens": tokens}
        count = tokens.shape[1]
        prefix, grid = count - math.prod(self.grid), self.grid
        if prefix < 0:  # a hierarchical model: its last grid is smaller than that of the patches
            prefix, grid = 0, (math.isqrt(count), math.isqrt(count))
        if prefix > self.registers:
            out["cls"] = tokens[:, 0]
        if self.registers:
            out["registers"] = tokens[:, prefix - self.registers : prefix]
        if math.prod(grid) == count - prefix:
            out["map"] = tokens[:, prefix:].reshape(len(tokens), *grid, -1)
        return out

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        output = self.vision(pixel_values=images)
        tokens = output.last_hidden_state
        out = self.split(tokens if self.norm is None else self.norm(tokens))
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None:
            out["pooled"] = pooled.flatten(1)
            if self.projection is not None:
                out["projected"] = self.projection(out["pooled"])
        return out


def build(config: TeacherConfig, *, skeleton: bool = False) -> Built:
    """Build the model that a config names.

    Args:
        config: the settings; ``name`` is a name on the hub or a local folder.
        skeleton: leave the weights out.

    Raises:
        TeacherError: transformers is not installed, unknown name, or weights that cannot be had or lack keys.
    """
    settings, model = load_model(config, skeleton=skeleton)
    from transformers.image_processing_base import ImageProcessingMixin

    vision = getattr(settings, "vision_config", settings)
    side = config.image_size or getattr(vision, "image_size", 0) or 0
    try:
        own = _processor(ImageProcessingMixin.get_image_processor_dict(config.name)[0])
    except OSError:  # no such file: mean and std must be given
        own = {}
    preprocessing = stated_preprocessing(config, own, size=0 if "size" in own else side)
    return Built(
        TransformersTower(model, size=preprocessing.size),
        preprocessing,
        recorded_name=Path(config.name).name if Path(config.name).is_dir() else "",
        recorded_args={**config.model_args, "model_type": settings.model_type},
        heads={} if skeleton else _heads(model),
    )


def _heads(model: Any) -> dict[str, Head]:
    """The prompt encoder and mask decoder of a SAM; of other models none."""
    if model.config.model_type != "sam":
        return {}
    return {mask_decoder.NAME: Head(mask_decoder.MEANING, mask_decoder.tensors_of(model))}


def load_model(config: TeacherConfig, *, skeleton: bool = False) -> tuple[Any, Any]:
    """The settings and the AutoModel that a config names; ``skeleton`` leaves the weights out."""
    try:
        import transformers
    except ImportError as error:
        raise TeacherError(
            f"--teacher.library transformers: it cannot be imported ({error}). {INSTALL}"
        ) from None
    if config.weights:
        raise TeacherError(
            "--teacher.weights: with library transformers the folder with weights and config.json is the "
            "--teacher.name; leave --teacher.weights out."
        )
    if not Path(config.name).is_dir():
        go_offline_if_unreachable()
    try:
        settings = transformers.AutoConfig.from_pretrained(config.name, **config.model_args)
        auto: Any = transformers.AutoModel
        return settings, auto.from_config(settings) if skeleton else _load(config, settings)
    except TeacherError:
        raise
    except Exception as error:  # hub client, HTTP library and transformers each raise their own
        raise TeacherError(
            f"teacher {config.name}: could not be loaded by transformers ({brief(error)}). Expected a name on the "
            "Hugging Face hub, or a folder that save_pretrained wrote, with config.json, model.safetensors and "
            "preprocessor_config.json."
        ) from error


def _load(config: TeacherConfig, settings: Any) -> nn.Module:
    """The model with its weights; a pooling layer that the weights lack would be random, so it is left out."""
    from transformers import AutoModel

    def load(**options: Any) -> tuple[Any, list[str]]:
        model, told = AutoModel.from_pretrained(
            config.name, config=settings, output_loading_info=True, **options
        )
        return model, sorted(told["missing_keys"])

    model, missing = load()
    if missing and all("pooler" in key for key in missing):
        model, missing = load(add_pooling_layer=False)
    if missing:
        raise TeacherError(
            f"teacher {config.name}: {len(missing)} tensors are not in its weights: {shorten(missing)}."
        )
    return model.float()  # type: ignore[no-any-return]


def _processor(values: dict[str, Any]) -> dict[str, Any]:
    """Preprocessing as preprocessor_config.json states it.

    SAM resizes the longer side and pads the shorter one; views cut the central square instead, which needs no padding.
    """
    own: dict[str, Any] = {}
    longest = isinstance(values.get("size"), dict) and values["size"].get("longest_edge")
    if values.get("do_pad") and longest and _sides(values.get("pad_size")) == (longest, longest):
        values = {**values, "do_pad": False, "size": longest}
    if values.get("do_normalize", True) and values.get("image_mean"):
        own |= {"mean": values["image_mean"], "std": values["image_std"]}
    if values.get("do_normalize") is False:
        own |= {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    if values.get("resample") in RESAMPLING:
        own["interpolation"] = RESAMPLING[values["resample"]]
    size, crop = _sides(values.get("size")), _sides(values.get("crop_size"))
    if values.get("do_pad"):
        raise TeacherError("preprocessor_config.json pads pictures, which views do not support.")
    if values.get("do_center_crop") and crop:
        own |= {"size": crop, "crop_mode": "center"}
        if size:
            own["crop_pct"] = min(1.0, min(crop) / min(size))
    elif size:
        # Height and width: both sides are resized freely. Only the shorter side: the views crop the centre.
        squash = isinstance(values["size"], dict) and "height" in values["size"]
        own |= {"size": size, "crop_mode": "squash" if squash else "center"}
    return own


def _sides(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, dict):
        side = value.get("shortest_edge")
        height, width = value.get("height", side), value.get("width", side)
        if isinstance(height, int) and isinstance(width, int):
            return (height, width)
    return None
