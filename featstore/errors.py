"""Every error a caller can act on, in one tree.

A message says where, what was found, what was expected and what to do next. Programming mistakes inside
the package stay plain ``AssertionError`` or ``TypeError``; they are not part of this tree.

    FeatstoreError
    |- ConfigError            a setting is missing, unknown or out of range (also a ValueError)
    |- SourceError            the images cannot be listed or read
    |- DecodeError            the bytes of one image are not a usable picture
    |- TeacherError           the teacher cannot be built, or lacks a field that was asked for
    |- StoreError
       |- StoreNotFound       nothing there, or something that is not a store
       |- ManifestMismatch    the store was made with other settings than were asked for
       |- StoreIncomplete     shards are still missing
       |- StoreBusy           another process is writing the same store
       |- ShardCorrupt        the bytes of a committed shard do not match their checksums
       |- MissingSamples      sample ids, or the contents behind them, are not in the store
       |- ViewMismatch        the store does not have the views that were asked for
       |- StoreWriteError     writing failed (disk full, read-only or broken)
       |- TooManyInvalid      more images were skipped than the setting allows
       |- RemoteError         a place of a URL does not answer, refuses, or cannot do what is asked
          |- RemoteNotFound   the place has no such file
"""

import shlex
from collections.abc import Sequence
from pathlib import Path


class FeatstoreError(Exception):
    """Base of all errors that this package raises on purpose."""

    def __str__(self) -> str:
        """The message with control characters escaped, because names in it may come from other people."""
        return printable(super().__str__(), keep="\n")


class ConfigError(FeatstoreError, ValueError):
    """A setting is missing, unknown or out of range."""


class SourceError(FeatstoreError):
    """The images cannot be listed or read."""


class DecodeError(FeatstoreError):
    """The bytes of one image are not a usable picture; the message is the reason kept in the ledger."""


class TeacherError(FeatstoreError):
    """The teacher cannot be built, or lacks a field that was asked for."""


class StoreError(FeatstoreError):
    """Base of all errors about a store."""


class StoreNotFound(StoreError):
    """Nothing is at the path, or something that is not a store."""


class ManifestMismatch(StoreError):
    """The store was made with other settings than were asked for."""


class StoreIncomplete(StoreError):
    """Shards are still missing."""


class StoreBusy(StoreError):
    """Another process is writing the same store."""


class ShardCorrupt(StoreError):
    """The bytes of a committed shard do not match their checksums."""


class MissingSamples(StoreError):
    """Sample ids, or the contents behind them, are not in the store."""


class ViewMismatch(StoreError):
    """The store does not have the views that were asked for."""


class StoreWriteError(StoreError):
    """Writing failed: the disk is full, read-only or broken."""


class TooManyInvalid(StoreError):
    """More images were skipped than the setting allows."""


class RemoteError(StoreError):
    """A place of a URL does not answer, refuses, or cannot do what is asked."""


class RemoteNotFound(RemoteError):
    """The place of a URL has no such file."""


def command(name: str) -> str:
    """Return the command that runs a phase where the reader is, for messages that say what to do next.

    Args:
        name: Script of ``pipelines/`` without its ending, for example ``extract``.

    Returns:
        The script in a checkout, the installed command elsewhere.
    """
    root = Path(__file__).parents[1]
    script = root / "pipelines" / f"{name}.py"
    if script.is_file():
        shown = script.relative_to(root) if Path.cwd() == root else script
        launcher = (
            "accelerate launch"
            if name in ("extract", "distill", "evaluate", "search")
            else "python"
        )
        return f"{launcher} {shlex.quote(str(shown))}"
    return {"extract": "featstore extract", "distill": "distill run"}.get(name, f"distill {name}")


MOST_SHOWN = 1000
"""Characters of one name or reason that a message shows."""


def printable(text: str, *, keep: str = "") -> str:
    """Escape the characters of a text that are not printable: control characters, line breaks, direction marks.

    Args:
        text: may come from another team.
        keep: characters that stay as they are, though they are not printable.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


def first_line(error: object) -> str:
    """Return the first line of an error of a library, without its full stop, at most 400 characters long."""
    return str(error).strip().split("\n", 1)[0].rstrip(". ")[:400]


def shorten(items: Sequence[object], limit: int = 5) -> str:
    """Join the first ``limit`` items for a message and say how many more there are."""
    shown = ", ".join(_shown(str(item)) for item in items[:limit])
    more = len(items) - limit
    return f"{shown} and {more} more" if more > 0 else shown


def _shown(text: str) -> str:
    text = printable(text)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}... ({len(text):,} characters)"
