"""Which settings of int8: a few standard ones, compared on held-out images by how little the answers move. No label is
used, and no test image.
"""

# S images, H W student input, K classes

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.export import onnx_model
from distill.export.config import CalibrationConfig
from distill.export.images import BATCH, Pixels
from distill.export.parity import Logits, answers, compare_answers, distance, distance_text
from distill.export.preprocessing import InputSpec
from distill.export.quantise import (
    KeptBlock,
    Method,
    Setting,
    Weights,
    has_squeeze_excite,
    quantise,
)
from featstore.errors import ConfigError

WORTH = 0.9
"""A further setting is taken only if it lowers the divergence to this share of the best one's so far."""


@dataclass(frozen=True)
class Int8Trial:
    """One setting and what came of it."""

    setting: Setting  # that was tried
    # ``parity.compare_answers`` with the float model on the held-out images, as this processor computes
    held_out: dict[str, float]
    exact: dict[str, float]  # likewise, as a processor does that never saturates
    bytes: int  # of the file
    seconds: float  # to calibrate and write it

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **self.setting.describe(),
            "name": str(self.setting),
            "held_out": self.held_out,
            "held_out_exact": self.exact,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 1),
        }


def search(
    path: Path,
    out: Path,
    *,
    calibration: Pixels,
    held_out: Pixels,
    spec: InputSpec,
    config: CalibrationConfig,
    classes: bool = True,
    say: Callable[[str], None],
) -> tuple[Int8Trial, list[Int8Trial], dict[str, str]]:
    """Quantise by the setting that changes the answers least, and write that file.

    The plainest one comes first; another is taken only where it is clearly better. Other types of weights than the one
    that was asked for are tried and reported, and not taken.

    Args:
        out: of the int8 one.
        calibration: (S, 3, H, W) uint8.
        config: the type of weights, and the method, if it is not auto.

    Returns:
        The setting that was taken, all that were tried, and by name of the others why they failed.
    """
    reference = _run(path, held_out, spec)
    trials: list[Int8Trial] = []
    failed: dict[str, str] = {}
    scratch = out.with_name(f".partial-{out.name}")

    def attempt(setting: Setting) -> Int8Trial | None:
        began = time.monotonic()
        try:
            quantise(path, scratch, setting, calibration, spec, percentile=config.percentile)
        except ConfigError as error:
            failed[str(setting)] = str(error)
            say(f"  int8 {setting}: skipped, {error}")
            return None
        seconds = time.monotonic() - began
        here = compare_answers(_run(scratch, held_out, spec), reference, classes=classes)
        exact = compare_answers(
            _run(scratch, held_out, spec, exact=True), reference, classes=classes
        )
        trial = Int8Trial(setting, here, exact, scratch.stat().st_size, seconds)
        trials.append(trial)
        say(f"  int8 {setting}: {distance_text(trial.held_out)} ({len(held_out)} held-out images)")
        return trial

    try:
        best: Int8Trial | None = None
        for setting in first_settings(config):
            trial = attempt(setting)
            fits = trial is not None and setting.weights == config.weights
            if trial is not None and fits and (best is None or _better(trial, best)):
                best = trial
                scratch.replace(out)
        if best is None:
            raise ConfigError("; ".join(failed.values()))
        for block in float_blocks(path):
            kept = (*best.setting.keep_float, block)
            trial = attempt(Setting(best.setting.method, best.setting.weights, kept))
            if trial is not None and _better(trial, best):
                best = trial
                scratch.replace(out)
    finally:
        scratch.unlink(missing_ok=True)
    return best, trials, failed


def first_settings(config: CalibrationConfig) -> Iterator[Setting]:
    """Without anything in float: the methods, then other weights."""
    methods: list[Method] = (
        ["minmax", "percentile", "entropy"] if config.method == "auto" else [config.method]
    )
    for method in methods:
        yield Setting(method, config.weights)
    kinds: tuple[Weights, ...] = ("int7", "uint8", "int8")
    for weights in kinds:
        if weights != config.weights:
            yield Setting(methods[0], weights)


def float_blocks(path: Path) -> list[KeptBlock]:
    """What may stay in float, from the cheapest."""
    found: list[KeptBlock] = ["classifier", "first"]
    return [*found, "squeeze-excite"] if has_squeeze_excite(path) else found


def _better(trial: Int8Trial, best: Int8Trial) -> bool:
    return distance(trial.exact) < WORTH * distance(best.exact)


def _run(path: Path, pixels: Pixels, spec: InputSpec, *, exact: bool = False) -> Logits:
    batches = (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))
    return answers(batches, {"one": onnx_model.runner(path, spec, exact=exact)})["one"]
