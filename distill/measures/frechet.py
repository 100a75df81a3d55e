"""Frechet distance between two sets of features. It is called FID only with Inception's features; these are any."""

# N, M rows; D width

import torch
from torch import Tensor


def gaussian_distance(mean_D: Tensor, cov_DD: Tensor, other_D: Tensor, other_DD: Tensor) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of two Gaussians, float64."""
    power, directions = torch.linalg.eigh(cov_DD)
    root = directions * power.clamp(min=0).sqrt() @ directions.T
    # C^(1/2) C' C^(1/2) is symmetric and has the eigenvalues of C C'.
    both = torch.linalg.eigvalsh(root @ other_DD @ root).clamp(min=0).sqrt().sum()
    apart = (mean_D - other_D).square().sum()
    return float(apart + cov_DD.trace() + other_DD.trace() - 2 * both)


def frechet_distance(features_ND: Tensor, others_MD: Tensor) -> float:
    """Distance of the Gaussians with the mean and covariance of each set."""
    if min(len(features_ND), len(others_MD)) < 2 or features_ND.shape[1:] != others_MD.shape[1:]:
        raise ValueError(
            f"features of shape {tuple(features_ND.shape)} and {tuple(others_MD.shape)}; expected two rows or more, "
            "of one width"
        )
    first, second = features_ND.double(), others_MD.double()
    return gaussian_distance(first.mean(0), first.T.cov(), second.mean(0), second.T.cov())
