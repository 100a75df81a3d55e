"""Local graphs of places (cells of a point cloud, patches of an image) and their comparison (PointDistiller, 2023).

A place is joined to its nearest neighbours in the teacher's space among the places of the same sample; the student is
compared on the same pairs, and places count by their importance. The published code joins places of different samples
of a batch, and two of its branches never use the weights (a softmax over an axis of length 1); neither is so here.
"""

# B samples, T places of all samples, D teacher width, Q queries, K neighbours of each, E width of the compared features

from typing import NamedTuple

from distill.lazy import F, Tensor, torch
from distill.losses.common import check_axes

TINY = 1e-5  # added to a variance


class LocalGraph(NamedTuple):
    """Which places are compared."""

    queries: Tensor  # (Q,) places, those of a sample together
    neighbours: Tensor  # (Q, K) places of the same sample, the nearest first
    weights: Tensor  # (Q,) the weights of a sample's queries sum to their number


def local_graph(
    features_TD: Tensor,
    sizes: list[int],
    importance_T: Tensor,
    *,
    queries: int,
    neighbours: int,
    temperature: float,
) -> LocalGraph:
    """Join the most important places of each sample to their neighbours.

    Args:
        sizes: (B,) number of places of each sample; a sample may have none.
        importance_T: e.g. number of points.
        queries: most queries of a sample.
        neighbours: K; a sample with fewer places repeats the query itself.
        temperature: weights are softmax(importance / temperature) over a sample's queries, times their number; 0 weighs
            all alike.
    """
    check_axes("local_graph", "TD T", features_TD, importance_T)
    if sum(sizes) != len(features_TD):
        raise ValueError(f"local_graph: {len(features_TD)} places, but sizes sum to {sum(sizes)}.")
    asked, joined, weights = [], [], []
    start = 0
    for size in sizes:
        own, score = (
            features_TD[start : start + size].float(),
            importance_T[start : start + size].float(),
        )
        chosen = score.topk(min(queries, size)).indices
        distances = torch.cdist(own[chosen], own)
        distances.scatter_(1, chosen[:, None], -1.0)  # itself first, also among equal places
        near = distances.topk(min(neighbours, size), largest=False).indices
        near = torch.cat([near, chosen[:, None].expand(-1, neighbours - near.shape[1])], 1)
        scaled = score[chosen] / temperature if temperature else torch.zeros_like(score[chosen])
        asked.append(chosen + start)
        joined.append(near + start)
        weights.append(len(chosen) * scaled.softmax(0))
        start += size
    return LocalGraph(torch.cat(asked), torch.cat(joined), torch.cat(weights))


def graph_features(parts_TF: Tensor, graph: LocalGraph) -> Tensor:
    """relu(norm(W cat(z_j, z_i))) of every query i and neighbour j.

    A linear layer on two features side by side is the sum of two layers, so it is applied to places, not to pairs.

    Args:
        parts_TF: (T, 2 E): W_1 z and W_2 z of every place.

    Returns:
        (Q, K, E) float32, each channel of mean 0 and variance 1 over all pairs before the ReLU.
    """
    near, query = parts_TF.float().chunk(2, dim=1)
    pairs = near[graph.neighbours] + query[graph.queries][:, None]
    count = max(1, graph.neighbours.numel())
    centred = pairs - pairs.sum((0, 1)) / count
    return F.relu(centred / (centred.square().sum((0, 1)) / count + TINY).sqrt())


def local_graph_loss(student_QKE: Tensor, teacher_QKE: Tensor, weights_Q: Tensor) -> Tensor:
    """mean_i w_i mean_jc (G_s - G_t)^2, in float32; zero, with a gradient of zero, without queries."""
    check_axes("local_graph_loss", "QKE QKE Q", student_QKE, teacher_QKE, weights_Q)
    error = (student_QKE.float() - teacher_QKE.float()).square().mean((1, 2))
    return (weights_Q * error).sum() / max(1, len(error))
