"""Losses on logits against values worked out in plain Python, at their edges, and in half precision."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.losses import IGNORE
from distill.losses.logits import dist, dkd, kd_kl, logit_mse, ofa, target_classes

Loss = Callable[[Tensor, Tensor], Tensor]


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    """Exact enough: Python's floats are doubles."""
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


STUDENT = [[1.0, -0.5, 2.0, 0.3], [0.0, 1.5, -1.0, 0.7], [2.0, 2.5, 0.1, -3.0]]
TEACHER = [[3.0, 0.5, -1.0, 0.2], [-2.0, 1.0, 1.5, 0.0], [0.4, 4.0, 1.0, -1.0]]
CLASSES = [0, 2, 1]


def per_class(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def every_loss(classes_B: Tensor) -> dict[str, Loss]:
    """All losses of this file, for properties that they share."""
    return {
        "kd_kl": lambda s, t: kd_kl(s, t, temperature=4.0),
        "logit_mse": logit_mse,
        "dkd": lambda s, t: dkd(s, t, classes_B, alpha=1.0, beta=8.0, temperature=4.0),
        "dist": lambda s, t: dist(s, t, beta=1.0, gamma=1.0, temperature=4.0),
        "ofa": lambda s, t: ofa(s, t, classes_B, eps=1.5),
    }


NAMES = tuple(every_loss(torch.zeros(1)))


def test_kd_kl_by_hand() -> None:
    """T = 2: teacher logits (2 ln 3, 0) give (3/4, 1/4), student (0, 0) gives (1/2, 1/2)."""
    teacher = torch.tensor([[2 * math.log(3), 0.0]])
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert kd_kl(torch.zeros(1, 2), teacher, temperature=2).item() == pytest.approx(
        expected, rel=1e-6
    )


def test_kd_kl_is_the_mean_over_the_batch() -> None:
    """Against a loop over the rows."""
    rows = [kl(softmax(t, 4), softmax(s, 4)) for s, t in zip(STUDENT, TEACHER, strict=True)]
    found = kd_kl(per_class(STUDENT), per_class(TEACHER), temperature=4.0)
    assert found.item() == pytest.approx(16 * sum(rows) / 3, rel=1e-5)


def test_logit_mse_by_hand() -> None:
    """((1-0)^2 + (2-0)^2 + (3-1)^2 + (4-1)^2) / 4 = 18 / 4."""
    student, teacher = (
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
    )
    assert logit_mse(student, teacher).item() == pytest.approx(4.5)


def dkd_row(s: list[float], t: list[float], own: int, alpha: float, beta: float, T: float) -> float:
    """As the paper writes it: a KL of two probabilities, and one over the classes that are left."""
    p, q = softmax(t, T), softmax(s, T)
    tckd = kl([p[own], 1 - p[own]], [q[own], 1 - q[own]])
    rest = [c for c in range(len(s)) if c != own]
    nckd = kl(softmax([t[c] for c in rest], T), softmax([s[c] for c in rest], T))
    return T**2 * (alpha * tckd + beta * nckd)


@pytest.mark.parametrize(
    ("alpha", "beta", "temperature"), [(1, 0, 1), (0, 1, 1), (1, 8, 4), (2, 0.5, 3)]
)
def test_dkd_by_hand(alpha: float, beta: float, temperature: float) -> None:
    """Each term alone, both, and other weights and temperatures."""
    rows = [
        dkd_row(s, t, own, alpha, beta, temperature)
        for s, t, own in zip(STUDENT, TEACHER, CLASSES, strict=True)
    ]
    found = dkd(
        per_class(STUDENT), per_class(TEACHER), torch.tensor(CLASSES),
        alpha=alpha, beta=beta, temperature=temperature,
    )  # fmt: skip
    assert found.item() == pytest.approx(sum(rows) / 3, rel=1e-5)


def test_dkd_adds_up_to_kd() -> None:
    """KL = TCKD + (1 - p_own) NCKD (equation 7 of the paper), for each row."""
    for s, t, own in zip(STUDENT, TEACHER, CLASSES, strict=True):
        p_rest = 1 - softmax(t, 4)[own]
        found = dkd(
            per_class([s]), per_class([t]), torch.tensor([own]), alpha=1, beta=p_rest, temperature=4
        )
        whole = kd_kl(per_class([s]), per_class([t]), temperature=4)
        assert found.item() == pytest.approx(whole.item(), rel=1e-5)


def test_dkd_of_two_classes_has_no_other_classes() -> None:
    """K = 2: NCKD compares one class to itself; TCKD is the whole of KD."""
    student, teacher = per_class([[1.0, -1.0]]), per_class([[0.5, 2.0]])
    found = dkd(student, teacher, torch.tensor([1]), alpha=1, beta=100, temperature=2)
    assert found.item() == pytest.approx(kd_kl(student, teacher, temperature=2).item(), rel=1e-6)


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """numpy's, in double precision."""
    return float(np.corrcoef(np.asarray(x, np.float64), np.asarray(y, np.float64))[0, 1])


@pytest.mark.parametrize(
    ("beta", "gamma", "temperature"), [(1, 0, 1), (0, 1, 1), (1, 1, 4), (2, 0.5, 2)]
)
def test_dist_by_hand(beta: float, gamma: float, temperature: float) -> None:
    """Mean correlation of the rows, and of the columns, of the two softmaxes."""
    q = np.array([softmax(row, temperature) for row in STUDENT])
    p = np.array([softmax(row, temperature) for row in TEACHER])
    rows = np.mean([pearson(q[i], p[i]) for i in range(3)])
    columns = np.mean([pearson(q[:, c].tolist(), p[:, c].tolist()) for c in range(4)])
    expected = temperature**2 * (beta * (1 - rows) + gamma * (1 - columns))
    found = dist(
        per_class(STUDENT), per_class(TEACHER), beta=beta, gamma=gamma, temperature=temperature
    )
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


def test_dist_of_constant_rows_and_of_one_row() -> None:
    """No correlation is defined there: it counts as 0, and the gradient is zero, not huge and not NaN."""
    student = torch.zeros(1, 3, requires_grad=True)
    loss = dist(student, per_class([[1.0, 2.0, 3.0]]), beta=1, gamma=1, temperature=1)
    loss.backward()
    assert loss.item() == pytest.approx(2.0)
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros(1, 3))
    # One row that varies: the row term works, the columns have one entry each.
    row = per_class([[1.0, 2.0, 4.0]])
    assert dist(row, row, beta=1, gamma=1, temperature=1).item() == pytest.approx(1.0, abs=1e-6)


