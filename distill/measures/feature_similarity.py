"""Similarity of two sets of features (CKA, norms, variance); measurements only."""

# N samples, D and E widths of two features

from distill.lazy import Tensor, torch


def linear_cka(x_ND: Tensor, y_NE: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019): 1 for equal up to rotation and scale, 0 for unrelated.

    Computed in float64 as ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) over centred columns. A feature without any
    variance has no alignment; the result is then 0.

    Args:
        x_ND: (N, D).
        y_NE: (N, E) of the same samples.
    """
    if x_ND.dim() != 2 or y_NE.dim() != 2 or len(x_ND) != len(y_NE) or len(x_ND) < 2:
        raise ValueError(
            f"linear_cka: {tuple(x_ND.shape)} and {tuple(y_NE.shape)}; expected (N, D) and (N, E) with N at least 2."
        )
    if len(x_ND) <= max(x_ND.shape[1], y_NE.shape[1]):
        return gram_cka(gram(x_ND), gram(y_NE))
    x, y = x_ND.double(), y_NE.double()
    x, y = x - x.mean(0), y - y.mean(0)
    cross = (y.T @ x).square().sum()
    own = (x.T @ x).norm() * (y.T @ y).norm()
    return float(cross / own) if own > 0 else 0.0


def gram(x_ND: Tensor) -> Tensor:
    """(N, N) float64 inner products of the centred rows: all that CKA needs of a feature, for few rows."""
    x = x_ND.double()
    x = x - x.mean(0)
    return x @ x.T


def gram_cka(x_NN: Tensor, y_NN: Tensor) -> float:
    """``linear_cka`` of two features, from the ``gram`` of each."""
    own = x_NN.norm() * y_NN.norm()
    return float((x_NN * y_NN).sum() / own) if own > 0 else 0.0


def mean_norm(x_ND: Tensor) -> float:
    """Mean Euclidean length of the rows."""
    return float(x_ND.float().norm(dim=1).mean())


def mean_variance(x_ND: Tensor) -> float:
    """Variance of each column over the rows, averaged over the columns."""
    return float(x_ND.float().var(dim=0, unbiased=False).mean())


def top1(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Share of rows whose largest logit is their label, among rows with a label; NaN if none has one."""
    known = labels_N >= 0
    if not bool(known.any()):
        return float("nan")
    return float((logits_NK.argmax(1) == labels_N)[known].double().mean())


def thin_out(count: int, most: int, *, seed: int) -> Tensor:
    """At most ``most`` of ``count`` indices, sorted, chosen by a seed alone."""
    if count <= most:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values
