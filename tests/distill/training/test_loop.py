"""The loop: resuming, finishing, refusing, and what lies in a run's folder."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from distill.commands.train import pass_notes
from distill.config import DistillConfig
from distill.data import joined
from distill.measures.linear_probe import LinearProbe
from distill.methods.labels import Labels
from distill.training import checkpoint, run_folder
from distill.training import loop as train
from distill.training.optim import TrainingDiverged, make_optimiser
from featstore import FeatureStore
from featstore.errors import ConfigError, ViewMismatch
from featstore.sources import open_source
from tests.distill.conftest import MakeConfig
from tests.distill.resume import Stop, elsewhere
from tests.distill.stores import write_store

ROOT = Path(__file__).resolve().parents[3]


def prepared(config: DistillConfig) -> tuple[joined.JoinedData, LinearProbe]:
    """The task of a run with seed 0, and the teacher's probe."""
    data = joined.join_data(
        open_source(config.source), FeatureStore.open(config.store), config.data, config.field
    )
    return data, data.fit_probe(data.split(0), most=1000, seed=0)


def start(config: DistillConfig, method: str = "customkd", stop_after: int = 0) -> dict[str, Any]:
    """One run, as the script makes it; ``stop_after`` optimiser steps it is torn down."""
    data, probe = prepared(config)

    def hook(step: int) -> None:
        if step == stop_after:
            raise Stop

    return train.run(config, data, probe, method=method, seed=0, on_step=hook)


def folder(config: DistillConfig, method: str = "customkd") -> Path:
    return Path(config.out) / method / "seed0"


