"""What a hostile store may hold, and a process that uses such stores while it is watched.

An attacker is assumed to know the format: after a change, checksums, hashes and the seals of JSON files are made again,
so that only the rules of the format are left to catch it. ``python -m tests.featstore.hostile FOLDER`` walks over
``FOLDER/cases/*/store`` and prints one JSON value for each; it is watched by an audit hook and has little memory.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from featstore.cli import main as cli
from featstore.containers import make_backend
from featstore.errors import FeatstoreError
from featstore.files.locks import shared
from featstore.format.checksummed_json import seal, unseal
from featstore.format.fields import empty_columns
from featstore.format.ledger import entry_path, mark_complete, read_entry, remove_entries
from featstore.format.manifest import MANIFEST_NAME, read_manifest
from featstore.format.manifest_records import Container, WorkRecord
from featstore.maintenance.verify import repair
from featstore.writing.commit import commit, open_or_create, remove_leftovers
from featstore.writing.shard import Shard
from tests.featstore import golden

SECRET = b"the canary's secret"
ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\nverdict    sound, complete"
"""Sets a terminal's title, clears it, turns the direction of text, and pretends to be a line of ours."""

MOST_MEMORY = 2**30
SECONDS = 15  # longest time that one operation may take; thousands of times what it should

FIELDS = {
    "small": ("cls", "codes_both"),
    "zarr": ("cls", "packed", "shuffled", "codes_row", "codes_both", "logits", "points", "caption"),
    "webdataset": ("cls", "codes_row", "logits", "points", "caption"),
}
"""Of the stores that attackers change: a small one, and one of each container with fields of every kind."""


def write_sound(path: Path, kind: str) -> Path:
    """A store that attackers change."""
    container: Container = "webdataset" if kind == "webdataset" else "zarr"
    fields = {name: golden.FIELDS[name] for name in FIELDS[kind]}
    work = WorkRecord(shard_rows=16, batch_size=4)
    made = golden.make_manifest(container).model_copy(update={"fields": fields, "work": work})
    open_or_create(path, made, golden.artefacts())
    backend = make_backend(path, made)
    for number in range(made.num_shards):
        rows = made.shard_range(number)
        reasons = ["empty file (0 bytes)" if row == golden.INVALID else None for row in rows]
        columns = golden.columns_of_shard(made, number)
        columns["content_sha256"] += 1  # golden stores have zeros there, of which a note is made
        commit(backend, Shard(number, columns, reasons, {"load": 0.5}))
    mark(path)
    return path


# ---------------------------------------------------------------- what an attacker does


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, and make its checksum and the mark of a complete store anew."""
    values = unseal((path / MANIFEST_NAME).read_bytes())
    change(values)
    write_manifest(path, seal(values))


def write_manifest(path: Path, data: bytes) -> None:
    """Put bytes in the manifest's place, and make the mark fit."""
    (path / MANIFEST_NAME).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit_json(path / "ledger/complete.json", lambda mark: mark.update(manifest_sha256=digest))


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file of the store and seal it anew."""
    values = unseal(file.read_bytes())
    change(values)
    file.write_bytes(seal(values))


def edit_entry(path: Path, shard: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a ledger entry, and make the mark of a complete store anew."""
    edit_json(entry_path(path, shard), change)
    with contextlib.suppress(FeatstoreError, OSError):
        mark(path)


def mark(path: Path) -> None:
    """Make the mark of a complete store anew."""
    shards = len(list((path / "ledger").glob("[0-9]*.json")))
    mark_complete(path, [read_entry(path, shard) for shard in range(shards)])


def rewrite(path: Path, name: str, data: bytes, shard: int = 0) -> None:
    """Put other bytes into an object, with the checksums of these."""
    (path / name).write_bytes(data)
    record_of(path, name, shard, size=len(data), blocks=[data])


def record_of(
    path: Path, name: str, shard: int, *, size: int, blocks: list[bytes], block_bytes: int = 0
) -> None:
    """Let the ledger say of an object what it is told to."""
    step = block_bytes or max(1, size)

    def change(entry: dict[str, Any]) -> None:
        entry["objects"][name] = {
            "bytes": size,
            "block_bytes": step,
            "crc32c": "".join(f"{google_crc32c.value(block):08x}" for block in blocks if block),
        }

    edit_entry(path, shard, change)


