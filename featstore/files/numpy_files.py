"""Read .npy and .npz files, which may be damaged or come from others. Nothing is unpickled."""

import io
from pathlib import Path
from typing import Literal

import numpy as np

from featstore.files.array_types import Array


def read_npy(path: Path, *, mmap_mode: Literal["r"] | None = None) -> Array:
    """Return the array of an .npy file.

    Args:
        mmap_mode: "r" maps the file in place of reading it.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, holds Python objects, or is no .npy file.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r") if mmap_mode else _plain(path)
    except OSError:
        raise
    # numpy parses the header as Python: TokenError, SyntaxError, EOFError, ...
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _plain(path: Path) -> Array:
    with path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_npz(data: bytes) -> dict[str, Array]:
    """Return the arrays of an .npz file by name."""
    try:
        # From memory: numpy leaves a damaged file open.
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)
    # BadZipFile; RuntimeError where a changed header says encrypted; those above
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error
