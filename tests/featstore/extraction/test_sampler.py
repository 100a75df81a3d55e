"""Diffusion models as teachers: Heun's method against closed forms, conditions, the same noise in both phases."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load
from torch import Tensor, nn

import featstore
from featstore.errors import ConfigError, TeacherError
from featstore.extraction.teachers.sampler import Sampler, heun, noise_levels
from featstore.files.user_code import find_function
from featstore.format.pseudo_samples import (
    CONDITION_MEAN,
    CONDITION_STD,
    PseudoSamples,
    split_condition,
)
from tests import noise


def normalised(record: PseudoSamples, sample_ids: list[str]) -> Tensor:
    """(B, 3, H, W) as a teacher or a student is given them."""
    height, width = record.size
    drawn = [record.draw(name)[-height * width * 3 :] for name in sample_ids]
    pixels = np.stack([np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in drawn])
    images = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 255
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (CONDITION_MEAN, CONDITION_STD)
    )
    return (images - mean) / std


def test_noise_levels_by_hand() -> None:
    """rho = 2: roots 3, 2, 1 of 9, 4, 1, and 0; one step goes from the highest to 0."""
    assert noise_levels(3, 1.0, 9.0, rho=2.0) == pytest.approx([9.0, 4.0, 1.0, 0.0])
    assert noise_levels(1, 1.0, 9.0) == pytest.approx([9.0, 0.0])
    edm = noise_levels(18, 0.002, 80.0)
    assert edm[0] == pytest.approx(80)
    assert edm[-2:] == pytest.approx([0.002, 0])


def test_one_heun_step_by_hand() -> None:
    """D(x, s) = x / (1 + s^2): slopes at 2 and 1 for x = 10; their mean; the step to 0 is Euler's."""
    x = torch.tensor([10.0])
    found = heun(lambda x, s: x / (1 + s * s), x, [2.0, 1.0])
    first = (10 - 10 / 5) / 2  # 4
    there = 10 - first  # 6
    second = there - there / 2  # 3
    assert float(found) == pytest.approx(10 - (first + second) / 2)
    assert float(heun(lambda x, s: x / (1 + s * s), x, [2.0, 0.0])) == pytest.approx(10 - 2 * 4)


def test_heun_against_the_closed_form() -> None:
    """Pictures from N(0, 1): x(s) = x0 sqrt(1 + s^2) / sqrt(1 + s0^2); the error falls with the square of the steps."""
    start = torch.tensor([8.0], dtype=torch.float64)
    exact = 8 * math.sqrt(1 + 0.01**2) / math.sqrt(1 + 10**2)
    error = {}
    for steps in (40, 80):
        levels = noise_levels(steps, 0.01, 10.0)[:-1]
        error[steps] = abs(float(heun(lambda x, s: x / (1 + s * s), start, levels)) - exact)
    assert error[80] < 1e-3
    assert 3 < error[40] / error[80] < 5


class Zero(nn.Module):
    """A network that adds nothing."""

    def forward(self, x: Tensor, level: Tensor, classes: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_preconditioning_by_hand() -> None:
    """With a network of zeros D(x, s) = x d^2 / (s^2 + d^2); d = 0.5, s = 1: a fifth."""
    model = Sampler(Zero(), size=8, classes=3)
    found = model.denoise(torch.full((1, 1, 2, 2), 5.0), torch.ones(1), torch.zeros(1))
    torch.testing.assert_close(found, torch.ones(1, 1, 2, 2))


def test_noise_with_classes_is_standard_normal_and_knows_its_class() -> None:
    """Moments of 300 pictures; every class of 300, beyond one byte, is read back; ids differ in noise."""
    record = PseudoSamples.noise(4, [f"c{number:03d}" for number in range(300)])
    ids = [record.id_of(name, 7) for name in record.classes]
    found, classes = split_condition(normalised(record, ids))
    assert classes.tolist() == list(range(300))
    assert abs(float(found.mean())) < 0.05
    assert float(found.std()) == pytest.approx(1, abs=0.03)
    assert len({tuple(row) for row in found.flatten(1).tolist()}) == 300
    assert "300 classes" in record.meaning
    again = PseudoSamples.from_tensors(load(record.to_bytes()))
    assert again.draw(ids[299]) == record.draw(ids[299])


def test_too_many_classes() -> None:
    """Green and blue hold 65,536 numbers."""
    with pytest.raises(ConfigError, match="65537"):
        PseudoSamples.noise(1, [str(number) for number in range(65537)])


def test_pictures_and_unknown_classes_are_refused() -> None:
    """A photograph, or a class that the network does not have."""
    model = Sampler(Zero(), size=8, classes=2)
    record = noise.record()
    assert model(normalised(record, ["noise/dog/00000000"]))["sample"].shape == (1, 64)
    with pytest.raises(TeacherError, match="2 classes"):
        model(normalised(record, ["noise/fox/00000000"]))
    with pytest.raises(TeacherError, match="classes"):
        model(torch.rand(1, 3, 8, 8))


def test_stored_pictures_are_those_of_the_sampler(tmp_path: Path) -> None:
    """The store holds what the teacher gives for the noise that its record draws for each id, in float16."""
    path = noise.extract(tmp_path)
    store = featstore.open(path)
    torch.manual_seed(0)
    make = find_function(f"{noise.TEACHER}:sampler", setting="--teacher.name")
    model = make(**noise.MODEL).eval()
    ids = [store.sample_ids[row] for row in (0, 9, 23)]
    assert ids == ["noise/cat/00000000", "noise/dog/00000001", "noise/fox/00000007"]
    with torch.inference_mode():
        expected = model(normalised(noise.record(), ids))["sample"]
    found = torch.from_numpy(store.gather("sample", [0, 9, 23])[:, 0].astype(np.float32))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert store.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
