"""Find a function of the user's own by name: ``package.module:function`` or ``path/to/file.py:function``."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featstore.errors import ConfigError


def find_function(name: str, *, setting: str) -> Callable[..., Any]:
    """Import the module and return its function or class. Modules beside the working directory are found too.

    Args:
        setting: Flag that it was given with, for messages.
    """
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function.isidentifier():
        raise ConfigError(
            f"{setting} {name}: expected package.module:function or path/to/file.py:function."
        )
    if place.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigError(
            f"{setting} {name}: is of Python's own library; expected a function that returns a torch.nn.Module."
        )
    try:
        found = getattr(_load(place), function)
    except FileNotFoundError:
        raise ConfigError(f"{setting} {name}: no such file {Path(place).absolute()}.") from None
    except Exception as error:  # the user's code: any kind
        raise ConfigError(
            f"{setting} {name}: cannot be imported ({type(error).__name__}: {error})."
        ) from error
    if not callable(found):
        raise ConfigError(
            f"{setting} {name}: is a {type(found).__name__}; expected a function or a class."
        )
    return found  # type: ignore[no-any-return]


def _load(place: str) -> Any:
    if not place.endswith(".py"):
        here = str(Path.cwd())
        sys.path.append(here)
        try:
            return importlib.import_module(place)
        finally:
            sys.path.remove(here)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
