"""The folder of one run: what decides its result, its metrics, and the record of a finished run."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.config import DistillConfig
from featstore.errors import ConfigError
from featstore.files.atomic import write_bytes
from featstore.format.manifest import differences

FREE = {
    "data": {"cache_mb"},
    "train": {"workers", "checkpoint_every", "log_every"},
    "eval": {"every", "batch_size"},
    "source": {"path", "allow_cut_tars"},
}
"""Settings that do not change a result, or where files merely lie; they may differ between two starts of one run."""

TEACHER_MODULES = ("featstore.extraction.teachers", "featstore.extraction.shards", "open_clip")
"""What must not be imported in phase two; the run record says whether it was."""

CHECKPOINT_NAME = "checkpoint.pt"
"""In the folder of a run that has begun."""

Contract = dict[str, Any]


def run_name(config: DistillConfig, method: str) -> str:
    """METHOD, or METHOD+PARTNER."""
    return method if config.partner == "none" else f"{method}+{config.partner}"


def run_dir(config: DistillConfig, method: str, seed: int) -> Path:
    """OUT/METHOD/seedK or OUT/METHOD+PARTNER/seedK."""
    return Path(config.out) / run_name(config, method) / f"seed{seed}"


def contract(
    config: DistillConfig, method: str, seed: int, fingerprints: Sequence[str]
) -> Contract:
    """All that decides the result of one run, as plain JSON values; other methods' options are not part of it.

    Args:
        config: of the whole command.
        method: which.
        seed: of the run.
        fingerprints: of the store, then of the further teachers' stores.
    """
    values = dataclasses.asdict(config)
    parts = {name: values[name] for name in ("field", "source", "data", "student", "train", "eval")}
    for name in (method, config.partner):
        if name in values:
            parts[name] = values[name]
    for section, names in FREE.items():
        parts[section] = {key: value for key, value in parts[section].items() if key not in names}
    parts |= {"method": method, "partner": config.partner, "seed": seed}
    parts["store_fingerprint"] = fingerprints[0]
    parts["grid_field"] = config.grid_field
    if config.teachers:
        parts["teacher_weight"] = config.teacher_weight
        parts["teachers"] = [
            {"field": teacher.field, "weight": teacher.weight, "store_fingerprint": fingerprint}
            for teacher, fingerprint in zip(config.teachers, fingerprints[1:], strict=True)
        ]
    plain: Contract = json.loads(json.dumps(parts))
    return plain


def contract_hash(values: Contract) -> str:
    """SHA-256 of a contract."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_same_run(where: Path, *, found: Contract, asked: Contract) -> None:
    """Compare what a run was started with to what is asked for now.

    Raises:
        ConfigError: names every differing setting with both values.
    """
    differing = differences(found, asked)
    if differing:
        lines = "\n".join(f"  --{key}: there {was!r}, now {now!r}" for key, was, now in differing)
        raise ConfigError(
            f"{where} belongs to a run with other settings, which cannot be gone on with or counted:\n{lines}\n"
            f"Choose another --out, give the old settings, or delete {where.parent}."
        )


def read_finished(folder: Path, asked: Contract) -> dict[str, Any] | None:
    """The record of a finished run; None if there is none.

    Raises:
        ConfigError: the folder holds a finished run with other settings.
    """
    path = folder / "run.json"
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(
            f"{path}: not readable as JSON ({error}). Delete {folder} to run it again."
        ) from None
    check_same_run(path, found=record["contract"], asked=asked)
    return record


class MetricsLog:
    """metrics.jsonl: one JSON object per line; a resumed run first drops what came after its checkpoint."""

    def __init__(self, path: Path, *, keep: int, enabled: bool) -> None:
        self.path = path
        self.lines = keep
        self.enabled = enabled
        if enabled:
            old = (
                path.read_bytes().splitlines(keepends=True)[:keep] if path.exists() and keep else []
            )
            write_bytes(path, b"".join(old))

    def write(self, values: dict[str, Any]) -> None:
        """Append one line. What is not finite becomes null, because JSON has no such numbers."""
        self.lines += 1
        if self.enabled:
            clean = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in values.items()
            }
            with self.path.open("a") as file:
                file.write(json.dumps(clean, allow_nan=False) + "\n")


def environment() -> dict[str, Any]:
    """Versions, memory and whether any part of a teacher was imported: the record that phase two never loads one."""
    import torch  # here, so that folders can be looked at without it

    names = ("torch", "timm", "accelerate", "numpy", "scikit-learn")
    return {
        "versions": {
            "python": sys.version.split()[0],
            **{name: importlib.metadata.version(name) for name in names},
        },
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "peak_device_memory_mb": round(torch.cuda.max_memory_allocated() / 2**20, 1)
        if torch.cuda.is_available()
        else 0.0,
        "teacher_modules_loaded": [name for name in TEACHER_MODULES if name in sys.modules],
    }
