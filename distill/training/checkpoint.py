"""Everything a run needs to go on as if nothing had happened: one file, written whole or not at all."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.training.run_folder import CHECKPOINT_NAME, Contract, check_same_run
from featstore.errors import ConfigError
from featstore.files.atomic import write_bytes

FORMAT = 1
"""Version of the layout below; an unknown one is refused."""


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
    """The inverse of ``rng_state``."""
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
    return write_bytes(folder / CHECKPOINT_NAME, buffer.getvalue())


def load(folder: Path, contract: Contract) -> dict[str, Any] | None:
    """Read the checkpoint of a run, without running any code in it; None if there is none.

    Raises:
        ConfigError: unreadable, of another format, or of a run with other settings or another store.
    """
    path = folder / CHECKPOINT_NAME
    if not path.exists():
        return None
    try:
        values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many unrelated types on a damaged file
        first = str(error).strip().split("\n")[0][:200]
        raise ConfigError(
            f"{path}: cannot be read ({first}). Delete {folder} to start this run again."
        ) from error
    if values.get("format") != FORMAT:
        raise ConfigError(
            f"{path}: checkpoint format {values.get('format')!r}, expected {FORMAT}. Delete {folder} to start again."
        )
    check_same_run(path, found=values["contract"], asked=contract)
    return values
