"""Losses over relations against loops in numpy, their invariances, and batches in which a relation is not defined."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from distill.losses.contrast import nce, queue_kl
from distill.losses.relations import cc, cc_crd, pkt, rkd_angle, rkd_distance, sp

Array = npt.NDArray[np.float64]
Loss = Callable[[Tensor, Tensor], Tensor]

PAIRED: dict[str, Loss] = {
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "cc": partial(cc, gamma=0.4, order=2),
    "sp": sp,
    "pkt": pkt,
}
"""Losses between features of unlike width."""
ALL: dict[str, Loss] = PAIRED | {"cc_crd": cc_crd}


def features(batch: int, width: int, seed: int) -> Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed)) + 0.5


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(features(width, width, 9))[0]


def smooth_l1(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def unit_row(row: Array) -> Array:
    length = float(np.sqrt((row**2).sum()))
    return row / length if length else row


# Each reference is written from the formula, with loops over images.


def naive_rkd_distance(s: Array, t: Array) -> float:
    n = len(s)
    tables = []
    for f in (s, t):
        d = np.array([[math.dist(f[i], f[j]) for j in range(n)] for i in range(n)])
        tables.append(d / d[d > 0].mean())
    return float(
        np.mean(
            [smooth_l1(a, b) for a, b in zip(tables[0].ravel(), tables[1].ravel(), strict=True)]
        )
    )


def naive_rkd_angle(s: Array, t: Array) -> float:
    n, total = len(s), 0.0
    for i in range(n):
        for j in range(n):
            for k in range(n):
                a, b = (float(unit_row(f[i] - f[j]) @ unit_row(f[k] - f[j])) for f in (s, t))
                total += smooth_l1(a, b)
    return total / n**3


def naive_cc(s: Array, t: Array) -> float:
    n, total = len(s), 0.0
    for i in range(n):
        for j in range(n):
            values = []
            for f in (s, t):
                cosine = float(unit_row(f[i]) @ unit_row(f[j]))
                values.append(math.exp(-0.8) * (1 + 0.8 * cosine + 0.8**2 / 2 * cosine**2))
            total += (values[0] - values[1]) ** 2
    return total / n**2


def naive_cc_crd(s: Array, t: Array) -> float:
    delta = abs(s - t)
    return float(np.mean([(delta[i] * delta[i + 1]).sum() for i in range(len(s) - 1)]))


def naive_sp(s: Array, t: Array) -> float:
    tables = [np.stack([unit_row(row) for row in f @ f.T]) for f in (s, t)]
    return float(((tables[0] - tables[1]) ** 2).sum() / len(s) ** 2)


def naive_pkt(s: Array, t: Array) -> float:
    tables = []
    for f in (s, t):
        u = np.stack([unit_row(row) for row in f])
        similarity = (u @ u.T + 1) / 2
        tables.append(similarity / similarity.sum(1, keepdims=True))
    q, p = tables
    return float((p * np.log((p + 1e-7) / (q + 1e-7))).mean())


NAIVE: dict[str, Callable[[Array, Array], float]] = {
    "rkd_distance": naive_rkd_distance,
    "rkd_angle": naive_rkd_angle,
    "cc": naive_cc,
    "cc_crd": naive_cc_crd,
    "sp": naive_sp,
    "pkt": naive_pkt,
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch", [2, 7])
def test_equal_to_loops_over_images(name: str, batch: int) -> None:
    """Against the formula, in float64 with loops; widths differ where they may."""
    student = features(batch, 5, seed=1)
    target = features(batch, 5 if name == "cc_crd" else 9, seed=2)
    expected = NAIVE[name](student.double().numpy(), target.double().numpy())
    assert ALL[name](student, target).item() == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_literal_values() -> None:
    """Small enough for a pencil."""
    # Distances 1, 1, 2 (mean 4/3) against 3, 4, 5 (mean 4): six entries differ by 0, 1/4 and 1/4, three by nothing.
    line = torch.tensor([[0.0], [1.0], [2.0]])
    right = torch.tensor([[0.0, 3.0], [0.0, 0.0], [4.0, 0.0]])
    a, b, c = (0.5 * (x - y) ** 2 for x, y in ((3 / 4, 3 / 4), (3 / 4, 1.0), (6 / 4, 5 / 4)))
    assert rkd_distance(line, right).item() == pytest.approx(2 * (a + b + c) / 9)
    # Angles of the line: 0, 180 and 0 degrees. Of the triangle: cosines 3/5, 0 and 4/5. Each counts in two orders.
    d, e, f = (0.5 * (x - y) ** 2 for x, y in ((1, 3 / 5), (-1, 0), (1, 4 / 5)))
    assert rkd_angle(line, right).item() == pytest.approx(2 * (d + e + f) / 27, rel=1e-5)
    # Two rows at right angles against two equal ones.
    apart, equal = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert sp(apart, equal).item() == pytest.approx((2 * (1 - math.sqrt(0.5)) ** 2 + 2 * 0.5) / 4)
    # Similarities (1, 1/2) / 1.5 of the student, (1/2, 1/2) of the teacher.
    kl = (math.log(3 / 4) + math.log(3 / 2)) / 4
    assert pkt(apart, equal).item() == pytest.approx(kl, rel=1e-5)
    assert cc(apart, equal, gamma=0.4, order=1).item() == pytest.approx(
        (0.8 * math.exp(-0.8)) ** 2 / 2
    )
    assert cc_crd(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.zeros(2, 2)).item() == 5


@pytest.mark.parametrize("name", ALL)
def test_nothing_to_learn_from_an_equal_feature(name: str) -> None:
    """A student that equals its teacher costs nothing and is left alone."""
    student = features(6, 4, seed=1).requires_grad_()
    loss = ALL[name](student, student.detach().clone())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("name", "scaled", "rotated", "moved"),
    [
        ("rkd_distance", True, True, True),
        ("rkd_angle", True, True, True),
        ("cc", True, True, False),
        ("sp", True, True, False),
        ("pkt", True, True, False),
        ("cc_crd", False, False, False),
    ],
)
def test_what_each_ignores(name: str, scaled: bool, rotated: bool, moved: bool) -> None:
    """Scale, rotation and translation of the student's features."""
    student, target = features(6, 4, seed=1), features(6, 4, seed=2)
    before = ALL[name](student, target).item()
    changed = (student * 3, student @ rotation(4), student + torch.tensor([1.0, -2.0, 0.5, 3.0]))
    for other, ignored in zip(changed, (scaled, rotated, moved), strict=True):
        after = ALL[name](other, target).item()
        assert (after == pytest.approx(before, rel=1e-3)) == ignored


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(4, 3),
        torch.ones(4, 3),
        torch.zeros(1, 3),
        torch.ones(1, 3),
        torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [-1.0, 5.0, 0.5]]),
        torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.000001], [4.0, 0.0, 0.0], [-1.0, 5.0, 0.5]]),
    ],
    ids=["zeros", "constant", "one zero", "one", "twice and zero", "rounding apart"],
)
def test_undefined_relations_are_finite(name: str, odd: Tensor) -> None:
    """Rows that are equal, nearly equal or zero: value and gradient stay finite and of ordinary size."""
    ordinary = features(len(odd), 3, seed=3)
    for student, target in ((odd.clone(), ordinary), (ordinary.clone(), odd), (odd.clone(), odd)):
        loss = ALL[name](student.requires_grad_(), target)
        loss.backward()
        assert loss.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()
        assert student.grad.abs().max() < 10


