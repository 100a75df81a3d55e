"""Building a student: the split into feature and head, and starting weights."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from distill.config import StudentConfig
from distill.student import build_student
from featstore.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("mobilenetv3_small_050", 1024),
        ("test_resnet", 96),
        ("test_convnext", 64),
        ("lcnet_035", 1280),
    ],
)
def test_feature_and_head_are_the_plain_model(name: str, width: int) -> None:
    """head(feature) equals the model's own output; the width is that of the last Linear."""
    student = build_student(StudentConfig(name=name, image_size=32), 5).eval()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features, logits = student(pictures)
        torch.testing.assert_close(logits, student.model(pictures))
    assert features.shape == (2, student.width) == (2, width)


def test_a_vit_takes_its_size_from_model_args() -> None:
    """And without them the message says so."""
    student = build_student(
        StudentConfig(name="test_vit", image_size=32, model_args={"img_size": 32}), 5
    )
    assert student.input_size == (32, 32)
    with pytest.raises(ConfigError, match="img_size"):
        build_student(StudentConfig(name="vit_tiny_patch16_224", image_size=32), 5)


def test_models_without_a_last_linear_are_refused() -> None:
    """Deit's distilled form has two heads."""
    with pytest.raises(ConfigError, match="last Linear"):
        build_student(StudentConfig(name="deit_tiny_distilled_patch16_224"), 5)


def test_an_unknown_model_names_near_ones() -> None:
    """A typing error is found before anything is fetched."""
    with pytest.raises(ConfigError, match="mobilenetv3"):
        build_student(StudentConfig(name="mobilenetv3_smal"), 5)


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


def test_weights_that_do_not_fit_name_keys_and_shapes(tmp_path: Path) -> None:
    """Another model's file; and a file that is none."""
    save_file(timm.create_model("test_convnext").state_dict(), tmp_path / "other.safetensors")
    config = StudentConfig(
        name="test_resnet", image_size=32, weights=str(tmp_path / "other.safetensors")
    )
    with pytest.raises(ConfigError, match=r"keys are missing: bn1.*not the model's"):
        build_student(config, 5)
    wrong = timm.create_model("test_resnet", num_classes=5).state_dict()
    wrong["layer1.0.conv1.weight"] = torch.zeros(1, 2)
    save_file(wrong, tmp_path / "shape.safetensors")
    with pytest.raises(ConfigError, match=r"layer1.0.conv1.weight has \(1, 2\), the model"):
        build_student(
            StudentConfig(name="test_resnet", weights=str(tmp_path / "shape.safetensors")), 5
        )
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ConfigError, match="cannot be read"):
        build_student(
            StudentConfig(name="test_resnet", weights=str(tmp_path / "text.safetensors")), 5
        )
    with pytest.raises(ConfigError, match="no such file"):
        build_student(StudentConfig(name="test_resnet", weights=str(tmp_path / "gone.pt")), 5)


def test_a_pickle_with_code_is_not_loaded(tmp_path: Path) -> None:
    """Loading weights never runs what is in them."""
    torch.save({"w": Path("x")}, tmp_path / "code.pt")
    with pytest.raises(ConfigError, match="more than plain tensors"):
        build_student(StudentConfig(name="test_resnet", weights=str(tmp_path / "code.pt")), 5)


def test_an_unreachable_hub_points_to_local_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own sentence, with the model and the flag."""

    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr("distill.student.timm.create_model", unreachable)
    with pytest.raises(ConfigError, match=r"mobilenetv3_small_050: .*--student.weights PATH"):
        build_student(StudentConfig(pretrained=True), 5)
