"""Teachers from every library, their preprocessing pinned, and fields from inside a transformer."""

import dataclasses
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from featstore.errors import ConfigError, TeacherError
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig
from featstore.extraction.teachers import Teacher, build_teacher, check_teacher, state_sha256
from featstore.extraction.teachers import hub as hub_module
from featstore.extraction.teachers.open_clip_teacher import OpenClipTower
from featstore.extraction.teachers.run_teacher import CHAIN
from featstore.extraction.teachers.timm_teacher import TimmTower
from tests.conftest import TINY_ARGS
from tests.featstore.extraction.test_teachers import build, images, tiny_clip, wrap

__all__ = ["tiny_clip"]

STATED: dict[str, Any] = {"image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
DEEP = {**TINY_ARGS, "depth": 3}


def normalised(mean: float = 0.5, std: float = 0.25) -> Tensor:
    return (images().float() / 255 - mean) / std


# --- preprocessing comes from the name that was given ------------------------------------------------------------


def tiny(tag: str, path: Path, **args: Any) -> TeacherConfig:
    """Local weights of a small ViT under a tag of timm's vit_small_patch16_224."""
    name = "vit_small_patch16_224" + tag
    model = timm.create_model(name, pretrained=False, img_size=32, **TINY_ARGS, **args)
    save_file(model.state_dict(), path)
    return TeacherConfig(name=name, weights=str(path), image_size=32, model_args=TINY_ARGS)


@pytest.mark.parametrize("tag", [".dino", ".augreg_in21k_ft_in1k", ".augreg_in1k"])
def test_local_weights_keep_the_preprocessing_of_their_tag(tag: str, tmp_path: Path) -> None:
    """Mean, deviation, crop and interpolation are those that timm publishes under the name with its tag."""
    expected: Any = timm.get_pretrained_cfg("vit_small_patch16_224" + tag)
    teacher = build(tiny(tag, tmp_path / "w.safetensors"))
    found = teacher.preprocessing
    assert (found.mean, found.std) == (expected.mean, expected.std)
    assert (found.crop_pct, found.interpolation) == (expected.crop_pct, expected.interpolation)
    assert teacher.notes == []


def test_local_weights_without_a_tag_are_told_whose_preprocessing_they_get(tmp_path: Path) -> None:
    """timm's default tag is named; an unknown tag is refused with those that there are."""
    config = tiny("", tmp_path / "w.safetensors")
    assert "augreg" in " ".join(build(config).notes)
    with pytest.raises(TeacherError, match="dino"):
        build(dataclasses.replace(config, name="vit_small_patch16_224.mine"))


@pytest.mark.parametrize(
    ("name", "args", "missing"),
    [
        ("ViT-B-32", {}, ["openai", "force_quick_gelu"]),
        ("RN50", {}, ["openai", "force_quick_gelu"]),
        ("ViT-B-16-SigLIP", {}, ["webli", "--teacher.mean"]),
    ],
)
def test_open_clip_weights_without_a_tag_are_asked_for_it(
    name: str, args: dict[str, Any], missing: list[str], teacher_file: Path
) -> None:
    """Where the tags of a model differ in activation or preprocessing, weights alone do not say how they are run."""
    config = TeacherConfig(
        library="open_clip", name=name, weights=str(teacher_file), model_args=args
    )
    with pytest.raises(TeacherError) as caught:
        build(config)
    for text in missing:
        assert text in str(caught.value)


def test_open_clip_weights_of_a_tag_keep_its_activation(tmp_path: Path) -> None:
    """QuickGELU and the tag's mean are taken with local weights."""
    import open_clip

    skeleton = TeacherConfig(library="open_clip", name="ViT-B-32", tag="openai", weights="x")
    from featstore.extraction.teachers import open_clip_teacher

    with torch.device("meta"):
        built = open_clip_teacher.build(skeleton, skeleton=True)
    kinds = {type(part).__name__ for part in built.tower.modules()}
    assert "QuickGELU" in kinds
    assert built.preprocessing.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)


# --- fields from inside -------------------------------------------------------------------------------------------


