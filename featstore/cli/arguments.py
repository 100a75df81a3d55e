"""Arguments that several commands share, short forms of ``add_argument``, and how commands print their result.

Each command is a module with a ``DESCRIPTION``, its ``ARGUMENTS`` and ``run``, which returns the exit status.
"""

import argparse
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_args

from featstore.cli.progress_bar import progress_bar
from featstore.errors import printable
from featstore.files.progress import Progress
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import Codec, Container
from featstore.places.base import Retry
from featstore.places.open_place import is_url

Arguments = Mapping[str, dict[str, Any]]
"""By flag or name, the options of ``ArgumentParser.add_argument``."""


def store_address(text: str) -> str | Path:
    """Return a folder as Path, a URL unchanged (a Path would lose one of its slashes)."""
    return text if is_url(text) else Path(text)


def store_folder(text: str) -> Path:
    """Return a folder as Path; of a URL, the error says how to get a folder."""
    if is_url(text):
        raise argparse.ArgumentTypeError(
            f"{text} is a URL; pull the store first: featstore pull {shlex.quote(text)} FOLDER"
        )
    return Path(text)


def new_folder(text: str) -> Path:
    """Return the folder of a new store; of a URL, the error says how to publish the store there."""
    if is_url(text):
        raise argparse.ArgumentTypeError(
            f"{text} is a URL; write into a folder, then publish that: featstore push FOLDER {shlex.quote(text)}"
        )
    return Path(text)


def key_value(text: str) -> tuple[str, str]:
    """Parse KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(text)
    return key, value


def positive(text: str) -> int:
    """Parse a positive integer."""
    number = int(text)
    if number <= 0:
        raise ValueError(text)
    return number


def names(text: str) -> list[str]:
    """Parse names separated by commas."""
    several = [name.strip() for name in text.split(",")]
    if not all(several):
        raise ValueError(text)
    return several


def row_range(text: str) -> slice:
    """Parse ``A:B`` as a slice: A included, B not; either may be missing or negative."""
    first, colon, last = text.partition(":")
    if not colon:
        raise ValueError(text)
    return slice(int(first) if first else None, int(last) if last else None)


def value(help: str, type: Callable[[str], Any] = str, **options: Any) -> dict[str, Any]:
    """An argument with a value."""
    return {"help": help, "type": type, **options}


def flag(help: str) -> dict[str, Any]:
    """An argument without a value."""
    return {"help": help, "action": "store_true"}


def choice(help: str, choices: Iterable[str], **options: Any) -> dict[str, Any]:
    """An argument with one of several values."""
    return {"help": help, "choices": [*choices], **options}


def repeated(help: str, metavar: str, **options: Any) -> dict[str, Any]:
    """An argument that may be given several times."""
    return {"help": help, "metavar": metavar, "action": "append", "default": [], **options}


STORE = value("folder of the store", store_folder)
STORE_OR_URL = value("folder or URL of the store", store_address)
OUT = value("folder of the new store", new_folder)
FIELDS = value("only these fields (default: all)", names, metavar="A,B")
WHERE = repeated(
    "only rows whose sample id matches, e.g. 'train/*' (may be repeated: one match is enough), or whose number in a "
    "field does, e.g. 'confidence > .6' (all must)",
    "PATTERN",
)
ROWS = value("only rows A to B - 1", row_range, default=slice(None), metavar="A:B")
CONTAINERS, CODECS = get_args(Container), get_args(Codec)
DUPLICATES = choice(
    "images that an earlier store has under another id (default: refuse)",
    ("refuse", "skip", "keep"),
    default="refuse",
)
CLIENT: Arguments = {
    "--option": repeated(
        "for the client of a URL, e.g. endpoint=https://minio.example.org or skip_signature=true; may be repeated",
        "KEY=VALUE",
        type=key_value,
    ),
    "--least-rate": value(
        "a transfer that is slower for a minute is repeated, and an error in the end; 0: no limit (default: "
        "%(default).0f)",
        float,
        default=Retry().least_rate,
        metavar="BYTES_PER_S",
    ),
}
"""Arguments of commands that work at URLs."""


def client_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how failed requests are repeated, and the options of the client."""
    return {"retry": Retry(least_rate=arguments.least_rate), "options": dict(arguments.option)}


def picked(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the values of some arguments by name."""
    return {name: getattr(arguments, name) for name in names}


def bar(
    arguments: argparse.Namespace, unit: str, *, unit_scale: bool = False
) -> AbstractContextManager[Progress]:
    """Show a progress bar, unless the output is JSON."""
    return progress_bar(unit, show=not arguments.json, unit_scale=unit_scale)


def show(arguments: argparse.Namespace, values: Any, lines: Sequence[str]) -> int:
    """Print a result as JSON or as lines of text; returns 0."""
    if arguments.json:
        print(json.dumps(values, indent=2))
    elif lines:
        print("\n".join(map(printable, lines)))
    return 0


def made(out: Path, manifest: Manifest, **more: Any) -> dict[str, Any]:
    """A store that was written, as plain JSON values."""
    return {
        "path": str(out),
        **more,
        "rows": manifest.num_rows,
        "fields": sorted(manifest.fields),
        "fingerprint": manifest.fingerprint,
    }
