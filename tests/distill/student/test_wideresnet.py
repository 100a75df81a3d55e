"""WideResNet: sizes from the literature, the parts by hand, and timm's interface."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from distill.config import StudentConfig
from distill.student.model import build_student
from distill.student.wideresnet import Activation, WideBlock, WideResNet
from featstore.errors import ConfigError


def count(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "millions", "width"),
    [("wide_resnet28_2", 10, 1.47, 128), ("wide_resnet28_8", 100, 23.4, 512)],
)
def test_the_number_of_parameters_is_that_of_the_literature(
    name: str, classes: int, millions: float, width: int
) -> None:
    """1.47 M for 28-2 with 10 classes, 23.4 M for 28-8 with 100 [M]; a few thousand of them are biases."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=classes)
    assert count(model) / 1e6 == pytest.approx(millions, abs=0.05)
    biases = sum(
        p.bias.numel() for p in model.modules() if isinstance(p, nn.Conv2d) and p.bias is not None
    )
    assert model.get_classifier().in_features == model.num_features == width
    if classes == 10:
        assert count(model) - biases == 1_467_610


def test_defaults_are_those_of_the_benchmarks() -> None:
    """Leaky ReLU 0.1, statistics with momentum 0.001 and epsilon 0.001, no dropout [C]."""
    model = timm.create_model("wide_resnet28_2")
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 25
    assert {(part.momentum, part.eps) for part in norms} == {(0.001, 0.001)}
    slopes = {part.negative_slope for part in model.modules() if isinstance(part, nn.LeakyReLU)}
    assert slopes == {0.1}
    assert model.head_drop.p == 0
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    quick = timm.create_model("wide_resnet28_2", bn_momentum=0.1)
    assert quick.norm[0].momentum == 0.1


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 6, 2)])
def test_a_block_by_hand(inputs: int, outputs: int, stride: int) -> None:
    """Pre-activation twice; the way round is the input itself, or a 1 x 1 convolution of the activated input."""
    torch.manual_seed(0)
    block = WideBlock(inputs, outputs, stride=stride, momentum=0.1).eval()
    maps = torch.randn(2, inputs, 6, 6)

    def active(values: torch.Tensor) -> torch.Tensor:
        scaled = values / (1 + 1e-3) ** 0.5
        return torch.where(scaled > 0, scaled, scaled * 0.1)

    inner = F.conv2d(active(maps), block.conv1.weight, block.conv1.bias, stride, 1)
    expected = F.conv2d(active(inner), block.conv2.weight, block.conv2.bias, 1, 1)
    if block.shortcut is None:
        expected = expected + maps
    else:
        way = block.shortcut
        expected = expected + F.conv2d(active(maps), way.weight, way.bias, stride)
    before = maps.clone()
    torch.testing.assert_close(block(maps), expected)
    assert torch.equal(maps, before), "an activation in place must not reach the input"


def test_maps_of_the_groups() -> None:
    """Sides 32, 16, 8; the last activation turns the last of them into the map that pooling sees."""
    model = WideResNet(10, 1, num_classes=3).eval()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        final, maps = model.forward_intermediates(pictures)
        assert [tuple(item.shape[1:]) for item in maps] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
        torch.testing.assert_close(final, model.forward_features(pictures))
        torch.testing.assert_close(model.norm(maps[-1].clone()), final)
        last = model.forward_intermediates(pictures, 1, norm=True, intermediates_only=True)
        torch.testing.assert_close(last, [final])
        features = model.forward_head(final, pre_logits=True)
        torch.testing.assert_close(features, final.mean((2, 3)))
        torch.testing.assert_close(model.fc(features), model(pictures))
    assert [info["num_chs"] for info in model.feature_info] == [16, 32, 64]


def test_as_a_student() -> None:
    """Through the same settings as every other model."""
    student = build_student(StudentConfig(name="wide_resnet28_2"), 100)
    assert (student.width, student.num_classes, student.input_size) == (128, 100, (32, 32))
    assert (student.map_size, student.stage_channels) == ((8, 8), (32, 64, 128))
    out = student(torch.randn(2, 3, 32, 32), stages=True)
    assert [item.shape[2] for item in out.stages] == [32, 16, 8]
    out.logits.sum().backward()
    assert all(value.grad is not None for value in student.parameters())
    with pytest.raises(ConfigError):
        build_student(StudentConfig(name="wide_resnet28_2", pretrained=True), 10)


def test_weights_travel_through_timm(tmp_path: Path) -> None:
    """``checkpoint_path`` and ``num_classes=0`` as for timm's own models."""
    model = timm.create_model("wide_resnet28_2", num_classes=4)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    again = timm.create_model(
        "wide_resnet28_2", num_classes=4, checkpoint_path=str(tmp_path / "w.safetensors")
    )
    assert torch.equal(again.fc.weight, model.fc.weight)  # type: ignore[arg-type]
    trunk = timm.create_model("wide_resnet28_2", num_classes=0, in_chans=1).eval()
    assert trunk(torch.randn(1, 1, 32, 32)).shape == (1, 128)
    assert isinstance(trunk.norm, Activation)
    with pytest.raises(ValueError, match="6 n"):
        WideResNet(27)
