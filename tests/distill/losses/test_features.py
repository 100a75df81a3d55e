"""Losses that compare features one image at a time, against loops in numpy and literal values."""

import math
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.losses.features import (
    TINY,
    attention_transfer,
    between_stages,
    feature_mse,
    layernorm_mse,
    many_to_one_mse,
    map_mse,
    resize_map,
    spectral_match,
    unit,
    within_stage,
)

Array = npt.NDArray[np.float64]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pooled(values: Array, height: int, width: int) -> Array:
    """Means over equal areas of a map whose sides are multiples of the asked ones, with loops."""
    down, across = values.shape[0] // height, values.shape[1] // width
    return np.array(
        [
            [
                values[i * down : (i + 1) * down, j * across : (j + 1) * across].mean()
                for j in range(width)
            ]
            for i in range(height)
        ]
    )


def test_feature_mse_is_the_mean_over_batch_and_width() -> None:
    """((1-0)^2 + (2-0)^2 + (3-1)^2 + (4-1)^2) / 4 = 18 / 4."""
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    target = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert feature_mse(student, target).item() == pytest.approx(4.5)


def test_feature_mse_of_half_precision_is_taken_in_float32() -> None:
    """300^2 = 90,000 is beyond float16."""
    student = torch.full((1, 2), 300.0, dtype=torch.float16)
    assert feature_mse(student, torch.zeros(1, 2)).item() == pytest.approx(90_000)


def test_layernorm_mse_ignores_scale_and_shift() -> None:
    """Both sides are normalised, so a scaled and shifted copy costs nothing."""
    feature = torch.tensor([[1.0, 2.0, 4.0]])
    # 1e-5 is torch's epsilon inside the normalisation, which is not scale-free.
    assert layernorm_mse(3 * feature + 7, feature).item() == pytest.approx(0, abs=1e-9)


def test_unit_rows_and_rows_without_a_direction() -> None:
    """Length 1; a zero row, and one too short to tell, become zero and get no gradient."""
    feature = torch.tensor([[3.0, 4.0], [0.0, 0.0], [TINY / 4, 0.0], [6e4, -6e4]])
    feature.requires_grad_()
    found = unit(feature)
    half = math.sqrt(0.5)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0, 0], [0, 0], [half, -half]]))
    (found * torch.tensor([1.0, -2.0])).sum().backward()
    assert feature.grad is not None
    assert torch.equal(feature.grad[1:3], torch.zeros(2, 2))
    # d(x/|x|) applied to (1, -2): ((1, -2) - u <u, (1, -2)>) / |x| with u = (0.6, 0.8) and |x| = 5.
    torch.testing.assert_close(feature.grad[0], torch.tensor([1.6, -1.2]) / 5)
    assert unit(feature.half()).dtype == torch.float32


def test_maps_shrink_by_areas_and_grow_by_lines() -> None:
    """4 x 2 to 2 x 4: means of pairs of rows, then bilinear columns with half-pixel centres."""
    values = torch.tensor([[0.0, 4.0], [2.0, 6.0], [1.0, 1.0], [3.0, 1.0]])
    found = resize_map(values[None, None], (2, 4))[0, 0]
    expected = torch.tensor([[1.0, 2.0, 4.0, 5.0], [2.0, 1.75, 1.25, 1.0]])
    torch.testing.assert_close(found, expected)
    same = random(2, 3, 5, 4)
    assert resize_map(same, (5, 4)) is same


def test_map_mse_by_hand() -> None:
    """Mean over everything; half precision is taken in float32; no gradient into the target."""
    student = torch.full((2, 3, 2, 2), 300.0, dtype=torch.float16, requires_grad=True)
    target = torch.zeros(2, 3, 2, 2, requires_grad=True)
    loss = map_mse(student, target)
    loss.backward()
    assert loss.item() == pytest.approx(90_000)
    assert target.grad is None


def naive_attention(student: Array, target: Array, size: tuple[int, int]) -> float:
    total = 0.0
    for s, t in zip(student, target, strict=True):
        rows = []
        for maps in (s, t):
            energy = pooled((maps**2).mean(0), *size).ravel()
            rows.append(energy / np.sqrt((energy**2).sum()))
        total += float(((rows[0] - rows[1]) ** 2).mean())
    return total / len(student)