def ofa_row(s: list[float], t: list[float], own: int, eps: float, T: float) -> float:
    p, q = softmax(t, T), softmax(s, T)
    is_own = [float(c == own) for c in range(len(s))]
    return -sum(
        ((a + one) ** eps - one) * math.log(b) for a, b, one in zip(p, q, is_own, strict=True)
    )


@pytest.mark.parametrize(("eps", "temperature"), [(1.0, 1.0), (1.5, 1.0), (1.2, 2.0)])
def test_ofa_by_hand(eps: float, temperature: float) -> None:
    """Against a loop over rows and classes."""
    rows = [
        ofa_row(s, t, own, eps, temperature)
        for s, t, own in zip(STUDENT, TEACHER, CLASSES, strict=True)
    ]
    found = ofa(
        per_class(STUDENT),
        per_class(TEACHER),
        torch.tensor(CLASSES),
        eps=eps,
        temperature=temperature,
    )
    assert found.item() == pytest.approx(sum(rows) / 3, rel=1e-5)


def test_ofa_with_eps_1_is_the_cross_entropy_to_the_teacher() -> None:
    """Whatever the class."""
    rows = [
        -sum(p * math.log(q) for p, q in zip(softmax(t, 1), softmax(s, 1), strict=True))
        for s, t in zip(STUDENT, TEACHER, strict=True)
    ]
    for classes in (CLASSES, [3, 3, 3]):
        found = ofa(per_class(STUDENT), per_class(TEACHER), torch.tensor(classes), eps=1.0)
        assert found.item() == pytest.approx(sum(rows) / 3, rel=1e-5)


def test_target_classes_prefer_labels() -> None:
    """The teacher is asked only where there is no label."""
    found = target_classes(torch.tensor([3, IGNORE, IGNORE]), per_class(TEACHER))
    assert found.tolist() == [3, 2, 1]


@pytest.mark.parametrize("name", ["dkd", "ofa"])
def test_rows_without_a_class_are_left_out(name: str) -> None:
    """Neither value nor gradient; and a batch of none of them is zero with a gradient."""
    student = per_class(STUDENT).requires_grad_()
    some = every_loss(torch.tensor([0, IGNORE, 1]))[name]
    kept = every_loss(torch.tensor([0, 1]))[name]
    loss = some(student, per_class(TEACHER))
    loss.backward()
    expected = kept(per_class([STUDENT[0], STUDENT[2]]), per_class([TEACHER[0], TEACHER[2]]))
    torch.testing.assert_close(loss, expected)
    assert student.grad is not None
    assert student.grad[1].abs().sum() == 0
    none = every_loss(torch.full((3,), IGNORE))[name](student, per_class(TEACHER))
    none.backward()
    assert none.item() == 0


