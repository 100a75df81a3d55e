"""The losses that methods and partners are made of. Each compares shapes: unlike ones would broadcast silently."""

from distill.losses.common import IGNORE, cross_entropy, same_shape
from distill.losses.features import feature_mse, layernorm_mse
from distill.losses.logits import kd_kl

__all__ = ["IGNORE", "cross_entropy", "feature_mse", "kd_kl", "layernorm_mse", "same_shape"]