@pytest.mark.parametrize(
    ("map_size", "side", "size"),
    [((4, 4), 2, (2, 2)), ((2, 2), 6, (2, 2)), ((3, 3), 3, (3, 3)), ((2, 6), 3, (2, 3))],
)
def test_attention_by_loops(map_size: tuple[int, int], side: int, size: tuple[int, int]) -> None:
    """The larger one is pooled to the smaller, each way; other numbers of channels."""
    student, target = random(3, 5, *map_size, seed=1), random(3, 7, side, side, seed=2)
    if map_size == (2, 6):  # 3 rows over 2 are not equal parts: the teacher's rows shall be alike
        target = target[:, :, :1].expand(-1, -1, 3, -1)
    expected = naive_attention(student.double().numpy(), _equal_parts(target, size), size)
    found = attention_transfer(student, target)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    assert attention_transfer(student.half(), target.half()).item() == pytest.approx(
        expected, rel=1e-2
    )


def _equal_parts(target: Tensor, size: tuple[int, int]) -> Array:
    """A map whose rows are alike, with as many of them as asked; any other as it is."""
    rows = target.shape[2]
    return (target if rows % size[0] == 0 else target[:, :, : size[0]]).double().numpy()


def test_attention_ignores_scale_and_which_channel() -> None:
    """A rotation of the channels and a factor change nothing; a map without energy costs a finite amount."""
    student, target = random(2, 4, 3, 3, seed=1), random(2, 6, 3, 3, seed=2)
    before = attention_transfer(student, target)
    rotation = torch.linalg.qr(random(4, 4, seed=3))[0]
    changed = 5 * torch.einsum("bmhw,mn->bnhw", student, rotation)
    torch.testing.assert_close(attention_transfer(changed, target), before)
    empty = torch.zeros(2, 4, 3, 3, requires_grad=True)
    loss = attention_transfer(empty, target)
    loss.backward()
    assert loss.item() == pytest.approx(1 / 9)  # the squares of a row of length 1, over 9 places
    assert empty.grad is not None
    assert torch.equal(empty.grad, torch.zeros_like(empty))


def test_many_to_one_by_hand() -> None:
    """Each copy counts as one mean squared error: MSE of 1 and 2 against 0, plus that of 3 and 4."""
    expanded = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert many_to_one_mse(expanded, torch.zeros(1, 2)).item() == pytest.approx(2.5 + 12.5)
    feature, target = random(3, 8), random(3, 4, seed=1)
    expected = feature_mse(feature[:, :4], target) + feature_mse(feature[:, 4:], target)
    torch.testing.assert_close(many_to_one_mse(feature, target), expected)
    torch.testing.assert_close(many_to_one_mse(target, target), torch.tensor(0.0))
    half = torch.full((1, 2), 300.0, dtype=torch.float16)
    assert many_to_one_mse(half, torch.zeros(1, 1)).item() == pytest.approx(180_000)


def test_spectral_match_by_hand() -> None:
    """Errors (1 + 9) / 2 and (0 + 0) / 2 with eps 3: 8^(1/3) + 3^(1/3)."""
    student = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    target = torch.tensor([[0.0, 2.0], [0.0, -1.0]])
    found = spectral_match(student, target, beta=1 / 3, eps=3)
    assert found.item() == pytest.approx(2 + 3 ** (1 / 3))
    plain = spectral_match(student, target, beta=1, eps=0)
    torch.testing.assert_close(plain, 2 * feature_mse(student, target))


def test_spectral_match_of_a_perfect_and_of_a_huge_prediction() -> None:
    """Finite gradient where a component is met exactly; half precision is taken in float32."""
    student = random(4, 3).requires_grad_()
    spectral_match(student, student.detach(), beta=1 / 3, eps=1e-6).backward()
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros(4, 3))
    huge = torch.full((1, 1), 300.0, dtype=torch.float16)
    found = spectral_match(huge, torch.zeros(1, 1), beta=0.5, eps=1e-6)
    assert found.item() == pytest.approx(300)


