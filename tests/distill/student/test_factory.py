"""Students from any module: what is found in it, and a whole life of one from training to a file of its own keys."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import distill
from distill.commands.config import EvaluateConfig
from distill.commands.evaluate import run as evaluate
from distill.commands.train import run
from distill.config import DataConfig, StudentConfig
from distill.student.model import Student, build_student
from distill.student.tapped import TappedModel
from featstore.errors import ConfigError
from tests.distill.conftest import MakeConfig
from tests.distill.resume import check_resume

HERE = "tests.distill.student.test_factory"
MOBILENET = "torchvision.models:mobilenet_v3_small"


class Two(nn.Module):
    """A backbone without a Linear that returns a dictionary."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 4, 1)
        self.norm = nn.BatchNorm2d(width)
        self.spare = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        seen = torch.relu(self.norm(self.stem(images)))
        return {"maps": seen, "pooled": seen.mean((2, 3))}


class Plain(nn.Module):
    """A small classifier with dropout in front of its last Linear."""

    def __init__(self, num_classes: int = 7) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(8, 10)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(10, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.hidden(self.pool(self.features(images)).flatten(1)))
        return self.last(self.drop(hidden))  # type: ignore[no-any-return]


class Still(nn.Module):
    """A backbone without batch norm, whose statistics are per process, and with a classifier that ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, 4, 2)
        self.last = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.relu(self.stem(images)).mean((2, 3)))  # type: ignore[no-any-return]


def small(name: str, **settings: Any) -> StudentConfig:
    return StudentConfig(factory=f"{HERE}:{name}", image_size=32, **settings)


def model_of(student: Student) -> TappedModel:
    assert isinstance(student.model, TappedModel)
    return student.model


@pytest.mark.parametrize(
    ("name", "feature", "last_map", "width"),
    [
        ("mobilenet_v3_small", "input of classifier.3", "output of features", 1024),
        ("resnet18", "input of fc", "output of layer4", 512),
        ("shufflenet_v2_x0_5", "input of fc", "output of conv5", 1024),
        ("squeezenet1_1", "output of the module", "output of classifier.2", 1000),
        ("convnext_tiny", "input of classifier.2", "output of features", 768),
    ],
)
def test_what_is_found_in_torchvision(name: str, feature: str, last_map: str, width: int) -> None:
    """Feature and map of the common shapes of classifiers, without a word from the user."""
    config = StudentConfig(factory=f"torchvision.models:{name}", image_size=64)
    student = build_student(config, 0)
    taps = model_of(student).taps
    assert (str(taps.feature), str(taps.map), student.width) == (feature, last_map, width)
    keys = getattr(torchvision.models, name)().state_dict().keys()
    assert student.library_model.state_dict().keys() == keys
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in student.modules())
    assert all(part.training for part in student.modules())


@pytest.mark.parametrize(
    ("features", "heads", "width"), [("", True, 10), ("drop", True, 10), ("pool", False, 8)]
)
def test_a_classifier_gets_its_head(features: str, heads: bool, width: int) -> None:
    """In place of the module's last Linear where that takes the feature, else beside the module."""
    student = build_student(small("Plain", features=features), 5).eval()
    model = model_of(student)
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        out = student(pictures)
        torch.testing.assert_close(out.logits, model(pictures))
        if heads:
            torch.testing.assert_close(out.logits, model.module(pictures))
    assert (student.width, student.num_classes, student.drop_rate) == (width, 5, 0.5 * heads)
    assert (student.map_channels, student.map_size) == (8, (8, 8))
    fresh = Plain(5 if heads else 7)
    assert {key: value.shape for key, value in model.module.state_dict().items()} == {
        key: value.shape for key, value in fresh.state_dict().items()
    }
    unused = [] if heads else ["hidden.weight", "hidden.bias", "last.weight", "last.bias"]
    assert model.unused == unused
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert student.num_parameters == trained


def test_dropout_acts_on_the_logits_only() -> None:
    """As in timm's models."""
    student = build_student(small("Plain"), 5)
    one, other = (student(torch.ones(2, 3, 32, 32)) for _ in range(2))
    torch.testing.assert_close(one.features, other.features)
    assert not torch.allclose(one.logits, other.logits)


