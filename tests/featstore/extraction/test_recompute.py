"""Features that a teacher did not give are found, whatever checksums say; those that it gave pass, in every type."""

import dataclasses
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from featstore import FeatureStore
from featstore.cli.main import main
from featstore.errors import (
    ConfigError,
    FeatstoreError,
    ManifestMismatch,
    MissingSamples,
    TeacherError,
)
from featstore.extraction import shards as extract
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig, ViewsConfig
from featstore.extraction.new_manifest import design_store, forward_dtype
from featstore.extraction.recompute import INT8_MOST, FieldComparison, recompute, tolerance
from featstore.extraction.teachers import build_teacher
from featstore.format.manifest_records import Int8Encoding, TopKEncoding
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from tests.conftest import TINY_ARGS
from tests.featstore.hostile import edit_manifest, rewrite
from tests.images import picture

FIELDS = ["cls", "mean", "grid2", "logits_top3"]


def extract_store(
    path: Path, images: Path, weights: Path, *, dtype: Any = "float16", precision: Any = "fp32"
) -> Path:
    """Extract with the tiny ViT: two views, shards of 8 rows."""
    teacher = TeacherConfig(
        name="vit_tiny_patch16_224",
        weights=str(weights),
        model_args={**TINY_ARGS, "num_classes": 5},
        image_size=32,
        precision=precision,
    )
    return extract_with(teacher, path, images, FIELDS, dtype=dtype)


