"""The folder of one run: what decides its result, its metrics, and the record of a finished run."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.config import DataConfig, DistillConfig
from distill.register import has_options, options_of
from distill.training.run_record import RECORD, read_record
from featstore.errors import ConfigError, StoreBusy
from featstore.files.atomic import refused, write_bytes
from featstore.files.locks import FileLock
from featstore.format.ids import read_ids
from featstore.format.manifest import differences

FREE = {
    "data": {"cache_mb"},
    "train": {"workers", "checkpoint_every", "log_every", "time_limit"},
    "eval": {"every", "batch_size"},
    "source": {"path", "allow_cut_tars", "image_member", "cache_gb"},
    "customkd": {"watch_every"},
}
"""Settings that do not change a result, or where files merely lie; they may differ between two starts of one run."""

SECTIONS = ("source", "data", "student", "train", "eval")
"""Settings that are part of every contract, with the options of the method, the partner and the task."""

LISTS = "data_lists"
"""Key of a contract: SHA-256 of the ids in every file that ``@FILE`` names. Versions before 0.3 do not have it."""

TEACHER_MODULES = ("featstore.extraction.teachers", "featstore.extraction.shards", "open_clip")
"""What must not be imported in phase two; the run record holds whether it was."""

CHECKPOINT_NAME = "checkpoint.pt"  # in the folder of a run that has begun

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
        fingerprints: of the store, then of the further teachers' stores.
    """
    values = dataclasses.asdict(config)
    parts = {name: values[name] for name in ("field", *SECTIONS)}
    for name in (method, config.partner):
        if has_options(name):
            parts[name] = dataclasses.asdict(options_of(config, name))
    for section in FREE.keys() & parts.keys():
        parts[section] = {
            key: value for key, value in parts[section].items() if key not in FREE[section]
        }
    if config.task not in ("auto", "classify"):  # the only task of older versions
        parts["task"] = config.task
        if has_options(config.task):
            parts[config.task] = dataclasses.asdict(options_of(config, config.task))
    parts |= {"method": method, "partner": config.partner, "seed": seed}
    if lists := lists_of_ids(config.data):
        parts[LISTS] = lists
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


def lists_of_ids(data: DataConfig) -> dict[str, str]:
    """SHA-256 of the ids in every file that a part of the data names as ``@FILE``.

    Raises:
        ConfigError: a file cannot be read.
    """
    named = dict.fromkeys(
        item[1:]
        for patterns in (data.labelled, data.unlabelled, data.test)
        for item in patterns
        if item.startswith("@")
    )
    return {
        name: hashlib.sha256("\n".join(read_ids(Path(name).expanduser())).encode()).hexdigest()
        for name in named
    }


def contract_hash(values: Contract) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_same_run(where: Path, *, found: Contract, asked: Contract) -> None:
    """Compare what a run was started with to what is asked for now.

    Raises:
        ConfigError: names every differing setting with both values.
    """
    if LISTS not in found:
        asked = {key: value for key, value in asked.items() if key != LISTS}
    differing = differences(_completed(found, asked), _completed(asked, asked))
    if differing:
        lines = "\n".join(f"  --{key}: there {was!r}, now {now!r}" for key, was, now in differing)
        raise ConfigError(
            f"{where}: belongs to a run with other settings:\n{lines}\n"
            f"Choose another --out, give the old settings, or delete {where.parent}."
        )


def _completed(values: Contract, asked: Contract) -> Contract:
    """A contract with the settings that its version did not have, at their defaults, and without those of ``FREE``."""
    config = DistillConfig()
    parts = (asked[key] for key in ("method", "partner", "task") if key in asked)
    defaults = {name: options_of(config, name) for name in parts if has_options(name)}
    defaults |= {name: getattr(config, name) for name in SECTIONS}
    full = dict(values)
    for name, options in defaults.items():
        known = values.get(name, {})
        if isinstance(known, dict):
            full[name] = json.loads(json.dumps(dataclasses.asdict(options))) | known
            for key in FREE.get(name, ()):
                full[name].pop(key, None)
    return full


def read_finished(folder: Path, asked: Contract) -> dict[str, Any] | None:
    """The record of a finished run; None if there is none.

    Raises:
        ConfigError: the folder holds a finished run with other settings, or the record is damaged.
    """
    record = read_record(folder)
    if record is None:
        return None
    check_same_run(folder / RECORD, found=record["contract"], asked=asked)
    return record


@contextmanager
def lock(path: Path, what: str, *, enabled: bool = True) -> Iterator[None]:
    """Hold a lock file while something is written, so that two commands never write to one place.

    Args:
        path: Lock file; its folder is made if it is missing. Removed afterwards.
        what: Folder or file that is written, for the message.
        enabled: False does nothing, for all processes of a run but one.

    Raises:
        StoreBusy: another process writes there; names it.
        StoreWriteError: the lock file cannot be written.
    """
    if not enabled:
        yield
        return
    with refused(path, 0):
        path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path)
    if not held.acquire(shared=False, timeout_s=0):
        raise StoreBusy(
            f"{what}: another command is writing there ({held.holders()}). Wait for it, stop it, or choose another "
            "output."
        )
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while the lock is held: no process locks an unlinked file
        held.release()


class MetricsLog:
    """metrics.jsonl: one JSON object per line; a resumed run first drops what came after its checkpoint.

    Attributes:
        lines: Number of lines so far.
        notes: Problems that were found when the file was opened.
    """

    def __init__(self, path: Path, *, keep: int = 0, sha256: str = "", enabled: bool) -> None:
        self.path = path
        self.lines = keep
        self.enabled = enabled
        self.notes: list[str] = []
        self._hash = hashlib.sha256()
        if enabled:
            old = (
                path.read_bytes().splitlines(keepends=True)[:keep] if path.exists() and keep else []
            )
            self._hash.update(b"".join(old))
            if sha256 and self.sha256 != sha256:
                self.notes.append(
                    f"{path.absolute()}: its first {keep} lines are not those of the checkpoint; training resumes, but "
                    "curves of these steps are wrong"
                )
            write_bytes(path, b"".join(old))

    @property
    def sha256(self) -> str:
        """Checksum of all lines so far."""
        return self._hash.hexdigest()

    def write(self, values: dict[str, Any]) -> None:
        """Append one line. Numbers that are not finite become null, because JSON has no such numbers."""
        self.lines += 1
        if self.enabled:
            clean = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in values.items()
            }
            line = (json.dumps(clean, allow_nan=False) + "\n").encode()
            self._hash.update(line)
            with self.path.open("ab") as file:
                file.write(line)


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
