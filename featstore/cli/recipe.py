"""The one place where recipes and flags become a config, and errors become an exit status."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from featstore.errors import ConfigError, FeatstoreError, TooManyInvalid

INSTALL = (
    "Training and teachers need more than the store does: pip install 'featstore-distill[distill]'"
)

try:
    from jsonargparse import ArgumentError, ArgumentParser, auto_cli, set_parsing_settings
except ModuleNotFoundError as missing:
    sys.exit(f"error: {missing}. {INSTALL}")

Config = TypeVar("Config")

EXIT_ERROR = 2
"""Exit status for an error that the user can mend; the argument parser uses it too."""
EXIT_TOO_MANY_INVALID = 3
"""Exit status when the work was done but more images were skipped than allowed."""

USAGE = "%(prog)s [--config RECIPE.yaml] [--name value ...]      all settings: --help"

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(
    config_class: type[Config], *, default_recipe: Path, argv: Sequence[str] | None = None
) -> Config:
    """Read ``--config recipe.yaml`` and the flags after it; the last one wins, unknown keys are errors.

    Without ``--config`` the default recipe is read. A value in a recipe that begins with ``./`` or ``../`` is a path
    relative to the recipe's own folder; any other path is relative to the working directory.

    Raises:
        ConfigError: the recipe cannot be read, or a value is out of range.
        SystemExit: an unknown key or flag, or a value of the wrong type (status 2, after a message).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not any(item == "--config" or item.startswith("--config=") for item in arguments):
        arguments = ["--config", str(default_recipe), *arguments]
    arguments = list(_inline_recipes(_spell_out_switches(config_class, arguments)))
    config: Config = auto_cli(config_class, args=arguments, allow_abbrev=False, usage=USAGE)
    return config


def builder(config_class: type[Config]) -> Callable[[dict[str, Any]], Config]:
    """What makes a config of plain nested values, as a recipe holds them; for many configs in one command.

    What it makes raises ConfigError: an unknown key, a value of the wrong type or out of range.
    """
    kinds = get_type_hints(config_class)
    sections = {name for name, kind in kinds.items() if dataclasses.is_dataclass(kind)}

    @cache
    def parser_of(section: str) -> ArgumentParser:
        # One for each section, because parsing takes time with the square of the number of settings.
        parser = ArgumentParser(exit_on_error=False)
        if section:
            parser.add_class_arguments(kinds[section], section)
        else:
            parser.add_class_arguments(config_class, skip=sections)
        return parser

    @cache
    def parse_part(section: str, text: str) -> dict[str, Any]:
        # Most configs of one command differ in one section, and what is frozen can be shared.
        parser = parser_of(section)
        made: dict[str, Any] = vars(parser.instantiate(parser.parse_object(json.loads(text))))
        return made

    def build(values: dict[str, Any]) -> Config:
        parts = {name: {name: values[name]} for name in sections & values.keys()}
        parts[""] = {name: value for name, value in values.items() if name not in sections}
        made: dict[str, Any] = {}
        try:
            for name, part in parts.items():
                made |= parse_part(name, json.dumps(part))
        except ArgumentError as error:
            raise ConfigError(" ".join(str(error).split())) from None
        return config_class(**made)

    return build


def run_main(
    main: Callable[[Config], object],
    config_class: type[Config],
    *,
    default_recipe: Path,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse the command line, run ``main``, and turn our errors into one message and an exit status."""
    try:
        main(parse(config_class, default_recipe=default_recipe, argv=argv))
    except TooManyInvalid as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(EXIT_TOO_MANY_INVALID)
    except FeatstoreError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    except ModuleNotFoundError as error:
        if error.name not in (
            "torch",
            "torchvision",
            "timm",
            "open_clip",
            "accelerate",
            "torchmetrics",
        ):
            raise
        print(f"\nerror: {error}. {INSTALL}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def run_alone(work: Callable[[], int]) -> int:
    """Run a command that starts its own processes; our errors become one message and an exit status."""
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "started in several processes: this command starts its own. Use plain python."
            )
        return work()
    except FeatstoreError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _spell_out_switches(config_class: type, arguments: Sequence[str]) -> Iterator[str]:
    """Let ``--dry_run`` stand for ``--dry_run=true``."""
    switches = set(_switches(config_class, "--"))
    for i, item in enumerate(arguments):
        following = arguments[i + 1] if i + 1 < len(arguments) else "--"
        yield f"{item}=true" if item in switches and following.startswith("--") else item


def _switches(config_class: Any, prefix: str) -> Iterator[str]:
    for item in dataclasses.fields(config_class):
        if item.type is bool:
            yield f"{prefix}{item.name}"
        elif dataclasses.is_dataclass(item.type):
            yield from _switches(item.type, f"{prefix}{item.name}.")


def _inline_recipes(arguments: Iterator[str]) -> Iterator[str]:
    """Replace the path after ``--config`` by the recipe's content, with its own relative paths resolved."""
    for item in arguments:
        if item == "--config":
            yield f"--config={_read_recipe(Path(next(arguments, '')))}"
        elif item.startswith("--config="):
            yield f"--config={_read_recipe(Path(item.removeprefix('--config=')))}"
        else:
            yield item


def _read_recipe(path: Path) -> str:
    try:
        values = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"--config {path}: cannot be read ({error.strerror}). Recipes that come with the package: "
            f"{Path(__file__).parents[1] / 'recipes'}."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"--config {path}: expected settings by name, found {type(values).__name__}."
        )
    # YAML makes dates of some texts; as settings they are text.
    return json.dumps(_resolve(values, path.absolute().parent), default=str)


def _resolve(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, folder) for item in value]
    if isinstance(value, str) and value.startswith(("./", "../")):
        return str(folder / value)
    return value
