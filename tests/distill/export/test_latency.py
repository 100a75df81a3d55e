"""Numbers a buyer asks for: latency in turn, multiply-adds, memory, and what is written of them."""

import itertools
import json
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import Block
from torch import nn

from distill.config import StudentConfig
from distill.export import latency, memory, numbers, onnx_model, preprocessing, program
from distill.export.config import ExportConfig, LatencyConfig
from distill.export.latency import count_macs, measure_latency, noise
from distill.export.memory import Memory, weigh
from distill.export.runtimes import Feed, ModelFile, open_model
from distill.export.work import Work
from distill.student.files import WEIGHTS
from distill.student.model import Student, build_student
from distill.training.saved_student import plain_state
from featstore.errors import ConfigError
from featstore.files.atomic import write_json


def candidate(name: str, **values: Any) -> ModelFile:
    known: dict[str, Any] = {"runtime": "ONNX Runtime", "precision": "fp32", "path": Path(name)}
    return ModelFile(name, **{**known, "size": (4, 4), **values})


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Replaces models by naps of as many milliseconds as their name says; gets every call."""
    seen: list[tuple[str, int, int]] = []

    def nap(model: ModelFile, threads: int) -> Feed:
        def feed(batch: np.ndarray[Any, Any]) -> Any:
            def call() -> None:
                seen.append((model.name, len(batch), threads))
                time.sleep(float(model.name) / 1e3)

            return call

        return feed

    monkeypatch.setattr(latency, "open_model", nap)
    return seen


def test_models_take_turns(visits: list[tuple[str, int, int]]) -> None:
    """Every round visits every model, batch size and number of threads once, in an order of its own from a seed."""
    models = [candidate("1"), candidate("2")]
    found = measure_latency(models, batches=(1, 3), threads=(1, 2), rounds=5, visit_s=0)
    cells = list(itertools.product(("1", "2"), (1, 3), (1, 2)))
    assert [(item.name, item.batch, item.threads) for item in found] == cells
    turns = [name for name, _ in itertools.groupby(visits[latency.WARM_UP * len(cells) :])]
    calls = Counter(visits)
    # Opened, then five visits of one untimed and three timed calls each.
    assert all(calls[cell] == latency.WARM_UP + 5 * 4 for cell in cells)
    assert all(item.calls == 15 for item in found)
    assert len({tuple(turns[start : start + 8]) for start in range(0, 32, 8)}) > 1
    first = list(visits)
    visits.clear()
    measure_latency(models, batches=(1, 3), threads=(1, 2), rounds=5, visit_s=0)
    assert visits == first


def test_ratios_are_within_a_round(visits: list[tuple[str, int, int]]) -> None:
    """Speeds are the reference's time over the own; the spread encloses them; a nap takes no processor."""
    models = [candidate("8"), candidate("2", most_images=1)]
    found = measure_latency(
        models, batches=(1, 2), threads=(1,), rounds=4, reference="8", visit_s=0
    )
    slow, _, fast = found
    assert len(found) == 3  # no second batch size for the model that takes one picture
    assert slow.speed == slow.speed_low == slow.speed_high == 1
    assert fast.speed is not None
    assert fast.speed_low is not None
    assert fast.speed_high is not None
    assert fast.speed_low <= fast.speed <= fast.speed_high
    assert fast.median_ms >= 2
    assert fast.low_ms <= fast.high_ms
    assert fast.median_ms <= fast.p95_ms
    assert fast.cpu_ms < 2
    assert noise(found)[0] > 0
    (short, *_) = measure_latency(models, rounds=9, batches=[1], threads=[1], visit_s=0, most_s=0)
    assert short.rounds == latency.FEWEST_ROUNDS
    for wrong in ({"reference": "9"}, {"rounds": 0}):
        with pytest.raises(ValueError, match="names"):
            measure_latency(models, **wrong)
    with pytest.raises(ValueError, match="names"):
        measure_latency([*models, models[0]])


def test_multiply_adds_by_hand() -> None:
    """A convolution of 3 x 3 from 3 to 5 channels at 8 x 8 places, then a linear layer."""
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(320, 7))
    assert count_macs(model, (8, 8)) == 64 * 5 * 27 + 320 * 7


