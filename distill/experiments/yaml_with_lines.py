"""YAML that remembers where each value stands, so that a mistake is named by file and line."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from featstore.errors import ConfigError


@dataclass(frozen=True)
class Node:
    """A value of a YAML file.

    Attributes:
        value: a scalar, a list of nodes, or a dictionary of nodes by name; inside these also plain values.
        where: file and line.
    """

    value: Any
    where: str

    def plain(self) -> Any:
        """The value with all nodes inside it made plain."""
        return _plain(self.value)

    def mapping(self, key: str) -> dict[str, "Node"]:
        """The value as names with values.

        Args:
            key: name of this value, for the message.

        Raises:
            ConfigError: it is something else.
        """
        if not isinstance(self.value, dict):
            raise self.wrong(key, "names with values (name: value)")
        return self.value

    def wrong(self, key: str, expected: str, advice: str = "") -> ConfigError:
        """The error that says where, what was found and what was expected."""
        found = f"{self.plain()!r}"
        found = found if len(found) <= 80 else f"{found[:77]}..."
        return ConfigError(
            f"{self.where}: {key}: found {found}, expected {expected}.{advice and ' ' + advice}"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Node):
        return _plain(value.value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def read_yaml(path: Path) -> Node:
    """Read a YAML file whose top is a mapping.

    A text that begins with ``./`` or ``../`` is a path relative to the file's own folder, as in every recipe.

    Raises:
        ConfigError: it cannot be read, is not YAML, names a key twice, or is not a mapping.
    """
    try:
        loader = yaml.SafeLoader(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read ({reason}). Check the path.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    try:
        top = loader.get_single_node()
        if not isinstance(top, yaml.MappingNode):
            raise ConfigError(f"{path}: expected names with values (name: value) at the top.")
        return _convert(top, loader, path)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    finally:
        loader.dispose()


def _convert(node: yaml.Node, loader: yaml.SafeLoader, path: Path) -> Node:
    where = f"{path}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        _check_names(node, path)
        loader.flatten_mapping(
            node
        )  # "<<: *name"; what the mapping says itself comes later and wins
        return Node(dict(_members(node, loader, path)), where)
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(item, loader, path) for item in node.value], where)
    value = loader.construct_object(node)
    if not isinstance(value, str | int | float | bool | None):
        value = node.value  # YAML makes dates of some texts; as settings they are text
    if isinstance(value, str) and value.startswith(("./", "../")):
        value = str(path.absolute().parent / value)
    return Node(value, where)


def _members(
    node: yaml.MappingNode, loader: yaml.SafeLoader, path: Path
) -> Iterator[tuple[str, Node]]:
    for key, item in node.value:
        converted = _convert(item, loader, path)
        # A value on lines of its own is found by its name.
        yield key.value, Node(converted.value, f"{path}:{key.start_mark.line + 1}")


def _check_names(node: yaml.MappingNode, path: Path) -> None:
    """YAML lets a second value replace the first silently; here it is an error."""
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{path}:{line}: expected a name before the colon.")
        if key.value in seen and key.value != "<<":
            raise ConfigError(
                f"{path}:{line}: {key.value}: stands here a second time, first in line {seen[key.value]}. "
                "Remove one."
            )
        seen[key.value] = line