def test_outputs_by_name() -> None:
    """Keys of a dictionary; a copy reads its own."""
    student = build_student(small("Two", features="maps", map="maps", model_args={"width": 6}), 0)
    twin = copy.deepcopy(student)
    with torch.no_grad():
        for value in student.parameters():
            value.zero_()
    out = twin.eval()(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(out.map.mean((2, 3)), out.features)
    assert out.features.abs().sum() > 0
    assert (out.map.shape, twin.stage_channels) == ((2, 6, 8, 8), ())
    assert model_of(student).unused == ["spare.weight", "spare.bias"]


def test_maps_of_timm_alone() -> None:
    """``features_only`` gives a list: the last map, and its mean; another by its number."""
    args = {"features_only": True}
    config = StudentConfig(name="test_efficientnet", image_size=64, model_args=args)
    student = build_student(config, 0).eval()
    pictures = torch.randn(2, 3, 64, 64)
    maps = student.library_model(pictures)
    out = student(pictures)
    torch.testing.assert_close(out.map, maps[-1])
    torch.testing.assert_close(out.features, maps[-1].mean((2, 3)))
    earlier = build_student(dataclasses.replace(config, map="3"), 0)
    assert earlier.map_size == tuple(maps[3].shape[2:])


def test_a_map_of_timm_by_path() -> None:
    """Of a model that would also split by itself."""
    student = build_student(StudentConfig(name="test_convnext", image_size=64, map="stages.2"), 0)
    assert (student.map_size, student.width) == ((4, 4), 64)


def no_module() -> int:
    return 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factory": "Two"}, ["Two", "package.module:function"]),
        ({"factory": "nowhere.at_all:build"}, ["nowhere.at_all"]),
        ({"factory": "nofile.py:build"}, ["nofile.py"]),
        ({"factory": f"{HERE}:missing"}, ["missing"]),
        ({"factory": f"{HERE}:HERE"}, ["HERE", "str"]),
        ({"factory": "os:system", "model_args": {"command": "exit"}}, ["os:system"]),
        ({"factory": f"{HERE}:no_module"}, ["no_module", "int"]),
        ({"factory": f"{HERE}:Two", "model_args": {"depth": 3}}, ["depth"]),
        (
            {"factory": f"{HERE}:Two"},
            ["--student.features", "maps: (B, 12, 8, 8)", "pooled: (B, 12)"],
        ),
        ({"factory": f"{HERE}:Plain", "features": "poool"}, ["poool", "pool", "(B, 8, 1, 1)"]),
        ({"factory": f"{HERE}:Two", "features": "spare"}, ["spare", "did not run"]),
        (
            {"factory": "torchvision.models:vit_b_32", "image_size": 64},
            ["64", "--student.image_size"],
        ),
    ],
)
def test_what_does_not_fit_is_named(changes: Any, words: list[str]) -> None:
    """Name of the function, shapes that were found, what was expected."""
    with pytest.raises(ConfigError) as caught:
        build_student(StudentConfig(**{"image_size": 32, **changes}), 0)
    assert all(word in str(caught.value) for word in words)


def test_settings_exclude_each_other() -> None:
    """Those of timm's models and those of a factory."""
    for settings in (
        {"factory": MOBILENET, "pretrained": True},
        {"factory": MOBILENET, "feature": "pooled"},
        {"features": "avgpool", "feature": "pooled"},
        {"mean": [0.5]},
        {"std": [1.0, 1.0, 0.0]},
    ):
        with pytest.raises(ConfigError, match=r"--student\."):
            StudentConfig(**settings)  # type: ignore[arg-type]


