"""Types of arguments, and arguments, that several commands share."""

import argparse
import shlex
from pathlib import Path

from featstore.places.base import Retry
from featstore.places.open_place import is_url


def store_address(text: str) -> str | Path:
    """Return a folder as Path, a URL unchanged (a Path would lose one of its slashes)."""
    return text if is_url(text) else Path(text)


def store_folder(text: str) -> Path:
    """Return a folder as Path.

    Raises:
        argparse.ArgumentTypeError: It is a URL; the message says how to get a folder.
    """
    if is_url(text):
        raise argparse.ArgumentTypeError(
            f"{text} is a URL; pull the store first: featstore pull {shlex.quote(text)} FOLDER"
        )
    return Path(text)


def new_folder(text: str) -> Path:
    """Parse the folder of a new store.

    Raises:
        argparse.ArgumentTypeError: it is a URL; the message says how to publish the store there.
    """
    if is_url(text):
        raise argparse.ArgumentTypeError(
            f"{text} is a URL; write into a folder, then publish that: featstore push FOLDER {shlex.quote(text)}"
        )
    return Path(text)


def option(text: str) -> tuple[str, str]:
    """Parse KEY=VALUE.

    Raises:
        ValueError: it is not; argparse makes it a message.
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(text)
    return key, value


def add_client_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of commands that work at URLs."""
    parser.add_argument(
        "--option",
        type=option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for the client of a URL, e.g. endpoint=https://minio.example.org or skip_signature=true; may be repeated",
    )
    parser.add_argument(
        "--least-rate",
        type=float,
        default=Retry().least_rate,
        metavar="BYTES_PER_S",
        help="a transfer that is slower for a minute is repeated, and an error in the end; 0: no limit (default: "
        "%(default).0f)",
    )


def retry_of(arguments: argparse.Namespace) -> Retry:
    """Return how failed requests are repeated."""
    return Retry(least_rate=arguments.least_rate)


def positive(text: str) -> int:
    """Parse a positive integer.

    Raises:
        ValueError: It has another form; argparse turns this into a message.
    """
    number = int(text)
    if number <= 0:
        raise ValueError(text)
    return number


def names(text: str) -> list[str]:
    """Parse names separated by commas.

    Raises:
        ValueError: A name is empty.
    """
    several = [name.strip() for name in text.split(",")]
    if not all(several):
        raise ValueError(text)
    return several


def row_range(text: str) -> slice:
    """Parse ``A:B`` as a slice: A included, B not; either may be missing or negative.

    Raises:
        ValueError: It has another form; argparse turns this into a message.
    """
    first, colon, last = text.partition(":")
    if not colon:
        raise ValueError(text)
    return slice(int(first) if first else None, int(last) if last else None)
