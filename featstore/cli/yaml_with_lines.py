"""Read YAML, keeping the file and line of every value, so that an error can name them.

PyYAML composes the nodes. What it would accept without a word is refused: names given twice, aliases that repeat too
much, nesting without end, tags that stand for objects.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from featstore.errors import ConfigError

MOST_VALUES = 100_000  # most values of one file, with every alias counted as what it stands for
MOST_LEVELS = 50  # deepest nesting
PLAIN = ("null", "bool", "int", "float")
"""YAML types that become Python values; everything else is kept as text, e.g. a date."""


@dataclass(frozen=True)
class Node:
    """A value of a YAML file, of a flag or of a call."""

    value: Any  # a scalar, a list of nodes, or a dictionary of nodes by name
    where: str  # FILE:LINE, or the flag ("--train.lr")
    text: str = ""  # a scalar as it was written

    def plain(self) -> Any:
        """The value with all nodes inside it made plain."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value

    def mapping(self, key: str) -> dict[str, "Node"]:
        """The value as names with values. Raises ConfigError: it is something else."""
        if not isinstance(self.value, dict):
            raise self.wrong(key, "names with values ({name: value})")
        return self.value

    def wrong(self, key: str, expected: str, advice: str = "") -> ConfigError:
        """The error that says where, what was found, what was expected, and what to do."""
        flag = self.where == f"--{key}"
        found = self.text if flag and self.text else repr(self.plain())
        found = found if len(found) <= 80 else f"{found[:77]}..."
        start = f"{self.where} {found}:" if flag else f"{self.where}: {key}: found {found},"
        return ConfigError(f"{start} expected {expected}.{advice and ' ' + advice}")


def node_of(value: Any, where: str) -> Node:
    """Plain Python values (of a call) as nodes that all have the same place."""
    if isinstance(value, dict):
        return Node({str(key): node_of(item, where) for key, item in value.items()}, where)
    if isinstance(value, list | tuple | set | range):
        return Node([node_of(item, where) for item in value], where)
    value = str(value) if isinstance(value, Path) else value
    return Node(value, where, str(value))


def read_yaml(path: Path) -> Node:
    """Read a YAML file whose top is a mapping.

    A text that begins with ``./`` or ``../`` is a path relative to the file's own folder, as in every recipe.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path.absolute()}: cannot be read ({error.strerror}).") from None
    return _Reader(path).read(content)


def parse_flag(name: str, text: str) -> Node:
    """The value of a flag: YAML, or plain text where it is no YAML (``*``, ``a: b: c``)."""
    where = f"--{name}"
    try:
        found = _Reader(None, where).compose(text)
    except (yaml.YAMLError, ConfigError):
        return Node(text, where, text)
    if found is None:
        return Node(None, where, text)
    if isinstance(found.value, dict | list):
        return found
    return Node(found.value, where, text)


class _Reader:
    def __init__(self, path: Path | None, flag: str = "") -> None:
        self.path, self.flag = path, flag
        self.left = MOST_VALUES

    def read(self, content: bytes) -> Node:
        try:
            top = self.compose(content)
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.path}: not valid YAML: {error}") from None
        if top is None or not isinstance(top.value, dict):
            found = "nothing" if top is None else type(top.value).__name__
            raise ConfigError(
                f"{self.path}: expected settings by name (name: value), found {found}."
            )
        return top

    def compose(self, content: bytes | str) -> Node | None:
        try:
            loader = yaml.SafeLoader(content)
            try:
                top = loader.get_single_node()
                return None if top is None else self.convert(top, loader, 0)
            finally:
                loader.dispose()
        except RecursionError:
            raise self.too_much() from None

    def too_much(self) -> ConfigError:
        return ConfigError(
            f"{self.path or self.flag}: more than {MOST_LEVELS} levels or {MOST_VALUES:,} values, with aliases (*name) "
            "counted as what they stand for. Write it without aliases inside aliases."
        )

    def convert(self, node: yaml.Node, loader: yaml.SafeLoader, level: int) -> Node:
        self.left -= 1
        if self.left < 0 or level > MOST_LEVELS:
            raise self.too_much()
        where = self.flag or f"{self.path}:{node.start_mark.line + 1}"
        if isinstance(node, yaml.MappingNode):
            return Node(self.members(node, loader, level + 1), where)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.convert(item, loader, level + 1) for item in node.value], where)
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        text: str = node.value
        if kind in PLAIN:
            try:
                return Node(loader.construct_object(node), where, text)
            except (ValueError, KeyError):
                raise ConfigError(f"{where}: {text[:80]!r} is not of type {kind}.") from None
        if node.tag.startswith("!") or kind.startswith("python"):
            raise ConfigError(f"{where}: tags such as {node.tag} are not read; give a plain value.")
        if self.path and text.startswith(("./", "../")):
            text = str(self.path.absolute().parent / text)
        return Node(text, where, text)

    def members(
        self, node: yaml.MappingNode, loader: yaml.SafeLoader, level: int
    ) -> dict[str, Node]:
        merged: dict[str, Node] = {}
        own: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            where = self.flag or f"{self.path}:{line}"
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{where}: expected a name before the colon.")
            if key.value in lines:
                raise ConfigError(
                    f"{where}: {key.value}: is given a second time, first in line {lines[key.value]}. Remove one."
                )
            lines[key.value] = line
            found = self.convert(item, loader, level)
            if key.value == "<<":
                for part in found.value if isinstance(found.value, list) else [found]:
                    merged = {**part.mapping("<<"), **merged}
            else:
                # A value on lines of its own is found by its name.
                own[key.value] = Node(found.value, where, found.text)
        return {**merged, **own}
