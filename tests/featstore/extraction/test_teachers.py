"""Teachers: which weights are taken and which refused, and what the fields of each architecture are."""

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.transformer import VisionTransformer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from featstore.errors import TeacherError
from featstore.extraction.config import TeacherConfig
from featstore.extraction.teachers import (
    Teacher,
    Tower,
    best_precision,
    build_teacher,
    select_field,
    state_sha256,
)
from featstore.extraction.teachers.fields import describe_field
from featstore.extraction.teachers.open_clip_teacher import OpenClipTower
from featstore.extraction.teachers.timm_teacher import TimmTower
from featstore.format.manifest_records import PreprocessingRecord, TeacherRecord
from tests.conftest import ROOT, TINY_ARGS
from tests.featstore.stores import RULE

CPU = torch.device("cpu")


def build(config: TeacherConfig, fields: Sequence[str] = ("cls",), **options: Any) -> Teacher:
    """Build a teacher in fp32 for float32 fields."""
    settings = {"dtype": "float32", "precision": "fp32", "device": CPU, **options}
    return build_teacher(config, fields=fields, **settings)


@pytest.fixture
def config(teacher_file: Path) -> TeacherConfig:
    """The tiny ViT."""
    return TeacherConfig(
        name="vit_tiny_patch16_224",
        weights=str(teacher_file),
        image_size=32,
        model_args=TINY_ARGS,
    )


def images(count: int = 3, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def wrap(tower: Tower, fields: Sequence[str], size: int = 32) -> Teacher:
    """A teacher around a tower that no library published."""
    return Teacher(
        tower,
        record=TeacherRecord(library="timm", name="x", weights_sha256="0" * 64, precision="fp32"),
        preprocessing=PreprocessingRecord.model_validate(
            {**RULE.model_dump(), "size": (size, size)}
        ),
        fields=fields,
        dtype="float16",
        device=CPU,
    )


# --- weights -------------------------------------------------------------------------------------------------------


def test_the_hash_is_of_the_weights_not_of_the_file(
    config: TeacherConfig, teacher_file: Path, tmp_path: Path
) -> None:
    """safetensors, a PyTorch file, one with the dict under "state_dict": the same teacher; one bit makes another."""
    state = load_file(teacher_file)
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "nested.pth")
    expected = build(config)
    for name in ("plain.pt", "nested.pth"):
        found = build(dataclasses.replace(config, weights=str(tmp_path / name)))
        assert found.record.weights_sha256 == expected.record.weights_sha256
        torch.testing.assert_close(
            found.features(images())["cls"], expected.features(images())["cls"], rtol=0, atol=0
        )
    state["norm.bias"][0] += 1e-6
    save_file(state, tmp_path / "changed.safetensors")
    changed = build(dataclasses.replace(config, weights=str(tmp_path / "changed.safetensors")))
    assert changed.record.weights_sha256 != expected.record.weights_sha256


def test_confidence_and_class_are_one_number_each() -> None:
    """Of the softmax over all logits; a class is an integer whatever the stored type, and int8 leaves both alone."""
    logits = torch.tensor([[0.0, 2.0, -1.0], [9.0, 1.0, 1.0]])
    parts = {"logits": logits}
    torch.testing.assert_close(select_field("confidence", parts), logits.softmax(1).amax(1))
    assert select_field("argmax", parts).tolist() == [1, 0]
    records = [describe_field(name, (), "float16") for name in ("confidence", "argmax")]
    assert [(record.shape, record.dtype) for record in records] == [((), "float16"), ((), "int32")]
    with pytest.raises(TeacherError, match="confidence"):
        select_field("confidence", {"cls": logits})


def test_the_hash_is_that_of_the_docs() -> None:
    """Golden: SHA-256 over key, zero byte, dtype and shape, zero byte, little-endian bytes (docs/format.md)."""
    module = nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0]]))
        module.bias.copy_(torch.tensor([0.5]))
    text = (
        b"bias\0torch.float32 (1,)\0" + b"\x00\x00\x00\x3f"
        b"weight\0torch.float32 (1, 2)\0" + b"\x00\x00\x80\x3f\x00\x00\x00\x40"
    )
    assert state_sha256(module) == hashlib.sha256(text).hexdigest()


def test_pickled_objects_are_refused(config: TeacherConfig, tmp_path: Path) -> None:
    """Never pickle: a file that would run code is refused, and does not run it."""
    target = tmp_path / "touched"

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (target,))

    torch.save({"norm.weight": torch.ones(16), "extra": Bomb()}, tmp_path / "bomb.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pt", "raw.pt"):
        with pytest.raises(TeacherError):
            build(dataclasses.replace(config, weights=str(tmp_path / name)))
    assert not target.exists()


