"""Building a student: the split into feature and head, and starting weights."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from distill.config import FeatureTap, StudentConfig
from distill.student.model import build_student, starts_pretrained
from featstore.errors import ConfigError

SWIN = {
    "img_size": 64,
    "window_size": 2,
    "embed_dim": 8,
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 1, 1, 1),
}
TINY_VIT = StudentConfig(name="test_vit", image_size=32, model_args={"img_size": 32})
CONVOLUTIONAL = StudentConfig(name="mobilenetv3_small_050", image_size=32)


@pytest.mark.parametrize(
    ("name", "feature", "width"),
    [
        ("mobilenetv3_small_050", "prelogits", 1024),
        ("mobilenetv3_small_050", "pooled", 288),
        ("test_resnet", "prelogits", 96),
        ("test_resnet", "pooled", 96),
        ("test_convnext", "prelogits", 64),
        ("test_convnext", "pooled", 64),
        ("lcnet_035", "prelogits", 1280),
        ("lcnet_035", "pooled", 176),
        ("wide_resnet28_2", "pooled", 128),
    ],
)
def test_feature_and_head_are_the_plain_model(name: str, feature: FeatureTap, width: int) -> None:
    """head(feature) equals the model's own output, and no choice of feature changes a key of a state dict."""
    student = build_student(StudentConfig(name=name, image_size=32, feature=feature), 5).eval()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features, logits, *_ = student(pictures)
        plain = student.model(pictures)
        torch.testing.assert_close(logits, plain)
        torch.testing.assert_close(student.head(features), plain)
        torch.testing.assert_close(student.frozen_head(features), plain)
    assert features.shape == (2, student.width) == (2, width)
    keys = timm.create_model(name, num_classes=5).state_dict().keys()
    assert student.model.state_dict().keys() == keys
    assert student.state_dict().keys() == {f"model.{key}" for key in keys}


def test_pooled_is_what_pooling_gives() -> None:
    """Where no layer with weights lies between pooling and the last Linear, the head is that Linear."""
    student = build_student(StudentConfig(name="test_resnet", image_size=32, feature="pooled"), 5)
    assert student.head is student.model.get_classifier()
    student = build_student(replace(CONVOLUTIONAL, feature="pooled"), 5).eval()
    out = student(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(out.features, out.map.mean((2, 3)))
    held = {id(value) for value in student.head.parameters()}
    tail = [*student.model.conv_head.parameters(), *student.model.classifier.parameters()]
    assert held == {id(value) for value in tail}


def test_pooled_is_refused_where_pooling_cannot_be_told_from_the_layers() -> None:
    """This one pools in a function of its own, and a normalisation and a hidden layer follow."""
    with pytest.raises(ConfigError, match=r"test_mambaout.*--student.feature prelogits"):
        build_student(StudentConfig(name="test_mambaout", image_size=64, feature="pooled"), 5)


@pytest.mark.parametrize("feature", ["prelogits", "pooled"])
def test_a_copy_has_a_head_of_its_own(feature: FeatureTap) -> None:
    """The moving average and the exported copy must not look at the student in training."""
    student = build_student(replace(CONVOLUTIONAL, feature=feature), 5).eval()
    twin = copy.deepcopy(student)
    with torch.no_grad():
        for value in student.parameters():
            value.zero_()
        pictures = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(twin.head(twin(pictures).features), twin.model(pictures))


@pytest.mark.parametrize("feature", ["prelogits", "pooled"])
def test_dropout_acts_on_the_logits_as_in_the_plain_model_and_not_on_the_feature(
    feature: FeatureTap,
) -> None:
    """The same draw in both; the feature is that of a student without dropout, the head has none."""
    config = replace(CONVOLUTIONAL, feature=feature)
    dropping = replace(config, model_args={"drop_rate": 0.5})
    student, without = build_student(dropping, 5), build_student(config, 5)
    plain = timm.create_model(config.name, num_classes=5, drop_rate=0.5)
    for other in (plain, without.model):
        other.load_state_dict(student.model.state_dict())
    pictures = torch.randn(4, 3, 32, 32)
    features, logits, *_ = without.train()(pictures)
    without.load_state_dict(student.state_dict())
    torch.manual_seed(3)
    expected = plain.train()(pictures)
    torch.manual_seed(3)
    out = student.train()(pictures)
    torch.testing.assert_close(out.logits, expected)
    torch.testing.assert_close(out.features, features)
    assert not torch.allclose(out.logits, logits)
    torch.testing.assert_close(student.head(out.features), logits)
    assert student.drop_rate == 0.5


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "resnet10t"])
def test_dropout_of_other_families_is_found(name: str) -> None:
    """A module of its own, one inside the head, and a rate that a function is called with."""
    args: dict[str, Any] = {"drop_rate": 0.5, **({"img_size": 32} if name == "test_vit" else {})}
    student = build_student(StudentConfig(name=name, image_size=32, model_args=args), 5)
    pictures = torch.randn(4, 3, 32, 32)
    one, other = student.train()(pictures), student(pictures)
    assert student.drop_rate == 0.5
    torch.testing.assert_close(one.features, other.features)
    assert not torch.allclose(one.logits, other.logits)