def edit_array(path: Path, name: str, dtype: str, change: Callable[[Any], object]) -> None:
    """Change the numbers of a raw object in place."""
    data = bytearray((path / name).read_bytes())
    values = np.frombuffer(data, dtype=dtype, count=len(data) // np.dtype(dtype).itemsize)
    change(values)
    rewrite(path, name, bytes(data))


def put(place: Any, value: Any) -> Callable[[Any], None]:
    """Set numbers of an array."""

    def change(values: Any) -> None:
        values[place] = value

    return change


# ---------------------------------------------------------------- tars


def edit_tar(
    path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], object], shard: int = 0
) -> None:
    """Take a tar of the store apart, change its members, and write it again; the index keeps its places."""
    name = f"shards/{shard:06d}.tar"
    with tarfile.open(path / name) as tar:
        members = [(item, (tar.extractfile(item) or io.BytesIO()).read()) for item in tar]
    change(members)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for item, data in members:
            if item.isreg():
                item.size = len(data)
            tar.addfile(item, io.BytesIO(data) if item.isreg() else None)
    rewrite(path, name, out.getvalue(), shard)


def member(members: list[tuple[tarfile.TarInfo, bytes]], suffix: str) -> int:
    """Place of the first member whose name ends so."""
    return next(i for i, (item, _) in enumerate(members) if item.name.endswith(suffix))


def edit_member(suffix: str, **changes: Any) -> Callable[[Path], None]:
    """Change the header of the first member whose name ends so."""

    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        item = members[member(members, suffix)][0]
        for name, value in changes.items():
            setattr(item, name, value)

    return lambda path: edit_tar(path, change)