def extract_with(
    named: TeacherConfig, path: Path, images: Path, fields: list[str], *, dtype: Any = "float16"
) -> Path:
    """Extract with any teacher."""
    config = ExtractConfig(
        source=SourceConfig(kind="folder", path=str(images)),
        teacher=named,
        views=ViewsConfig(seeded=1),
        store=StoreConfig(path=str(path), fields=fields, shard_rows=8, dtype=dtype),
        batch_size=4,
        workers=0,
    )
    precision: Any = "fp32" if named.precision == "auto" else named.precision
    teacher = build_teacher(
        config.teacher,
        fields=fields,
        dtype=forward_dtype(config),
        precision=precision,
        device=torch.device("cpu"),
    )
    source = open_source(config.source)
    made = design_store(config, source=source, teacher=teacher)
    extract.run(
        config,
        manifest=made.manifest,
        source=source,
        teacher=teacher,
        accelerator=Accelerator(),
        artefacts=made.artefacts,
    )
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the tiny ViT, with a head of five classes."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, **{**TINY_ARGS, "num_classes": 5}
        )
        # timm begins with zeros.
        torch.nn.init.normal_(model.head.weight)  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def sound(image_folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 26 pictures in float16."""
    return extract_store(tmp_path_factory.mktemp("sound") / "s", image_folder, weights)


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    """A copy that may be tampered with."""
    return shutil.copytree(sound, tmp_path / "s")


def source_of(folder: Path) -> SourceConfig:
    """The reader's own copy."""
    return SourceConfig(kind="folder", path=str(folder), labels_from="none")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_a_teachers_features_pass(
    image_folder: Path, weights: Path, tmp_path: Path, dtype: Any
) -> None:
    """In every stored type, within a tolerance that fits it; the error is that of rounding, not zero."""
    path = extract_store(tmp_path / "s", image_folder, weights, dtype=dtype)
    seen: list[tuple[int, int]] = []
    found = recompute(
        path,
        source=source_of(image_folder),
        rows=20,
        weights={"": str(weights)},
        progress=lambda *state: seen.append(state),
    )
    assert found.sound
    assert (found.rows, found.in_source, found.valid) == (20, 26, 26)
    assert (found.other_content, found.unusable, found.skipped) == ([], [], {})
    assert [item.field for item in found.fields] == sorted(FIELDS)
    assert seen[-1] == (20, 20)
    for item in found.fields:
        assert item.rows == 20
        assert item.relative_l2 <= item.tolerance
        assert item.cosine > 0.99
        if dtype != "float32" and item.field != "logits_top3":
            assert item.relative_l2 > 1e-5
            assert item.max_abs > 0


def test_half_precision_passes(image_folder: Path, weights: Path, tmp_path: Path) -> None:
    """A forward pass in bf16 depends on the batch; the tolerance leaves room for it, and it is run in bf16 again."""
    path = extract_store(tmp_path / "s", image_folder, weights, precision="bf16")
    found = recompute(
        path, source=source_of(image_folder), rows=26, weights={"": str(weights)}, seed=3
    )
    assert found.sound
    assert all(item.relative_l2 < 0.5 * item.tolerance for item in found.fields)


def scale_row(path: Path, field: str, row: int, factor: float) -> None:
    """Change one row of a field, with its checksum: what somebody would do who means it."""
    name = f"fields/{field}/c/{row // 8}/0/0"
    data = bytearray((path / name).read_bytes())
    width = len(FeatureStore.open(path).gather(field, [row]).reshape(-1))
    values = np.frombuffer(data, dtype="<f2", count=8 * width if row < 24 else 2 * width)
    values.reshape(-1, width)[row % 8] *= np.float16(factor)
    rewrite(path, name, bytes(data), row // 8)


def test_a_tampered_row_is_caught(store: Path, image_folder: Path, weights: Path) -> None:
    """One row of 26, in one field, by two per cent: ``verify`` finds every checksum right, the teacher does not."""
    assert main(["verify", str(store)]) == 0
    scale_row(store, "cls", 11, 1.02)
    assert main(["verify", str(store)]) == 0
    found = recompute(store, source=source_of(image_folder), rows=26, weights={"": str(weights)})
    assert not found.sound
    wrong = [item for item in found.fields if not item.sound]
    assert [item.field for item in wrong] == ["cls"]
    assert wrong[0].worst == FeatureStore.open(store).sample_ids[11]
    assert wrong[0].relative_l2 == pytest.approx(0.02, rel=0.1)


def test_swapped_classes_are_caught(store: Path, image_folder: Path, weights: Path) -> None:
    """The values of the largest logits are right, and the classes are not."""
    name = "fields/logits_top3/indices/c/0/0/0"
    data = bytearray((store / name).read_bytes())
    values = np.frombuffer(data, dtype="<u2", count=8 * 2 * 3)
    values[:2] = values[1::-1].copy()
    rewrite(store, name, bytes(data))
    found = recompute(store, source=source_of(image_folder), rows=26, weights={"": str(weights)})
    assert [item.field for item in found.fields if not item.sound] == ["logits_top3"]


def test_the_draw_is_seeded(sound: Path, image_folder: Path, weights: Path) -> None:
    """Another seed looks at other rows; the same one at the same."""

    def worst(seed: int) -> list[str]:
        found = recompute(
            sound,
            source=source_of(image_folder),
            rows=3,
            seed=seed,
            weights={"": str(weights)},
        )
        assert found.rows == 3
        return [item.worst for item in found.fields]

    assert worst(1) == worst(1)
    assert len({tuple(worst(seed)) for seed in range(4)}) > 1


@pytest.fixture
def pictures(image_folder: Path, tmp_path: Path) -> Path:
    """A copy of the source that may be changed."""
    return shutil.copytree(image_folder, tmp_path / "pictures")


def test_other_images_are_named(sound: Path, pictures: Path, weights: Path) -> None:
    """Another content under a known id is named, and not run; so is an image that cannot be decoded here."""
    (pictures / "cat/02.png").write_bytes(picture(999))
    (pictures / "dog/01.png").unlink()
    (pictures / "dog/01.png").symlink_to("nowhere.png")
    found = recompute(sound, source=source_of(pictures), rows=26, weights={"": str(weights)})
    assert found.other_content == ["cat/02.png"]
    assert len(found.unusable) == 1
    assert found.unusable[0].startswith("dog/01.png (cannot be read: ")
    assert found.rows == 24
    assert not found.sound
    assert all(item.sound for item in found.fields)


def test_a_part_of_the_source_is_enough(sound: Path, pictures: Path, weights: Path) -> None:
    """Rows are drawn among those whose images are there, and it is said how many those are."""
    shutil.rmtree(pictures / "dog")
    (pictures / "cat/extra.png").write_bytes(picture(5))
    found = recompute(sound, source=source_of(pictures), rows=100, weights={"": str(weights)})
    assert found.sound
    assert (found.rows, found.in_source, found.valid) == (13, 13, 26)
    (pictures / "new").mkdir()
    (pictures / "cat/extra.png").rename(pictures / "new/extra.png")
    shutil.rmtree(pictures / "cat")
    with pytest.raises(MissingSamples, match=r"\b26\b"):
        recompute(sound, source=source_of(pictures), rows=1, weights={"": str(weights)})


def test_other_weights_are_refused(
    sound: Path, image_folder: Path, weights: Path, tmp_path: Path
) -> None:
    """A model that is not the one the manifest names proves nothing, and both hashes are said."""
    state = load_file(weights)
    state["cls_token"] += 1
    save_file(state, tmp_path / "other.safetensors")
    stated = FeatureStore.open(sound).manifest.teachers["teacher"].weights_sha256
    with pytest.raises(ManifestMismatch, match=stated):
        recompute(
            sound,
            source=source_of(image_folder),
            rows=1,
            weights={"": str(tmp_path / "other.safetensors")},
        )
    with pytest.raises(TeacherError, match="--weights"):
        recompute(sound, source=source_of(image_folder), rows=1, weights={"": "nowhere"})
    with pytest.raises(ConfigError):
        recompute(sound, source=source_of(image_folder), rows=1, weights={"clip": str(weights)})


def in_teacher(**changes: Any) -> Callable[[dict[str, Any]], object]:
    """Change the manifest's teacher."""
    return lambda values: values["teachers"]["teacher"].update(changes)


def in_arguments(**changes: Any) -> Callable[[dict[str, Any]], object]:
    """Change the arguments that the model is made with."""
    return lambda values: values["teachers"]["teacher"]["model_args"].update(changes)


def in_preprocessing(**changes: Any) -> Callable[[dict[str, Any]], object]:
    """Change what is done to a picture."""
    return lambda values: values["teachers"]["teacher"]["preprocessing"].update(changes)


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a file of weights": in_arguments(checkpoint_path="/tmp/weights.pt"),
    "a file in a dictionary": in_arguments(pretrained_cfg={"file": "/tmp/weights.pt"}),
    "an address": in_arguments(pretrained_cfg_overlay={"url": "https://example.org/x"}),
    "a folder to write to": in_arguments(cache_dir="/tmp/x"),
    "a path under any name": in_arguments(act_layer="../../x"),
    "a model of a hub": in_teacher(name="hf-hub:somebody/model"),
    "a model of a folder": in_teacher(library="open_clip", name="local-dir:/tmp/x"),
    "a tag that is a path": in_teacher(library="open_clip", name="ViT-B-32", tag="/tmp/x.pt"),
    "huge inputs": in_preprocessing(size=[2**40, 2**40]),
    "a huge model": in_arguments(embed_dim=2**40),
    "an argument of no model": in_arguments(nothing=1),
    "an unknown model": in_teacher(name="no_such_model"),
    "another crop": in_preprocessing(crop_pct=0.5),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_manifest_loads_nothing(
    store: Path,
    image_folder: Path,
    weights: Path,
    change: Callable[[dict[str, Any]], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Names and arguments of a manifest lead to no file, folder or address; impossible ones are errors in words."""
    monkeypatch.setattr("socket.socket", lambda *_, **__: pytest.fail("a socket"))
    edit_manifest(store, change)
    try:
        found = recompute(store, source=source_of(image_folder), rows=4, weights={"": str(weights)})
    except FeatstoreError:
        return
    assert not found.sound


def test_fields_that_cannot_be_computed_are_said(
    store: Path, image_folder: Path, weights: Path
) -> None:
    """By name and reason; a store that has no others is an error."""

    def rename(values: dict[str, Any]) -> None:
        values["fields"]["teacher_mean"] = values["fields"].pop("mean")
        values["fields"]["cls"]["teacher"] = ""
        values["fields"]["my_own"] = values["fields"].pop("grid2")

    shutil.move(store / "fields/mean", store / "fields/teacher_mean")
    shutil.move(store / "fields/grid2", store / "fields/my_own")
    edit_manifest(store, rename)
    for entry in sorted((store / "ledger").glob("[0-9]*.json")):
        text = entry.read_text().replace("fields/mean/", "fields/teacher_mean/")
        start = text.index('"file_crc32c"')
        text = text[:start] + text[text.index("\n", start) + 1 :]
        entry.write_text(text.replace("fields/grid2/", "fields/my_own/"))
    found = recompute(store, source=source_of(image_folder), rows=4, weights={"": str(weights)})
    assert found.sound
    assert [item.field for item in found.fields] == ["logits_top3", "teacher_mean"]
    assert found.skipped == {
        "cls": "no teacher made it",
        "my_own": "not a field that teachers give under this name",
    }
    edit_manifest(store, in_teacher(library="transformers"))
    with pytest.raises(TeacherError):
        recompute(store, source=source_of(image_folder), rows=4)


def finished_run(folder: Path) -> TeacherConfig:
    """A student of phase two, with what it learnt from."""
    import timm

    folder.mkdir()
    model: Any = timm.create_model("test_resnet", num_classes=5)
    save_file(
        {key: value.clone() for key, value in model.state_dict().items()},
        folder / "student.safetensors",
    )
    region = {
        "size": [224, 224],
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bicubic",
    }
    shown = {"size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "region": region}
    taught = {
        "name": "vit",
        "weights_sha256": "1" * 64,
        "store_fingerprint": "2" * 64,
        "field": "cls",
    }
    described = {
        "architecture": "test_resnet", "num_classes": 5, "model_args": {}, "input": shown, "teachers": [taught],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(described))
    return TeacherConfig(library="run", name=str(folder))


def onnx_model(folder: Path) -> TeacherConfig:
    """A model file with an output of its own name."""
    pytest.importorskip("onnxruntime")
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten()),
            (torch.zeros(1, 3, 32, 32),), str(folder / "m.onnx"),
            input_names=["pixels"], output_names=["embedding"], dynamo=False,
        )  # fmt: skip
    return TeacherConfig(
        library="onnx", name=str(folder / "m.onnx"), mean=[0.5] * 3, std=[0.25] * 3
    )


@pytest.mark.parametrize(("make", "field"), [(finished_run, "pooled"), (onnx_model, "embedding")])
def test_models_that_the_reader_has_are_built_again(
    make: Callable[[Path], TeacherConfig], field: str, image_folder: Path, tmp_path: Path
) -> None:
    """A run or an ONNX file is named by the reader; without it that is said; another one is refused."""
    teacher = make(tmp_path / "mine")
    path = extract_with(teacher, tmp_path / "s", image_folder, [field])
    source = source_of(image_folder)
    found = recompute(path, source=source, rows=4, weights={"": teacher.name})
    assert found.sound
    assert [item.field for item in found.fields] == [field]
    with pytest.raises(TeacherError, match=rf"{field}.*{teacher.library}.*--weights"):
        recompute(path, source=source, rows=4)
    edit_manifest(path, in_teacher(weights_sha256="3" * 64))
    with pytest.raises(ManifestMismatch, match="3" * 64):
        recompute(path, source=source, rows=4, weights={"": teacher.name})
    edit_manifest(path, in_teacher(library="python", name="os:system"))
    with pytest.raises(TeacherError, match=rf"{field}"):
        recompute(path, source=source, rows=4, weights={"": teacher.name})


def test_a_manifest_cannot_excuse_everything(sound: Path) -> None:
    """However large an error an int8 field states, the tolerance has an end."""
    manifest = FeatureStore.open(sound).manifest
    spec, teacher = manifest.fields["cls"], manifest.teachers["teacher"]
    numbers: dict[str, Any] = {"sample_rows": 1, "cosine_mean": 0.0, "cosine_worst": 0.0}
    for stated, allowed in ((0.01, 0.032), (100.0, INT8_MOST + 0.002)):
        encoding = Int8Encoding(scheme="row", relative_l2=stated, **numbers)
        changed = spec.model_copy(update={"encoding": encoding})
        assert tolerance(changed, teacher) == pytest.approx(allowed)
    assert tolerance(spec, teacher) == pytest.approx(0.002 + 2**-11)
    top = spec.model_copy(update={"encoding": TopKEncoding(num_classes=5)})
    assert tolerance(top, teacher) == tolerance(spec, teacher)


def test_comparing_rows() -> None:
    """Values by hand: 3-4-5 triangles; shapes that differ and numbers that are not finite are said."""
    item = FieldComparison("cls", "teacher", tolerance=0.1)
    item.add("a", np.array([[3.0, 4.0]]), np.array([[3.0, 4.0]]))
    assert (item.relative_l2, item.max_abs, item.cosine, item.sound) == (0, 0, 1, True)
    item.add("b", np.array([[3.0, 4.0], [0.0, 5.0]]), np.array([[3.0, 4.0], [3.0, 4.0]]))
    assert item.relative_l2 == pytest.approx(np.sqrt(10) / 5)
    assert item.max_abs == 3
    assert item.cosine == pytest.approx(0.8)
    assert (item.worst, item.rows, item.sound) == ("b", 2, False)
    other = FieldComparison("cls", "teacher", tolerance=0.1)
    other.add("a", np.zeros((1, 3)), np.zeros((1, 4)))
    assert "stored as (1, 3) a row, the teacher gives (1, 4)" in other.problem
    other = FieldComparison("cls", "teacher", tolerance=0.1)
    other.add("a\x1b", np.zeros((1, 3)), np.full((1, 3), np.nan))
    assert other.problem == "a\\x1b: what the teacher gives is not finite"
    zero = FieldComparison("cls", "teacher", tolerance=0.1)
    zero.add("a", np.zeros((1, 3)), np.zeros((1, 3)))
    assert zero.relative_l2 == 0
    zero.add("a", np.ones((1, 3)), np.zeros((1, 3)))
    assert not zero.sound


@pytest.fixture
def command(store: Path, image_folder: Path, weights: Path) -> list[str]:
    """The command line."""
    return [
        *("verify", str(store), "--recompute", "8", "--seed", "5"),
        *("--source.path", str(image_folder), "--weights", str(weights)),
    ]


def test_the_command(command: list[str], store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table with a verdict for each field, the same as JSON, and the exit status."""
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "recompute  8 images; the source has 26 of 26 valid rows" in text
    assert "field        rows  max abs error  relative L2  worst cosine  tolerance  verdict" in text
    assert text.splitlines()[-1] == "verdict    sound, complete"
    for row in range(26):
        scale_row(store, "mean", row, 1.5)
    assert main(command) == 1
    text = capsys.readouterr().out
    assert "DIFFERS    mean: largest in " in text
    assert "; the features are not those of the teacher" in text.splitlines()[-1]
    assert main([*command, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["sound"], said["recomputed"]["sound"]) == (True, False)
    fields = {item["field"]: item for item in said["recomputed"]["fields"]}
    assert {name for name, item in fields.items() if not item["sound"]} == {"mean"}
    assert fields["mean"]["relative_l2"] == pytest.approx(0.5, rel=0.01)


def test_the_command_without_what_it_needs(
    command: list[str],
    store: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No torch, no source of its own kind, no path: a sentence that says what to do."""
    assert main(command[:4]) == 2
    assert "--source.path is missing" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "featstore.extraction.recompute", None)
    assert main(command) == 2
    assert "pip install 'featstore-distill[distill]'" in capsys.readouterr().err
    edit_manifest(store, lambda values: values["source"].update(kind="merged"))
    assert main(command) == 2
    assert "--source.kind folder, tars, hf or digits" in capsys.readouterr().err


def test_results_are_plain_values() -> None:
    """What JSON is made of."""
    item = dataclasses.asdict(FieldComparison("cls", "teacher", tolerance=0.1))
    assert json.loads(json.dumps(item)) == item