@pytest.mark.parametrize("feature", ["prelogits", "pooled"])
def test_a_frozen_head_passes_gradients_and_takes_none(feature: FeatureTap) -> None:
    """Nothing of the student changes: no gradient, no batch statistic (lcnet's relative has a norm in its head)."""
    config = StudentConfig(name="mobilenetv4_conv_small_035", image_size=32, feature=feature)
    student = build_student(config, 5).train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    features = torch.randn(3, student.width, requires_grad=True)
    student.frozen_head(features).square().sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    assert all(value.grad is None for value in student.parameters())
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert all(part.training for part in student.modules())


def test_an_adapter_stands_between_feature_and_head() -> None:
    """The feature itself is given back as it is."""
    for feature in ("prelogits", "pooled"):
        student = build_student(replace(CONVOLUTIONAL, feature=feature), 5).eval()
        adapter = torch.nn.Linear(student.width, student.width)
        pictures = torch.randn(2, 3, 32, 32)
        out, plain = student(pictures, adapter=adapter), student(pictures)
        torch.testing.assert_close(out.features, plain.features)
        torch.testing.assert_close(out.logits, student.head(adapter(plain.features)))


@pytest.mark.parametrize("config", [CONVOLUTIONAL, TINY_VIT], ids=lambda config: config.name)
def test_stages_come_from_the_same_pass(config: StudentConfig) -> None:
    """They are the plain model's own; features, logits and map are those of a pass without them."""
    student = build_student(config, 5).eval()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        out, without = student(pictures, stages=True), student(pictures)
        plain = student.model.forward_intermediates(pictures, intermediates_only=True)
    assert without.stages == ()
    for one, other in zip(out[:3], without[:3], strict=True):
        torch.testing.assert_close(one, other)
    assert len(out.stages) == 4
    assert student.stage_channels == tuple(item.shape[1] for item in out.stages)
    torch.testing.assert_close(out.stages[-1], plain[-1])
    assert all(any(torch.equal(item, whole) for whole in plain) for item in out.stages)


