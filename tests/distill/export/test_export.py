"""Parts of the export: which images calibrate, what a phone is told, fake quantisation, and what is refused."""

import dataclasses
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from distill.config import DistillConfig, StudentConfig, TeacherConfig
from distill.data import joined
from distill.data.samples import Samples, Split
from distill.export import (
    card,
    edge,
    fake_quant,
    finished,
    preprocessing,
    quantise,
    search,
)
from distill.export import images as draws
from distill.export.config import CalibrationConfig, ExportConfig, FinetuneConfig
from distill.export.edge import refuse_other_folder, staged
from distill.export.parity import answers, compare_answers, torch_runner
from distill.export.preprocessing import InputSpec, Normalised
from distill.register import config_of
from distill.student.model import build_student
from distill.training.saved_student import describe_student, store_fingerprints
from featstore import FeatureStore
from featstore.errors import ConfigError, StoreWriteError
from featstore.format.views import ViewSet
from featstore.sources import open_source
from featstore.sources.base import NO_LABEL
from featstore.sources.config import SourceConfig
from featstore.sources.load import ViewRule
from tests.distill.conftest import MakeConfig
from tests.distill.stores import write_store

SPEC = InputSpec((24, 24), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def samples(labels: list[int], folder: Path) -> tuple[Samples, Split]:
    """As many images as labels; the last three are the test part."""
    (folder / "a").mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(folder / "a" / "0.png")
    count, values = len(labels), np.array(labels)
    found = Samples(
        source=open_source(SourceConfig(kind="folder", path=str(folder))),
        positions=np.arange(count),
        rows=np.arange(count),
        ids=[str(number) for number in range(count)],
        stored_ids=[str(number) for number in range(count)],
        hashes=None,
        labels=values,
        class_names=("a", "b", "c"),
        groups={},
        notes=[],
    )
    half = (count - 3) // 2
    return found, Split(np.arange(half), np.arange(half, count - 3), np.arange(count - 3, count))


# --- images of the calibration -------------------------------------------------------------------------------------


def test_calibration_is_balanced_and_apart(tmp_path: Path) -> None:
    """Equally many of every class, none of the test part, none held out too; a seed alone decides."""
    found, part = samples([0] * 30 + [1] * 20 + [2] * 10 + [0, 1, 2], tmp_path)
    config = CalibrationConfig(images=18, held_out=9)
    drawn = draws.draw_images(found, part, config)
    assert np.bincount(found.labels[drawn.calibration]).tolist() == [6, 6, 6]
    assert len(drawn.held_out) == 9
    assert not set(drawn.calibration) & set(drawn.held_out)
    assert not set(part.test) & ({*drawn.calibration} | {*drawn.held_out})
    again = draws.draw_images(found, part, config)
    np.testing.assert_array_equal(drawn.calibration, again.calibration)
    other = draws.draw_images(found, part, dataclasses.replace(config, seed=1))
    assert drawn.calibration.tolist() != other.calibration.tolist()
    assert drawn.notes == []


def test_too_few_images_are_halved(tmp_path: Path) -> None:
    """Half calibrate, half choose, and a note says so."""
    found, part = samples([0, 1, 2] * 4 + [0, 1, 2], tmp_path)
    drawn = draws.draw_images(found, part, CalibrationConfig())
    assert (len(drawn.calibration), len(drawn.held_out)) == (6, 6)
    assert "only 12 training images" in drawn.notes[0]


def test_images_without_labels_calibrate_too(tmp_path: Path) -> None:
    """They count as one more class."""
    found, part = samples([NO_LABEL] * 10 + [0, 1, 2], tmp_path)
    assert len(draws.draw_images(found, part, CalibrationConfig(images=5)).calibration) == 5


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1] * 10 + [0, 1, 2], r"\b10\b.*'b'.*\b3\b"),
        ([0, 0, 1, 2], r"\b1\b"),
    ],
)  # fmt: skip
def test_images_that_cannot_calibrate(tmp_path: Path, labels: list[int], message: str) -> None:
    """One class, or no images: the message says how many there are and what to do."""
    found, part = samples(labels, tmp_path)
    with pytest.raises(ConfigError, match=message):
        draws.draw_images(found, part, CalibrationConfig())


# --- preprocessing -------------------------------------------------------------------------------------------------


