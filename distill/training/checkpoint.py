"""Checkpoints: everything a run needs to resume bit-exactly, in one file with a checksum, replaced atomically."""

import hashlib
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.training.run_folder import CHECKPOINT_NAME, Contract, check_same_run
from featstore.errors import ConfigError
from featstore.files.atomic import write_bytes

FORMAT = 1  # version of the layout below; an unknown one is refused

HEAD = b"featstore-distill checkpoint, SHA-256 of what follows: "
"""First bytes of the file, then 64 hexadecimal digits and a line feed, then what ``torch.save`` wrote. Files of older
versions begin with ``ZIP``."""

ZIP = b"PK"

UNCHECKED = "unchecked"
"""Key of what ``read_checkpoint`` returns: whether the file is of an older version, without a checksum."""


def rng_state(device: torch.device) -> dict[str, Any]:
    """States of all random generators of this process, as tensors and plain values."""
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [
            kind,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            place,
            has_gauss,
            cached,
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def save(folder: Path, contract: Contract, values: dict[str, Any]) -> int:
    """Write the checkpoint of a run atomically. Returns its bytes."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "contract": contract, **values}, buffer)
    content = buffer.getbuffer()
    head = HEAD + _digest(content) + b"\n"
    return write_bytes(folder / CHECKPOINT_NAME, head, np.frombuffer(content, np.uint8))


def load_checkpoint(folder: Path, contract: Contract) -> dict[str, Any] | None:
    """Read the checkpoint of a run; None if there is none.

    Raises:
        ConfigError: see ``read_checkpoint``; or it belongs to a run with other settings or another store.
    """
    path = folder / CHECKPOINT_NAME
    if not path.exists():
        return None
    values = read_checkpoint(path)
    check_same_run(path, found=values["contract"], asked=contract)
    return values


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, without running any code in it. Raises ConfigError: damaged, or of another format."""
    again = f"Delete {path.parent.absolute()} to start this run again."
    data = memoryview(path.read_bytes())
    content = data[len(HEAD) + 65 :]
    if bytes(data[: len(ZIP)]) == ZIP:
        content = data
    elif bytes(data[: len(data) - len(content)]) != HEAD + _digest(content) + b"\n":
        raise ConfigError(f"{path.absolute()}: damaged: its checksum differs. {again}")
    try:
        values: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many unrelated types on a damaged file
        raise ConfigError(
            f"{path.absolute()}: not a checkpoint ({type(error).__name__}). {again}"
        ) from error
    if not isinstance(values, dict) or not isinstance(values.get("contract"), dict):
        raise ConfigError(f"{path.absolute()}: not a checkpoint of a run. {again}")
    if values.get("format") != FORMAT:
        raise ConfigError(
            f"{path.absolute()}: checkpoint format {values.get('format')!r}, expected {FORMAT}. {again}"
        )
    values[UNCHECKED] = content is data
    return values


def _digest(content: memoryview) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
