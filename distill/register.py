"""The methods, partners and tasks by name, with their options; and methods and tasks of the user's own."""

import dataclasses
import difflib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from distill.config import DistillConfig
from distill.methods import METHODS
from distill.methods.base import Component, Method
from distill.options import NoOptions
from distill.partners import PARTNERS
from distill.tasks import TASKS, Task
from featstore.cli.schema import Kinds, Schema, build_config, did_you_mean
from featstore.errors import ConfigError

NO_PARTNER = "none"
AUTO = "auto"  # value of ``--methods`` and ``--task`` that chooses one
NAMELESS = (NO_PARTNER, AUTO)
"""Names that stand for no part with options; task ``none`` has none either."""


def register_method(name: str, method: type[Method]) -> None:
    """Make a method of your own usable by name: ``--methods NAME`` and ``--NAME.option VALUE``.

    Call it in a Python file that is named by ``--plugins FILE`` (or ``plugins:`` in a recipe), or before
    ``distill.run``.

    Args:
        name: As it is written on the command line and in recipes; also the name of its options' section.
        method: A subclass of ``distill.Method``; its ``Options`` is a frozen dataclass whose fields have defaults.

    Raises:
        ConfigError: The name is taken by another method, a partner, a task or a setting, or is no Python name; or the
            method has no loss.
    """
    if method.loss is Method.loss and method.terms is Method.terms:
        raise ConfigError(
            f"register_method({name!r}): write terms() or loss(); {method.__name__} has neither."
        )
    _register("register_method", name, method, METHODS)


def register_task(name: str, task: type[Task]) -> None:
    """Make a task of your own usable by name: ``--task NAME`` and ``--NAME.option VALUE``; see ``register_method``.

    Args:
        name: As it is written on the command line and in recipes; equal to ``task.name``.
        task: A subclass of ``distill.Task``; its ``Options`` is a frozen dataclass whose fields have defaults.

    Raises:
        ConfigError: The name is taken, is no Python name, or is not that of the task.
    """
    if name != getattr(task, "name", name):
        raise ConfigError(f"register_task({name!r}): the task is called {task.name!r}.")
    _register("register_task", name, task, TASKS)


def _register(function: str, name: str, kind: Any, known: dict[str, Any]) -> None:
    old = known.get(name)
    same = (kind.__module__, kind.__qualname__)
    if old is not None and (old.__module__, old.__qualname__) == same:
        known[name] = kind  # the same file was read again
        return
    settings = {item.name for item in dataclasses.fields(DistillConfig)}
    if name in {*METHODS, *PARTNERS, *TASKS, *settings}:
        raise ConfigError(f"{function}({name!r}): this name is taken. Choose another.")
    if not name.isidentifier():
        raise ConfigError(f"{function}({name!r}): expected letters, digits and _.")
    known[name] = kind


def load_plugins(paths: Sequence[str]) -> None:
    """Import Python files that register methods or tasks, each once.

    Raises:
        ConfigError: A file is missing or cannot be run.
    """
    for text in [paths] if isinstance(paths, str) else paths:
        path = Path(text).absolute()
        name = f"distill_plugin_{path.stem}"
        loaded = sys.modules.get(name)
        if loaded is not None and getattr(loaded, "__file__", None) == str(path):
            continue
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ConfigError(f"--plugins {path}: no such Python file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # so that its classes can be found by name in worker processes
        try:
            spec.loader.exec_module(module)
        except ConfigError:
            raise
        except Exception as error:
            del sys.modules[name]
            raise ConfigError(f"--plugins {path}: {type(error).__name__}: {error}") from error


Part = type[Component] | type[Task]


def _parts() -> dict[str, Part]:
    return {**METHODS, **PARTNERS, **TASKS}


def component_of(name: str) -> Part:
    """The method, partner or task of a name.

    Raises:
        ConfigError: There is none; names the nearest.
    """
    parts = _parts()
    if name not in parts:
        close = did_you_mean(difflib.get_close_matches(name, parts, n=2))
        raise ConfigError(
            f"{name}: there is no such method, partner or task. {close or ', '.join(parts)}"
        )
    return parts[name]


def options_of(config: DistillConfig, name: str) -> Any:
    """The options of a method, partner or task in a run; its defaults where none are given."""
    return config.options.get(name) or component_of(name).Options()


def resolved(config: DistillConfig) -> dict[str, Any]:
    """All settings as a recipe holds them, with the defaults of the methods, the partner and the task in use."""
    names = [name for name in (*config.methods, config.partner, config.task) if has_options(name)]
    return config.plain() | {name: dataclasses.asdict(options_of(config, name)) for name in names}


def has_options(name: str) -> bool:
    """Whether a method, partner or task has any option."""
    return name not in NAMELESS and component_of(name).Options is not NoOptions


def kinds(plugins: Sequence[str] = ()) -> Kinds:
    """What the registered methods, partners and tasks add to the settings of ``DistillConfig``; see ``Schema``."""
    load_plugins(plugins)
    sections = {name: part.Options for name, part in _parts().items() if has_options(name)}
    methods: Any = (*METHODS, AUTO)
    partners: Any = (NO_PARTNER, *PARTNERS)
    tasks: Any = (AUTO, *TASKS)
    return {
        **sections,
        "methods": list[Literal[methods]],  # type: ignore[valid-type]
        "partner": Literal[partners],
        "task": Literal[tasks],
    }


def schema(plugins: Sequence[str] = ()) -> Schema[DistillConfig]:
    """All settings of phase two."""
    return Schema(DistillConfig, kinds(plugins))


def config_of(values: Mapping[str, Any]) -> DistillConfig:
    """Settings from plain nested values, as a recipe or a run's config.yaml holds them.

    Raises:
        ConfigError: An unknown name, a value of the wrong type or out of range.
    """
    return build_config(DistillConfig, values, kinds(values.get("plugins") or ()))