def by_the_text(values: dict[str, Any], image: Image.Image) -> np.ndarray[Any, Any]:
    """The input as somebody writes it who has read preprocessing.json and nothing else."""
    steps = {step["step"]: step for step in values["steps"]}
    crop, resize = steps["crop"], steps["resize"]
    w, h = image.size
    out_w, out_h = crop["reference_width"], crop["reference_height"]
    assert out_w == out_h
    s = math.floor(out_h / crop["crop_pct"])
    rw, rh = (s, int(s * h / w)) if w <= h else (int(s * w / h), s)
    rw, rh = max(rw, out_w), max(rh, out_h)
    left, top = round((rw - out_w) / 2) * w / rw, round((rh - out_h) / 2) * h / rh
    box = (left, top, min(left + out_w * w / rw, w), min(top + out_h * h / rh, h))
    method = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    cut = image.resize(
        (resize["width"], resize["height"]), method[resize["interpolation"]], box=box
    )
    pixels = np.asarray(cut, np.float32)
    if "scale" in steps:
        pixels = pixels * np.float32(steps["scale"]["factor"])
    if "normalise" in steps:
        norm = steps["normalise"]
        pixels = (pixels - np.float32(norm["mean"])) / np.float32(norm["std"])
    return pixels.transpose(2, 0, 1)[None].astype(values["input"]["dtype"])