def test_intermediate_blocks_and_projections_of_a_timm_vit() -> None:
    """blockN is what timm's forward_intermediates gives; q, k, v are what the last block's qkv layer gives."""
    model: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, **DEEP, reg_tokens=2, no_embed_class=True
    ).eval()
    names = [
        "block1.cls",
        "block1.grid2",
        "block0.tokens",
        "block2.mean",
        "registers",
        "q",
        "k.grid1",
        "v.cls",
    ]
    teacher = wrap(TimmTower(model), names)
    out = teacher.features(images())
    with torch.inference_mode():
        pixels = (images().float() / 255 - 0.5) / 0.5
        maps = model.forward_intermediates(
            pixels, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
        final = model.forward_features(pixels)
        inside = model.blocks[2].attn.qkv(
            model.blocks[2].norm1(
                model.blocks[1](
                    model.blocks[0](
                        model.norm_pre(
                            model.patch_drop(model._pos_embed(model.patch_embed(pixels)))
                        )
                    )
                )
            )
        )
    torch.testing.assert_close(out["block1.cls"], maps[1][1][:, 0])
    torch.testing.assert_close(out["block1.grid2"].flatten(1, 2), maps[1][0])
    torch.testing.assert_close(out["block0.tokens"], torch.cat([maps[0][1], maps[0][0]], 1))
    torch.testing.assert_close(out["block2.mean"], maps[2][0].mean(1))
    torch.testing.assert_close(out["registers"], final[:, 1:3])
    q, k, v = inside.unflatten(2, (3, 16)).unbind(2)
    torch.testing.assert_close(out["q"], q)
    torch.testing.assert_close(out["k.grid1"][:, 0, 0], k[:, 3:].mean(1))
    torch.testing.assert_close(out["v.cls"], v[:, 0])
    meanings = {name: spec.meaning for name, spec in teacher.fields.items()}
    assert "block 1" in meanings["block1.cls"]
    assert "queries" in meanings["q"]


def test_intermediate_blocks_and_projections_of_an_open_clip_vit(tiny_clip: str) -> None:
    """nn.MultiheadAttention keeps one matrix for all three projections; its parts are the same numbers."""
    import open_clip

    torch.manual_seed(0)
    visual: Any = open_clip.create_model(tiny_clip).visual.eval()
    block = visual.transformer.resblocks[-1]
    seen: dict[str, Tensor] = {}
    block.ln_1.register_forward_hook(lambda module, inputs, out: seen.update(x=out))
    block.register_forward_hook(lambda module, inputs, out: seen.update(block=out))
    out = wrap(OpenClipTower(visual), ["q", "k", "v", "block0.cls", "block0.grid2"]).features(
        images()
    )
    expected = nn.functional.linear(seen["x"], block.attn.in_proj_weight, block.attn.in_proj_bias)
    for name, values in zip("qkv", expected.chunk(3, dim=-1), strict=True):
        torch.testing.assert_close(out[name], values)
    torch.testing.assert_close(out["block0.cls"], seen["block"][:, 0])
    torch.testing.assert_close(out["block0.grid2"].flatten(1, 2), seen["block"][:, 1:])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("block3.cls", "block0 to block2"),
        ("block1.grid9", "2 x 2"),
        ("block1.registers", "can give"),
    ],
)
def test_blocks_that_are_not_there(name: str, message: str) -> None:
    """The message says how many blocks there are, or how large the grid is."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, **DEEP)
    with pytest.raises(TeacherError, match=message):
        wrap(TimmTower(model), [name])


def test_a_model_without_blocks_or_class_token() -> None:
    """A CNN has no blocks; a ViT that pools by attention has no class token, and the message names pooled."""
    with pytest.raises(TeacherError, match="block0"):
        wrap(TimmTower(timm.create_model("test_resnet", num_classes=0)), ["block0.cls"], size=64)
    args = {**TINY_ARGS, "class_token": False, "global_pool": "map"}
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, **args)
    assert wrap(TimmTower(model), ["pooled", "mean"]).fields["pooled"].shape == (16,)
    with pytest.raises(TeacherError, match="pooled"):
        wrap(TimmTower(model), ["cls"])


@pytest.mark.parametrize(
    "name", ["clss", "grid0", "grid", "block.cls", "block1", "q.logits", "map", ""]
)
def test_wrong_names_fail_before_anything_is_loaded(name: str) -> None:
    """A config with a field that no teacher has is refused when it is made."""
    with pytest.raises(ConfigError, match="field"):
        ExtractConfig(store=StoreConfig(fields=[name]))


@pytest.mark.slow
def test_fields_are_checked_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid that is too fine and a wrong name are found on shapes alone: nothing is fetched or read."""

    def fetched(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fetched)
    monkeypatch.setattr("open_clip.factory.download_pretrained", fetched)
    large = TeacherConfig(name="vit_large_patch14_dinov2.lvd142m")
    check_teacher(large, fields=["cls", "grid37", "block23.grid7", "k"])
    for config, field in (
        (large, "grid38"),
        (large, "logits"),
        (large, "block24.cls"),
        (TeacherConfig(library="open_clip", name="ViT-B-32", tag="openai"), "grid8"),
        (TeacherConfig(name="vit_larg_patch14_dinov2"), "cls"),
    ):
        with pytest.raises(TeacherError):
            check_teacher(config, fields=[field])


