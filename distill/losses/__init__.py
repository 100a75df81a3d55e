"""Losses of methods and partners, on tensors whose names end with their axes (``student_BK`` is (B, K)).

Each raises ValueError for shapes that do not fit together, and computes in float32.
"""

from distill.losses.common import IGNORE, check_axes, cross_entropy
from distill.losses.features import feature_mse, layernorm_mse
from distill.losses.logits import kd_kl

__all__ = ["IGNORE", "check_axes", "cross_entropy", "feature_mse", "kd_kl", "layernorm_mse"]
