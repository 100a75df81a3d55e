"""The whole way of the embedded default on a part of its digits: extract, distil, export, load every file, refuse."""

import dataclasses
import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from distill import register
from distill.commands.export import run as export_main
from distill.commands.train import run as train
from distill.config import RECIPES, DistillConfig
from distill.export import onnx_model, preprocessing, program
from distill.export.config import ExportConfig
from distill.export.edge import export_run
from distill.export.preprocessing import InputSpec
from distill.training.run_record import read_record, write_record
from featstore.cli.recipe import parse
from featstore.errors import ConfigError, FeatstoreError
from featstore.extraction.config import ExtractConfig
from featstore.format.checksummed_json import seal, unseal
from pipelines import extract

DIGITS = '["train/00*", "train/010*", "test/14[45]*"]'


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of FitNet on 110 of the digits."""
    folder = tmp_path_factory.mktemp("walk")
    store = ["--store.path", str(folder / "store")]
    extract.run(
        parse(
            ExtractConfig,
            default_recipe=extract.DEFAULT_RECIPE,
            argv=[*store, "--source.include", DIGITS, "--workers", "0", "--views.seeded", "0"],
        )
    )
    few = ["--methods", "[fitnet]", "--train.epochs", "1", "--train.warmup_epochs", "0"]
    student = ["--student.name", "test_efficientnet", "--trackers", "[]", "--report", "false"]
    out = ["--out", str(folder / "out"), "--source.include", DIGITS]
    argv = ["--store", store[1], *out, *few, *student]
    train(
        parse(
            DistillConfig, extend=register.kinds, default_recipe=RECIPES / "distill.yaml", argv=argv
        )
    )
    return folder / "out" / "fitnet" / "seed0"


def settings(run_folder: Path, **changes: Any) -> ExportConfig:
    """The recipe of the digits, for this run, with few images."""
    base = parse(
        ExportConfig,
        default_recipe=RECIPES / "export.yaml",
        argv=[
            *("--calibration.images", "32", "--calibration.held_out", "24"),
            *("--calibration.method", "minmax", "--finetune.epochs", "1", "--latency.rounds", "0"),
        ],
    )
    return dataclasses.replace(base, model=str(run_folder), **changes)


@pytest.mark.slow
def test_the_whole_way(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every format loads from its file and answers as the student; the manifest, the vectors and the card hold."""
    found: Any = export_main(settings(run_folder, qat="always"))
    out = run_folder / "export"
    assert found == json.loads((out / "export.json").read_text())
    made = ["safetensors", "onnx", "int8", "program"]
    if importlib.util.find_spec("executorch") is None:
        assert "featstore-distill[executorch]" in found["skipped"]["executorch"]
        assert "skipped   executorch: executorch is not installed" in capsys.readouterr().out
        assert list(found["formats"]) == made
    for name in ("safetensors", "onnx", "program"):
        parity = found["formats"][name]["parity"]
        assert parity["max_abs_difference"] < 1e-3
        assert parity["top1_agreement"] == 1
    for values in found["formats"].values():
        for file in values["files"]:
            data = (out / file["name"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
            assert str(run_folder.parent).encode() not in data

    # As somebody else loads them, from the reference tensor to the reference logits.
    rule = json.loads((out / preprocessing.NAME).read_text())
    fed = np.fromfile(out / rule["reference"]["input"], "<f4").reshape(1, 3, 32, 32)
    expected = rule["reference"]["logits"]
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert model.pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]
    assert [*model.pretrained_cfg["input_size"]] == [3, 32, 32]
    with torch.no_grad():
        ours = model(torch.from_numpy(fed)).numpy()
    np.testing.assert_allclose(ours[0], expected["pytorch"], atol=1e-4)
    for name, file in (("onnx", onnx_model.NAME), ("int8", onnx_model.INT8)):
        session = onnx_model.session(out / file)
        assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
        logits = session.run(["logits"], {"image": np.repeat(fed, 3, axis=0)})[0]
        np.testing.assert_allclose(logits, [expected[name]] * 3, atol=1e-4)
    loaded: Any = torch.export.load(out / program.NAME).module()
    np.testing.assert_allclose(
        loaded(torch.from_numpy(fed)).detach()[0], expected["program"], atol=1e-4
    )

    int8 = found["formats"]["int8"]
    assert int8["files"][0]["bytes"] < 0.6 * found["formats"]["onnx"]["files"][0]["bytes"]
    assert int8["calibration"]["images"] == 32
    assert int8["calibration"]["classes"] == 10
    assert {trial["weights"] for trial in int8["tried"]} == {"int7", "uint8", "int8"}
    assert int8["fine_tuned"]["steps"] > 0
    assert int8["lost_points"] == pytest.approx(100 * (found["pytorch"]["top1"] - int8["top1"]))
    assert (out / "qat" / "fitnet" / "seed0" / "metrics.jsonl").is_file()
    assert not list(out.rglob("checkpoint.pt"))
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".partial")]

    card = (out / "README.md").read_text()
    for text in (
        "library_name: timm", "local-dir:", "model.int8.onnx", "ort.InferenceSession", "apache-2.0", "vit_tiny",
        "Calibration error", "Limitations", "compared with the same weights in float", "variation over seeds is "
        "unknown",
        "Quantisation-aware fine-tuning (1 epoch,",
    ):  # fmt: skip
        assert text in card, text
    assert str(run_folder.parent) not in card