def edit_data(suffix: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change the data of the first member whose name ends so."""

    def edit(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        i = member(members, suffix)
        members[i] = (members[i][0], change(members[i][1]))

    return lambda path: edit_tar(path, edit)


def edit_header(suffix: str, start: int, data: bytes) -> Callable[[Path], None]:
    """Put bytes into the header of a member, and make the header's own checksum fit."""

    def change(path: Path) -> None:
        name = "shards/000000.tar"
        with tarfile.open(path / name) as tar:
            at = next(item for item in tar if item.name.endswith(suffix)).offset
        raw = bytearray((path / name).read_bytes())
        raw[at + start : at + start + len(data)] = data
        header = bytearray(raw[at : at + 512])
        header[148:156] = b" " * 8
        raw[at + 148 : at + 156] = f"{sum(header):06o}\0 ".encode()
        rewrite(path, name, bytes(raw))

    return change


# ---------------------------------------------------------------- the watched process


@dataclass
class Watch:
    """What a process opens, lists, makes and removes; told of by the interpreter before it happens."""

    root: str  # all of the test's files lie below it
    place: str = ""  # the one folder in which something may be written
    found: list[str] = field(default_factory=list)  # what happened elsewhere
    active: bool = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """See ``sys.addaudithook``."""
        if not self.active or event not in EVENTS:
            return
        for i, path in enumerate(arguments[: EVENTS[event]]):
            if event in FOLDERS and arguments[FOLDERS[event] + i] not in (None, -1):
                continue  # relative to a folder that was opened, and looked at, before
            if isinstance(path, bytes | str | os.PathLike):
                flags = arguments[2] if event == "open" else 0
                self._look(event, os.fsdecode(path), int(flags or 0))

    def _look(self, event: str, path: str, flags: int) -> None:
        final = event != "open" or bool(flags & os.O_NOFOLLOW)
        # What acts on a name, and not on what the name leads to, stays where its folder is.
        folder, _, name = path.rpartition("/")
        real = (
            f"{os.path.realpath(folder)}/{name}"
            if final and event not in ("os.listdir", "os.scandir")
            else os.path.realpath(path)
        )
        writes = event not in ("open", "os.listdir", "os.scandir") or bool(
            flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        )
        inside = real == self.place or real.startswith(f"{self.place}/")
        outside = real.startswith(f"{self.root}/outside")
        if outside or (writes and not inside and real != "/dev/null"):
            self.found.append(f"{event} {path} -> {real}")


EVENTS = {
    "open": 1,
    "os.listdir": 1,
    "os.scandir": 1,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.chmod": 1,
    "shutil.rmtree": 1,
    "shutil.copyfile": 2,
    "shutil.move": 2,
}
"""Audit events, and how many of their first arguments are paths."""

FOLDERS = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.rename": 2, "shutil.rmtree": 1}
"""Which argument may be the handle of a folder that the (first) path is relative to; that of the second one follows."""


class _Hangs(BaseException):
    pass


def _alarm(*_: object) -> None:
    raise _Hangs


def use(
    path: Path, out: Path, truth: dict[str, Any], *, more: str
) -> Iterator[tuple[str, str, str]]:
    """Do with a store whatever people do with stores: (what, how it ended, what it said).

    Args:
        path: of the store.
        out: folder to write into.
        truth: of the store before it was attacked.
        more: "pass on": also make other stores of it; that, or "write": also write into it.
    """
    from featstore import FeatureStore

    def opened(**options: Any) -> str:
        FeatureStore.open(path, **options)
        return ""

    def columns() -> str:
        store = FeatureStore.open(path, allow_incomplete=True)
        names = ("sample_ids", "valid", "labels", "content_sha256")
        return (
            "" if all(same(getattr(store, name), truth[name]) for name in names) else "other values"
        )

    def gathered() -> str:
        store = FeatureStore.open(path)
        rows = np.flatnonzero(truth["valid"])
        other, refused = [], []
        for name, spec in store.manifest.fields.items():
            try:
                values = gather(store, name, spec, rows)
            except FeatstoreError as error:
                refused.append(error)
                continue
            if name not in truth["fields"] or not same(values, truth["fields"][name]):
                other.append(name)
        if refused:
            raise refused[0]
        return f"other values of {other}" if other else ""

    def command(name: str, *argv: str, **paths: Path) -> Callable[[], str]:
        return lambda: run_command(name, argv, paths)

    yield from attempt(
        {
            "open": opened,
            "open incomplete": lambda: opened(allow_incomplete=True),
            "columns": columns,
            "gather": gathered,
            "inspect": command("inspect", store=path),
            "verify": command("verify", "--workers", "1", store=path),
            "list": command("list", folder=path.parent),
        }
    )
    if "pass on" in more:
        yield from attempt(
            {
                "verify --sample": command("verify", "--sample", "3", store=path),
                "inspect --json": command("inspect", "--json", store=path),
                "plan": command("plan", "--rows", "4", store=path),
                "requantise": command(
                    "requantise",
                    "--dtype",
                    "bfloat16",
                    "--allow-widening",
                    "--rows",
                    "4",
                    store=path,
                    out=out / "r",
                ),
                "subset": command("subset", "--rows", "0:2", store=path, out=out / "s"),
                "push": command("push", "--no-read-back", store=path, url=out / "p"),
                "card": command("card", store=path, out=out / "card.md"),
            }
        )
    if more:
        yield from attempt(
            {
                "sign": command(
                    "sign", "--private-key", str(out.parents[2] / "key.pem"), store=path
                ),
                "repair": lambda: f"{repair(path)}",
                "resume": lambda: resume(path),
                "delete": command("delete", "--yes", "--force", store=path),
            }
        )


def resume(path: Path) -> str:
    """Write a shard again, as a run of extract.py does."""
    found = read_manifest(path)
    with shared(path):
        remove_leftovers(path)
        remove_entries(path, [0])
        backend, rows = make_backend(path, found), found.shard_range(0)
        columns = empty_columns(found, 0)
        columns["sample_id"][:] = [f"{row}" for row in rows]
        shard = Shard(0, columns, ["not read"] * len(rows), {})
        return f"{commit(backend, shard)}"


def attempt(operations: dict[str, Callable[[], str]]) -> Iterator[tuple[str, str, str]]:
    """Do some things, each with a limit of time: (what, how it ended, what it said)."""
    for what, operation in operations.items():
        try:
            signal.alarm(SECONDS)
            try:
                ended, said = "done", operation()
            finally:
                signal.alarm(0)
        except FeatstoreError as error:
            ended, said = "refused", str(error)
        except _Hangs:
            ended, said = "hangs", traceback.format_exc(limit=-4)
        except BaseException as error:
            ended, said = "crashes", f"{error!r} {traceback.format_exc(limit=-4)}"
        yield what, ended, said


def run_command(name: str, argv: tuple[str, ...], paths: dict[str, Path]) -> str:
    """Run a command as ``featstore.cli.main.main`` does; its arguments are parsed once for all stores."""
    if (name, argv) not in _parsed:
        places = [] if name == "card" else ["x"] * len(paths)
        words = [name, *argv, *(["x", "--out", "x"] if name == "card" else places)]
        _parsed[name, argv] = cli._parser(asked=name).parse_args(words)
    arguments = argparse.Namespace(**vars(_parsed[name, argv]))
    for key, place in paths.items():
        value: Any = str(place) if key == "url" else [place] if key == "folder" else place
        assert hasattr(arguments, key), (name, key)
        setattr(arguments, key, value)
    said = io.StringIO()
    plain: Any = cli.PlainText(said)
    with contextlib.redirect_stdout(plain), contextlib.redirect_stderr(said):
        status = arguments.run(arguments)
    return f"status {status}\n{said.getvalue()}"


_parsed: dict[tuple[str, tuple[str, ...]], argparse.Namespace] = {}


def gather(store: Any, name: str, spec: Any, rows: Any) -> Any:
    """Rows of a field of any kind."""
    if spec.encoding.kind == "topk":
        return list(store.gather_topk(name, rows))
    if spec.encoding.kind == "ragged":
        return list(store.gather_ragged(name, rows))
    return store.gather(name, rows)


def same(one: Any, other: Any) -> bool:
    """Whether two readings are equal bit by bit."""
    if isinstance(one, list) and one and isinstance(one[0], np.ndarray):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    a, b = np.asarray(one), np.asarray(other)
    return a.shape == b.shape and a.dtype == b.dtype and a.tolist() == b.tolist()


def read_truth(path: Path) -> dict[str, Any]:
    """What a sound store gives."""
    from featstore import FeatureStore

    store = FeatureStore.open(path)
    names = ("sample_ids", "valid", "labels", "content_sha256")
    truth: dict[str, Any] = {name: getattr(store, name) for name in names}
    rows = np.flatnonzero(store.valid)
    fields = store.manifest.fields.items()
    return {**truth, "fields": {name: gather(store, name, spec, rows) for name, spec in fields}}


def main(root: Path, part: int, of: int) -> None:
    """Use every store below ``root/cases``, or each ``of``-th of them; one line of JSON for each."""
    signal.signal(signal.SIGALRM, _alarm)
    sys.dont_write_bytecode = True  # no caches of modules that are imported late
    os.fsync = lambda fd: None  # no power failure is tested here  # type: ignore[assignment]
    truths = {path.name: read_truth(path) for path in (root / "sound").iterdir()}
    watch = Watch(str(root))
    sys.addaudithook(watch)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, resource.RLIM_INFINITY))
    # By number, not by place in the list: the others delete what they are done with.
    for case in sorted((root / "cases").iterdir()):
        if int(case.name) % of != part:
            continue
        watch.place, watch.found = str(case), []
        print(json.dumps({"begin": case.name}), flush=True)
        (case / "out").mkdir()
        (case / "temporary").mkdir()
        tempfile.tempdir = str(case / "temporary")
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        kind = (case / "kind").read_text()
        ends = {}
        watch.active = True
        more = (case / "more").read_text()
        for what, ended, said in use(case / "store", case / "out", truths[kind], more=more):
            ends[what] = [ended, said[:20_000]]
        watch.active = False
        print(
            json.dumps(
                {
                    "case": case.name,
                    "ends": ends,
                    "elsewhere": watch.found,
                    "grown": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
                    "seconds": time.process_time() - start,
                }
            ),
            flush=True,
        )
        shutil.rmtree(case, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
