"""Types of arguments that several commands share."""

import argparse
from pathlib import Path

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
            f"{text} is a URL; pull the store first: featstore pull {text} FOLDER"
        )
    return Path(text)


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
