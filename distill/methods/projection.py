"""Projections between teacher and student features."""

from __future__ import annotations

from distill.lazy import Tensor, nn


def projection(from_width: int, to_width: int, *, depth: int = 1, hidden: int = 0) -> nn.Module:
    """(B, from_width) -> (B, to_width): one Linear, or a perceptron with one hidden layer.

    The sources speak of "one projection layer" [S]; nothing is known of its inside. Depth 2 is Linear, LayerNorm, ReLU,
    Linear [I]: a layer norm works on one row at a time, so that neither the batch nor the number of processes matters.

    Args:
        from_width: of the input.
        to_width: of the output.
        depth: number of Linears, 1 or 2.
        hidden: width between two Linears; 0 takes the larger of the other two.
    """
    if depth == 1:
        return nn.Linear(from_width, to_width)
    hidden = hidden or max(from_width, to_width)
    return nn.Sequential(
        nn.Linear(from_width, hidden),
        nn.LayerNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, to_width),
    )


def check_width(name: str, feature: Tensor, width: int) -> None:
    """Check that a feature is (B, width).

    Raises:
        ValueError: names the feature and both shapes.
    """
    if feature.dim() != 2 or feature.shape[1] != width:
        raise ValueError(f"{name}: shape {tuple(feature.shape)}; expected (B, {width}).")