@pytest.mark.parametrize("name", NAMES)
def test_equal_logits_cost_nothing(name: str) -> None:
    """All but ofa, which is a cross entropy: there equal logits are the minimum, without a gradient, for eps 1."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    classes = torch.tensor([0, 1, 2, 3, 4, 0])
    if name == "ofa":
        loss = ofa(logits, logits, classes, eps=1.0)
    else:
        loss = every_loss(classes)[name](logits, logits)
        assert loss.item() == pytest.approx(0, abs=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


EDGES = {
    "one row": ([[1.0, 2.0, 3.0]], [[3.0, 2.0, 1.0]], [0]),
    "two classes": ([[1.0, 2.0], [0.0, 0.0]], [[3.0, 1.0], [1.0, 2.0]], [0, 1]),
    "teacher is certain": ([[1.0, 2.0, 3.0]] * 2, [[1e4, 0.0, 0.0], [0.0, 1e4, 0.0]], [0, 0]),
    "student is certain": ([[1e4, 0.0, 0.0], [0.0, -1e4, 1e4]], [[1.0, 2.0, 3.0]] * 2, [1, 2]),
    "both are certain": ([[1e4, -1e4, 0.0]] * 2, [[-1e4, 1e4, 0.0]] * 2, [0, 1]),
    "constant": ([[5.0, 5.0, 5.0]] * 2, [[2.0, 2.0, 2.0]] * 2, [0, 2]),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_edges_give_finite_values_and_gradients(name: str, edge: str, dtype: torch.dtype) -> None:
    """Also in half precision, where a probability below 6e-8 is zero and its logarithm infinite."""
    student_rows, teacher_rows, classes = EDGES[edge]
    student = torch.tensor(student_rows, dtype=dtype, requires_grad=True)
    loss = every_loss(torch.tensor(classes))[name](student, torch.tensor(teacher_rows, dtype=dtype))
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_dkd_of_certain_rows_by_hand() -> None:
    """Student (1e4, 0, 0), teacher (0, 0, 0), class 1, T = 1: (1/3, 2/3) against (e^-1e4, 1), rest (1e4, 0)."""
    student, teacher = torch.tensor([[1e4, 0.0, 0.0]]), torch.zeros(1, 3)
    found = dkd(student, teacher, torch.tensor([1]), alpha=1, beta=0, temperature=1)
    expected = math.log(1 / 3) / 3 + 2 / 3 * math.log(2 / 3) + 1e4 / 3
    assert found.item() == pytest.approx(expected, rel=1e-6)
    found = dkd(student, teacher, torch.tensor([1]), alpha=0, beta=1, temperature=1)
    assert found.item() == pytest.approx(-math.log(2) + 1e4 / 2, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    """Equal to the float32 value of the rounded inputs, bit for bit."""
    student, teacher = per_class(STUDENT).to(dtype), per_class(TEACHER).to(dtype)
    loss = every_loss(torch.tensor(CLASSES))[name]
    assert torch.equal(loss(student, teacher), loss(student.float(), teacher.float()))


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_flows_into_the_target(name: str) -> None:
    """The teacher's side is detached."""
    student, teacher = per_class(STUDENT).requires_grad_(), per_class(TEACHER).requires_grad_()
    every_loss(torch.tensor(CLASSES))[name](student, teacher).backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("name", ["kd_kl", "logit_mse", "dkd", "ofa"])
def test_losses_per_image_are_means_of_their_rows(name: str) -> None:
    """Two halves averaged are the whole: what makes two processes equal one. dist looks at columns and is not."""
    whole = every_loss(torch.tensor([0, 2, 1, 3]))[name]
    halves = every_loss(torch.tensor([0, 2]))[name], every_loss(torch.tensor([1, 3]))[name]
    student, teacher = per_class([*STUDENT, STUDENT[0]]), per_class([*TEACHER, TEACHER[1]])
    mean = (halves[0](student[:2], teacher[:2]) + halves[1](student[2:], teacher[2:])) / 2
    torch.testing.assert_close(mean, whole(student, teacher))


@pytest.mark.parametrize("name", NAMES)
def test_unlike_shapes_are_refused(name: str) -> None:
    """(2, 3) against (1, 3) would broadcast."""
    with pytest.raises(ValueError, match=rf"{name}.*\b2\b.*\b3\b.*\b1\b.*\b3\b"):
        every_loss(torch.zeros(2, dtype=torch.int64))[name](torch.zeros(2, 3), torch.zeros(1, 3))


def test_other_wrong_arguments_are_refused() -> None:
    """Temperatures, exponents, numbers of classes, and classes of another batch."""
    two, classes = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"kd_kl.*\b0\b"):
        kd_kl(two, two, temperature=0)
    with pytest.raises(ValueError, match="-1"):
        dist(two, two, beta=1, gamma=1, temperature=-1)
    with pytest.raises(ValueError, match=r"\b0\b"):
        ofa(two, two, classes, eps=0)
    with pytest.raises(ValueError, match=r"dkd\b.*\(2, 1\)"):
        dkd(two[:, :1], two[:, :1], classes, alpha=1, beta=1, temperature=1)
    for name in ("dkd", "ofa"):
        with pytest.raises(ValueError, match=rf"{name}.*\b2\b.*\b3\b.*\b3\b"):
            every_loss(torch.zeros(3, dtype=torch.int64))[name](two, two)
    with pytest.raises(ValueError, match="target_classes"):
        target_classes(classes[:1], two)