@pytest.mark.slow
def test_normalisation_in_the_graph(run_folder: Path, tmp_path: Path) -> None:
    """A graph that takes bytes answers as the plain one; only what was named is made; the store may be gone."""
    moved = tmp_path / "run"
    shutil.copytree(run_folder, moved, ignore=shutil.ignore_patterns("export"))
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(text.replace("/store\n", "/gone\n"))
    record = read_record(moved)
    assert record is not None
    write_record(moved, record, record["files"])
    baked = {"bake_normalisation": True, "uint8_input": True, "out": str(tmp_path / "e")}
    config = settings(moved, formats=["onnx"], **baked)
    found = export_run(config, say=lambda line: None)
    names = {path.name for path in (tmp_path / "e").iterdir()}
    assert names == {"model.onnx", "export.json", "README.md", "preprocessing.json", "reference"}
    assert found["formats"]["onnx"]["parity"]["max_abs_difference"] < 1e-3
    pixels = np.asarray(Image.open(tmp_path / "e" / preprocessing.CROP)).transpose(2, 0, 1)[None]
    logits = onnx_model.session(tmp_path / "e" / onnx_model.NAME).run(
        ["logits"], {"image": pixels}
    )[0]
    rule = json.loads((tmp_path / "e" / preprocessing.NAME).read_text())
    np.testing.assert_allclose(logits[0], rule["reference"]["logits"]["pytorch"], atol=1e-3)


class Sorts(torch.nn.Module):
    """Has an operator that ONNX has not."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 3)."""
        return torch.linalg.eigvalsh(images[:, :, :3, :3])


@pytest.mark.slow
def test_what_is_refused(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator without a counterpart, keys that do not match, a missing runtime, another store: nothing is left."""
    spec = InputSpec((8, 8), (0.5,) * 3, (0.5,) * 3)
    graph = program.trace(Sorts(), spec)
    with pytest.raises(ConfigError, match=r"eigvalsh|linalg"):
        onnx_model.write_onnx(tmp_path, graph, spec)

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(FeatstoreError, match=message):
            export_run(
                settings(**{"run_folder": broken, "out": str(tmp_path / "e"), **changes}), say=print
            )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]

    broken = tmp_path / "run"
    shutil.copytree(run_folder, broken, ignore=shutil.ignore_patterns("export"))
    monkeypatch.setattr("distill.export.executorch_model.installed", lambda: False)
    refused("executorch is not installed: pip install", formats=["executorch"])
    other = unseal((broken / "config.json").read_bytes())
    text = json.dumps(other)
    other["teachers"][0]["store_fingerprint"] = "0" * 64

    def change(text: str) -> None:
        """Replace config.json, with its checksums."""
        (broken / "config.json").write_bytes(seal(json.loads(text)))
        record = read_record(broken)
        assert record is not None
        write_record(broken, record, record["files"])

    change(json.dumps(other))
    store = str(run_folder.parents[2] / "store")
    refused(
        r"--store: .*store has the fingerprint .*, the student was distilled from 0000", store=store
    )
    change(text.replace("test_efficientnet", "test_convnext"))
    refused(r"--model .*student\.safetensors")
