"""Damaged files of a run folder are refused, or change nothing that is read from them."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.config import StudentConfig
from distill.export import finished
from distill.reports.run_files import read_run
from distill.student.model import build_student
from distill.training import checkpoint, run_folder
from distill.training import loop as train
from distill.training.run_record import read_record
from distill.training.saved_student import load_exported
from featstore.errors import ConfigError, StoreBusy
from tests.distill.conftest import MakeConfig
from tests.distill.training.test_loop import folder, prepared, start


def _plain(value: Any) -> Any:
    """Values that can be compared by ==."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return np.asarray(value).tobytes(), str(value.dtype), tuple(value.shape)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(vars(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _student(where: Path) -> Any:
    student, described = load_exported(where)
    return student.model.state_dict(), described


def _page(where: Path) -> Any:
    run = read_run(where)
    return run.record, run.evaluation, run.settings, run.metrics, run.exported, run.predictions


def _exported(where: Path) -> Any:
    run = finished.read_finished_run(where)
    return run.config, run.record, run.evaluation, run.described, run.student.model.state_dict()


READERS: dict[str, Callable[[Path], Any]] = {
    "page": _page,
    "student": _student,
    "export": _exported,
    "record": read_record,
}


def _flips(data: bytes, generator: np.random.Generator) -> list[tuple[int, int]]:
    places = np.unique(
        np.concatenate(
            [np.arange(0, min(len(data), 130), 13), generator.integers(0, len(data), 12)]
        )
    )
    return [(int(place), int(generator.integers(8))) for place in places]


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_is_refused_or_harmless(make_config: MakeConfig) -> None:
    """Every reader of every file of a finished run gives the same values as before, or a ConfigError."""
    config = make_config(methods=["fitnet"], train__epochs=1)
    start(config, "fitnet")
    where = folder(config, "fitnet")
    asked = read_record(where)["contract"]  # type: ignore[index]
    readers = READERS | {"resume": lambda place: checkpoint.load_checkpoint(place, asked)}
    before = {name: _plain(reader(where)) for name, reader in readers.items()}
    generator = np.random.default_rng(0)
    names = sorted(path.name for path in where.iterdir() if path.is_file())
    assert {"checkpoint.pt", "student.safetensors", "run.json", "config.yaml"} <= set(names)
    refused = dict.fromkeys(names, 0)
    for name in names:
        content = (where / name).read_bytes()
        for place, bit in _flips(content, generator):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            (where / name).write_bytes(damaged)
            for kind, reader in readers.items():
                try:
                    found = _plain(reader(where))
                except ConfigError:
                    refused[name] += 1
                else:
                    assert found == before[kind], (name, place, bit, kind)
        (where / name).write_bytes(content)
    assert all(refused.values()), refused


def test_a_damaged_checkpoint_or_log(make_config: MakeConfig, capsys: Any) -> None:
    """A flipped bit in the checkpoint is refused; one without a checksum is resumed; a changed log is said."""
    from tests.distill.resume import Stop

    config = make_config(methods=["fitnet"], train__checkpoint_every=2)
    with pytest.raises(Stop):
        start(config, "fitnet", stop_after=3)
    path = folder(config, "fitnet") / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    with pytest.raises(ConfigError, match=str(path)):
        start(config, "fitnet")
    path.write_bytes(content[len(checkpoint.HEAD) + 65 :])  # as older versions wrote it
    log = path.with_name("metrics.jsonl")
    log.write_bytes(log.read_bytes().replace(b"0", b"1", 1))
    start(config, "fitnet")
    out = capsys.readouterr().out
    assert str(log) in out
    assert out.count("older version") == 1


@pytest.mark.parametrize("text", ["[]", "{}", "[" * 5000, '{"method": 3}', "\x00"])
def test_hostile_records(tmp_path: Path, text: str) -> None:
    """A list, an empty object, one nested too deeply: an error that names the file."""
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json"):
        run_folder.read_finished(tmp_path, {})


def test_two_runs_never_write_into_one_folder(make_config: MakeConfig) -> None:
    """While one run trains, a second one with other settings is refused, and the first ends as it began."""
    config = make_config(methods=["fitnet"], train__epochs=1)
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=0.5))
    refused = []

    def second(step: int) -> None:
        if step == 1:
            data, probe = prepared(other)
            with pytest.raises(StoreBusy, match="seed0"):
                train.run(other, data, probe, method="fitnet", seed=0)
            refused.append(step)

    data, probe = prepared(config)
    record = train.run(config, data, probe, method="fitnet", seed=0, on_step=second)
    assert refused == [1]
    assert record["contract"]["train"]["lr"] == config.train.lr
    assert not (folder(config, "fitnet") / ".lock").exists()


def test_a_header_that_lies_about_types(tmp_path: Path, make_config: MakeConfig) -> None:
    """Integers where the model has floats, and values that are not finite, are refused; damage of a run's own too."""
    config = StudentConfig(name="test_resnet", image_size=32)
    state = build_student(config, 5).model.state_dict()
    key = next(name for name, value in state.items() if value.is_floating_point())
    for changed in (state[key].view(torch.int32), torch.full_like(state[key], float("nan"))):
        save_file({**state, key: changed.contiguous()}, tmp_path / "w.safetensors")
        with pytest.raises(ConfigError, match=key):
            build_student(dataclasses.replace(config, weights=str(tmp_path / "w.safetensors")), 5)
    run = make_config(methods=["labels"], train__epochs=1)
    start(run, "labels")
    copied = tmp_path / "copied"
    shutil.copytree(folder(run, "labels"), copied)
    whole = dataclasses.replace(run.student, weights=str(copied))
    assert build_student(whole, 3).notes == []
    path = copied / "student.safetensors"
    save_file({key: value + 1 for key, value in load_file(path).items()}, path)
    with pytest.raises(ConfigError, match=r"student\.safetensors"):
        build_student(whole, 3)
    described = json.loads((copied / "config.json").read_text())
    described.pop("weights_sha256")
    described.pop("file_crc32c")
    (copied / "config.json").write_text(json.dumps(described))
    assert build_student(whole, 3).notes  # accepted, and said


def test_weights_as_found_in_the_wild(tmp_path: Path) -> None:
    """Prefixes, missing counters of batch norm and a classifier of another size load, each with a note."""
    config = StudentConfig(name="test_resnet", image_size=32)
    state = build_student(config, 7).model.state_dict()
    found = {
        f"module.backbone.{key}": value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save({"state_dict": {**found, "projector.weight": torch.zeros(3)}}, tmp_path / "w.pth")
    student = build_student(dataclasses.replace(config, weights=str(tmp_path / "w.pth")), 5)
    (head,) = {name for name in state if name.startswith("fc.") and name.endswith("weight")}
    for key, value in student.model.state_dict().items():
        if not key.startswith(head.partition(".")[0]):
            assert torch.equal(value, state[key]), key
    text = " ".join(student.notes)
    for word in ("'module.backbone.'", "projector.weight", head):
        assert word in text