def test_within_stage_by_loops() -> None:
    """Per image, channels sorted by mean absolute value; of five the middle one is left out."""
    maps = random(3, 5, 2, 2)
    total = 0.0
    for image in maps.double().numpy():
        order = sorted(range(5), key=lambda channel: float(abs(image[channel]).mean()))
        pairs = ((order[0], order[3]), (order[1], order[4]))
        total += float(np.mean([((image[a] - image[b]) ** 2).mean() for a, b in pairs]))
    assert within_stage(maps).item() == pytest.approx(total / 3, rel=1e-5)
    assert within_stage(maps[:, [4, 2, 0, 1, 3]]).item() == pytest.approx(total / 3, rel=1e-5)


def test_within_stage_teaches_the_weaker_half_alone() -> None:
    """No gradient into the stronger channels; channels that are all alike, or a single one, cost nothing."""
    maps = torch.tensor([3.0, 0.5, -2.0, 1.0]).reshape(1, 4, 1, 1).requires_grad_()
    loss = within_stage(maps)
    loss.backward()
    # 0.5 is compared to -2, and 1 to 3.
    assert loss.item() == pytest.approx((2.5**2 + 2**2) / 2)
    assert maps.grad is not None
    assert maps.grad.flatten().tolist() == [0, 2.5, 0, -2]
    assert within_stage(torch.ones(2, 4, 3, 3, dtype=torch.float16)).item() == 0
    single = torch.ones(2, 1, 3, 3, requires_grad=True)
    within_stage(single).backward()
    assert single.grad is not None


def test_between_stages_by_loops() -> None:
    """The first channels of both, at the smaller size; gradient into the shallow stage alone."""
    shallow, deep = random(2, 3, 4, 4, seed=1), random(2, 5, 2, 2, seed=2)
    shallow.requires_grad_()
    deep.requires_grad_()
    expected = np.mean(
        [
            (
                pooled(shallow[b, c].detach().double().numpy(), 2, 2)
                - deep[b, c].detach().double().numpy()
            )
            ** 2
            for b in range(2)
            for c in range(3)
        ]
    )
    loss = between_stages(shallow, deep)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert deep.grad is None
    assert shallow.grad is not None
    half = between_stages(shallow.half(), deep.half())
    assert half.dtype == torch.float32


UNLIKE: list[tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = [
    (feature_mse, (2, 3), (1, 3)),
    (layernorm_mse, (2, 3), (1, 3)),
    (map_mse, (2, 3, 4, 4), (2, 3, 2, 2)),
    (attention_transfer, (2, 3, 4, 4), (1, 3, 2, 2)),
    (attention_transfer, (2, 3), (2, 3, 2, 2)),
    (many_to_one_mse, (2, 7), (2, 3)),
    (many_to_one_mse, (2, 6), (1, 3)),
    (between_stages, (2, 3, 4, 4), (1, 3, 2, 2)),
]


@pytest.mark.parametrize(("loss", "student", "target"), UNLIKE)
def test_unlike_shapes_are_refused(
    loss: Callable[..., Tensor], student: tuple[int, ...], target: tuple[int, ...]
) -> None:
    """They would broadcast, or compare other images; the message names the loss and both shapes."""
    shapes = rf"{loss.__name__}\b.*{re.escape(str(student))}.*{re.escape(str(target))}"
    with pytest.raises(ValueError, match=shapes):
        loss(torch.zeros(student), torch.zeros(target))


def test_other_unlike_shapes_are_refused() -> None:
    """Losses of one argument, or with settings."""
    with pytest.raises(ValueError, match="within_stage"):
        within_stage(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="spectral_match"):
        spectral_match(torch.zeros(2, 3), torch.zeros(1, 3), beta=1, eps=0)


def test_no_gradient_flows_into_a_target() -> None:
    """The teacher's side is detached."""
    student, target = random(2, 3).requires_grad_(), random(2, 3, seed=1).requires_grad_()
    for loss in (feature_mse, layernorm_mse, many_to_one_mse):
        loss(student, target).backward()
    spectral_match(student, target, beta=1 / 3, eps=1e-6).backward()
    maps = target[:, :, None, None].expand(-1, -1, 2, 2)
    attention_transfer(
        student[:, :, None, None] * F.pad(torch.ones(1, 1), (0, 1, 0, 1)), maps
    ).backward()
    assert target.grad is None
    assert student.grad is not None
