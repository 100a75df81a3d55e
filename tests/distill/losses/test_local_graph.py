"""The local graph loss against loops in numpy, its invariances, and the defects of the published code."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.losses.local_graph import graph_features, local_graph, local_graph_loss


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_graph_by_hand() -> None:
    """Five places on a line, two samples: the fullest are queries, joined to their nearest, weighed by their counts."""
    features = torch.tensor([[0.0], [1], [3], [10], [10.5]])
    counts = torch.tensor([1, 4, 2, 7, 7])
    graph = local_graph(features, [3, 2], counts, queries=2, neighbours=2, temperature=2.0)
    assert graph.queries.tolist() == [1, 2, 3, 4]
    assert graph.neighbours.tolist() == [[1, 0], [2, 1], [3, 4], [4, 3]]
    first = math.exp(2) / (math.exp(2) + math.exp(1))  # softmax of 4 / 2 and 2 / 2
    torch.testing.assert_close(graph.weights, torch.tensor([2 * first, 2 - 2 * first, 1, 1]))
    alike = local_graph(features, [3, 2], counts, queries=2, neighbours=2, temperature=0)
    assert alike.weights.tolist() == [1, 1, 1, 1]


def test_few_places() -> None:
    """A sample with fewer places than neighbours repeats the query; one without places has no query."""
    graph = local_graph(
        draw(3, 2), [0, 1, 2], torch.ones(3), queries=9, neighbours=3, temperature=1.0
    )
    assert sorted(graph.queries.tolist()) == [0, 1, 2]
    assert graph.neighbours[0].tolist() == [0, 0, 0]
    for query, near in zip(graph.queries[1:].tolist(), graph.neighbours[1:].tolist(), strict=True):
        assert near == [query, 3 - query, query]
    none = local_graph(draw(0, 2), [0], torch.ones(0), queries=2, neighbours=2, temperature=1.0)
    assert none.neighbours.shape == (0, 2)
    with pytest.raises(ValueError, match=r"3.*\b2\b"):
        local_graph(draw(3, 2), [2], torch.ones(3), queries=1, neighbours=1, temperature=1.0)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 5),
)
def test_no_neighbour_is_of_another_sample(
    sizes: list[int], queries: int, neighbours: int, seed: int
) -> None:
    """Also where the nearest place is of another sample: all have the same places. Weights sum to the queries."""
    places = draw(7, 3, seed=seed)
    features = torch.cat([places[:size] for size in sizes])
    importance = torch.cat([draw(7, seed=seed)[:size].abs() for size in sizes])
    graph = local_graph(
        features, sizes, importance, queries=queries, neighbours=neighbours, temperature=0.5
    )
    of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    assert (of[graph.neighbours] == of[graph.queries][:, None]).all()
    assert (graph.neighbours[:, 0] == graph.queries).all()
    for sample, size in enumerate(sizes):
        own = of[graph.queries] == sample
        assert own.sum() == min(queries, size)
        torch.testing.assert_close(graph.weights[own].sum(), torch.tensor(float(own.sum())))


def test_weights_differ_and_count() -> None:
    """The softmax is over the queries of a sample, not over an axis of length 1; heavy places change the loss more."""
    features, counts = draw(8, 4), torch.tensor([1, 1, 1, 1, 1, 1, 1, 12])
    graph = local_graph(features, [8], counts, queries=8, neighbours=3, temperature=5.0)
    heavy = int((graph.queries == 7).nonzero())
    assert graph.weights[heavy] > 3 * graph.weights.median()
    error = torch.zeros(8, 3, 2)
    loss = []
    for place in (heavy, (heavy + 1) % 8):
        changed = error.clone()
        changed[place] += 1
        loss.append(float(local_graph_loss(changed, error, graph.weights)))
    assert loss[0] == pytest.approx(float(graph.weights[heavy]) / 8)
    assert loss[0] > 3 * loss[1]


def test_features_and_loss_against_loops() -> None:
    """W on two features side by side, channels standardised over all pairs, ReLU, and the weighted mean of squares."""
    teacher, width = draw(6, 4), 3
    graph = local_graph(
        teacher, [6], draw(6, seed=1).abs(), queries=4, neighbours=3, temperature=1.0
    )
    both = []
    for places, seed in ((teacher, 2), (draw(6, 5, seed=3), 4)):
        weight = draw(2 * width, places.shape[1], seed=seed)
        found = graph_features(places @ weight.T, graph)
        matrix = torch.cat([weight[:width], weight[width:]], 1).numpy()  # of cat(z_j, z_i)
        rows = np.array([
            [matrix @ np.concatenate([places[j].numpy(), places[i].numpy()]) for j in near]
            for i, near in zip(graph.queries.tolist(), graph.neighbours.tolist(), strict=True)
        ])  # fmt: skip
        expected = (rows - rows.mean((0, 1))) / np.sqrt(rows.var((0, 1)) + 1e-5)
        np.testing.assert_allclose(found.numpy(), expected.clip(0), rtol=1e-4, atol=1e-5)
        both.append(found)
    total = 0.0
    for i in range(4):
        total += float(graph.weights[i]) * float(((both[0][i] - both[1][i]) ** 2).mean()) / 4
    assert float(local_graph_loss(both[0], both[1], graph.weights)) == pytest.approx(
        total, rel=1e-5
    )


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(9)))
def test_the_order_of_places_does_not_matter(order: list[int]) -> None:
    """Places of a sample in another order give the same loss."""
    teacher, student, counts = draw(9, 8), draw(9, 8, seed=1), torch.arange(9) * 1.0

    def loss(chosen: Tensor) -> float:
        graph = local_graph(
            teacher[chosen], [9], counts[chosen], queries=5, neighbours=4, temperature=2.0
        )
        own, other = (graph_features(part[chosen], graph) for part in (student, teacher))
        return float(local_graph_loss(own, other, graph.weights))

    assert loss(torch.tensor(order)) == pytest.approx(loss(torch.arange(9)), rel=1e-5)


def test_equal_sides_and_constant_channels() -> None:
    """Zero where both sides are equal; the scale of a side does not matter; a constant channel is zero, not NaN."""
    places = draw(6, 8)
    graph = local_graph(places, [3, 3], torch.ones(6), queries=3, neighbours=2, temperature=1.0)
    same = graph_features(places, graph)
    assert float(local_graph_loss(same, same, graph.weights)) == 0
    torch.testing.assert_close(graph_features(100 * places, graph), same, rtol=1e-3, atol=1e-3)
    flat = torch.ones(6, 8, requires_grad=True)
    found = graph_features(flat, graph)
    assert (found == 0).all()
    local_graph_loss(found, same, graph.weights).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()
    empty = local_graph(places[:0], [0], torch.ones(0), queries=3, neighbours=2, temperature=1.0)
    nothing = graph_features(places[:0], empty)
    assert float(local_graph_loss(nothing, nothing, empty.weights)) == 0


def test_shapes_are_checked() -> None:
    """Unlike shapes are an error instead of a broadcast."""
    with pytest.raises(ValueError, match="local_graph_loss"):
        local_graph_loss(torch.zeros(2, 3, 4), torch.zeros(2, 1, 4), torch.ones(2))
    with pytest.raises(ValueError, match="local_graph"):
        local_graph(torch.zeros(3, 2), [3], torch.ones(2), queries=1, neighbours=1, temperature=1.0)
