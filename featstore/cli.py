"""The ``featstore`` command: look after stores without a teacher.

Only arguments are parsed here. What a command needs is imported when it runs, so that help answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from featstore import __version__
from featstore.errors import FeatstoreError

EXIT_STATUS = """\
exit status:
  0    all is well
  1    found wanting: a store damaged, incomplete or unreadable, a disk too small for a plan, a machine that cannot
       extract, a deletion not confirmed
  2    an error: wrong arguments, nothing there, a manifest that cannot be read, a disk that refuses
  130  interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 fine, 1 found wanting, 2 error)."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except FeatstoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        sys.stderr.close()
        return 0


def _run(arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "plan":
            from featstore.commands.plan import plan

            return plan(arguments)
        case "inspect":
            from featstore.commands.inspect import inspect

            return inspect(arguments)
        case "verify":
            from featstore.commands.verify import verify

            return verify(arguments)
        case "requantise":
            from featstore.commands.requantise import requantise

            return requantise(arguments)
        case "list":
            from featstore.commands.stores import list_stores

            return list_stores(arguments)
        case "delete":
            from featstore.commands.stores import delete

            return delete(arguments)
        case _:
            from featstore.commands.doctor import doctor

            return doctor(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="featstore",
        description="Look after stores of vision foundation model features.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_plan,
        _add_inspect,
        _add_verify,
        _add_requantise,
        _add_list,
        _add_delete,
        _add_doctor,
    ):
        add(commands)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add(commands: Commands, name: str, summary: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("--json", action="store_true", help="print one JSON value, for scripts")
    return command


def _add_plan(commands: Commands) -> None:
    text = """\
How many bytes, files and hours, before anything is written. Two forms:

  featstore plan STORE
      measures each type and codec on rows that a store has
  featstore plan --images 1281167 --field cls=1024 --field grid7=7x7x1024:float16
      reckons from shapes; what codecs save is then what is typical
"""
    plan = _add(commands, "plan", "bytes of each type and codec, files, hours", text)
    plan.add_argument("store", nargs="?", type=Path, help="folder of a store to measure on")
    plan.add_argument(
        "--rows", type=_positive, default=512, help="rows that are measured (default: 512)"
    )
    plan.add_argument("--images", type=_positive, help="images of the store to be")
    plan.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=SHAPE[:DTYPE]",
        help="a field of it, e.g. cls=1024 or grid7=7x7x1024:bfloat16; may be repeated",
    )
    plan.add_argument("--views", type=_positive, default=1, help="views per image (default: 1)")
    plan.add_argument(
        "--shard-rows", type=_positive, default=4096, help="most rows of a shard (default: 4096)"
    )
    plan.add_argument(
        "--images-per-second", type=float, help="rate of the teacher, all processes together"
    )
    plan.add_argument(
        "--path", type=Path, help="where it would go: measures the disk and looks for free space"
    )


def _add_inspect(commands: Commands) -> None:
    text = """\
Say what a store holds: teachers, views, fields, counts, skipped images. Exit status 1 if shards are missing.
Counts that have to be read from every shard are given for stores of fewer than 1,000 shards, or with --counts.
"""
    inspect = _add(commands, "inspect", "what a store holds, and whether it is complete", text)
    inspect.add_argument("store", type=Path, help="folder of the store")
    inspect.add_argument("--counts", action="store_true", help="count, however many shards")


def _add_verify(commands: Commands) -> None:
    text = """\
Check that every byte of a store is what was written, and that its parts agree. Nothing is changed. Damage is named by
shard, column, rows and file. extract.py --repair makes damaged shards again.
"""
    verify = _add(commands, "verify", "find every damaged byte of a store", text)
    verify.add_argument("store", type=Path, help="folder of the store")
    verify.add_argument(
        "--sample",
        type=_positive,
        metavar="N",
        help="look at N random blocks only; takes the same time however large the store is",
    )
    verify.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    verify.add_argument(
        "--workers", type=_positive, default=2, help="threads that read (default: 2)"
    )


def _add_requantise(commands: Commands) -> None:
    text = """\
Write a store again with its features in another type, without the teacher: the same rows, ids and views. What the type
costs is measured and kept in the new manifest. A run that was stopped goes on with the same command.
"""
    command = _add(commands, "requantise", "a store's features in another type", text)
    command.add_argument("store", type=Path, help="folder of the store")
    command.add_argument("out", type=Path, help="folder of the new store")
    command.add_argument(
        "--dtype",
        required=True,
        choices=["int8", "bfloat16", "float16", "float32"],
        help="type of the new store",
    )
    command.add_argument(
        "--allow-widening",
        action="store_true",
        help="also to a type with more digits than there are",
    )
    command.add_argument(
        "--rows",
        type=_positive,
        default=2048,
        help="rows that scales and errors are measured on (default: 2048)",
    )


def _add_list(commands: Commands) -> None:
    text = "Find the stores below some folders. Looks into no shard. Exit status 1 if one cannot be read."
    command = _add(commands, "list", "the stores below a folder", text)
    command.add_argument(
        "folder", nargs="*", type=Path, default=[Path()], help="where to look (default: here)"
    )


def _add_delete(commands: Commands) -> None:
    text = "Delete a store, after a question. Deletes nothing that is not a store, and none that is being written."
    delete = _add(commands, "delete", "delete a store", text)
    delete.add_argument("store", type=Path, help="folder of the store")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    delete.add_argument(
        "--force",
        action="store_true",
        help="also if the manifest cannot be read, or the folder holds files that are not the store's",
    )


def _add_doctor(commands: Commands) -> None:
    text = "Check what extraction needs of this machine: versions, processor, accelerator, memory, disk, hub."
    doctor = _add(commands, "doctor", "what this machine can and cannot do", text)
    doctor.add_argument(
        "--path", type=Path, default=Path(), help="where stores will lie (default: here)"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(main())
