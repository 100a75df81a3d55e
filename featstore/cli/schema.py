"""Names and types of the settings of one dataclass, and how it is made of values that a user gave.

Settings are nested frozen dataclasses. A recipe (YAML), flags, an experiment file and a call from Python all give
values by dotted name ("train.lr"); ``Schema`` checks them and builds the dataclass.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from featstore.cli.yaml_with_lines import Node, node_of, read_yaml
from featstore.errors import ConfigError

Config = TypeVar("Config")

Settings = dict[str, Node]
"""Values by dotted name, e.g. "train.lr"."""
Kinds = Mapping[str, Any]
"""Types by name of a setting: of further sections, or narrower ones of known settings."""
OPTIONS = "options"
"""Field that takes the sections of ``Kinds``, by name; no setting by itself."""


class Schema(Generic[Config]):
    """Names and types of all settings of one class.

    Args:
        config_class: A dataclass of plain values, lists, dictionaries and further such dataclasses.
        kinds: Narrower types of its fields; and further sections, which end up in its field ``options``.
    """

    def __init__(self, config_class: type[Config], kinds: Kinds | None = None) -> None:
        self.config_class = config_class
        own = {item.name for item in dataclasses.fields(config_class)}  # type: ignore[arg-type]
        self.kinds = kinds or {}
        self.extra = {name: kind for name, kind in self.kinds.items() if name not in own}
        self.leaves: dict[str, Any] = {}
        """Type by dotted name."""
        self.sections: dict[str, Any] = {}
        """Dataclass by dotted name."""
        self._collect(config_class, "")
        for name, kind in self.extra.items():
            self.sections[name] = kind
            self._collect(kind, f"{name}.")

    def _collect(self, config_class: Any, prefix: str) -> None:
        for name, kind in _fields(config_class).items():
            if not prefix and name == OPTIONS:
                continue
            if dataclasses.is_dataclass(kind):
                self.sections[prefix + name] = kind
                self._collect(kind, f"{prefix}{name}.")
            else:
                self.leaves[prefix + name] = kind if prefix else self.kinds.get(name, kind)

    def flatten(self, members: Mapping[str, Node]) -> Settings:
        """Settings by dotted name, from nested names, dotted names, or both.

        Raises:
            ConfigError: There is no such setting, or one is given twice.
        """
        found: Settings = {}
        for name, node in self._flat(members, ""):
            if name in found:
                raise ConfigError(
                    f"{node.where}: {name}: is given a second time, first at {found[name].where}. Remove one."
                )
            found[name] = node
        return found

    def _flat(self, members: Mapping[str, Node], prefix: str) -> Iterator[tuple[str, Node]]:
        for key, node in members.items():
            name = f"{prefix}{key}"
            if name in self.leaves:
                yield name, node
            elif name in self.sections:
                if node.value is not None:
                    yield from self._flat(node.mapping(name), f"{name}.")
            elif (parent := name.rpartition(".")[0]) in self.leaves and get_origin(
                self.leaves[parent]
            ) is dict:
                yield name, node  # one entry of a dictionary
            else:
                raise self.unknown(name, node.where)

    def unknown(self, name: str, where: str) -> ConfigError:
        """The error for a name that is no setting, with the nearest ones."""
        where = "" if where == f"--{name}" else f"{where}: "
        return ConfigError(f"{where}--{name}: there is no such setting. {self.near(name)}")

    def near(self, name: str) -> str:
        """The settings that a name may have been meant for."""
        known = [*self.leaves, *self.sections]
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
        last = name.rpartition(".")[2]
        ends: dict[str, str] = {}
        for item in known:
            ends.setdefault(item.rpartition(".")[2], item)
        close += [item for item in known if item.startswith(name)][:2]
        close += [ends[end] for end in difflib.get_close_matches(last, ends, n=2, cutoff=0.75)]
        return (
            did_you_mean([f"--{item}" for item in dict.fromkeys(close)]) or "--help all lists all."
        )

    def build(
    config_class: type[Config],
    values: Mapping[str, Any],
    kinds: Kinds | None = None,
    *,
    recipe: Path | None = None,
) -> Config:
    """Make a config of plain nested values, as a recipe holds them.

    Args:
        config_class: Of the settings.
        values: By name, nested or dotted.
        kinds: See ``Schema``.
        recipe: A file whose values hold where none is given.

    Raises:
        ConfigError: An unknown name, a value of the wrong type or out of range.
    """
    schema = Schema(config_class, kinds)
    nodes = {name: node_of(value, f"--{name}") for name, value in values.items()}
    below = {} if recipe is None else schema.flatten(read_yaml(recipe).value)
    return schema.build({**below, **schema.flatten(nodes)})
