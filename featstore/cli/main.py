"""The ``featstore`` command: look after stores without a teacher.

What a command takes and does is in ``featstore/commands``; its file is imported when the command is asked for.
"""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from featstore.errors import FeatstoreError, printable
from featstore.version import __version__

COMMANDS = {
    "extract": "run a teacher over images and write its features into a store",
    "plan": "bytes of each type and codec, files, hours",
    "inspect": "what a store holds, and whether it is complete",
    "verify": "check a store: every byte, its signature, its features",
    "sign": "vouch for a store with a key",
    "push": "a store to a bucket, server, hub or folder",
    "pull": "a store, or a part of one, from there",
    "merge": "several stores in one: more rows, or more teachers",
    "select": "choose images by their features: near to some, unlike others, diverse",
    "subset": "a part of a store: some fields, some rows",
    "split": "a store shared out by content",
    "append": "new images into a finished store",
    "convert": "the same rows in another container, codec or shards",
    "requantise": "a store's features in another type",
    "import": "features of another program (npy, Parquet, Hugging Face, clip-retrieval) as a store",
    "export": "features as npy arrays, Parquet files or a Hugging Face data set",
    "card": "what a store is, as a card and as a page",
    "list": "the stores below a folder",
    "delete": "delete a store",
    "doctor": "what this machine can and cannot do",
}
"""Name and summary of each command, in the order of the help."""

EXIT_STATUS = """\
exit status:
  0    all is well
  1    found wanting: a store damaged, incomplete or unreadable, test images among those for training, a disk too small
       for a plan, a machine that cannot extract, a deletion not confirmed
  2    an error: wrong arguments, nothing there, a manifest that cannot be read, a disk that refuses
  130  interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 fine, 1 found wanting, 2 error)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["extract"]:  # has the flags of a recipe, which argparse does not know
        from featstore.cli import extract

        return extract.main(words[1:])
    try:
        arguments = _parser(asked=next(iter(words), "")).parse_args(words)
        with contextlib.redirect_stdout(PlainText(sys.stdout)):
            status: int = arguments.run(arguments)
        return status
    except FeatstoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: not enough memory ({error})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        sys.stderr.close()
        return 0


class PlainText:
    """A text stream that spells out what could do more to a terminal than show: stores come from anybody.

    Args:
        stream: gets the text.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text; line breaks and tabs stay."""
        self._stream.write(printable(text, keep="\n\t"))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _parser(asked: str) -> argparse.ArgumentParser:
    """Of all commands, with the arguments of the one that was asked for."""
    parser = argparse.ArgumentParser(
        prog="featstore",
        description="Look after stores of vision foundation model features.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            epilog=EXIT_STATUS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == asked:
            file = "import_" if name == "import" else name.replace("-", "_")
            module = importlib.import_module(f"featstore.cli.{file}")
            command.description = module.DESCRIPTION
            command.add_argument(
                "--json", action="store_true", help="print one JSON value, for scripts"
            )
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