def metrics(config: DistillConfig, method: str = "customkd") -> list[dict[str, Any]]:
    text = (folder(config, method) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def full(make_config: MakeConfig, **changes: Any) -> DistillConfig:
    """Batch norm, dropout, moving average, jitter, accumulation: everything that carries a state."""
    return make_config(
        student__name="test_efficientnet",
        student__model_args={"drop_rate": 0.2, "drop_path_rate": 0.1},
        train__ema=0.9,
        train__warmup_epochs=1,
        train__grad_accum=2,
        train__checkpoint_every=2,
        train__log_every=3,
        train__clip_grad=1.0,
        train__epochs=3,
        data__jitter=0.3,
        customkd__stage1_epochs=2,
        eval__every=1,
        **changes,
    )


# 36 - 12 = 24 unlabelled in batches of 8: 3 steps per epoch, 9 in all. Steps 2 and 8 have a checkpoint of their own,
# 3 ends an epoch, and 5 and 7 fall behind one.
@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [2, 3, 5, 7])
def test_an_interrupted_run_ends_bit_identical(make_config: MakeConfig, stop_after: int) -> None:
    """Weights, metrics and evaluation equal those of an uninterrupted run."""
    straight, stopped = full(make_config), elsewhere(full(make_config))
    start(straight)
    with pytest.raises(Stop):
        start(stopped, stop_after=stop_after)
    start(stopped)
    for name in ("student.safetensors", "evaluation.json", "metrics.jsonl", "config.json"):
        assert (folder(straight) / name).read_bytes() == (folder(stopped) / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_compiled_run_resumes_and_exports_as_any_other(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--train.compile``: with a compiler that changes no bit, all files are those of a run without, also resumed."""
    calls: list[int] = []

    def compiler(graph: torch.fx.GraphModule, _: object) -> Any:
        calls.append(1)
        return graph.forward

    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: plain(self, backend=compiler))
    torch._dynamo.reset()
    straight = full(make_config)
    stopped = dataclasses.replace(
        elsewhere(straight), train=dataclasses.replace(straight.train, compile=True)
    )
    start(straight)
    assert not calls
    with pytest.raises(Stop):
        start(stopped, stop_after=5)
    assert calls
    start(stopped)
    for name in ("student.safetensors", "evaluation.json", "metrics.jsonl", "config.json"):
        assert (folder(straight) / name).read_bytes() == (folder(stopped) / name).read_bytes(), name


def test_a_student_that_cannot_be_compiled(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason of the compiler, and what to do."""

    def compiler(graph: torch.fx.GraphModule, _: object) -> Any:
        raise RuntimeError("no C++ here")

    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: plain(self, backend=compiler))
    torch._dynamo.reset()
    with pytest.raises(ConfigError, match=r"--train\.compile true.*no C\+\+ here"):
        start(make_config(train__compile=True), "labels")


def test_short_epochs_share_a_checkpoint(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs that end soon after each other, or sooner than a checkpoint is worth, share one; the end is identical."""
    saved: list[int] = []
    monkeypatch.setattr(
        checkpoint, "save", lambda folder, contract, values: saved.append(values["step"])
    )
    cases = ((1e9, math.inf, [9]), (0.0, 1e-12, [3, 9]), (0.0, math.inf, [3, 6, 9]))
    ends = []
    for seconds, share, steps in cases:
        monkeypatch.setattr(train, "CHECKPOINT_S", seconds)
        monkeypatch.setattr(train, "CHECKPOINT_SHARE", share)
        out = f"{make_config().out}{seconds}-{share}"
        config = make_config(train__epochs=3, methods=["labels"], out=out)
        start(config, "labels")
        assert saved == steps
        saved.clear()
        ends.append((Path(out) / "labels/seed0/student.safetensors").read_bytes())
    assert ends[0] == ends[1] == ends[2]


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from distill.training import loop as train
from distill.data import joined
from featstore import FeatureStore
from featstore.sources import open_source
from distill.config import DistillConfig
from distill import register
from featstore.cli.recipe import parse
config = parse(DistillConfig, default_recipe=Path(sys.argv[1]), argv=[], extend=register.kinds)
data = joined.join_data(open_source(config.source), FeatureStore.open(config.store), config.data, config.field)
probe = data.fit_probe(data.split(0), most=1000, seed=0)
kill = lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == 5 else None
train.run(config, data, probe, method="customkd", seed=0, on_step=kill)
"""


@pytest.mark.slow
def test_kill_9_then_the_same_command(make_config: MakeConfig, tmp_path: Path) -> None:
    """SIGKILL in the middle of an epoch of a real process, started again in this one."""
    straight, killed = full(make_config), elsewhere(full(make_config))
    start(straight)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(killed.plain()))
    # Sums depend on the number of threads in the last bit.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    script = KILLED.format(root=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", script, str(recipe)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder(killed) / "student.safetensors").exists()
    start(killed)
    for name in ("student.safetensors", "evaluation.json", "metrics.jsonl"):
        assert (folder(straight) / name).read_bytes() == (folder(killed) / name).read_bytes(), name


@pytest.mark.slow
def test_a_finished_run_is_not_repeated(make_config: MakeConfig) -> None:
    """The same command takes its record; only settings that change no result may differ."""
    config = make_config(train__epochs=1)
    first = start(config)
    before = (folder(config) / "run.json").stat().st_mtime_ns
    free = dataclasses.replace(
        config, train=dataclasses.replace(config.train, workers=1, log_every=7)
    )
    again = start(free)
    assert again.pop("skipped") is True
    assert again == first
    assert (folder(config) / "run.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused_with_both_values(
    make_config: MakeConfig, finished: bool
) -> None:
    """Whether the run was finished or stopped."""
    config = make_config()
    if finished:
        start(config)
    else:
        with pytest.raises(Stop):
            start(config, stop_after=3)
    other = make_config(train__lr=0.5, customkd__w_general=3.0)
    with pytest.raises(ConfigError, match=r"--customkd.w_general.*1.0.*3.0") as caught:
        start(other)
    assert "--train.lr: there 0.001, now 0.5" in str(caught.value)


def test_settings_that_a_version_did_not_have_yet() -> None:
    """Runs of versions without a setting go on where it has its default, and are refused where it has not."""
    config = DistillConfig(store="s", methods=["customkd"])
    asked = run_folder.contract(config, "customkd", 0, ["f"])
    sections = [name for name, values in asked.items() if isinstance(values, dict)]
    assert {*run_folder.SECTIONS, "customkd"} == set(sections)
    for section, key in ((name, key) for name in sections for key in asked[name]):
        found = json.loads(json.dumps(asked))
        del found[section][key]
        run_folder.check_same_run(Path("there/run.json"), found=found, asked=asked)
        other = json.loads(json.dumps(asked))
        other[section][key] = "another"
        with pytest.raises(ConfigError, match=f"--{section}.{key}: there .*, now 'another'"):
            run_folder.check_same_run(Path("there/run.json"), found=found, asked=other)
    found = json.loads(json.dumps(asked))
    found["customkd"]["watch_every"] = 1  # of versions for which it was part of the contract
    run_folder.check_same_run(Path("there/run.json"), found=found, asked=asked)
    found = {name: values for name, values in asked.items() if name != "customkd"}
    run_folder.check_same_run(Path("there/run.json"), found=found, asked=asked)


def test_a_list_of_ids_that_changed_is_another_run(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``@FILE`` counts by its ids; a checkpoint of an older version, without them, is resumed and that is said."""
    listed = tmp_path / "ids.txt"
    known = sorted(FeatureStore.open(make_config().store).sample_ids)
    ids = [name for name in known if name.startswith("train/")]
    listed.write_text("\n".join(ids[:20]))
    config = make_config(data__unlabelled=[f"@{listed}"])
    with pytest.raises(Stop):
        start(config, stop_after=3)
    listed.write_text("\n".join(ids[:20]) + "\n\n")
    with pytest.raises(Stop):
        start(config, stop_after=4)
    listed.write_text("\n".join(ids[:21]))
    with pytest.raises(ConfigError, match=f"--data_lists.{listed}"):
        start(config)
    path = folder(config) / "checkpoint.pt"
    values = checkpoint.read_checkpoint(path)
    del values["contract"][run_folder.LISTS]
    old = {
        name: item
        for name, item in values.items()
        if name not in ("contract", "format", checkpoint.UNCHECKED)
    }
    checkpoint.save(path.parent, values["contract"], old)
    start(config)
    assert f"note: {path.parent}" in capsys.readouterr().out


def test_another_store_is_refused_with_both_fingerprints(
    make_config: MakeConfig, store: FeatureStore, tmp_path: Path
) -> None:
    """Same images, another teacher."""
    config = make_config()
    with pytest.raises(Stop):
        start(config, stop_after=3)
    other = write_store(tmp_path / "s", open_source(config.source), weights="1" * 64)
    with pytest.raises(ConfigError, match=store.fingerprint) as caught:
        start(dataclasses.replace(config, store=str(other.path)))
    assert other.fingerprint in str(caught.value)


def test_a_damaged_checkpoint_is_refused(make_config: MakeConfig) -> None:
    """Says which folder to delete."""
    config = make_config()
    with pytest.raises(Stop):
        start(config, stop_after=3)
    path = folder(config) / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="Delete"):
        start(config)


@pytest.mark.slow
def test_the_folder_of_a_run(make_config: MakeConfig) -> None:
    """All files are there, and hold what the guide says."""
    config = make_config(trackers=["tensorboard"], train__workers=1)
    record = start(config)
    names = {path.name for path in folder(config).iterdir() if path.is_file()}
    assert names == {
        "config.yaml", "metrics.jsonl", "checkpoint.pt", "student.safetensors", "config.json", "evaluation.json",
        "predictions.npz", "run.json",
    }  # fmt: skip
    assert list(folder(config).rglob("events.out.tfevents*"))
    assert (record["num_labelled"], record["num_unlabelled"], record["num_test"]) == (12, 24, 12)
    resolved = yaml.safe_load((folder(config) / "config.yaml").read_text())
    assert resolved["train"]["epochs"] == 2
    names = set().union(*(line.keys() for line in metrics(config)))
    assert {
        "stage1/loss", "stage1/train_top1", "stage1/test_top1", "norm/f_t", "norm/P_t(f_t)", "norm/f_s",
        "variance/P_t(f_t)", "loss/ce", "loss/general", "loss/specific", "lr", "grad_norm",
    } <= names  # fmt: skip


def test_the_exported_student_is_a_plain_timm_model(make_config: MakeConfig) -> None:
    """timm alone loads it, key for key, and gives equal logits; with a moving average that one is exported."""
    config = make_config(student__name="test_resnet", train__ema=0.5)
    start(config)
    path = folder(config) / "student.safetensors"
    plain = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(path)).eval()
    found = load_file(path)
    assert found.keys() == timm.create_model("test_resnet", num_classes=3).state_dict().keys()
    saved = checkpoint.read_checkpoint(folder(config) / "checkpoint.pt")
    averaged = {
        key.removeprefix("student.model."): value
        for key, value in saved["ema"].items()
        if key.startswith("student.")
    }
    reference = timm.create_model("test_resnet", num_classes=3).eval()
    reference.load_state_dict(averaged)
    pictures = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain(pictures), reference(pictures))
    described = json.loads((folder(config) / "config.json").read_text())
    assert described["label_names"] == ["left", "right", "top"]
    assert described["input"]["region"]["crop_pct"] == 0.9


def test_a_teacher_model_is_never_built(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm is asked for the student alone."""
    built: list[str] = []
    create = timm.create_model

    def watch(name: str, *args: Any, **kwargs: Any) -> Any:
        built.append(name)
        return create(name, *args, **kwargs)

    monkeypatch.setattr(timm, "create_model", watch)
    start(make_config(train__epochs=1))
    assert built == ["test_convnext"]


def test_a_loss_that_is_no_number_stops_the_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names method, epoch, step and term."""

    def spoiled(self: Labels, output: Any, *_: Any) -> dict[str, torch.Tensor]:
        return {"bad": output.logits.mean() * float("nan")}

    monkeypatch.setattr(Labels, "terms", spoiled)
    with pytest.raises(TrainingDiverged, match=r"\b0\b.*\b0\b.*\b0\b"):
        start(make_config(), "labels")


@pytest.mark.slow
def test_accumulated_pieces_equal_one_batch(make_config: MakeConfig) -> None:
    """Without batch norm, 1 and 2 pieces give the same losses; sums in another order differ in the last bits."""
    whole, pieces = make_config(), elsewhere(make_config(train__grad_accum=2))
    start(whole)
    start(pieces)
    for a, b in zip(metrics(whole), metrics(pieces), strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize(("sched", "middle"), [("cosine", 0.5), ("linear", 0.5), ("none", 1.0)])
def test_the_learning_rate_follows_its_course(
    make_config: MakeConfig, sched: str, middle: float
) -> None:
    """Rises in the first epoch of two, then falls per step (5 steps per epoch, 3 epochs)."""
    settings = make_config(
        train__epochs=4, train__warmup_epochs=0, train__sched=sched, train__lr=1.0
    ).train
    optimiser, scheduler = make_optimiser(torch.nn.Linear(2, 2), settings, steps_per_epoch=5)
    scheduler.step_update(10)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(middle)
    warm = dataclasses.replace(settings, warmup_epochs=2)
    optimiser, scheduler = make_optimiser(torch.nn.Linear(2, 2), warm, steps_per_epoch=5)
    scheduler.step_update(5)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.5)


def test_wrong_settings_end_before_training(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror without mirrored views, an optimiser and a tracker that are not there."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "wandb" else find(name, *more),
    )
    with pytest.raises(ViewMismatch, match="mirrored"):
        start(make_config(data__mirror=True))
    with pytest.raises(ConfigError, match=r"--train.opt nope"):
        start(make_config(train__opt="nope"))
    with pytest.raises(ConfigError):
        start(make_config(trackers=["wandb"]))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["labels", "fitnet", "kd"])
def test_lower_precision_and_other_optimisers_run(make_config: MakeConfig, method: str) -> None:
    """bf16 through autocast, SGD with momentum, a linear course."""
    config = make_config(
        train__precision="bf16", train__opt="sgd", train__momentum=0.8, train__weight_decay=0.1,
        train__sched="linear", train__epochs=1,
    )  # fmt: skip
    record = start(config, method)
    assert 0 <= record["top1"] <= 1
    if method == "fitnet":
        weights = load_file(folder(config, method) / "student.safetensors")
        assert all(value.dtype != torch.bfloat16 for value in weights.values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data__views": "canonical", "train__epochs": 9}, ""),
        ({"train__epochs": 30}, ""),
        ({"data__views": "canonical", "train__epochs": 30}, "shown 30 times .* --data.views all"),
        (
            {"data__views": "canonical", "train__epochs": 30, "train__epoch_steps": 6},
            "shown 60 times",  # 24 unlabelled images in batches of 8
        ),
        (
            {"data__views": "canonical", "train__epochs": 5, "train__min_epoch_steps": 12},
            "12 steps, 4 passes over 24 images.* --train.min_epoch_steps 0.*shown 20 times",
        ),
        ({"train__min_epoch_steps": 3}, ""),
    ],
)
def test_images_that_are_shown_many_times_are_told(
    make_config: MakeConfig, changes: dict[str, Any], told: str
) -> None:
    """Where an epoch passes more than once over few images, or training ten times over one view of each."""
    config = make_config(**changes)
    data, _ = prepared(config)
    found = "".join(pass_notes(config, data, data.split(0)))
    assert bool(found) == bool(told)
    assert re.search(told, found)
