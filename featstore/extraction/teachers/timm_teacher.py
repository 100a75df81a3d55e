"""Teachers from timm, with the hub's weights or local ones."""

# B images, N tokens, D teacher width, h w patch grid

import difflib
import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from featstore.errors import TeacherError, shorten
from featstore.extraction.config import TeacherConfig
from featstore.extraction.teachers.base import Built, Tower, brief, make_preprocessing
from featstore.extraction.teachers.hub import go_offline_if_unreachable
from featstore.extraction.teachers.weights import load_state, read_state


class TimmTower(Tower):
    """Any timm model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        if hasattr(model, "patch_embed"):
            self.layout = torch.contiguous_format

    def split(self, tokens: Tensor) -> dict[str, Tensor]:
        return spatial_parts(self.model, tokens)

    def classifier(self) -> nn.Module | None:
        model = cast(Any, self.model)
        return model.get_classifier() if model.num_classes else None

    def encode(self, images: Tensor) -> dict[str, Tensor]:
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
    registers = int(getattr(model, "num_reg_tokens", 0) or 0)
    if getattr(model, "cls_token", None) is not None:
        out["cls"] = features[:, 0]
    if registers:
        out["registers"] = features[:, prefix - registers : prefix]
    size = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if size is not None and size[0] * size[1] == features.shape[1] - prefix:
        out["map"] = features[:, prefix:].reshape(len(features), *size, -1)
    return out


def build(config: TeacherConfig, *, skeleton: bool = False) -> Built:
    """Build the model that a config names.

    Args:
        skeleton: leave the weights out.
    """
    import timm
    import timm.data

    base, _, tag = config.name.partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3)
        raise TeacherError(
            f"--teacher.name {config.name}: timm has no such model; did you mean {shorten(near)}?"
        )
    published = _published(config)
    if not config.weights and (published is None or not published.has_weights):
        raise TeacherError(
            f"--teacher.name {config.name}: timm publishes no weights under this name. Pass --teacher.weights PATH."
        )
    model_args = dict(config.model_args)
    if config.image_size and published is not None and published.fixed_input_size:
        model_args["img_size"] = config.image_size
    if config.weights or skeleton:
        model = _create(config, model_args, skeleton=skeleton)
        if config.weights and not skeleton:
            _load(model, config, model_args)
    else:
        model = _from_hub(config, model_args, published)
    data = cast(Any, timm.data).resolve_model_data_config(model)
    size = (config.image_size,) if config.image_size else tuple(data["input_size"][1:])
    preprocessing = make_preprocessing(
        config,
        size=size,
        crop_pct=data["crop_pct"],
        crop_mode=data["crop_mode"],
        interpolation=data["interpolation"],
        mean=data["mean"],
        std=data["std"],
    )
    licence = "" if config.weights else str(getattr(published, "license", None) or "")
    notes = []
    stated = config.mean and config.std
    if config.weights and not (tag or stated) and published is not None and published.tag:
        notes.append(
            f"--teacher.name {config.name} has no tag: preprocessing is that of timm's default, {base}.{published.tag}"
        )
    return Built(TimmTower(model), preprocessing, licence, notes=notes)


def _published(config: TeacherConfig) -> Any:
    """What timm publishes under this name and tag: it decides preprocessing, also of local weights."""
    import timm

    base = config.name.split(".")[0]
    try:
        return timm.get_pretrained_cfg(config.name)
    except RuntimeError:
        own = " For weights of your own, leave the tag out." if config.weights else ""
        raise TeacherError(
            f"--teacher.name {config.name}: timm knows {base}, but not this tag; it has "
            f"{shorten(timm.list_pretrained(base + '.*'), 10)}.{own}"
        ) from None


def _create(
    config: TeacherConfig, model_args: dict[str, Any], *, skeleton: bool = False
) -> nn.Module:
    """The model of the name with its tag, whose settings (mean, crop, interpolation) are the tag's; random weights."""
    import timm

    try:
        return timm.create_model(config.name, pretrained=False, **model_args)
    except Exception as error:  # models check their arguments with asserts and plain errors
        if skeleton:
            raise
        raise TeacherError(
            f"teacher {config.name}: cannot be built with model_args {model_args} ({brief(error)})."
        ) from error


def _from_hub(config: TeacherConfig, model_args: dict[str, Any], published: Any) -> nn.Module:
    import timm
    from huggingface_hub.constants import HF_HUB_CACHE

    go_offline_if_unreachable()
    try:
        return timm.create_model(config.name, pretrained=True, **model_args)
    except Exception as error:  # the hub's client, its HTTP library and timm each raise their own
        place = published.hf_hub_id or published.url or published.file
        raise TeacherError(
            f"teacher {config.name}: its weights could not be loaded ({brief(error)}). Looked for {place} in "
            f"{HF_HUB_CACHE} and on the hub. Fetch model.safetensors from {place} on a machine with a network and "
            "pass --teacher.weights PATH, or bring that cache along and set HF_HOME."
        ) from error


def _load(model: Any, config: TeacherConfig, model_args: dict[str, Any]) -> None:
    state = read_state(config.weights)
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    # Needed for the layout of a model's first publication, and to resample position embeddings.
    foreign = not state.keys() & model.state_dict().keys()
    if adapt is not None and (foreign or "img_size" in model_args):
        state = adapt(state, model)
    classes = _num_classes(model, state)
    if classes != model.num_classes:
        model.reset_classifier(classes)
    load_state(
        model, state, where=f"--teacher.weights {config.weights}", name=config.name.split(".")[0]
    )


def _num_classes(model: Any, state: Mapping[str, Tensor]) -> int:
    """Classes of the head that the weights carry; 0 without one."""
    names = model.pretrained_cfg.get("classifier", "")
    name = names if isinstance(names, str) else names[0]
    weight = state.get(f"{name}.weight")
    return 0 if weight is None else int(weight.shape[0])