@pytest.mark.parametrize(
    ("config", "channels", "size"),
    [
        (CONVOLUTIONAL, 288, (1, 1)),
        (TINY_VIT, 64, (2, 2)),
        (StudentConfig(name="resnet10t", image_size=64), 512, (2, 2)),
        (StudentConfig(name="wide_resnet28_2"), 128, (8, 8)),
        (
            StudentConfig(name="swin_tiny_patch4_window7_224", image_size=64, model_args=SWIN),
            64,
            (2, 2),
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_map_has_the_measured_shape(
    config: StudentConfig, channels: int, size: tuple[int, int]
) -> None:
    """Channels first, whether the model keeps maps, tokens or channels last."""
    student = build_student(config, 5).eval()
    with torch.no_grad():
        seen = student(torch.randn(2, 3, *student.input_size)).map
    assert (student.map_channels, student.map_size) == (channels, size)
    assert seen.shape == (2, channels, *size)


def test_tokens_keep_their_place_in_the_map() -> None:
    """The map of a ViT is its patch tokens, row by row, without the class token."""
    student = build_student(TINY_VIT, 5).eval()
    pictures = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        tokens = student.model.forward_features(pictures)[:, 1:]
        seen = student(pictures).map
    torch.testing.assert_close(seen[0, :, 0, 1], tokens[0, 1])
    torch.testing.assert_close(seen[0, :, 1, 0], tokens[0, 2])


def test_a_student_without_a_grid_has_a_map_of_one_place() -> None:
    """Tokens in a number that is no grid."""
    student = build_student(TINY_VIT, 5)
    tokens, features = torch.randn(2, 4, 64), torch.randn(2, 64)
    assert student._as_map(tokens, features).shape == (2, 64, 1, 1)


def test_a_student_without_stages_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only when stages are asked for."""
    monkeypatch.delattr(timm.models.resnet.ResNet, "forward_intermediates")
    student = build_student(StudentConfig(name="test_resnet", image_size=32), 5)
    assert student.stage_channels == ()
    assert student(torch.randn(2, 3, 32, 32)).logits.shape == (2, 5)
    with pytest.raises(ConfigError, match=r"test_resnet.*forward_intermediates"):
        student(torch.randn(2, 3, 32, 32), stages=True)


@pytest.mark.parametrize("feature", ["prelogits", "pooled"])
def test_measuring_a_student_leaves_no_trace(feature: FeatureTap) -> None:
    """Statistics and weights are those of the plain model, the random state that after building it."""
    torch.manual_seed(5)
    plain = timm.create_model("mobilenetv3_small_050", num_classes=5)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    student = build_student(replace(CONVOLUTIONAL, feature=feature), 5)
    assert torch.equal(torch.get_rng_state(), state)
    kept = student.model.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in plain.state_dict().items())
    assert student.training
    assert all(part.training for part in student.modules())
    assert not any(part._forward_hooks for part in student.modules())


def test_a_vit_takes_its_size_from_model_args() -> None:
    """And without them the message says so."""
    student = build_student(
        StudentConfig(name="test_vit", image_size=32, model_args={"img_size": 32}), 5
    )
    assert student.input_size == (32, 32)
    with pytest.raises(ConfigError, match=r"img_size.*\b32\b"):
        build_student(StudentConfig(name="vit_tiny_patch16_224", image_size=32), 5)


def test_models_without_a_last_linear_get_one_on_their_feature() -> None:
    """A ResNetV2 ends in a convolution: its keys are those without a classifier."""
    args: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "stem_chs": 8}
    student = build_student(StudentConfig(name="resnetv2_50", image_size=64, model_args=args), 5)
    pictures = torch.randn(2, 3, 64, 64)
    plain = timm.create_model("resnetv2_50", num_classes=0, **args)
    assert student.library_model.state_dict().keys() == plain.state_dict().keys()
    out = student.eval()(pictures)
    torch.testing.assert_close(out.logits, student.model(pictures))
    torch.testing.assert_close(out.features, student.library_model(pictures))
    assert (out.logits.shape, out.map.shape[2:]) == ((2, 5), (2, 2))


def test_weights_with_a_classifier_start_a_model_without_one(tmp_path: Path) -> None:
    """Named in the notes: the prefix, what is left out, and what starts fresh."""
    args: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "stem_chs": 8}
    whole: Any = timm.create_model("resnetv2_50", num_classes=9, **args)
    path = tmp_path / "whole.safetensors"
    save_file({f"backbone.{key}": value for key, value in whole.state_dict().items()}, path)
    config = StudentConfig(name="resnetv2_50", image_size=64, model_args=args, weights=str(path))
    student = build_student(config, 5)
    model: Any = student.library_model
    assert torch.equal(model.stem.conv.weight, whole.stem.conv.weight)
    for words in ("'backbone.'", "head.fc.weight", "starts fresh"):
        assert any(words in note for note in student.notes), words


def test_an_unknown_model_names_near_ones() -> None:
    """A typing error is found before anything is fetched."""
    for typed, meant in (
        ("mobilenet_v3_smal_100", "mobilenetv3_small_100"),
        ("MobileNetV3_small_050", "mobilenetv3_small_050"),
        ("resnet_50", "resnet50"),
    ):
        with pytest.raises(ConfigError, match=rf"{typed}.*{meant}"):
            build_student(StudentConfig(name=typed), 5)


def test_weights_without_a_head_load_with_a_fresh_one(tmp_path: Path) -> None:
    """A backbone saved with num_classes 0, and one with another number of classes."""
    for classes in (0, 7):
        torch.manual_seed(1)
        backbone = timm.create_model("test_resnet", num_classes=classes)
        path = tmp_path / f"{classes}.safetensors"
        save_file(backbone.state_dict(), path)
        student = build_student(
            StudentConfig(name="test_resnet", image_size=32, weights=str(path)), 5
        )
        assert student.head.out_features == 5
        assert torch.equal(student.model.conv1[0].weight, backbone.conv1[0].weight)
        assert "starts fresh" in student.notes[0]


def test_whole_weights_load_as_they_are(tmp_path: Path) -> None:
    """Also from a PyTorch file with a state_dict inside."""
    plain = timm.create_model("test_resnet", num_classes=5)
    torch.save({"state_dict": plain.state_dict()}, tmp_path / "w.pt")
    student = build_student(
        StudentConfig(name="test_resnet", image_size=32, weights=str(tmp_path / "w.pt")), 5
    )
    assert all(torch.equal(a, plain.state_dict()[k]) for k, a in student.model.state_dict().items())
    assert student.notes == []


def test_weights_may_depend_on_the_seed(tmp_path: Path) -> None:
    """``{seed}`` in the path is the seed of the run."""
    for seed in (0, 1):
        torch.manual_seed(seed)
        plain = timm.create_model("test_resnet", num_classes=5)
        save_file(plain.state_dict(), tmp_path / f"seed{seed}.safetensors")
    config = StudentConfig(
        name="test_resnet", image_size=32, weights=str(tmp_path / "seed{seed}.safetensors")
    )
    weight = build_student(config, 5, seed=1).model.conv1[0].weight
    assert torch.equal(weight, plain.conv1[0].weight)
    with pytest.raises(ConfigError, match=r"seed2.safetensors"):
        build_student(config, 5, seed=2)


def test_weights_that_do_not_fit_name_keys_and_shapes(tmp_path: Path) -> None:
    """Another model's file; and a file that is none."""
    save_file(timm.create_model("test_convnext").state_dict(), tmp_path / "other.safetensors")
    config = StudentConfig(
        name="test_resnet", image_size=32, weights=str(tmp_path / "other.safetensors")
    )
    with pytest.raises(ConfigError, match="bn1"):
        build_student(config, 5)
    wrong = timm.create_model("test_resnet", num_classes=5).state_dict()
    wrong["layer1.0.conv1.weight"] = torch.zeros(1, 2)
    save_file(wrong, tmp_path / "shape.safetensors")
    with pytest.raises(ConfigError, match=r"layer1.0.conv1.weight.*\b1\b.*\b2\b"):
        build_student(
            StudentConfig(name="test_resnet", weights=str(tmp_path / "shape.safetensors")), 5
        )
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ConfigError):
        build_student(
            StudentConfig(name="test_resnet", weights=str(tmp_path / "text.safetensors")), 5
        )
    with pytest.raises(ConfigError):
        build_student(StudentConfig(name="test_resnet", weights=str(tmp_path / "gone.pt")), 5)


def test_a_pickle_with_code_is_not_loaded(tmp_path: Path) -> None:
    """Loading weights never runs what is in them."""
    torch.save({"w": Path("x")}, tmp_path / "code.pt")
    with pytest.raises(ConfigError):
        build_student(StudentConfig(name="test_resnet", weights=str(tmp_path / "code.pt")), 5)


def test_an_unreachable_hub_points_to_local_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own sentence, with the model and the flag."""

    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr("distill.student.model.timm.create_model", unreachable)
    with pytest.raises(ConfigError, match=r"mobilenetv3_small_050.*--student.weights PATH"):
        build_student(StudentConfig(pretrained=True), 5)


def test_auto_starts_from_pretrained_weights_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of timm, without weights or a function of one's own; a model without any starts at random, and says so."""
    fetched: list[bool] = []
    create = timm.create_model

    def offline(name: str, *, pretrained: bool, **options: Any) -> Any:
        fetched.append(pretrained)
        return create(name, **options)

    monkeypatch.setattr("distill.student.model.timm.create_model", offline)
    small = StudentConfig(name="test_resnet", pretrained="auto")
    assert not build_student(small, 5).notes
    own = build_student(replace(small, name="wide_resnet28_2"), 5)
    assert "random" in " ".join(own.notes)
    save_file(create("test_resnet", num_classes=5).state_dict(), tmp_path / "w.safetensors")
    build_student(replace(small, weights=str(tmp_path / "w.safetensors")), 5)
    assert fetched == [True, False, False]
    assert not starts_pretrained(StudentConfig(factory="a:b", pretrained="auto"))
    assert starts_pretrained(StudentConfig(pretrained=True))
    with pytest.raises(ConfigError, match=r"wide_resnet28_2.*--student\.weights RUN"):
        build_student(replace(small, name="wide_resnet28_2", freeze=True), 5)


def test_a_frozen_backbone_trains_its_last_layer_alone(tmp_path: Path) -> None:
    """Neither a weight nor a statistic of batch norm changes before the last Linear, and that one learns."""
    save_file(
        timm.create_model("mobilenetv3_small_050", num_classes=0).state_dict(),
        tmp_path / "w.safetensors",
    )
    config = replace(CONVOLUTIONAL, weights=str(tmp_path / "w.safetensors"), freeze=True)
    student = build_student(config, 5).train()
    before = copy.deepcopy(student.state_dict())
    optimiser = torch.optim.AdamW(student.parameters(), lr=0.1)
    student(torch.randn(4, 3, 32, 32)).logits.square().mean().backward()
    optimiser.step()
    changed = {key for key, value in student.state_dict().items() if not value.equal(before[key])}
    assert changed == {"model.classifier.weight", "model.classifier.bias"}
    assert student.training
    with pytest.raises(ConfigError):
        replace(config, weights="")
