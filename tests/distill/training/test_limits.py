"""Limits of a run: time, seeds, batches of one image, settings of accelerate, a moving average that fits the run."""

import dataclasses
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.config import MOST_SEED, DistillConfig
from distill.training import loop as train
from distill.training.optim import OutOfTime, ema_warning
from distill.training.progress import LINE_EVERY_S, RunProgress
from distill.training.run_folder import contract
from featstore.errors import ConfigError
from tests.distill.conftest import MakeConfig
from tests.distill.resume import elsewhere
from tests.distill.training.test_loop import ROOT, folder, full, prepared, start


@pytest.mark.slow
def test_a_time_limit_ends_a_run_that_resumes_to_the_bit(make_config: MakeConfig) -> None:
    """With no time left a run ends after one step, with a checkpoint; without a limit it goes on from there."""
    straight, limited = full(make_config), elsewhere(full(make_config))
    start(straight)
    data, probe = prepared(limited)
    for _ in range(2):
        with pytest.raises(OutOfTime, match="customkd seed 0"):
            train.run(limited, data, probe, method="customkd", seed=0, until=0.0)
    start(limited)
    for name in ("student.safetensors", "evaluation.json"):
        assert (folder(straight) / name).read_bytes() == (folder(limited) / name).read_bytes()


@pytest.mark.parametrize("seed", [-1, MOST_SEED + 1, 2**40])
def test_seeds_out_of_range(seed: int) -> None:
    """Refused with the number, before anything is read."""
    with pytest.raises(ConfigError, match=f"{seed}"):
        DistillConfig(seeds=[seed])


def test_the_largest_seed_trains(make_config: MakeConfig) -> None:
    """numpy's generator takes it."""
    config = make_config(seeds=[MOST_SEED], train__epochs=1)
    data, _ = prepared(config)
    probe = data.fit_probe(data.split(MOST_SEED), most=1000, seed=0)
    assert train.run(config, data, probe, method="labels", seed=MOST_SEED)["seed"] == MOST_SEED


def test_one_image_at_a_time_with_batch_norm(make_config: MakeConfig) -> None:
    """Batches that accumulation cuts into single images: our error, not torch's."""
    config = make_config(
        student__name="mobilenetv3_small_050",
        student__image_size=32,
        data__unlabelled=[],
        train__labelled_batch=4,
        train__grad_accum=4,
    )
    with pytest.raises(ConfigError, match="grad_accum"):
        start(config, "labels")


def test_the_average_of_a_short_run(make_config: MakeConfig) -> None:
    """The moving average has the statistics of batch norm of the last step, and weights near the last ones."""
    config = make_config(student__name="test_efficientnet", train__epochs=3)
    plain = elsewhere(config)
    averaged = dataclasses.replace(config, train=dataclasses.replace(config.train, ema=0.999))
    start(plain, "labels")
    record = start(averaged, "labels")
    one, other = (
        load_file(folder(item, "labels") / "student.safetensors") for item in (plain, averaged)
    )
    for name in one:
        if "running" in name:
            assert torch.equal(one[name], other[name]), name
    assert any(not torch.equal(one[name], other[name]) for name in one if "running" not in name)
    assert any("0.999" in note for note in record["notes"])


def test_when_an_average_is_warned_of() -> None:
    """Not without one, nor where the run reaches the decay."""
    assert ema_warning(0.0, 10) == ""
    assert ema_warning(0.9, 100) == ""
    assert "138" in ema_warning(0.99, 138)


def test_a_log_gets_lines(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal: a line at most every 30 s, with step, loss, speed, time left and the score."""
    now = [100.0]
    monkeypatch.setattr("distill.training.progress.time.monotonic", lambda: now[0])
    with RunProgress("kd seed 0", step=10, steps=110, images=8, enabled=True) as progress:
        progress.score = "top-1 41.0 %"
        for step in range(11, 31):
            now[0] += 4
            progress.update(step, 0.5)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 80 // (LINE_EVERY_S + 2)
    assert lines[0] == (
        "kd seed 0: step 18 of 110, loss 0.5000, 2 images/s, 0:06:08 left, top-1 41.0 %"
    )


SETTINGS = """
import sys
from featstore.extraction.accelerator import start_accelerator
for _ in range(2):
    found = start_accelerator(mixed_precision="no", gradient_accumulation_steps=2)
    print(found.gradient_accumulation_steps, found.mixed_precision, found.state.dynamo_plugin.backend.value)
"""


def _start_with(**settings: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {f"ACCELERATE_{key}": value for key, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-c", SETTINGS],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_settings_of_accelerate_do_not_win_over_ours() -> None:
    """Each is said once and changes nothing; ways to train that replace the loop are refused."""
    done = _start_with(
        GRADIENT_ACCUMULATION_STEPS="8", MIXED_PRECISION="bf16", DYNAMO_BACKEND="INDUCTOR"
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("note:")] == ["2 no NO"] * 2, done.stderr
    for word in ("--gradient_accumulation_steps 8", "--mixed_precision bf16", "INDUCTOR"):
        assert sum(word in line for line in lines) == 1, word
    done = _start_with(GRADIENT_ACCUMULATION_STEPS="2", MIXED_PRECISION="no", DYNAMO_BACKEND="NO")
    assert "note:" not in done.stdout
    done = _start_with(USE_FSDP="true")
    assert done.returncode
    assert "ConfigError" in done.stderr


def test_a_time_limit_is_free() -> None:
    """It changes no result, so it may differ between two starts of one run."""
    config = DistillConfig()
    limited = dataclasses.replace(config, train=dataclasses.replace(config.train, time_limit=5.0))
    assert contract(config, "kd", 0, ["f"]) == contract(limited, "kd", 0, ["f"])