@pytest.mark.parametrize("name", PAIRED)
def test_a_batch_of_one_has_no_relation(name: str) -> None:
    """Zero, whatever the features."""
    loss = PAIRED[name](features(1, 3, seed=1), features(1, 5, seed=2))
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_equal_rows_are_told_from_their_neighbours() -> None:
    """An image that is twice in the batch adds nothing to the angles, and its distance of zero is not in the mean."""
    single, target = features(4, 3, seed=1), features(4, 5, seed=2)
    double, both = (torch.cat([f, f[:1]]) for f in (single, target))
    expected = naive_rkd_angle(double.double().numpy(), both.double().numpy())
    assert rkd_angle(double, both).item() == pytest.approx(expected, rel=1e-4)
    expected = naive_rkd_distance(double.double().numpy(), both.double().numpy())
    assert rkd_distance(double, both).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_taken_in_float32(name: str) -> None:
    """Products of features of size 300 are beyond float16; no gradient flows into a frozen target."""
    student = (300 * features(6, 4, seed=1)).half().requires_grad_()
    target = (300 * features(6, 4, seed=2)).half()
    loss = ALL[name](student, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ALL[name](student.float(), target.float()))
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    if name != "cc_crd":
        trained = target.float().requires_grad_()
        ALL[name](student, trained).backward()
        assert trained.grad is None


