"""The experiment file: which rows a table has, which seeds, and how settings are chosen. Checked strictly.

A setting is spelled as on the command line (``customkd.w_logits``), or nested as in a recipe. Which values it may have
is checked when the rows are made whole; here only that it exists.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.config import DistillConfig
from distill.register import schema as schema_with
from featstore.cli.schema import Schema, Settings, convert, did_you_mean
from featstore.cli.yaml_with_lines import Node, node_of, read_yaml
from featstore.errors import ConfigError

KEYS = ("recipe", "out", "seeds", "baseline", "variants", "grid", "tune")
OWN = ("out", "seeds")  # settings of a recipe that the experiment decides
TUNE = "tune"  # folder of the tuning runs; no variant can have this name
TUNED = {"data.validation", "eval.part"}  # settings that tuning decides
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # names of rows are names of folders


@dataclass(frozen=True)
class Variant:
    """A row before the grid is applied."""

    settings: Settings  # that replace the recipe's
    search: list[Settings]  # settings to try on top of these; empty without tuning
    where: str  # file and line


@dataclass(frozen=True)
class Axis:
    """One axis of the grid: settings by the name of each choice."""

    name: str
    choices: dict[str, Settings]


@dataclass(frozen=True)
class Tune:
    """How settings are chosen."""

    budget: int  # settings tried per row
    exact: bool  # every row tries this many; otherwise at most
    seeds: list[int]  # of the tries
    # images per class that are held out of training and decide; 0 takes the recipe's number
    validation: int


@dataclass(frozen=True)
class Experiment:
    """An experiment file."""

    path: Path  # of the file
    recipe: Settings  # the base settings
    out: str  # folder of the results
    seeds: list[int]  # one run per row and seed
    baseline: str  # name of a variant or a row that the others are compared to; "" for none
    variants: dict[str, Variant]  # by name
    grid: list[Axis]  # axes; every variant gets a row for each combination
    tune: Tune | None  # None takes all settings as they are
    flags: Settings  # settings from the command line, which replace all others
    schema: Schema[DistillConfig]  # names and types of all settings
    plugins: list[str]  # files that register methods of the user


def read_experiment(path: Path, flags: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment file and the recipe it names.

    Args:
        flags: settings by dotted name that replace those of the recipe and of every row; ``out`` and ``seeds`` replace
            the file's own.
    """
    top = read_yaml(path).mapping(path.name)
    _check_keys(top, KEYS, "")
    given = {
        key: value if isinstance(value, Node) else node_of(value, f"--{key}")
        for key, value in (flags or {}).items()
    }
    top = {**top, **{key: given.pop(key) for key in OWN if key in given}}
    for key in ("recipe", "out"):
        if key not in top:
            raise ConfigError(f"{path}: {key}: is missing.")
    base = read_yaml(path.absolute().parent / _text(top["recipe"], "recipe")).value
    plugins = given.get("plugins", base.get("plugins"))
    loaded = convert(plugins, list[str], "plugins") if plugins else []
    schema = schema_with(loaded)
    recipe = schema.flatten(base)
    flags_left = schema.flatten(given)
    known = {**recipe, **flags_left}
    tune = _read_tune(top[TUNE]) if TUNE in top else None
    variants = _read_variants(top.get("variants"), known, tune, schema)
    seeds = _seeds(top["seeds"], "seeds") if "seeds" in top else _seeds_of(recipe)
    grid = _read_grid(top["grid"], schema) if "grid" in top else []
    if "variants" not in top:
        flags_left.pop("methods", None)  # the rows are made of it
    _check_flags(flags_left, variants, grid)
    return Experiment(
        path=path,
        recipe={key: node for key, node in recipe.items() if key not in OWN},
        out=_text(top["out"], "out"),
        seeds=seeds,
        baseline=_text(top["baseline"], "baseline") if "baseline" in top else "",
        variants=variants,
        grid=grid,
        tune=tune,
        flags=flags_left,
        schema=schema,
        plugins=loaded,
    )


def _check_keys(members: Mapping[str, Node], known: tuple[str, ...], prefix: str) -> None:
    for key, node in members.items():
        if key not in known:
            hint = did_you_mean(difflib.get_close_matches(key, known, n=1))
            raise ConfigError(
                f"{node.where}: {prefix}{key}: unknown key, expected one of {', '.join(known)}. {hint}"
            )


def _text(node: Node, key: str) -> str:
    if not isinstance(node.value, str) or not node.value:
        raise node.wrong(key, "text")
    return node.value


def _seeds(node: Node, key: str) -> list[int]:
    values = convert(node, list[int], key)
    if not values or min(values) < 0 or len(set(values)) < len(values):
        raise node.wrong(key, "different numbers from 0 on, e.g. [0, 1, 2]")
    return values  # type: ignore[no-any-return]


def _seeds_of(recipe: Settings) -> list[int]:
    if "seeds" in recipe:
        return _seeds(recipe["seeds"], "seeds")
    return DistillConfig().seeds