def test_files_that_hold_no_state_dict(config: TeacherConfig, tmp_path: Path) -> None:
    """Garbage, an empty file, tensors without names: one sentence with the path."""
    (tmp_path / "garbage.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"a": 3}, tmp_path / "numbers.pt")
    torch.save({}, tmp_path / "nothing.pt")
    for name in ("garbage.safetensors", "empty.pt"):
        with pytest.raises(TeacherError, match=f"{name}"):
            build(dataclasses.replace(config, weights=str(tmp_path / name)))
    for name in ("numbers.pt", "nothing.pt"):
        with pytest.raises(TeacherError, match=f"{name}"):
            build(dataclasses.replace(config, weights=str(tmp_path / name)))
    with pytest.raises(TeacherError, match=r"--teacher.weights.*/missing.pt"):
        build(dataclasses.replace(config, weights=str(tmp_path / "missing.pt")))


def test_weights_that_do_not_fit(config: TeacherConfig, teacher_file: Path, tmp_path: Path) -> None:
    """Missing keys, unknown keys and other shapes are all named; nothing is loaded in part."""
    state = load_file(teacher_file)
    del state["norm.weight"]
    state["surplus"] = torch.ones(1)
    save_file(state, tmp_path / "keys.safetensors")
    with pytest.raises(
        TeacherError,
        match=r"vit_tiny_patch16_224.*norm.weight",
    ):
        build(dataclasses.replace(config, weights=str(tmp_path / "keys.safetensors")))
    wider = dataclasses.replace(config, model_args={**TINY_ARGS, "embed_dim": 32})
    with pytest.raises(TeacherError, match=r"\b16\b.*\b32\b"):
        build(wider)
    with pytest.raises(TeacherError, match=r"model_args.*no_such_argument"):
        build(dataclasses.replace(config, model_args={"no_such_argument": 1}))


def test_position_embeddings_are_resampled(config: TeacherConfig) -> None:
    """Weights trained at 32 px serve a teacher at 48 px, as with timm's own checkpoints."""
    larger = build(dataclasses.replace(config, image_size=48), ["grid3"])
    assert larger.fields["grid3"].shape == (3, 3, 16)


def test_a_classifier_is_kept(tmp_path: Path) -> None:
    """Weights with a head of any number of classes give logits; weights without one give none."""
    args = {**TINY_ARGS, "num_classes": 7}
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, **args)
    save_file(model.state_dict(), tmp_path / "head.safetensors")
    config = TeacherConfig(
        name="vit_tiny_patch16_224",
        weights=str(tmp_path / "head.safetensors"),
        image_size=32,
        model_args={key: value for key, value in TINY_ARGS.items() if key != "num_classes"},
    )
    teacher = build(config, ["logits", "pooled"])
    assert teacher.fields["logits"].shape == (7,)
    assert teacher.fields["logits"].dims == ("class",)


