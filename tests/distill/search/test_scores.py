"""Scores of untrained students, against values computed by hand."""

import math
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.config import StudentConfig
from distill.losses.relations import sp
from distill.search.config import ScoreName
from distill.search.probe import Probe, Trial, classifier_gradient, initialise, products
from distill.search.scores import SCORES
from distill.student.model import build_student
from featstore.errors import ConfigError


def trial(
    student: Tensor | None = None,
    teacher: Tensor | None = None,
    *,
    gradients: tuple[Tensor, Tensor | None] | None = None,
) -> Any:
    """Features or gradients of a student and a teacher, without either."""
    own, others = gradients or (torch.eye(2), torch.eye(2))
    zero = torch.zeros(2, 1)
    student, teacher = (zero if item is None else item for item in (student, teacher))
    probe = Probe(["a", "b"], torch.tensor([0, 1]), products(teacher), others)
    return SimpleNamespace(relations=products(student), gradient=own, probe=probe)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_relation_by_hand() -> None:
    """Two images that differ for the student and are one for the teacher: two rows of 2 - sqrt(2), over 4."""
    found = SCORES["relation"](trial(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])))
    assert found == pytest.approx(-2 * (2 - math.sqrt(2)) / 4)


def test_relation_is_the_loss_sp() -> None:
    """The score of untrained students is minus the loss SP, whatever the widths; a common factor changes nothing."""
    student, teacher = random(8, 5), random(8, 3, seed=1)
    found = SCORES["relation"](trial(student, teacher))
    assert found == pytest.approx(-float(sp(student, teacher)), rel=1e-5)
    assert found == pytest.approx(SCORES["relation"](trial(1e20 * student, teacher)), rel=1e-4)
    assert SCORES["relation"](trial(teacher, teacher)) == 0


@pytest.mark.parametrize("size", [4, 16, 64])
def test_relation_is_small(size: int) -> None:
    """After a ReLU it lies between -2 / B and 0; the semantic score has the size of a few units."""
    student, teacher = random(size, 9).relu(), random(size, 7, seed=1).relu()
    assert -2 / size <= SCORES["relation"](trial(student, teacher)) <= 0


def test_relation_knows_no_order() -> None:
    """Another order of the images, or a rotation of the channels, changes nothing."""
    student, teacher, order = random(8, 5), random(8, 3, seed=1), torch.randperm(8)
    rotation = torch.linalg.qr(random(5, 5, seed=2))[0]
    found = SCORES["relation"](trial(student, teacher))
    assert found == pytest.approx(
        SCORES["relation"](trial(student[order], teacher[order])), rel=1e-4
    )
    assert found == pytest.approx(SCORES["relation"](trial(student @ rotation, teacher)), rel=1e-3)


def test_semantic_by_hand() -> None:
    """One class, g_S = (1, 0), g_T = (3, 4): rows (1, 0), (0, 0) and twice (.6, .8), 1.8 over two channels."""
    gradients = (torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
    assert SCORES["semantic"](trial(gradients=gradients)) == pytest.approx(-0.9)


def test_semantic_is_the_paper_s_sum_over_matrices() -> None:
    """The closed form equals the C x C matrices of every class, built and normalised row by row."""
    student, teacher = random(3, 6), random(3, 6, seed=1)

    def matrix(row: Tensor) -> Tensor:
        return F.normalize(torch.outer(row, row), dim=1)

    total = sum(
        (matrix(t) - matrix(s)).square().sum() for s, t in zip(student, teacher, strict=True)
    )
    found = SCORES["semantic"](trial(gradients=(student, teacher)))
    assert found == pytest.approx(-float(total) / (3 * 6), rel=1e-5)
    assert SCORES["semantic"](trial(gradients=(teacher, teacher))) == pytest.approx(0, abs=1e-6)


def test_semantic_without_widths_by_hand() -> None:
    """Two classes, apart for the student and one for the teacher: as the relation of two images, over K^2."""
    gradients = (2 * torch.eye(2), torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    found = SCORES["semantic_ours"](trial(gradients=gradients))
    assert found == pytest.approx(-2 * (2 - math.sqrt(2)) / 4)


def test_every_score_has_a_name() -> None:
    """The names that the settings allow are those of the scores."""
    assert get_args(ScoreName) == tuple(SCORES)


def test_sums() -> None:
    """The paper adds both terms as they are."""
    made = trial(random(2, 3), random(2, 3, seed=1), gradients=(random(2, 3), random(2, 3, seed=1)))
    for name, part in (("diswot", "semantic"), ("diswot_ours", "semantic_ours")):
        assert SCORES[name](made) == SCORES["relation"](made) + SCORES[part](made)


def test_what_a_score_needs() -> None:
    """The paper's semantic score names both widths; without labels there is none."""
    with pytest.raises(ConfigError, match=r"3 channels.* 4\b"):
        SCORES["semantic"](trial(gradients=(random(2, 3), random(2, 4))))
    with pytest.raises(ConfigError, match="label"):
        SCORES["semantic_ours"](trial(gradients=(random(2, 3), None)))


def test_gradient_of_the_classifier() -> None:
    """The closed form of the teacher's side is what autograd gives of the student's."""
    student = build_student(StudentConfig(name="test_convnext", image_size=32), 4)
    initialise(student.library_model, "kaiming")
    labels, images = torch.tensor([0, 1, 3, 3]), random(4, 3, 32, 32)
    made = Trial(student, images, Probe([], labels, torch.eye(4), None), 0)
    expected = classifier_gradient(made.output.logits, made.output.features, labels)
    torch.testing.assert_close(made.gradient, expected.detach(), rtol=1e-4, atol=1e-6)
    assert made.relations.shape == (4, 4)


def test_initial_weights() -> None:
    """Gaussian weights have deviation 1, Kaiming's that of their fan; norms begin as the identity."""
    norm = nn.BatchNorm2d(32)
    model = nn.Sequential(nn.Conv2d(16, 32, 5), norm, nn.Linear(200, 100))
    gains = {"gaussian": (1.0, 1.0), "kaiming": ((2 / (32 * 25)) ** 0.5, (2 / 100) ** 0.5)}
    for weights, (convolution, linear) in gains.items():
        nn.init.constant_(norm.weight, 3)
        initialise(model, weights)  # type: ignore[arg-type]
        assert float(model[0].weight.detach().std()) == pytest.approx(convolution, rel=0.03)
        assert float(model[2].weight.detach().std()) == pytest.approx(linear, rel=0.03)
        assert norm.weight.unique().tolist() == [1]
        assert model[0].bias.unique().tolist() == [0]