@pytest.mark.parametrize("baked", ["no", "float", "bytes"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_text_leads_to_the_vectors(tmp_path: Path, baked: str, interpolation: Any) -> None:
    """Whoever follows the text gets reference/input.raw from reference/picture.png."""
    spec = dataclasses.replace(SPEC, baked=baked != "no", uint8=baked == "bytes")
    rule = ViewRule(ViewSet(), (40, 40), 0.9, "center", interpolation)
    preprocessing.write_preprocessing(
        tmp_path, spec, rule, label_names=["x", "y"], logits={"onnx": [0.0, 1.0]}
    )
    values = json.loads((tmp_path / preprocessing.NAME).read_text())
    image = Image.open(tmp_path / values["reference"]["picture"]).convert("RGB")
    expected = np.fromfile(
        tmp_path / values["reference"]["input"], "u1" if baked == "bytes" else "<f4"
    ).reshape(1, 3, 24, 24)
    np.testing.assert_allclose(by_the_text(values, image), expected, atol=1e-5)
    crop = np.asarray(Image.open(tmp_path / values["reference"]["crop"]))
    np.testing.assert_allclose(spec.feed(crop.transpose(2, 0, 1)[None]), expected, atol=1e-6)
    assert values["output"]["label_names"] == ["x", "y"]


@pytest.mark.parametrize("uint8", [False, True])
def test_a_baked_graph_normalises(uint8: bool) -> None:
    """The model behind its normalisation, fed what it asks for, answers as the model that is fed normalised values."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 24, 24), dtype=np.uint8)
    plain = torch.from_numpy(np.asarray(SPEC.feed(pixels)))
    baked = dataclasses.replace(SPEC, baked=True, uint8=uint8)
    found = Normalised(nn.Identity(), baked)(torch.from_numpy(np.asarray(baked.feed(pixels))))
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


# --- quantisation --------------------------------------------------------------------------------------------------


def onnx_graph(path: Path) -> Path:
    """Normalisation, convolution, hard-swish, a squeeze-excite block, convolution, swish, pooling, classifier."""
    import onnx

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shapes = {
        "factor": [1, 3, 1, 1], "offset": [1, 3, 1, 1], "w1": [8, 3, 3, 3], "w2": [4, 8, 1, 1], "w3": [8, 4, 1, 1],
        "w4": [8, 8, 3, 3], "w5": [3, 8],
    }  # fmt: skip
    steps = [
        ("Mul", "image factor", "n1"), ("Add", "n1 offset", "n2"), ("Conv", "n2 w1", "c1"), ("HardSwish", "c1", "h"),
        ("GlobalAveragePool", "h", "p1"), ("Conv", "p1 w2", "c2"), ("Relu", "c2", "r"), ("Conv", "r w3", "c3"),
        ("HardSigmoid", "c3", "gate"), ("Mul", "h gate", "m"), ("Conv", "m w4", "c4"), ("Sigmoid", "c4", "s"),
        ("Mul", "c4 s", "swish"), ("GlobalAveragePool", "swish", "p2"), ("Flatten", "p2", "f"),
        ("Gemm", "f w5", "logits"),
    ]  # fmt: skip
    nodes = [
        helper.make_node(op, inputs.split(), [output], name=f"{op}_{output}")
        for op, inputs, output in steps
    ]
    nodes[-1].attribute.append(helper.make_attribute("transB", 1))
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("image", kind, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", kind, ["batch", 3])],
        [
            helper.make_tensor(name, kind, shape, np.ones(shape).ravel())
            for name, shape in shapes.items()
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_blocks_of_a_graph(tmp_path: Path) -> None:
    """First, classifier and squeeze-excite are found; a swish, which is a gate too, is none of them."""
    path = onnx_graph(tmp_path / "model.onnx")

    def found(*blocks: quantise.KeptBlock, baked: bool = False) -> set[str]:
        return set(quantise.excluded_nodes(path, blocks, baked=baked))

    assert found() == set()
    assert found("first") == {"Conv_c1"}
    assert found("classifier") == {"Gemm_logits"}
    assert found(baked=True) == {"Mul_n1", "Add_n2"}
    assert found("squeeze-excite") == {
        "GlobalAveragePool_p1", "Conv_c2", "Relu_r", "Conv_c3", "HardSigmoid_gate", "Mul_m",
    }  # fmt: skip
    assert quantise.has_squeeze_excite(path)


def test_settings_that_are_tried() -> None:
    """Methods first, then other weights for the report; a method that was named is the only one."""
    tried = [str(setting) for setting in search.first_settings(CalibrationConfig())]
    assert tried == [
        "minmax, int7 weights", "percentile, int7 weights", "entropy, int7 weights", "minmax, uint8 weights",
        "minmax, int8 weights",
    ]  # fmt: skip
    one = search.first_settings(CalibrationConfig(method="entropy", weights="int8"))
    assert [setting.method for setting in one] == ["entropy"] * 3


def test_fake_quantisation_is_what_onnx_computes() -> None:
    """QuantizeLinear and DequantizeLinear with the same range give the same numbers; zero stays zero."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    values = torch.linspace(-1.3, 4.2, 999)
    point = fake_quant.FakeQuantise().train()
    found = point(values)
    scale = (point.high - point.low) / 255
    zero = (-point.low / scale).round()
    helper = onnx.helper
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    tensor = onnx.TensorProto
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in (
            ("x", tensor.FLOAT, [999]), ("s", tensor.FLOAT, []), ("z", tensor.UINT8, []))],
        [helper.make_tensor_value_info("y", tensor.FLOAT, [999])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    fed = {"x": values.numpy(), "s": scale.numpy(), "z": zero.numpy().astype(np.uint8)}
    expected = ReferenceEvaluator(model).run(None, fed)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert len(found.unique()) <= 256
    assert float(point.eval()(torch.zeros(1))) == 0
    assert float(point(torch.tensor([100.0]))) == pytest.approx(4.2, abs=0.02)


def test_weights_are_rounded_before_or_after_batch_norm_alike() -> None:
    """A factor per channel commutes with a scale per channel: folding batch norm in later changes nothing."""
    weight, factor = torch.randn(5, 4, 3, 3), torch.tensor([0.1, 2.0, -3.0, 1.0, 0.5])
    rounded = fake_quant.FakeWeight(64)
    torch.testing.assert_close(
        rounded(weight) * factor[:, None, None, None],
        rounded(weight * factor[:, None, None, None]),
    )
    assert len(rounded(weight)[0].unique()) <= 129


def test_a_fake_quantised_student_keeps_its_keys() -> None:
    """It computes something else, trains, keeps its statistics, and gives back plain timm weights."""
    torch.manual_seed(0)
    student = build_student(StudentConfig(name="test_efficientnet", image_size=32), 3)
    before = {key: value.clone() for key, value in student.model.state_dict().items()}
    picture = torch.rand(2, 3, 32, 32)
    plain = student.eval()(picture).logits
    fake_quant.attach(student, levels=64)
    student.train()
    seen = student(picture)
    assert not torch.equal(seen.logits, plain)
    seen.logits.square().sum().backward()
    assert all(item.grad is not None for item in student.model.parameters() if item.requires_grad)
    after = fake_quant.plain_weights(student.model)
    assert after.keys() == before.keys()
    for key, value in after.items():
        torch.testing.assert_close(value, before[key])
    fresh = timm.create_model("test_efficientnet", num_classes=3)
    fresh.load_state_dict(after)
    assert any(key.startswith("fake_quantisers.") for key in student.state_dict())


# --- parity --------------------------------------------------------------------------------------------------------


def test_parity_by_hand() -> None:
    """Largest difference, equal answers, and the divergence of two rows."""
    ours, theirs = np.array([[0.0, 2.0], [1.0, 0.0]]), np.array([[0.0, 2.0], [0.0, 1.0]])
    found = compare_answers(ours.astype(np.float32), theirs.astype(np.float32))
    assert found["max_abs_difference"] == 1
    assert found["top1_agreement"] == 0.5
    p = 1 / (1 + math.exp(-1))
    assert found["kl"] == pytest.approx((2 * p - 1) / 2, rel=1e-5)


def test_answers_are_in_order() -> None:
    """Batches of any size; every runner sees every batch."""
    student = build_student(StudentConfig(name="test_convnext", image_size=32), 3).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    runner = torch_runner(student)
    found = answers([pixels[:3], pixels[3:]], {"a": runner, "b": runner})
    np.testing.assert_allclose(found["a"], runner(pixels), atol=1e-5)
    np.testing.assert_array_equal(found["a"], found["b"])


# --- several teachers ----------------------------------------------------------------------------------------------


def test_all_teachers_are_described(make_config: MakeConfig, images: Path, tmp_path: Path) -> None:
    """A student of two teachers names both, in order; a file of before names the first one."""
    source = open_source(SourceConfig(kind="folder", path=str(images)))
    second = write_store(tmp_path / "second", source, weights="1" * 64)
    config = make_config(teachers=[TeacherConfig(store=str(second.path), weight=0.5)])
    first = FeatureStore.open(config.store)
    data = joined.join_data(source, first, config.data, config.field, teachers=config.teachers)
    student = build_student(config.student, data.samples.num_classes)
    found = describe_student(student, config.student, data, label_names=data.samples.class_names)
    assert store_fingerprints(found) == [first.fingerprint, second.fingerprint] == data.fingerprints
    assert [teacher["weight"] for teacher in found["teachers"]] == [1.0, 0.5]
    assert found["teacher"] == found["teachers"][0]
    del found["teachers"]
    assert store_fingerprints(found) == [first.fingerprint]
    assert store_fingerprints({}) == []


# --- folders and settings ------------------------------------------------------------------------------------------


def test_settings_of_a_run_are_read_back() -> None:
    """Of plain values as YAML gives them, nested ones and lists of them too."""
    config = DistillConfig(teachers=[TeacherConfig(store="x", weight=0.5)], seeds=[3])
    values = json.loads(json.dumps(config.plain()))
    assert config_of(values) == config
    with pytest.raises(ConfigError, match="later"):
        config_of({"later": 1})


def test_folders_that_are_no_finished_run(tmp_path: Path) -> None:
    """Nothing there, and a run that stopped: the message says which."""
    with pytest.raises(ConfigError, match=r"config.yaml"):
        finished.read_finished_run(tmp_path)
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(ConfigError, match=r"run.json"):
        finished.read_finished_run(tmp_path)


def test_an_export_appears_whole(tmp_path: Path) -> None:
    """After an error the older one is as it was and nothing else is left; afterwards the new one is there alone."""
    out = tmp_path / "export"

    def make(text: str, *, fail: bool = False) -> None:
        with staged(out) as folder:
            (folder / "export.json").write_text(text)
            if fail:
                raise OSError(28, "No space left on device")

    make("old")
    with pytest.raises(StoreWriteError):
        make("new", fail=True)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (out / "export.json").read_text() == "old"
    make("new")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (out / "export.json").read_text() == "new"


def test_another_folder_is_not_replaced(tmp_path: Path) -> None:
    """Nor a file; an empty folder is taken."""
    refuse_other_folder(tmp_path)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"export.json"):
        refuse_other_folder(tmp_path)
    with pytest.raises(ConfigError):
        refuse_other_folder(tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"formats": ["onnx", "onnx"]}, "--formats"),
        ({"uint8_input": True}, "--bake_normalisation true"),
        ({"qat": "always", "formats": ["onnx"]}, r"--qat.*int8"),
        ({"most_lost": -1.0}, "--most_lost"),
        ({"model": ""}, "--model"),
    ],
)
def test_settings_out_of_range(values: dict[str, Any], message: str) -> None:
    """Named as on the command line."""
    with pytest.raises(ConfigError, match=message):
        ExportConfig(**values)
    with pytest.raises(ConfigError, match=r"--calibration\.images 0\b"):
        CalibrationConfig(images=0)
    with pytest.raises(ConfigError, match=r"--finetune\.epochs 0\b"):
        FinetuneConfig(epochs=0)