# --- names, tags, the hub ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "vit_tinny_patch16_224"},
            "vit_tiny_patch16_224",
        ),
        (
            {"name": "vit_tiny_patch16_224.no_tag"},
            "vit_tiny_patch16_224",
        ),
        (
            {"name": "botnet50ts_256"},
            r"--teacher.weights",
        ),
        (
            {"library": "open_clip", "name": "ViT-B-33"},
            r"open_clip.*ViT-B-32",
        ),
        (
            {"library": "open_clip", "name": "ViT-B-32", "tag": "no_tag"},
            r"--teacher.tag no_tag.*ViT-B-32",
        ),
        (
            {"library": "open_clip", "name": "ViT-B-32"},
            r"--teacher.tag.*--teacher.weights",
        ),
    ],
)
def test_names_and_tags(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    """A wrong name or tag is told with what is near or there, before anything is fetched."""
    offline(monkeypatch)
    with pytest.raises(TeacherError, match=message):
        build(TeacherConfig(**changes))


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every way to the hub fail at once, as it does without a network."""

    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr("timm.models._builder.load_pretrained", unreachable)
    monkeypatch.setattr("open_clip.factory.download_pretrained", unreachable)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"name": "test_vit.r160_in1k"}, "timm/test_vit.r160_in1k"),
        ({"library": "open_clip", "name": "tiny-clip", "tag": "some"}, "tiny-clip"),
    ],
)
@pytest.mark.slow
def test_an_unreachable_hub(
    monkeypatch: pytest.MonkeyPatch, tiny_clip: str, changes: dict[str, Any], place: str
) -> None:
    """No network: which weights were looked for, where, and how to go on without; not the HTTP library's traceback."""
    offline(monkeypatch)
    monkeypatch.setattr(
        open_clip, "get_pretrained_cfg", lambda name, tag: {"hf_hub": "somewhere/tiny-clip/"}
    )
    monkeypatch.setattr(
        "open_clip.factory.get_pretrained_cfg", lambda name, tag: {"hf_hub": "somewhere/tiny-clip/"}
    )
    with pytest.raises(TeacherError) as caught:
        build(TeacherConfig(**changes))
    message = str(caught.value)
    assert "its weights could not be loaded (" in message
    assert "[Errno -3] Temporary failure" in message
    assert place in message
    assert "pass --teacher.weights PATH" in message


# --- fields --------------------------------------------------------------------------------------------------------


def test_fields_of_a_vit(config: TeacherConfig) -> None:
    """Names, shapes and axes of everything a ViT can give, and that they are what timm gives."""
    names = ["cls", "mean", "pooled", "tokens", "grid1", "grid2"]
    teacher = build(config, names, dtype="float16")
    assert {name: (spec.shape, spec.dims) for name, spec in teacher.fields.items()} == {
        "cls": ((16,), ("channel",)),
        "mean": ((16,), ("channel",)),
        "pooled": ((16,), ("channel",)),
        "tokens": ((5, 16), ("token", "channel")),
        "grid1": ((1, 1, 16), ("y", "x", "channel")),
        "grid2": ((2, 2, 16), ("y", "x", "channel")),
    }
    assert {spec.dtype for spec in teacher.fields.values()} == {"float16"}
    model: Any = timm.create_model("vit_tiny_patch16_224", img_size=32, **TINY_ARGS).eval()
    model.load_state_dict(load_file(config.weights))
    with torch.inference_mode():
        tokens = model.forward_features((images().float() / 255 - 0.5) / 0.5)
    out = teacher.features(images())
    torch.testing.assert_close(out["tokens"], tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(out["cls"], tokens[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(out["mean"], tokens[:, 1:].mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(out["grid2"], tokens[:, 1:].reshape(3, 2, 2, 16), rtol=0, atol=1e-6)


def test_fields_of_a_vit_with_registers() -> None:
    """Register tokens are no patches: they are left out of grids and means, and are in ``tokens``."""
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, **TINY_ARGS, reg_tokens=3, no_embed_class=True
    )
    teacher = wrap(TimmTower(model), ["cls", "mean", "tokens", "grid2"])
    out = teacher.features(images())
    assert out["tokens"].shape == (3, 1 + 3 + 4, 16)
    torch.testing.assert_close(out["cls"], out["tokens"][:, 0])
    torch.testing.assert_close(out["mean"], out["tokens"][:, 4:].mean(1))
    torch.testing.assert_close(out["grid2"].flatten(1, 2), out["tokens"][:, 4:])


def test_fields_of_a_cnn() -> None:
    """A CNN's map (channels first) becomes rows, columns, channels; it has no class token."""
    model: Any = timm.create_model("test_resnet", num_classes=4).eval()
    teacher = wrap(TimmTower(model), ["mean", "pooled", "grid2", "tokens", "logits"], size=64)
    out = teacher.features(images(size=64))
    with torch.inference_mode():
        features = model.forward_features((images(size=64).float() / 255 - 0.5) / 0.5)
    assert features.shape[2:] == (2, 2)
    torch.testing.assert_close(out["grid2"], features.permute(0, 2, 3, 1))
    torch.testing.assert_close(out["mean"], features.mean(dim=(2, 3)))
    torch.testing.assert_close(out["pooled"], features.mean(dim=(2, 3)))
    torch.testing.assert_close(out["tokens"][:, 1], features[:, :, 0, 1])
    assert out["logits"].shape == (3, 4)
    with pytest.raises(TeacherError, match="'cls'"):
        wrap(TimmTower(model), ["cls"], size=64)


def test_fields_of_a_swin() -> None:
    """A map that timm gives with channels last is not turned around."""
    model: Any = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=2,
        embed_dim=8,
        depths=(1, 1),
        num_heads=(1, 1),
        num_classes=0,
    ).eval()
    teacher = wrap(TimmTower(model), ["grid4", "mean"])
    with torch.inference_mode():
        features = model.forward_features((images().float() / 255 - 0.5) / 0.5)
    assert features.shape == (3, 4, 4, 16)
    torch.testing.assert_close(teacher.features(images())["grid4"], features)


@pytest.mark.parametrize(("grid", "side"), [(4, 2), (4, 3), (5, 2), (7, 7), (6, 1)])
def test_grids_are_means_of_cells(grid: int, side: int) -> None:
    """gridK averages the patches of each cell; cells of a K that does not divide the grid overlap."""
    parts = {"map": torch.randn(2, grid, grid, 3, generator=torch.Generator().manual_seed(0))}
    out = select_field(f"grid{side}", parts)
    for y in range(side):
        for x in range(side):
            rows = slice(y * grid // side, -(-(y + 1) * grid // side))
            columns = slice(x * grid // side, -(-(x + 1) * grid // side))
            cell = parts["map"][:, rows, columns].mean(dim=(1, 2))
            torch.testing.assert_close(out[:, y, x], cell)


@pytest.mark.parametrize("name", ["grid9", "grid0", "grid", "map", "projected", "", "cls2"])
def test_fields_that_are_not_there(config: TeacherConfig, name: str) -> None:
    """Asking for a field this teacher lacks is found when it is built, and the message lists what it has."""
    with pytest.raises(
        TeacherError,
        match=rf"{name}.*(cls|2 x 2)",
    ):
        build(config, [name])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Eval mode: with batch statistics a BatchNorm model's features would change with the rest of the batch."""
    model: Any = timm.create_model("test_resnet", num_classes=0)
    # Running statistics as after some training, so that the two modes differ.
    model.train()
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    teacher = wrap(TimmTower(model), ["pooled"], size=64)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    batch = images(4, 64)
    alone = teacher.features(batch[:1])["pooled"]
    other = torch.cat([batch[:1], 255 - batch[1:]])
    # 1e-5: another batch size may sum in another order; a batch statistic would change the first digit.
    torch.testing.assert_close(teacher.features(batch)["pooled"][:1], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(teacher.features(other)["pooled"][:1], alone, rtol=1e-5, atol=1e-5)


def test_features_carry_no_gradient_and_change_no_input(config: TeacherConfig) -> None:
    """A frozen teacher: no graph is kept, and the batch is not normalised in place."""
    batch = images()
    before = batch.clone()
    out = build(config).features(batch)["cls"]
    assert not out.requires_grad
    assert torch.equal(batch, before)


def test_precision_is_that_of_the_forward_pass(config: TeacherConfig) -> None:
    """bf16 differs from fp32 by its rounding, and is not what ``auto`` takes where it is emulated."""
    exact = build(config).features(images())["cls"]
    rounded = build(config, precision="bf16").features(images())["cls"]
    assert not torch.equal(exact, rounded)
    # bf16 keeps 8 bits: 2**-8 relative, a few roundings in a row.
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)
    assert best_precision(CPU) in ("fp32", "bf16")
    assert best_precision(torch.device("meta")) == "fp32"


def test_preprocessing_is_the_models_own_unless_stated(config: TeacherConfig) -> None:
    """Empty settings keep what timm states for the model; stated ones replace it."""
    own = build(config).preprocessing
    assert (own.size, own.crop_pct, own.crop_mode, own.interpolation) == (
        (32, 32),
        0.9,
        "center",
        "bicubic",
    )
    stated = build(
        dataclasses.replace(config, crop_pct=1.0, mean=[0.1, 0.2, 0.3], interpolation="bilinear")
    ).preprocessing
    assert (stated.crop_pct, stated.mean, stated.interpolation) == (
        1.0,
        (0.1, 0.2, 0.3),
        "bilinear",
    )
    assert stated.std == own.std


# --- open_clip -----------------------------------------------------------------------------------------------------

CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture
def tiny_clip(tmp_path: Path) -> str:
    """Name of an open_clip model with a ViT of one block."""
    (tmp_path / "tiny-clip.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    return "tiny-clip"


def test_an_open_clip_vit(tiny_clip: str, tmp_path: Path) -> None:
    """``projected`` is model.encode_image; cls, grid and tokens are those before the projection."""
    torch.manual_seed(0)
    model: Any = open_clip.create_model(tiny_clip).eval()
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    config = TeacherConfig(library="open_clip", name=tiny_clip, weights=str(tmp_path / "clip.pt"))
    names = ["cls", "mean", "pooled", "tokens", "grid2", "projected"]
    teacher = build(config, names)
    out = teacher.features(images())
    assert {name: value.shape[1:] for name, value in out.items()} == {
        "cls": (64,),
        "mean": (64,),
        "pooled": (64,),
        "tokens": (5, 64),
        "grid2": (2, 2, 64),
        "projected": (12,),
    }
    rule = teacher.preprocessing
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (rule.mean, rule.std))
    with torch.inference_mode():
        expected = model.encode_image((images().float() / 255 - mean) / std)
    torch.testing.assert_close(out["projected"], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(out["cls"], out["tokens"][:, 0])
    torch.testing.assert_close(out["grid2"].flatten(1, 2), out["tokens"][:, 1:])
    assert rule.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert (rule.crop_pct, rule.crop_mode, rule.interpolation) == (1.0, "center", "bicubic")


def test_open_clip_weights_that_do_not_fit(tiny_clip: str, teacher_file: Path) -> None:
    """Weights of another model: our sentence, with the path."""
    config = TeacherConfig(library="open_clip", name=tiny_clip, weights=str(teacher_file))
    with pytest.raises(TeacherError, match=r"tiny.safetensors"):
        build(config)


def test_an_open_clip_tower_that_pools_by_average() -> None:
    """Without a class token at the output there is no ``cls``; the pooled feature is there."""
    visual = VisionTransformer(
        image_size=32,
        patch_size=16,
        width=32,
        layers=1,
        heads=2,
        mlp_ratio=2.0,
        pool_type="avg",
        output_dim=8,
    ).eval()
    pixels = (images().float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        expected = visual(pixels)
    teacher = wrap(OpenClipTower(visual), ["pooled", "projected", "grid2"])
    torch.testing.assert_close(teacher.features(images())["projected"], expected)
    with pytest.raises(TeacherError, match="'cls'"):
        wrap(OpenClipTower(visual), ["cls"])


def test_an_open_clip_tower_around_timm() -> None:
    """SigLIP and its kind: a timm trunk inside open_clip gives the trunk's fields and the projection."""
    from open_clip.timm_model import TimmModel

    visual: Any = TimmModel(
        "test_vit", embed_dim=8, image_size=160, pool="", proj="linear", pretrained=False
    ).eval()
    pixels = (images(size=160).float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        expected = visual(pixels)
        tokens = visual.trunk.forward_features(pixels)
    out = wrap(OpenClipTower(visual), ["projected", "cls", "grid10"], 160).features(
        images(size=160)
    )
    torch.testing.assert_close(out["projected"], expected)
    torch.testing.assert_close(out["cls"], tokens[:, 0])
    torch.testing.assert_close(out["grid10"].flatten(1, 2), tokens[:, -100:])


# --- real weights --------------------------------------------------------------------------------------------------

SHARED = ROOT / ".." / "shared" / "data"


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not on this machine")
def test_real_photos_through_real_weights(tmp_path: Path) -> None:
    """16 Caltech photos through ViT-Ti: the stored class tokens are timm's own pipeline's (cosine above 0.999).

    The pictures differ by rounding only (test_views.py), and float16 keeps 11 bits.
    """
    import io

    import numpy as np
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    from featstore import FeatureStore
    from featstore.extraction.config import ExtractConfig, StoreConfig
    from featstore.sources.config import SourceConfig
    from tests.featstore.formula import run

    with np.load(SHARED / "images/caltech101_160.npz", allow_pickle=False) as archive:
        data, offsets = archive["data"], archive["off"]
    chosen = np.linspace(0, len(offsets) - 2, 16).astype(int)
    photos = [data[offsets[i] : offsets[i + 1]].tobytes() for i in chosen]
    for number, photo in enumerate(photos):
        (tmp_path / f"{number:02d}.jpg").write_bytes(photo)
    weights = SHARED / "weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    config = ExtractConfig(
        source=SourceConfig(kind="folder", path=str(tmp_path)),
        teacher=TeacherConfig(
            name="vit_tiny_patch16_224.augreg_in21k_ft_in1k", weights=str(weights), precision="fp32"
        ),
        store=StoreConfig(path=str(tmp_path / "s"), fields=["cls", "logits"]),
        batch_size=8,
        workers=0,
    )
    run(config, build(config.teacher, config.store.fields, dtype="float16"))  # type: ignore[arg-type]
    store = FeatureStore.open(tmp_path / "s")

    model: Any = timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k").eval()
    model.load_state_dict(load_file(weights))
    transform = create_transform(**resolve_model_data_config(model))
    batch = torch.stack(
        [transform(Image.open(io.BytesIO(photo)).convert("RGB")) for photo in photos]
    )
    with torch.inference_mode():
        features = model.forward_features(batch)
        expected = {"cls": features[:, 0], "logits": model.forward_head(features)}
    for name, values in expected.items():
        found = torch.from_numpy(store.gather(name, range(16))[:, 0]).float()
        cosine = torch.nn.functional.cosine_similarity(found, values)
        assert cosine.min() > 0.999, name