def test_multiply_adds_of_attention() -> None:
    """Of 5 tokens of width 8: four products with matrices of 8 x 8, an MLP of width 16, and two products of tokens."""
    tokens = nn.Unflatten(3, (5, 8))  # (1, 3, 1, 40) -> (1, 3, 1, 5, 8)
    model = nn.Sequential(tokens, nn.Flatten(0, 2), Block(8, 2, mlp_ratio=2))  # 3 sequences
    assert count_macs(model, (1, 40)) == 3 * (5 * (4 * 64 + 2 * 128) + 2 * 5 * 5 * 8)


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Student]:
    """What the measurement reads of a run, of a random student; beside it an export's ONNX file."""
    folder = tmp_path_factory.mktemp("run")
    config = StudentConfig(name="test_efficientnet", image_size=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = build_student(config, 3)
    student.model.eval()
    save_file(plain_state(student.model), folder / WEIGHTS)
    region = {"size": [32, 32], "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"}
    write_json(
        folder / "config.json",
        {
            "architecture": config.name, "num_classes": 3, "model_args": {}, "feature": "prelogits",
            "label_names": ["a", "b", "c"],
            "input": {"size": [32, 32], "mean": student.mean, "std": student.std, "region": region},
        },
    )  # fmt: skip
    spec = preprocessing.input_spec(student, baked=False, uint8=False)
    onnx_model.write_onnx(folder, program.trace(student.model, spec), spec)
    return folder, student


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(student_folder: tuple[Path, Student]) -> None:
    """The runtime alone is loaded, without torch; a file that cannot be opened says so."""
    path = student_folder[0] / onnx_model.NAME
    found = weigh(candidate("onnx", path=path, size=(32, 32)))
    if found is None:
        pytest.skip("this system has no /proc")
    assert 1 < found.model_mb < found.peak_mb < 200
    with pytest.raises(ConfigError, match=r"gone.onnx"):
        weigh(candidate("onnx", path=path.with_name("gone.onnx")))


@pytest.mark.slow
def test_all_runtimes_side_by_side(
    student_folder: tuple[Path, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """latency.json holds every file and the machine; its columns, rows and note are the card's."""
    run, student = student_folder
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / onnx_model.NAME).write_bytes((run / onnx_model.NAME).read_bytes())
    monkeypatch.setattr(numbers, "weigh", lambda model: Memory(80.0, 7.0))
    monkeypatch.setattr(numbers, "cores", lambda: 2)
    settings = ExportConfig(latency=LatencyConfig(rounds=2, batches=[1, 2], threads=[2, 64]))
    spec = preprocessing.input_spec(student, baked=False, uint8=False)
    said: list[str] = []
    stub: Any = SimpleNamespace(folder=run, student=student)
    work = Work(
        settings, stub, stub, spec, folder, said.append, {"onnx": [folder / onnx_model.NAME]}
    )
    before = torch.get_num_threads()
    found = numbers.write_numbers(work)
    assert torch.get_num_threads() == before
    assert json.loads((folder / numbers.LATENCY).read_text()) == found
    assert [row[0] for row in found["rows"]] == ["PyTorch", "ONNX Runtime"]
    assert all(len(row) == len(found["columns"]) == 6 for row in found["rows"])
    assert found["columns"][4] == "batch 1, 2 threads: ms"
    assert found["rows"][1][4].endswith(" x)")
    assert found["files"]["PyTorch"]["bytes"] == (run / WEIGHTS).stat().st_size
    assert found["student"]["parameters"] == sum(
        item.numel() for item in student.model.parameters()
    )
    assert found["student"]["macs"] > 1e5
    assert {"cpu", "cores", "versions", "load_average_1min"} <= found["machine"].keys()
    assert "64" in work.notes[0]
    assert "in turn in one process" in numbers.text(found)


@pytest.mark.slow
def test_pytorch_is_told_its_threads(student_folder: tuple[Path, Student]) -> None:
    """The number belongs to the process, so that every call sees to it."""
    model = candidate("pytorch", runtime="PyTorch", path=student_folder[0], size=(32, 32))
    before = torch.get_num_threads()
    try:
        call = open_model(model, 2)(model.batch(1))
        torch.set_num_threads(1)
        logits: Any = call()
        assert torch.get_num_threads() == 2
        assert logits.shape == (1, 3)
    finally:
        torch.set_num_threads(before)


def test_bytes_are_fed_where_the_graph_takes_them() -> None:
    """A graph with its normalisation inside is given bytes; PyTorch never is."""
    assert candidate("a", dtype="uint8").batch(2).dtype == np.uint8
    assert candidate("a", dtype="uint8", runtime="PyTorch").batch(2).dtype == np.float32
    assert candidate("a").batch(2).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("values", [{"rounds": -1}, {"threads": []}, {"batches": [1, 1]}])
def test_settings_out_of_range(values: dict[str, Any]) -> None:
    """Named by their flag."""
    with pytest.raises(ConfigError, match=f"--latency.{next(iter(values))}"):
        LatencyConfig(**values)


def test_a_system_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No number is better than a wrong one."""
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert weigh(candidate("a")) is None