def _read_variants(
    node: Node | None, recipe: Settings, tune: Tune | None, schema: Schema[Any]
) -> dict[str, Variant]:
    """The rows as they are written; without any, one for every method of the recipe."""
    if node is None:
        methods = recipe["methods"] if "methods" in recipe else node_of(DistillConfig().methods, "")
        listed = convert(methods, schema.leaves["methods"], "methods")
        named = {
            name: Variant({"methods": node_of([name], methods.where)}, [], methods.where)
            for name in listed
        }
    else:
        named = {
            name: _read_variant(name, member, schema)
            for name, member in node.mapping("variants").items()
        }
    if not named:
        assert node is not None
        raise node.wrong("variants", "at least one")
    for name, variant in named.items():
        if not NAME.fullmatch(name) or name == TUNE:
            raise ConfigError(
                f"{variant.where}: variants.{name}: the name becomes that of a folder: letters, digits and . _ + - "
                f'only, and not "{TUNE}".'
            )
        _check_search(name, variant, tune)
    return named


def _read_variant(name: str, node: Node, schema: Schema[Any]) -> Variant:
    members = {} if node.value is None else dict(node.mapping(f"variants.{name}"))
    listed = members.pop("search", Node([], node.where))
    if not isinstance(listed.value, list):
        raise listed.wrong(f"variants.{name}.search", "a list of settings to try")
    _refuse(members, OWN, f"variants.{name}", "the experiment decides it for all rows")
    search = [schema.flatten(item.mapping(f"variants.{name}.search")) for item in listed.value]
    for tried in search:
        _refuse(tried, (*OWN, *TUNED), f"variants.{name}.search", "it is not one to search over")
    return Variant(schema.flatten(members), search, node.where)


def _refuse(members: Mapping[str, Node], names: tuple[str, ...], where: str, because: str) -> None:
    for name in names:
        if name in members:
            raise ConfigError(
                f"{members[name].where}: {where}.{name}: cannot be set here; {because}."
            )


def _check_search(name: str, variant: Variant, tune: Tune | None) -> None:
    count = len(variant.search)
    if tune is None and count:
        raise ConfigError(
            f"{variant.where}: variants.{name}.search: found {count} settings to try, but no tune section that says "
            "how: tune: {budget: " + str(count) + ", seeds: [0], validation: N}."
        )
    if tune is not None and (count > tune.budget or (tune.exact and count != tune.budget)):
        raise ConfigError(
            f"{variant.where}: variants.{name}.search: found {count} settings to try, expected "
            f"{'' if tune.exact else 'at most '}{tune.budget} (tune.budget), the same for every row. "
            'Give as many, or say "budget: at most N".'
        )


def _read_grid(node: Node, schema: Schema[Any]) -> list[Axis]:
    members = node.mapping("grid")
    shorts = [key.rpartition(".")[2] for key in members]
    axes = []
    for (key, choices), short in zip(members.items(), shorts, strict=True):
        _refuse({key: choices}, (*OWN, "methods"), "grid", "name rows under variants instead")
        axes.append(_read_axis(key, choices, short if shorts.count(short) == 1 else key, schema))
    return axes


def _read_axis(key: str, node: Node, label: str, schema: Schema[Any]) -> Axis:
    """Choices: a list of plain values, or named ones (name: value) where a value is no name for a folder."""
    if isinstance(node.value, dict):
        named = dict(node.value)
    elif isinstance(node.value, list):
        named = {_label(key, item): item for item in node.value}
        if len(named) < len(node.value):
            raise node.wrong(f"grid.{key}", "different values")
    else:
        raise node.wrong(f"grid.{key}", "a list of values, or names with values")
    if not named:
        raise node.wrong(f"grid.{key}", "at least one value")
    for name, item in named.items():
        if not NAME.fullmatch(name):
            raise item.wrong(
                f"grid.{key}",
                "values that can be part of a folder's name (letters, digits and . _ + -)",
                "Name the others: {name: value}.",
            )
    return Axis(label, {name: schema.flatten({key: item}) for name, item in named.items()})


def _label(key: str, node: Node) -> str:
    if isinstance(node.value, list | dict) or node.value is None:
        raise node.wrong(f"grid.{key}", "a plain value", "Name others: {name: value}.")
    return str(node.value).lower() if isinstance(node.value, bool) else str(node.value)


def _read_tune(node: Node) -> Tune:
    members = node.mapping(TUNE)
    _check_keys(members, ("budget", "seeds", "validation"), f"{TUNE}.")
    if "budget" not in members:
        raise node.wrong(f"{TUNE}.budget", "the number of settings that every row tries")
    budget = members["budget"]
    text = re.fullmatch(r"(at most )?([1-9]\d*)", str(budget.value))
    if text is None or isinstance(budget.value, float):
        raise budget.wrong(f"{TUNE}.budget", 'a number, or "at most N"')
    validation = members.get("validation", Node(0, ""))
    if type(validation.value) is not int or validation.value < 0:
        raise validation.wrong(f"{TUNE}.validation", "a number of images per class")
    return Tune(
        budget=int(text[2]),
        exact=text[1] is None,
        seeds=_seeds(members["seeds"], f"{TUNE}.seeds") if "seeds" in members else [0],
        validation=validation.value,
    )


def _check_flags(flags: Settings, variants: dict[str, Variant], grid: list[Axis]) -> None:
    """Refuse a flag that sets what a row sets itself: flags hold for all rows."""
    of_rows = [
        settings
        for variant in variants.values()
        for settings in (variant.settings, *variant.search)
    ] + [settings for axis in grid for settings in axis.choices.values()]
    for name, node in flags.items():
        for settings in of_rows:
            if name in settings:
                raise ConfigError(
                    f"{node.where}: holds for all rows, but {settings[name].where} sets it for one. Change the file."
                )
