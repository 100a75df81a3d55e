"""The ``featstore`` command. Each sub-command has a file in this folder, which is imported when it is used."""

import argparse
import contextlib
import errno
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from featstore.errors import FeatstoreError, printable
from featstore.format.version import __version__

COMMANDS = {
    "extract": "run a teacher over images and write its features into a store",
    "plan": "estimate bytes, files and hours",
    "inspect": "show what a store holds, and whether it is complete",
    "verify": "check a store: every byte, its signature, its features",
    "sign": "sign a store with a private key",
    "push": "upload a store to a bucket, server, hub or folder",
    "pull": "download a store, or a part of one",
    "merge": "join several stores: more rows, or more teachers",
    "select": "choose images by their features: near to some, unlike others, diverse",
    "subset": "write some rows or fields of a store as a new store",
    "split": "split a store, e.g. for training and test",
    "append": "add the rows of another store to a finished store",
    "convert": "write a store in another container, codec or shard size",
    "fuse": "fuse the class logits of several teams into one target per team",
    "requantise": "write a store with its features in another type",
    "statistics": "measure images, to draw pseudo-samples in their place",
    "text-table": "write a store with one more table of texts, for zero-shot students",
    "import": "make a store of npy, Parquet, Hugging Face or clip-retrieval files",
    "export": "write npy arrays, Parquet files or a Hugging Face data set",
    "card": "write the card (README.md) or the HTML page of a store",
    "list": "list the stores below a folder",
    "delete": "delete a store",
    "doctor": "check what this machine can run",
}
"""Name and summary of each command, in the order of the help."""

EXIT_STATUS = """\
exit status:
  0    success
  1    a check failed: store damaged, incomplete or unreadable, test images among those for training, disk too small for
       a plan, machine unable to extract, deletion not confirmed
  2    an error: wrong arguments, no store, unreadable manifest, disk full or read-only
  130  interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 success, 1 a check failed, 2 error)."""
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
    except KeyboardInterrupt as interrupt:  # its text says how to resume, where that is possible
        print(str(interrupt) or "interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the program that reads the output (head, less) has ended
        sys.stderr.close()
        return 0
    except OSError as error:
        advice = " Raise the limit: ulimit -n 4096." if error.errno == errno.EMFILE else ""
        print(f"error: {printable(str(error))}.{advice}", file=sys.stderr)
        return 2


class PlainText:
    """A text stream that escapes control characters, because names in stores come from other people."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text; line breaks and tabs are kept."""
        self._stream.write(printable(text, keep="\n\t"))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _parser(asked: str) -> argparse.ArgumentParser:
    """Build the parser of all commands; only the one that was asked for gets its arguments."""
    parser = argparse.ArgumentParser(
        prog="featstore",
        description="Make, check, combine and share stores of features of vision foundation models.",
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
            for argument, options in module.ARGUMENTS.items():
                command.add_argument(argument, **options)
            for title, arguments in getattr(module, "GROUPS", {}).items():
                group = command.add_argument_group(title)
                for argument, options in arguments.items():
                    group.add_argument(argument, **options)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
