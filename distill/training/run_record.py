"""Write and read the record of a finished run, run.json, and compare the checksums it holds.

The record carries a checksum of itself and the SHA-256 of the run's other files. A record of an older version has
neither; it is accepted.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from featstore.errors import ConfigError
from featstore.files.atomic import write_bytes
from featstore.format.checksummed_json import seal, unseal

RECORD = "run.json"
FILES = "files"  # key of the checksums: SHA-256 by the name of a file in the run's folder

KEYS: dict[str, type | tuple[type, ...]] = {
    "method": str,
    "seed": int,
    "seconds": (int, float),
    "contract": dict,
}
"""Keys that every version has written, and their types."""


def write_record(folder: Path, record: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Write run.json with the checksums of the named files, as far as they exist. Returns what it holds."""
    found = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in sorted(names)
        if (folder / name).is_file()
    }
    written = {**record, FILES: found}
    write_bytes(folder / RECORD, seal(written))
    return written


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read run.json; None if there is none. Raises ConfigError: damaged, or not a record."""
    path = folder / RECORD
    try:
        values = unseal(path.read_bytes())
        problem = _problem(values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        problem = str(error)
    if problem:
        raise ConfigError(
            f"{path.absolute()}: not the record of a run ({problem}). Delete {folder.absolute()} to run it again."
        )
    record: dict[str, Any] = values
    return record


def _problem(values: Any) -> str:
    if not isinstance(values, dict):
        return f"expected an object, found {type(values).__name__}"
    for key, kind in KEYS.items():
        if not isinstance(values.get(key), kind):
            return f"{key} is {values.get(key)!r}" if key in values else f"{key} is missing"
    files = values.get(FILES, {})
    if not isinstance(files, dict) or not all(isinstance(item, str) for item in files.values()):
        return f"{FILES} is {files!r}"
    return ""


def read_file(folder: Path, name: str, record: dict[str, Any]) -> bytes:
    """Read a file of a finished run and compare its checksum.

    Raises:
        ConfigError: other bytes than the run wrote.
        OSError: it cannot be read.
    """
    data = (folder / name).read_bytes()
    expected = record.get(FILES, {}).get(name)
    if expected is not None:
        check_sha256(folder / name, data, expected)
    return data


def check_sha256(path: Path, data: bytes, expected: str) -> None:
    """Compare the checksum of a file's bytes. Raises ConfigError: they differ."""
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ConfigError(
            f"{path.absolute()}: damaged or replaced: SHA-256 {found[:16]}, expected {expected[:16]}. Restore the "
            f"file, or delete {path.parent.absolute()} and run again."
        )