@pytest.mark.parametrize("name", ALL)
def test_unlike_batches_are_refused(name: str) -> None:
    """Names the loss and both shapes."""
    with pytest.raises(ValueError, match=rf"{name}.*\b2\b.*\b3\b.*\b1\b.*\b3\b"):
        ALL[name](torch.zeros(2, 3), torch.zeros(1, 3))


def test_queue_kl_by_hand() -> None:
    """Three pseudo-classes, one of them a zero vector; student and target at any length, one target zero."""
    temperature = 0.5
    student = torch.tensor([[2.0, 2.0], [5.0, 5.0]])
    target = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    queue = torch.tensor([[7.0, 7.0], [2.0, -2.0], [0.0, 0.0]])
    p = np.exp(np.array([math.sqrt(0.5), math.sqrt(0.5), 0.0]) / temperature)
    q = np.exp(np.array([1.0, 0.0, 0.0]) / temperature)
    p, q, flat = p / p.sum(), q / q.sum(), np.full(3, 1 / 3)
    expected = ((p * np.log(p / q)).sum() + (flat * np.log(flat / q)).sum()) / 2
    found = queue_kl(student, target, queue, temperature=temperature)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert queue_kl(target[:1], target[:1], queue, temperature=0.07).item() == pytest.approx(0)
    half = queue_kl(student.half(), target.half(), queue.half(), temperature=temperature)
    assert half.item() == pytest.approx(expected, rel=1e-5)


def test_queue_kl_refuses_what_does_not_fit() -> None:
    """A queue of another width, an empty one, and a temperature of zero."""
    feature = torch.ones(2, 3)
    for queue in (torch.ones(4, 2), torch.ones(0, 3)):
        with pytest.raises(ValueError, match="queue"):
            queue_kl(feature, feature, queue, temperature=1)
    with pytest.raises(ValueError, match="temperature"):
        queue_kl(feature, feature, torch.ones(4, 3), temperature=0)


def test_nce_by_hand() -> None:
    """Two anchors, three rows in the bank; the second anchor has but one negative, the third none."""
    positive = torch.tensor([0.5, 0.2, 0.9])
    negative = torch.tensor([[0.1, 0.3], [0.7, 0.4], [0.8, 0.8]])
    known = torch.tensor([[True, True], [False, True], [False, False]])
    eps = 1e-7
    expected = 0.0
    for p, negatives in ((0.5, [0.1, 0.3]), (0.2, [0.4]), (0.9, [])):
        noise = len(negatives) / 3
        expected -= math.log(p / (p + noise + eps))
        expected -= sum(math.log(noise / (n + noise + eps)) for n in negatives)
    found = nce(positive.requires_grad_(), negative.requires_grad_(), known, rows=3)
    assert found.item() == pytest.approx(expected / 3, rel=1e-5)
    found.backward()
    assert negative.grad is not None
    assert torch.equal(negative.grad != 0, known)
    with pytest.raises(ValueError, match="nce"):
        nce(positive[:2], negative, known, rows=3)
