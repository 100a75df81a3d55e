"""Damaged .npy and .npz files are a ValueError, whichever byte is wrong."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from featstore.files.numpy_files import read_npy, read_npz

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("mmap_mode", [None, "r"])
def test_a_damaged_array(tmp_path: Path, mmap_mode: Literal["r"] | None) -> None:
    """Every flipped bit of the header, and every cut."""
    path = tmp_path / "a.npy"
    np.save(path, VALUES)
    whole = path.read_bytes()
    np.testing.assert_array_equal(read_npy(path, mmap_mode=mmap_mode), VALUES)
    refused = 0
    for bit in range(8 * (len(whole) - VALUES.nbytes)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read_npy(path, mmap_mode=mmap_mode)
        except ValueError:
            refused += 1
    assert refused > 800
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"."):
            read_npy(path, mmap_mode=mmap_mode)


def test_a_damaged_archive() -> None:
    """Every flipped bit gives the same arrays or an error, every cut an error."""
    file = io.BytesIO()
    np.savez(file, values=VALUES)
    whole = file.getvalue()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = read_npz(bytes(damaged))
        except ValueError:
            continue
        for values in found.values():  # only the name is not covered by a checksum
            np.testing.assert_array_equal(values, VALUES)
    for size in range(len(whole)):
        with pytest.raises(ValueError, match=r"."):
            read_npz(whole[:size])


def test_python_objects_and_other_files(tmp_path: Path) -> None:
    """Neither is unpickled; a missing file stays a missing file."""
    path = tmp_path / "a.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    for mode in (None, "r"):
        with pytest.raises(ValueError, match=r"."):
            read_npy(path, mmap_mode=mode)  # type: ignore[arg-type]
    np.savez(tmp_path / "a.npz", values=VALUES)
    with pytest.raises(ValueError, match=r"."):
        read_npy(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError):
        read_npy(tmp_path / "none.npy")