# --- calibration of any number of images ---------------------------------------------------------------------------


def test_batches_of_the_calibration_have_one_size() -> None:
    """For every count from 1 to 300; fewer images are left out than there are batches."""
    spec = InputSpec((2, 2), (0.5,) * 3, (0.5,) * 3)
    for count in range(1, 301):
        reader = quantise.Reader(np.zeros((count, 3, 2, 2), np.uint8), spec)
        sizes = []
        while (batch := reader.get_next()) is not None:
            sizes.append(len(batch["image"]))
        assert len(set(sizes)) == 1
        assert max(sizes) <= draws.BATCH
        assert count - sum(sizes) < len(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["percentile", "entropy", "minmax"])
def test_any_number_of_images_calibrates(tmp_path: Path, method: quantise.Method) -> None:
    """onnxruntime takes one, a prime number, and one more or less than whole batches."""
    from onnx import TensorProto, helper, numpy_helper, save

    generator = np.random.default_rng(0)
    weights = {
        "w": generator.standard_normal((4, 3, 1, 1)).astype(np.float32),
        "v": generator.standard_normal((4, 2)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], name="conv"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], name="pool"),
        helper.make_node("Flatten", ["c"], ["d"], name="flat"),
        helper.make_node("MatMul", ["d", "v"], ["logits"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    save(model, tmp_path / "tiny.onnx")
    spec = InputSpec((4, 4), (0.5,) * 3, (0.5,) * 3)
    pixels = generator.integers(0, 256, (300, 3, 4, 4), np.uint8)
    counts = os.environ.get("CALIBRATION_COUNTS")  # 1-300 tries all of them
    low, high = map(int, counts.split("-")) if counts else (0, -1)
    for count in (*range(low, high + 1), 1, 63, 65, 127, 129, 240, 241, 300):
        out = quantise.quantise(
            tmp_path / "tiny.onnx",
            tmp_path / "int8.onnx",
            quantise.Setting(method),
            pixels[:count],
            spec,
            percentile=99.99,
        )
        assert out.is_file(), count


def test_a_setting_that_fails_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are tried, the reason is kept; with none left the error names every setting."""
    broken = {"percentile"}

    def fake(path: Path, out: Path, setting: quantise.Setting, *args: Any, **more: Any) -> Path:
        if setting.method in broken:
            raise ConfigError(f"{setting.method} is broken")
        out.write_bytes(b"int8")
        return out

    values = {"kl": 0.1, "top1_agreement": 1.0}
    monkeypatch.setattr(search, "quantise", fake)
    monkeypatch.setattr(search, "_run", lambda *args, **more: None)
    monkeypatch.setattr(search, "compare_answers", lambda *args, **more: values)
    monkeypatch.setattr(search, "float_blocks", lambda path: [])
    pixels = np.zeros((2, 3, 4, 4), np.uint8)

    def run() -> Any:
        return search.search(
            tmp_path / "m.onnx", tmp_path / "int8.onnx",
            calibration=pixels, held_out=pixels, spec=SPEC, config=CalibrationConfig(), say=print,
        )  # fmt: skip

    best, trials, failed = run()
    assert best.setting.method == "minmax"
    assert "percentile" not in {trial.setting.method for trial in trials}
    assert list(failed.values()) == ["percentile is broken"]
    broken |= {"minmax", "entropy"}
    with pytest.raises(ConfigError, match=r"minmax.*percentile.*entropy"):
        run()


def test_a_format_that_fails_leaves_the_others(capsys: Any) -> None:
    """Its reason is recorded; what it had made so far is not listed."""
    work: Any = SimpleNamespace(files={"onnx": []}, runners={"onnx": None}, skipped={})
    work.skip = lambda name, why: work.skipped.update({name: why})

    def fail() -> None:
        work.files["program"] = [Path("half")]
        raise ConfigError("no such operator")

    edge.attempt(work, "program", fail)
    assert work.files == {"onnx": []}
    assert work.skipped == {"program": "no such operator"}


@pytest.mark.parametrize("teacher_images", [0, 640])
def test_a_card_names_a_teacher_only_where_one_taught(teacher_images: int) -> None:
    """A student of the method labels was not distilled from anybody."""
    described = {"teacher": {"name": "vit_large"}, "architecture": "tiny"}
    record = {"teacher_images": teacher_images, "method": "labels", "seed": 0}
    run: Any = finished.FinishedRun(Path(), None, record, {}, described, None)  # type: ignore[arg-type]
    manifest = {
        "student": {"architecture": "tiny", "num_classes": 3, "parameters": 7},
        "input": {"size": [4, 4]}, "versions": {"featstore-distill": "1"},
    }  # fmt: skip
    text = card.title(manifest, run)
    assert ("vit_large" in text) == ("istilled from" in text) == bool(teacher_images)
