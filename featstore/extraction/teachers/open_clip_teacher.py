"""Teachers from open_clip: the image side of a model (and its text side for text tables), tagged or local weights."""

# B images, N tokens, D teacher width, C projection width

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from featstore.errors import TeacherError, shorten
from featstore.extraction.config import TeacherConfig
from featstore.extraction.teachers.base import Built, Tower, brief, make_preprocessing
from featstore.extraction.teachers.hub import go_offline_if_unreachable
from featstore.extraction.teachers.timm_teacher import spatial_parts
from featstore.files.array_types import Array
from featstore.format.weights_hash import state_sha256

TEXTS_BATCH = 256  # texts per forward pass
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


class OpenClipTower(Tower):
    """The image side of any open_clip model."""

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

    def split(self, tokens: Tensor) -> dict[str, Tensor]:
        visual = cast(Any, self.visual)
        if not self.is_vit:
            return spatial_parts(getattr(visual, "trunk", None), tokens)
        grid = tokens[:, 1:].reshape(len(tokens), *visual.grid_size, -1)
        return {"tokens": tokens, "cls": tokens[:, 0], "map": grid}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
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


def build(config: TeacherConfig, *, skeleton: bool = False) -> Built:
    """Build the model that a config names.

    Args:
        skeleton: leave the weights out.
    """
    import open_clip

    model, known = load_model(config, skeleton=skeleton)
    data = open_clip.get_model_preprocess_cfg(model) | (known if skeleton else {})
    if data.get("resize_mode", "shortest") == "longest":
        raise TeacherError(
            f"teacher {config.name}: pads pictures to a square, which views do not support."
        )
    size = data["size"]
    preprocessing = make_preprocessing(
        config,
        size=(size,) if isinstance(size, int) else tuple(size),
        crop_pct=1.0,
        crop_mode="squash" if data.get("resize_mode") == "squash" else "center",
        interpolation=data.get("interpolation", "bicubic"),
        mean=data["mean"],
        std=data["std"],
    )
    return Built(OpenClipTower(model.visual), preprocessing)


def encode_texts(config: TeacherConfig, texts: Sequence[str]) -> tuple[Array, str]:
    """Run the text side of the model that a config names.

    Returns:
        (n, D) float32, and the hash of the image side's weights, which tells whether both sides belong together.

    Raises:
        TeacherError: see ``build``.
    """
    import open_clip

    model, _ = load_model(config)
    tokenizer, model = open_clip.get_tokenizer(config.name), model.eval()
    with torch.inference_mode():
        parts = [
            model.encode_text(tokenizer(list(texts[start : start + TEXTS_BATCH]))).float().numpy()
            for start in range(0, len(texts), TEXTS_BATCH)
        ]
    return np.concatenate(parts), state_sha256(OpenClipTower(model.visual))


def load_model(
    config: TeacherConfig, *, skeleton: bool = False, texts: bool = False
) -> tuple[Any, dict[str, Any]]:
    """The model with both of its sides, and what is published of its preprocessing.

    Args:
        skeleton: leave the weights out.
        texts: only the text side is used.

    Raises:
        TeacherError: unknown name or tag, weights that cannot be had or do not fit, or nothing says which activation
            and preprocessing local weights need.
    """
    published = _published(config, texts=texts)
    known = {key: published[key] for key in PREPROCESSING if published.get(key)}
    model_args = dict(config.model_args)
    if config.image_size:
        model_args["force_image_size"] = config.image_size
    if published.get("quick_gelu"):
        model_args["force_quick_gelu"] = True
    return _create(config, published, known, model_args, skeleton=skeleton), known


def _published(config: TeacherConfig, *, texts: bool = False) -> dict[str, Any]:
    """What open_clip publishes under this name and tag; empty without a tag."""
    import open_clip

    name = config.name
    if name not in open_clip.list_models() and ":" not in name:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        raise TeacherError(
            f"--teacher.name {name}: open_clip has no such model; did you mean {shorten(near)}?"
        )
    published = dict(open_clip.get_pretrained_cfg(name, config.tag) or {})
    if config.tag and not published:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise TeacherError(f"--teacher.tag {config.tag}: {name} has the tags {shorten(tags, 10)}.")
    if not config.tag and ":" not in name:
        if not config.weights:
            raise TeacherError(
                f"teacher {name}: neither --teacher.tag nor --teacher.weights; a random teacher teaches nothing."
            )
        _check_unambiguous(config, texts=texts)
    return published


def _check_unambiguous(config: TeacherConfig, *, texts: bool) -> None:
    """Refuse local weights without a tag where a tag of the model has another activation or preprocessing than none."""
    import open_clip
    from open_clip.transform import PreprocessCfg

    tags = open_clip.list_pretrained_tags_by_model(config.name)
    published = [dict(open_clip.get_pretrained_cfg(config.name, tag) or {}) for tag in tags]
    usual = dataclasses.asdict(PreprocessCfg())
    own = dict(open_clip.get_model_config(config.name) or {})
    gelu = {bool(item.get("quick_gelu")) for item in [own, *published]}
    inputs = {
        repr([list(item[key]) if key in ("mean", "std") else item[key] for key in PREPROCESSING])
        for item in ({**usual, **entry} for entry in [{}, *published])
    }
    missing = []
    if len(gelu) > 1 and "force_quick_gelu" not in config.model_args:
        missing.append("--teacher.model_args '{force_quick_gelu: true}' (or false)")
    if len(inputs) > 1 and not texts and not (config.mean and config.std and config.interpolation):
        missing.append("--teacher.mean, --teacher.std and --teacher.interpolation")
    if missing:
        raise TeacherError(
            f"teacher {config.name}: --teacher.weights without --teacher.tag does not say how these weights are run: "
            f"its tags differ in activation or preprocessing. Give the tag of these weights, or the one they were "
            f"fine-tuned ({shorten(tags, 10)}); for others state {' and '.join(missing)}."
        )


def _create(
    config: TeacherConfig,
    published: dict[str, Any],
    known: dict[str, Any],
    model_args: dict[str, Any],
    *,
    skeleton: bool,
) -> Any:
    import open_clip
    from huggingface_hub.constants import HF_HUB_CACHE

    if not config.weights and not skeleton:
        go_offline_if_unreachable()
    try:
        return open_clip.create_model(
            config.name,
            pretrained=None if skeleton else config.weights or config.tag,
            force_preprocess_cfg=known if config.weights else None,
            weights_only=True,
            device="meta" if skeleton else "cpu",
            **model_args,
        )
    except Exception as error:  # hub client, HTTP library and open_clip each raise their own kinds
        if skeleton:
            raise
        place = config.weights or published.get("hf_hub") or published.get("url") or config.name
        raise TeacherError(
            f"teacher {config.name} {config.tag}: its weights could not be loaded ({brief(error)}). Looked for "
            f"{place} in {HF_HUB_CACHE} and on the hub. Without a network, fetch them elsewhere and pass "
            "--teacher.weights PATH; if PATH was given, check that it belongs to --teacher.name."
        ) from error