# --- the hub -------------------------------------------------------------------------------------------------------


def test_an_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its host does not answer, the client is told to be offline, and does not retry for 50 s."""
    from huggingface_hub import constants

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_module, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        hub_module.go_offline_if_unreachable()
        assert not constants.HF_HUB_OFFLINE
    start = time.monotonic()
    with hub_module.setting_restored():
        hub_module.go_offline_if_unreachable()
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    assert time.monotonic() - start < 5


# --- transformers ----------------------------------------------------------------------------------------------------

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def saved(
    folder: Path, kind: str, processor: dict[str, Any] | None = None, **changes: Any
) -> TeacherConfig:
    """A model of transformers with random weights, in a folder as save_pretrained writes it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = getattr(transformers, f"{kind}Config")(**{**SMALL, **changes})
    model = transformers.AutoModel.from_config(settings)
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return TeacherConfig(library="transformers", name=str(folder))


CROP = {
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
    "resample": 3,
}


@pytest.mark.parametrize(
    ("kind", "changes", "prefix", "registers"),
    [
        ("ViT", {}, 1, 0),
        ("Dinov2WithRegisters", {"num_register_tokens": 3}, 4, 3),
        ("CLIPVision", {}, 1, 0),
        ("SiglipVision", {}, 0, 0),
    ],
)
def test_vision_transformers_of_transformers(
    kind: str, changes: dict[str, Any], prefix: int, registers: int, tmp_path: Path
) -> None:
    """Class token, registers and patches are told apart by kind; preprocessing is that of the folder."""
    from transformers import AutoModel

    config = saved(tmp_path, kind, CROP, **changes)
    names = ["tokens", "mean", "grid2", "pooled", "block0.tokens", "q", "k.grid2"]
    names += ["cls"] if prefix else []
    names += ["registers"] if registers else []
    teacher = build(config, names)
    out = teacher.features(images())
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(tmp_path).eval()(pixel_values=normalised())
    tokens = expected.last_hidden_state
    if kind == "CLIPVision":
        torch.testing.assert_close(out["cls"], expected.pooler_output)
    else:
        torch.testing.assert_close(out["tokens"], tokens)
        torch.testing.assert_close(out["mean"], tokens[:, prefix:].mean(1))
    torch.testing.assert_close(out["pooled"], expected.pooler_output)
    torch.testing.assert_close(out["grid2"].flatten(1, 2), out["tokens"][:, prefix:])
    if registers:
        torch.testing.assert_close(out["registers"], tokens[:, 1:4])
    if not prefix:
        with pytest.raises(TeacherError, match="pooled"):
            build(config, ["cls"])
    assert out["q"].shape == out["tokens"].shape
    rule = teacher.preprocessing
    assert (rule.size, rule.crop_pct, rule.crop_mode, rule.interpolation) == (
        (32, 32),
        0.8,
        "center",
        "bicubic",
    )
    assert (rule.mean, rule.std) == ((0.5,) * 3, (0.25,) * 3)
    check_teacher(config, fields=names)
    with pytest.raises(TeacherError, match="2 x 2"):
        check_teacher(config, fields=["grid3"])


