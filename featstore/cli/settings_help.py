"""Print the settings of a command: the common ones, those of one section, or all."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, get_args, get_origin

from featstore.cli.schema import Schema, choices_of, default_of
from featstore.errors import ConfigError

WIDTH = 110
ALL = "all"


def print_help(schema: Schema[Any], topics: Sequence[str], program: str) -> None:
    """Print ``--help``, ``--help SECTION`` or ``--help all``."""
    common = getattr(schema.config_class, "COMMON", None)
    topic = topics[0].removeprefix("--") if topics else ""
    names = [
        name for name in schema.leaves if topic in ("", ALL, name) or name.startswith(f"{topic}.")
    ]
    if not names:
        raise ConfigError(f"--help {topic}: there is no such section. {schema.near(topic)}")
    summary = inspect.getdoc(schema.config_class) or ""
    print(f"usage: {program} [--config FILE] [--NAME VALUE ...]\n\n{summary}\n")
    if not topic and common:
        names = list(common)
    print("\n".join(line for name in names for line in _lines(schema, name)))
    if len(names) < len(schema.leaves):
        sections = ", ".join(name for name in schema.sections if "." not in name)
        print(
            f"\nThese are {len(names)} of {len(schema.leaves)} settings. --help all shows all of them, --help SECTION "
            f"those of one section:\n{textwrap.fill(sections, WIDTH)}"
        )
    print(
        "\nA recipe (YAML, --config FILE) holds the same names; flags after it replace its values. "
        "Lists and dictionaries\nare written as in YAML: --seeds '[0, 1, 2]'."
    )


def _lines(schema: Schema[Any], name: str) -> Iterator[str]:
    section, _, last = name.rpartition(".")
    owner: Any = schema.sections[section] if section else schema.config_class
    text = _docs(owner).get(last, "")
    default = _default(owner, last)
    yield f"  --{name} {_kind(schema.leaves[name])}"
    yield textwrap.fill(
        f"{text} (default: {default})".strip(),
        WIDTH,
        initial_indent=" " * 6,
        subsequent_indent=" " * 6,
    )


def _kind(kind: Any) -> str:
    if choices := choices_of(kind):
        return "{" + ",".join(choice or "''" for choice in choices) + "}"
    if get_origin(kind) is list:
        return f"[{_kind(get_args(kind)[0])}, ...]"
    words = {bool: "true|false", int: "NUMBER", float: "NUMBER", str: "TEXT"}
    return words.get(kind, "{NAME: VALUE}")


def _default(owner: Any, name: str) -> str:
    item = next(item for item in dataclasses.fields(owner) if item.name == name)
    made = default_of(item)
    if isinstance(made, bool):
        return str(made).lower()
    if isinstance(made, list):
        return "[" + ", ".join(map(str, made)) + "]"
    return repr(made) if made == "" else str(made)


@cache
def _docs(owner: Any) -> dict[str, str]:
    """The docstring below each field."""
    found: dict[str, str] = {}
    for kind in reversed(owner.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(tree, ast.ClassDef)
        for before, node in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(before, ast.AnnAssign)
                and isinstance(before.target, ast.Name)
                and isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
            ):
                text = str(node.value.value).replace("``", "")
                found[before.target.id] = " ".join(text.split())
    return found
