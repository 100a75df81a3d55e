"""Types of arguments that several commands share."""

import argparse
from pathlib import Path

from featstore.places.open_place import is_url


def store_address(text: str) -> str | Path:
    """A folder, or a URL as it was typed: a path would lose one of its slashes."""
    return text if is_url(text) else Path(text)


def store_folder(text: str) -> Path:
    """A folder.

    Raises:
        argparse.ArgumentTypeError: it is a URL; says how to come by a folder.
    """
    if is_url(text):
        raise argparse.ArgumentTypeError(
            f"{text} is a URL; fetch the store first: featstore pull {text} FOLDER"
        )
    return Path(text)


def positive(text: str) -> int:
    """A whole number above zero.

    Raises:
        ValueError: it is not; argparse makes it a message.
    """
    number = int(text)
    if number <= 0:
        raise ValueError(text)
    return number


def names(text: str) -> list[str]:
    """Names with commas between them.

    Raises:
        ValueError: one is empty.
    """
    several = [name.strip() for name in text.split(",")]
    if not all(several):
        raise ValueError(text)
    return several


def row_range(text: str) -> slice:
    """Rows ``A:B``, the first counted and the last not; either may be left out, negative ones count from the end.

    Raises:
        ValueError: it is not; argparse makes it a message.
    """
    first, colon, last = text.partition(":")
    if not colon:
        raise ValueError(text)
    return slice(int(first) if first else None, int(last) if last else None)
