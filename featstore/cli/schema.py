"""Names and types of the settings of one dataclass, and how it is made of values that a user gave.

Settings are nested frozen dataclasses. A recipe (YAML), flags, an experiment file and a call from Python all give
values by dotted name ("train.lr"); ``Schema`` checks them and builds the dataclass.
"""

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from featstore.cli.yaml_with_lines import Node, node_of, read_yaml
from featstore.errors import ConfigError

Config = TypeVar("Config")

Settings = dict[str, Node]  # values by dotted name, e.g. "train.lr"
Kinds = Mapping[str, Any]
"""Types by name of a setting: of further sections, or narrower ones of known settings."""
_GIVEN = "_given"  # attribute of a section
OPTIONS = "options"  # field that takes the sections of ``Kinds``, by name; no setting by itself


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
        """Settings by dotted name, from nested names, dotted names, or both."""
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

    def build(self, settings: Settings, *, defaults: Collection[str] = ()) -> Config:
        """Make the config; what is not given keeps its default.

        Args:
            defaults: Names of settings that a recipe gave which the user did not name; see ``given``.
        """
        settings = _entries_joined(settings, self.leaves)
        try:
            values = self._values(self.config_class, "", settings, defaults)
            if self.extra:
                values[OPTIONS] = {
                    name: self._section(name, kind, settings, defaults)
                    for name, kind in self.extra.items()
                    if any(given.startswith(f"{name}.") for given in settings)
                }
            return self.config_class(**values)
        except ConfigError as error:
            where = _place_of(str(error), settings)
            raise ConfigError(f"{where}{error}") from None

    def _section(self, name: str, kind: Any, settings: Settings, defaults: Collection[str]) -> Any:
        values = self._values(kind, f"{name}.", settings, defaults)
        section = kind(**values)
        named = frozenset(item for item in values if f"{name}.{item}" not in defaults)
        object.__setattr__(section, _GIVEN, named)  # sections are frozen
        return section

    def _values(
        self, config_class: Any, prefix: str, settings: Settings, defaults: Collection[str]
    ) -> dict[str, Any]:
        values = {}
        for name, kind in _fields(config_class).items():
            full = prefix + name
            if full in self.sections:
                if any(given.startswith(f"{full}.") for given in settings):
                    values[name] = self._section(full, kind, settings, defaults)
            elif full in settings:
                values[name] = convert(settings[full], self.leaves[full], full)
        return values


def recorded(section: Any) -> frozenset[str] | None:
    """Names of the settings of a section that the user gave; None if the section was made or replaced in Python."""
    return getattr(section, _GIVEN, None)


def given(section: Any) -> frozenset[str]:
    """Names of the settings of a section that the user gave, also where they equal their defaults.

    Of a section that was made or replaced in Python, those that differ from their defaults.
    """
    found = recorded(section)
    if found is not None:
        return found
    return frozenset(
        item.name
        for item in dataclasses.fields(section)
        if getattr(section, item.name) != default_of(item)
    )


def default_of(item: "dataclasses.Field[Any]") -> Any:
    """The default of a field."""
    made = item.default_factory
    return item.default if made is dataclasses.MISSING else made()


def _fields(config_class: Any) -> dict[str, Any]:
    kinds = get_type_hints(config_class)
    return {item.name: _section(kinds[item.name]) for item in dataclasses.fields(config_class)}


def _section(kind: Any) -> Any:
    """``Section | None`` as ``Section``: one that stays None unless something of it is given."""
    parts = [part for part in get_args(kind) if part is not type(None)]
    optional = len(parts) < len(get_args(kind)) and len(parts) == 1
    return parts[0] if optional and dataclasses.is_dataclass(parts[0]) else kind


def _entries_joined(settings: Settings, leaves: Mapping[str, Any]) -> Settings:
    """Put single entries of a dictionary ("student.model_args.drop_rate") into it."""
    joined = dict(settings)
    for name, node in settings.items():
        if name not in leaves:
            parent, _, key = name.rpartition(".")
            del joined[name]
            before = joined[parent].mapping(parent) if parent in joined else {}
            joined[parent] = Node({**before, key: node}, node.where)
    return joined


