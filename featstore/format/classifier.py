"""A teacher's classifier, one Linear on a stored field, as an artefact."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from featstore.errors import ConfigError
from featstore.files.array_types import Array

NAME = "classifier"
"""Name of the artefact; merging puts a prefix before it, as before the names of fields."""

FIELD = "pooled"
"""Field that it classifies."""

MEANING = "the teacher's classifier: logits = weight (K, D) x field pooled (D) + bias (K), float32"


def classifier_of(field: str) -> str:
    """Name of the artefact that belongs to a field: ``team0_pooled`` has ``team0_classifier``."""
    return field.removesuffix(FIELD) + NAME


def tensors_of(linear: Any) -> dict[str, Array]:
    """Tensors of the artefact.

    Args:
        linear: ``torch.nn.Linear``; without a bias, zeros are kept.
    """
    weight = linear.weight.detach().cpu().float().numpy()
    bias = np.zeros(len(weight), np.float32)
    if linear.bias is not None:
        bias = linear.bias.detach().cpu().float().numpy()
    return {"weight": weight, "bias": bias}


def check_classifier(tensors: Mapping[str, Array], width: int) -> tuple[Array, Array]:
    """Weight (K, D) and bias (K,), both float32 and finite.

    Args:
        width: D of the field.
    """
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or bias is None or weight.ndim != 2 or weight.shape[1] != width:
        shapes = {name: value.shape for name, value in tensors.items()}
        raise ConfigError(
            f"has arrays of shape {shapes}; expected weight (K, {width}) and bias (K)."
        )
    fits = weight.dtype == bias.dtype == np.float32 and bias.shape == weight.shape[:1]
    if not (fits and np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ConfigError("its weight and bias are not finite float32 numbers of K classes.")
    return weight, bias