def test_a_whole_clip_gives_its_projection(tmp_path: Path) -> None:
    """The text side is left out; ``projected`` is get_image_features."""
    transformers = pytest.importorskip("transformers")
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    text |= {"bos_token_id": 0, "eos_token_id": 1}
    settings = transformers.CLIPConfig(vision_config=SMALL, text_config=text, projection_dim=8)
    model = transformers.CLIPModel(settings).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CROP))
    teacher = build(TeacherConfig(library="transformers", name=str(tmp_path)), ["projected", "cls"])
    with torch.inference_mode():
        expected = model.get_image_features(pixel_values=normalised())
    expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(teacher.features(images())["projected"], expected)


def test_a_random_pooling_layer_is_left_out(tmp_path: Path) -> None:
    """Weights without a pooler: no random layer, and the same hash each time; other missing tensors are refused."""
    transformers = pytest.importorskip("transformers")
    config = saved(tmp_path, "ViT", CROP)
    model = transformers.AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    first, second = build(config), build(config)
    assert first.record.weights_sha256 == second.record.weights_sha256
    with pytest.raises(TeacherError, match="pooled"):
        build(config, ["pooled"])
    state = {
        key: value for key, value in model.state_dict().items() if "layernorm.weight" not in key
    }
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"layernorm\.weight"):
        build(config)


def test_transformers_without_preprocessing(tmp_path: Path) -> None:
    """A folder without preprocessor_config.json: mean and deviation are asked for, and taken."""
    config = saved(tmp_path, "ViT")
    with pytest.raises(TeacherError, match=r"--teacher\.mean and --teacher\.std must be given"):
        build(config)
    found = build(dataclasses.replace(config, mean=[0.1] * 3, std=[0.2] * 3)).preprocessing
    assert (found.size, found.mean, found.std) == ((32, 32), (0.1,) * 3, (0.2,) * 3)
    with pytest.raises(TeacherError, match=r"nowhere"):
        build(dataclasses.replace(config, name=str(tmp_path / "nowhere")))


# --- ONNX ------------------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """Two outputs of a small ViT: tokens and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("vit_tiny_patch16_224", img_size=32, **TINY_ARGS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model.forward_features(x)
        return tokens, tokens.mean(1)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A model file, and the module it was made of."""
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    torch.manual_seed(0)
    module = Encoder().eval()
    torch.onnx.export(
        module,
        (torch.zeros(2, 3, 32, 32),),
        str(path),
        input_names=["pixels"],
        output_names=["last_hidden_state", "embedding"],
        dynamo=False,
    )
    return path, module


@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python")
def test_an_onnx_model(onnx_file: tuple[Path, nn.Module]) -> None:
    """Outputs by their names, tokens split by the stated prefix; a fixed batch of two serves three images."""
    path, module = onnx_file
    config = TeacherConfig(
        library="onnx",
        name=str(path),
        model_args={"prefix_tokens": 1},
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    teacher = build(config, ["embedding", "cls", "grid2", "last_hidden_state"])
    out = teacher.features(images())
    with torch.inference_mode():
        tokens, vector = module(normalised())
    torch.testing.assert_close(out["embedding"], vector, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["cls"], tokens[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["grid2"].flatten(1, 2), tokens[:, 1:], rtol=1e-4, atol=1e-5)
    assert teacher.record.name == "encoder.onnx"
    assert len(teacher.record.weights_sha256) == 64
    with pytest.raises(TeacherError, match=r"--teacher\.mean"):
        build(TeacherConfig(library="onnx", name=str(path)), ["embedding"])
    with pytest.raises(TeacherError, match="embedding"):
        build(config, ["nothing"])
    with pytest.raises(TeacherError, match="32 x 32"):
        build(dataclasses.replace(config, image_size=48), ["embedding"])
    with pytest.raises(ConfigError, match=r"--teacher\.precision"):
        dataclasses.replace(config, precision="bf16")


# --- the user's own Python -------------------------------------------------------------------------------------------

CODE = """
import torch

class Model(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, width, 16, 16)

    def forward(self, x):
        y = self.conv(x)
        return {"map": y.permute(0, 2, 3, 1), "pooled": y.mean((2, 3)), "energy": y.square().mean((1, 2, 3))[:, None]}

def make(width=4):
    torch.manual_seed(0)
    model = Model(width)
    model.preprocessing = {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.9}
    model.licence = "MIT"
    return model