def _place_of(message: str, settings: Settings) -> str:
    """File and line of the setting that a message on a value names."""
    for name, node in settings.items():
        if message.startswith((f"--{name} ", f"--{name}:")) and not node.where.startswith("--"):
            return f"{node.where}: " if node.where else ""
    return ""


def convert(node: Node, kind: Any, key: str) -> Any:
    """The value of one setting as its type.

    Args:
        node: As it was given. Numbers may be text (as 1e-3 is in YAML); one value stands for a list of one.
        kind: bool, int, float, str, Any, a Literal, a list of these or of dataclasses, or a dictionary.

    Raises:
        ConfigError: It is of another type.
    """
    origin, value = get_origin(kind), node.value
    if takes_bool(kind) and isinstance(value, bool):
        return value
    if choices := choices_of(kind):
        return _choose(node, choices, key)
    if origin is list:
        (item_kind,) = get_args(kind)
        if value is None:
            return []
        items = value if isinstance(value, list) else [node]
        return [convert(item, item_kind, key) for item in items]
    if origin is dict:
        return (
            {}
            if value is None
            else {name: item.plain() for name, item in node.mapping(key).items()}
        )
    if dataclasses.is_dataclass(kind):
        if isinstance(value, kind):  # type: ignore[arg-type]
            return value
        inner: Schema[Any] = Schema(kind)  # type: ignore[arg-type]
        return inner.build(inner.flatten(node.mapping(key)))
    if kind is Any:
        return node.plain()
    return _scalar(node, kind, key)


def _scalar(node: Node, kind: type, key: str) -> Any:
    value = node.value
    if isinstance(value, list | dict):
        raise node.wrong(key, EXPECTED[kind])
    if kind is str:
        if value is None and node.text:
            raise node.wrong(key, "text; '' for none")
        return node.text if not isinstance(value, str) else value
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise node.wrong(key, EXPECTED[bool])
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        whole = int(value) if isinstance(value, int) else int(number)
    except (TypeError, ValueError, OverflowError):
        raise node.wrong(key, EXPECTED[kind]) from None
    if not math.isfinite(number) or (kind is int and whole != number):
        raise node.wrong(key, EXPECTED[kind])
    return whole if kind is int else number


EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def takes_bool(kind: Any) -> bool:
    """Whether a setting is bool, or may be one beside the words of a Literal."""
    return kind is bool or (get_origin(kind) in (Union, UnionType) and bool in get_args(kind))


def choices_of(kind: Any) -> tuple[str, ...]:
    """The texts that a type allows; () for other types."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        parts = [("true", "false") if part is bool else choices_of(part) for part in get_args(kind)]
        return tuple(text for part in parts for text in part) if all(parts) else ()
    return ()


def _choose(node: Node, choices: tuple[str, ...], key: str) -> str:
    text = node.value if isinstance(node.value, str) else node.text  # "no" is false in YAML
    if isinstance(node.value, list | dict) or text not in choices:
        shown = ", ".join(choice or "''" for choice in choices)
        raise node.wrong(
            key, f"one of {shown}", did_you_mean(difflib.get_close_matches(str(text), choices, n=2))
        )
    return text


def did_you_mean(names: Sequence[str]) -> str:
    """A question that names the candidates; empty without any."""
    return f"Did you mean {' or '.join(names)}?" if names else ""


def build_config(
    config_class: type[Config],
    values: Mapping[str, Any],
    kinds: Kinds | None = None,
    *,
    recipe: Path | None = None,
    recipe_is_default: bool = False,
) -> Config:
    """Make a config of plain nested values, as a recipe holds them.

    Args:
        values: By name, nested or dotted.
        recipe_is_default: The user did not name the recipe; see ``given``.

    Raises:
        ConfigError: An unknown name, a value of the wrong type or out of range.
    """
    schema = Schema(config_class, kinds)
    nodes = {name: node_of(value, f"--{name}") for name, value in values.items()}
    below = {} if recipe is None else schema.flatten(read_yaml(recipe).value)
    own = schema.flatten(nodes)
    defaults = below.keys() - own.keys() if recipe_is_default else ()
    return schema.build({**below, **own}, defaults=defaults)
