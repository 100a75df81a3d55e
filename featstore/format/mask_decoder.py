"""Prompt encoder and mask decoder of a SAM as an artefact: their weights, and the settings that rebuild them."""

import json
from collections.abc import Mapping
from typing import Any

from featstore.errors import ConfigError
from featstore.files.array_types import Array
from featstore.format.artefacts import pack_texts, unpack_texts

NAME = "mask_decoder"
"""Name of the artefact; merging puts a prefix before it."""

MEANING = "prompt encoder and mask decoder of a SAM (transformers), and their settings as JSON text"

PARTS = ("prompt_encoder", "mask_decoder")
"""Modules of ``SamModel`` that are kept; the positional encoding of the image is part of the prompt encoder."""

SETTINGS: dict[str, tuple[str, ...]] = {
    "vision_config": ("num_pos_feats",),
    "prompt_encoder_config": (
        "hidden_size", "image_size", "patch_size", "mask_input_channels", "num_point_embeddings", "hidden_act",
        "layer_norm_eps",
    ),
    "mask_decoder_config": (
        "hidden_size", "hidden_act", "mlp_dim", "num_hidden_layers", "num_attention_heads",
        "attention_downsample_rate", "num_multimask_outputs", "iou_head_depth", "iou_head_hidden_dim",
        "layer_norm_eps",
    ),
}  # fmt: skip
"""Settings of ``SamConfig`` that both parts are built from, by section."""

COUNTS = ("num_hidden_layers", "iou_head_depth", "num_multimask_outputs", "num_point_embeddings")
"""Settings that say how many modules there are, each with tensors of its own."""


def tensors_of(model: Any) -> dict[str, Array]:
    """Tensors of the artefact.

    Args:
        model: ``transformers.SamModel``.
    """
    settings = {
        section: {name: getattr(getattr(model.config, section), name) for name in names}
        for section, names in SETTINGS.items()
    }
    weights = {
        f"{part}.{name}": value.detach().cpu().float().numpy()
        for part in PARTS
        for name, value in getattr(model, part).state_dict().items()
    }
    return {**weights, **pack_texts([json.dumps(settings)])}


def settings_of(tensors: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    """The settings of an artefact, by section of ``SamConfig``."""
    try:
        (text,) = unpack_texts(tensors)
        values = json.loads(text)
        found = {
            section: {name: values[section][name] for name in names}
            for section, names in SETTINGS.items()
        }
        for section in found.values():
            if many := [name for name in COUNTS if section.get(name, 0) > len(tensors)]:
                raise ValueError(f"{many} above its {len(tensors)} tensors")
        return found
    except (ConfigError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"no mask decoder of a SAM: {error!r}.") from None
