"""Settings of a run, as config.yaml in its folder holds them."""

import os
from pathlib import Path
from typing import Any

import yaml

from distill.training.run_record import read_file, read_record
from featstore.errors import ConfigError
from featstore.files.atomic import write_bytes

SETTINGS = "config.yaml"


def write_settings(folder: Path, values: dict[str, Any]) -> None:
    """Write the settings of one run, with absolute paths, so that they hold wherever a command is started."""
    write_bytes(folder / SETTINGS, yaml.safe_dump(absolute(values), sort_keys=False).encode())


def absolute(values: dict[str, Any]) -> dict[str, Any]:
    """The same settings with absolute paths."""
    source, student = values["source"], values["student"]
    return values | {
        "store": absolute_path(values["store"]),
        "out": absolute_path(values["out"]),
        "teachers": [
            teacher | {"store": absolute_path(teacher["store"])} for teacher in values["teachers"]
        ],
        "source": source | {"path": absolute_path(source["path"])},
        "student": student
        | {
            "weights": absolute_path(student["weights"]),
            "factory": absolute_factory(student["factory"]),
        },
    }


def absolute_path(path: str) -> str:
    """A path from the root; URLs and empty texts stay as they are."""
    return path if not path or "://" in path else os.path.abspath(path)  # noqa: PTH100  keeps patterns


def absolute_factory(name: str) -> str:
    """``path/to/file.py:function`` with the path from the root; a module's name stays as it is."""
    place, _, function = name.rpartition(":")
    return f"{absolute_path(place)}:{function}" if place.endswith(".py") else name


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Settings of a run as plain values; None if the folder holds none. Raises ConfigError: damaged, or no settings."""
    try:
        data = read_file(folder, SETTINGS, read_record(folder) or {})
        values = yaml.safe_load(data)
    except FileNotFoundError:
        return None
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{(folder / SETTINGS).absolute()}: cannot be read ({type(error).__name__})."
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{(folder / SETTINGS).absolute()}: expected settings by name, found {type(values).__name__}."
        )
    return values
