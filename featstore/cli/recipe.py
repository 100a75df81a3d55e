"""Recipes and flags become checked settings; errors become one message and an exit status."""

import gc
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from featstore.cli.schema import Kinds, Schema, Settings, convert, takes_bool
from featstore.cli.settings_help import print_help
from featstore.cli.yaml_with_lines import Node, parse_flag, read_yaml
from featstore.errors import ConfigError, FeatstoreError, TooManyInvalid

Config = TypeVar("Config")
Extend = Callable[[list[str]], Kinds]
"""Imports plugins and returns the kinds that they and the package add; see ``Schema``."""

EXIT_ERROR = 2  # exit status for an error that the user can correct
EXIT_TOO_MANY_INVALID = 3
"""Exit status when the work was done but more images were skipped than allowed."""
EXIT_INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it

INSTALL = "Training and teachers need more packages: pip install 'featstore-distill[distill]'"
EXTRA_PACKAGES = ("torch", "torchvision", "timm", "open_clip", "accelerate", "torchmetrics")


def parse(
    config_class: type[Config],
    *,
    default_recipe: Path | None,
    own_recipe: Path | None = None,
    argv: Sequence[str] | None = None,
    extend: Extend | None = None,
    program: str = "",
) -> Config:
    """Read ``--config recipe.yaml`` and flags; the last one wins, unknown names are errors.

    Without ``--config`` the default recipe is read, unless ``--source.path`` or ``--source.kind`` names other images.
    A value in a recipe that begins with ``./`` or ``../`` is a path relative to the recipe's own folder; any other path
    is relative to the working directory.

    Args:
        default_recipe: None reads no recipe.
        own_recipe: Read in its place where other images are named.
        argv: Without the program's name; None takes the process's.
        program: How the command is called, for its help; "" takes the name of the process.

    Raises:
        ConfigError: The recipe cannot be read, there is no such setting, or a value is of another type or out of range.
        SystemExit: ``--help`` was printed (status 0).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    wants_help = next((i for i, item in enumerate(arguments) if item in ("--help", "-h")), None)
    given = list(split_flags(arguments if wants_help is None else arguments[:wants_help]))
    others = ("source", "source.path", "source.kind")
    own = any(name in others and text != "digits" for name, text in given)
    recipe = own_recipe if own else default_recipe
    takes_default = recipe is not None and not any(name == "config" for name, _ in given)
    if takes_default:
        given.insert(0, ("config", str(recipe)))
    layers = [
        _recipe(Path(text or "")) if name == "config" else (name, text) for name, text in given
    ]
    schema = Schema(config_class, None if extend is None else extend(_plugins(layers)))
    if wants_help is not None:
        print_help(schema, arguments[wants_help + 1 :], program or Path(sys.argv[0]).name)
        sys.exit(0)
    settings: Settings = {}
    defaults: set[str] = set()
    for layer in layers:
        new = schema.flatten(layer) if isinstance(layer, dict) else _flag(schema, *layer)
        for name in new:  # a whole dictionary replaces single entries of an earlier layer
            for old in [item for item in settings if item.startswith(f"{name}.")]:
                del settings[old]
        settings |= new
        if takes_default and layer is layers[0]:
            defaults = {*new}
        else:
            defaults -= new.keys()
    return schema.build(settings, defaults=defaults)


def split_flags(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Names and texts of ``--name text``, ``--name=text`` and bare ``--name``, with - taken as _ in names."""
    rest = list(arguments)
    while rest:
        item = rest.pop(0)
        if not item.startswith("--") or item == "--":
            raise ConfigError(
                f"{item}: expected --NAME VALUE. A value with spaces needs quotes: --methods '[kd, fitnet]'."
            )
        name, equals, text = item.removeprefix("--").partition("=")
        value: str | None = text if equals else None
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        yield name.replace("-", "_"), value


def _recipe(path: Path) -> dict[str, Node]:
    try:
        return dict(read_yaml(path).value)
    except ConfigError as error:
        raise ConfigError(f"--config {error}") from None


def _plugins(layers: Sequence[Any]) -> list[str]:
    """The value of ``plugins``, before the names of all settings are known."""
    found: list[str] = []
    for layer in layers:
        node = layer.get("plugins") if isinstance(layer, dict) else None
        if not isinstance(layer, dict) and layer[0] == "plugins":
            node = parse_flag("plugins", layer[1] or "")
        if node is not None:
            found = convert(node, list[str], "plugins")
    return found


def _flag(schema: Schema[Any], name: str, text: str | None) -> Settings:
    kind = schema.leaves.get(name)
    if text is None:
        if kind is None and name not in schema.sections:
            raise schema.unknown(name, f"--{name}")
        if not takes_bool(kind):
            raise ConfigError(f"--{name}: expected a value after it: --{name} VALUE.")
        text = "true"
    return schema.flatten({name: parse_flag(name, text)})


def run_main(main: Callable[[Config], object], config_class: type[Config], **options: Any) -> None:
    """Parse the command line, run ``main``, and end the process with a message and a status if that fails.

    Args:
        options: Arguments of ``parse``.
    """

    def work() -> int:
        main(parse(config_class, **options))
        _end_process_group()
        return 0

    if status := exit_status(work):
        sys.exit(status)


def _end_process_group() -> None:
    """After work of several processes: join the group's threads, which may abort an interpreter that ends."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or "LOCAL_RANK" not in os.environ:
        return
    gc.collect()  # models in reference cycles hold the group
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def run_alone(work: Callable[[], int]) -> int:
    """As ``exit_status``, for a command that starts its own processes."""

    def checked() -> int:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "started in several processes, but this command starts its own. Run it with plain python."
            )
        return work()

    return exit_status(checked)


def exit_status(work: Callable[[], int]) -> int:
    """Run a command; our errors become one message and an exit status."""
    try:
        return work()
    except FeatstoreError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return EXIT_TOO_MANY_INVALID if isinstance(error, TooManyInvalid) else EXIT_ERROR
    except ModuleNotFoundError as error:
        if error.name not in EXTRA_PACKAGES:
            raise
        print(f"\nerror: {error}. {INSTALL}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:  # the reader of our output (head, less) has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to resume", file=sys.stderr)
        return EXIT_INTERRUPTED


def command(*words: object) -> str:
    """A command line that can be pasted into a shell."""
    return shlex.join(map(str, words))