def text(): return "no module"
def fail(): raise ValueError("out of luck")
"""


def test_a_function_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file or an importable module: arguments, own outputs, own preprocessing, licence and weights hash."""
    (tmp_path / "my_teacher.py").write_text(CODE)
    config = TeacherConfig(
        library="python", name=f"{tmp_path}/my_teacher.py:make", model_args={"width": 8}
    )
    teacher = build(config, ["pooled", "grid2", "mean", "energy"])
    out = teacher.features(images())
    assert out["pooled"].shape == (3, 8)
    assert out["energy"].shape == (3, 1)
    torch.testing.assert_close(out["mean"], out["pooled"])
    assert (teacher.preprocessing.size, teacher.preprocessing.crop_pct) == ((32, 32), 0.9)
    assert (teacher.record.licence, teacher.record.name) == ("MIT", "my_teacher.py:make")
    monkeypatch.syspath_prepend(tmp_path)
    again = build(dataclasses.replace(config, name="my_teacher:make"), ["pooled"])
    assert again.record.weights_sha256 == teacher.record.weights_sha256
    for name, message in (
        ("my_teacher:text", "returned str"),
        ("my_teacher:fail", "out of luck"),
        ("my_teacher:absent", "absent"),
        ("my_teacher", "package.module:function"),
        (f"{tmp_path}/none.py:make", "no such file"),
    ):
        with pytest.raises(TeacherError, match=message):
            build(TeacherConfig(library="python", name=name), ["pooled"])


# --- a student as a teacher -----------------------------------------------------------------------------------


def test_a_finished_run_as_a_teacher(tmp_path: Path) -> None:
    """Its weights, its preprocessing, and in the manifest what it learnt from."""
    model: Any = timm.create_model("test_resnet", num_classes=5).eval()
    save_file(
        {key: value.clone() for key, value in model.state_dict().items()},
        tmp_path / "student.safetensors",
    )
    store = {
        "name": "vit_large",
        "weights_sha256": "1" * 64,
        "store_fingerprint": "2" * 64,
        "field": "cls",
        "weight": 1.0,
    }
    described = {
        "architecture": "test_resnet",
        "num_classes": 5,
        "model_args": {},
        "feature": "prelogits",
        "label_names": list("abcde"),
        "input": {
            "size": [64, 64],
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
            "region": {
                "size": [224, 224],
                "crop_pct": 0.9,
                "crop_mode": "center",
                "interpolation": "bicubic",
            },
        },
        "teachers": [store],
    }
    (tmp_path / "config.json").write_text(json.dumps(described))
    config = TeacherConfig(library="run", name=str(tmp_path))
    teacher = build(config, ["pooled", "logits", "grid2"])
    pixels = (images(size=64).float() / 255 - 0.5) / 0.25
    with torch.inference_mode():
        torch.testing.assert_close(teacher.features(images(size=64))["logits"], model(pixels))
    assert teacher.record.name == "test_resnet"
    assert teacher.record.weights_sha256 == state_sha256(TimmTower(model))
    assert teacher.record.model_args["class_names"] == list("abcde")
    assert teacher.record.model_args[CHAIN] == [
        {key: store[key] for key in store if key != "weight"}
    ]
    assert (teacher.preprocessing.size, teacher.preprocessing.crop_pct) == ((64, 64), 0.9)
    (tmp_path / "config.json").write_text(json.dumps({**described, "architecture": "of_my_own"}))
    with pytest.raises(TeacherError, match="of_my_own"):
        build(config, ["pooled"])
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(TeacherError, match=r"config\.json"):
        build(config, ["pooled"])
    with pytest.raises(TeacherError, match=r"student\.safetensors"):
        build(dataclasses.replace(config, name=str(tmp_path / "nowhere")), ["pooled"])


def test_weights_without_counters_of_batches_load(tmp_path: Path) -> None:
    """``num_batches_tracked`` of BatchNorm is not used in eval mode: files without it are whole."""
    model: Any = timm.create_model("test_resnet", num_classes=0).eval()
    state = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    save_file(state, tmp_path / "w.safetensors")
    config = TeacherConfig(name="test_resnet", weights=str(tmp_path / "w.safetensors"))
    teacher: Teacher = build_teacher(
        config, fields=["pooled"], dtype="float32", precision="fp32", device=torch.device("cpu")
    )
    size = teacher.preprocessing.size[0]
    assert torch.isfinite(teacher.features(images(size=size))["pooled"]).all()