def test_a_function_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the file's path, and as a module beside the working directory."""
    (tmp_path / "my_student_of_a_file.py").write_text(
        "from torchvision.models import mobilenet_v3_small\n\n\ndef build(**args):\n"
        "    return mobilenet_v3_small(**args)\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "my_student_of_a_file.py"), "my_student_of_a_file"):
        config = StudentConfig(
            factory=f"{name}:build", image_size=32, mean=[0.5] * 3, std=[0.2] * 3
        )
        student = build_student(config, 0)
        assert (student.name, student.mean, student.std) == ("build", (0.5,) * 3, (0.2,) * 3)


def test_starting_weights(tmp_path: Path) -> None:
    """A file with a prefix and another classifier, as it is found in the wild."""
    plain = Plain(9)
    save_file(
        {f"module.{key}": value for key, value in plain.state_dict().items()},
        tmp_path / "w.safetensors",
    )
    student = build_student(small("Plain", weights=str(tmp_path / "w.safetensors")), 5)
    module: Any = student.library_model
    assert torch.equal(module.hidden.weight, plain.hidden.weight)
    assert module.last.out_features == 5
    assert any("module." in note for note in student.notes)
    assert any("starts fresh" in note and "last.weight" in note for note in student.notes)


@pytest.fixture
def make_factory(make_config: MakeConfig) -> Any:
    """A run of task none with a student from a factory."""

    def make(name: str = "Plain", **changes: Any) -> Any:
        given = {
            "student": small(name),
            "data": DataConfig(),
            "task": "none",
            "methods": ["fitnet"],
        }
        return make_config(**{**given, **changes})

    return make


def folder(config: Any) -> Path:
    return Path(config.out) / config.methods[0] / "seed0"


def test_a_backbone_from_a_module(
    make_factory: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file loads into what the function returns; the loaded student gives the feature; it is measured again."""
    monkeypatch.setattr("distill.commands.train.LARGE", 1.4e6)
    config = make_factory(student=StudentConfig(factory=MOBILENET, image_size=32))
    run(config)
    assert "mobilenet_v3_small: 2 million parameters" in capsys.readouterr().out
    where = folder(config)
    module = torchvision.models.mobilenet_v3_small()
    module.load_state_dict(load_file(where / "student.safetensors"))
    module.classifier[3] = nn.Identity()
    pictures = torch.randn(2, 3, 32, 32)
    loaded = distill.load_student(where)
    torch.testing.assert_close(loaded(pictures), module.eval()(pictures))
    assert loaded(pictures).shape == (2, 1024)
    described = json.loads((where / "config.json").read_text())
    assert (described["architecture"], described["factory"]) == ("mobilenet_v3_small", MOBILENET)
    again = evaluate(EvaluateConfig(model=str(where), workers=0))
    kept = json.loads((where / "evaluation.json").read_text())
    assert again["feature_norm"] == pytest.approx(kept["feature_norm"], rel=1e-4)
    # A classifier starts from it.
    start = StudentConfig(factory=MOBILENET, image_size=32, weights=str(where))
    tuned: Any = build_student(start, 3)
    assert torch.equal(tuned.library_model.features[0][0].weight, module.features[0][0].weight)


@pytest.mark.parametrize("features", ["", "pool"])
def test_a_classifier_from_a_module(make_config: MakeConfig, features: str) -> None:
    """Labels, a method with a head on the feature, and a second start that skips the finished run."""
    config = make_config(student=small("Plain", features=features), methods=["customkd"])
    (record,) = run(config)
    where = folder(config)
    state = load_file(where / "student.safetensors")
    Plain(7 if features else 3).load_state_dict(state)
    assert (where / "output_layer.safetensors").is_file() == bool(features)
    again = evaluate(EvaluateConfig(model=str(where), workers=0))
    assert again["top1"] == pytest.approx(record["top1"])
    assert distill.load_student(where)(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert run(config)[0]["skipped"]
    tuned = build_student(small("Plain", features=features, weights=str(where)), 3)
    loaded: Any = distill.load_student(where)
    for name, value in tuned.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    if features:
        data = bytearray((where / "output_layer.safetensors").read_bytes())
        data[-1] ^= 1
        (where / "output_layer.safetensors").write_bytes(data)
        with pytest.raises(ConfigError, match=r"output_layer\.safetensors"):
            distill.load_student(where)


@pytest.mark.parametrize("method", ["fitnet", "at", "fitnet_grid"])
def test_methods_on_maps_resume_to_the_bit(make_factory: Any, method: str) -> None:
    """Stopped in the middle of an epoch, with batch norm and unused layers: the same bytes."""
    settings = {"methods": [method], "train__checkpoint_every": 2, "train__ema": 0.9}
    student = small("Two", features="pooled", map="maps")
    straight = make_factory(student=student, **settings)
    run(straight)
    files = ("student.safetensors", "evaluation.json")
    check_resume(straight, method, after=3, files=files)
