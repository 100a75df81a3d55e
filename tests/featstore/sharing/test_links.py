"""Links at every name of a store, at either side of a transfer: nothing outside is read, published or written."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from featstore.errors import FeatstoreError, StoreError
from featstore.places.base import Retry
from featstore.reading.cached.published_store import EXTRAS
from featstore.sharing.part import Part
from featstore.sharing.published_stores import delete_published
from featstore.sharing.pull import pull
from featstore.sharing.push import push
from featstore.sharing.verify_url import verify_url
from tests.featstore.golden import FOLDER as GOLDEN

QUICK = Retry(attempts=2, first_s=0.001, most_s=0.01, timeout_s=10)

SECRET = b"a key of somebody else, of this machine"

STORE = GOLDEN / "store_v1_zarr"


def _repeats(name: str) -> bool:
    """Whether another name is of the same kind."""
    parts = name.split("/")
    later = bool(set(parts) & {"1", "00000001.json"})
    return later or (parts[0] == "fields" and len(parts) > 1 and parts[1] != "cls")


FILES = sorted(
    {path.relative_to(STORE).as_posix() for path in STORE.rglob("*") if path.is_file()}
    | {*EXTRAS, ".partial-manifest.json", ".lock"}
)

FOLDERS = sorted(path.relative_to(STORE).as_posix() for path in STORE.rglob("*") if path.is_dir())

NAMES = [
    # One name of each kind in every run: the first shard, and one field.
    pytest.param(name, marks=[pytest.mark.slow] * _repeats(name))
    for name in (*FILES, *FOLDERS)
]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of files are synced, which need not take time."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


class Outside:
    """Files outside of the stores, and a watch over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "outside"
        self.folder.mkdir()
        (self.folder / "secret").write_bytes(SECRET)
        (self.folder / "secret").chmod(0o600)
        self.remember()

    def remember(self) -> None:
        """Take what is there as what must stay."""
        self._before = self._state()

    def _state(self) -> dict[str, tuple[bytes, int]]:
        return {
            str(path): (path.read_bytes() if path.is_file() else b"", path.stat().st_mode)
            for path in self.folder.rglob("*")
        }

    def check(self, *folders: Path) -> None:
        """Nothing was written outside, and nothing of it is in the folders."""
        assert self._state() == self._before
        for folder in folders:
            for here, _, files in os.walk(folder):
                for file in files:
                    path = Path(here, file)
                    assert path.is_symlink() or SECRET not in path.read_bytes(), path


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    """Something to steal."""
    return Outside(tmp_path)


def plant(store: Path, name: str, outside: Outside) -> None:
    """Put a link where a file or folder of a store would be."""
    path = store / name
    if path.is_dir():
        # What is behind the link looks like what was there, so that a size alone would not show it.
        copy = outside.folder / str(len(os.listdir(outside.folder)))  # noqa: PTH208
        path.rename(copy)
        (copy / "secret").write_bytes(SECRET)
        outside.remember()
        path.symlink_to(copy)
    else:
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(outside.folder / "secret")


def attempts(store: Path, tmp_path: Path) -> Iterator[Path]:
    """Everything that reads a store and writes elsewhere."""
    for number, part in enumerate((Part(), Part(fields=("cls",)))):
        for move in ("pull", "push"):
            target = tmp_path / f"{move}{number}"
            with suppress(FeatstoreError):
                if move == "pull":
                    pull(str(store), target, part=part, retry=QUICK)
                else:
                    push(store, str(target), part=part, retry=QUICK)
            yield target
    with suppress(FeatstoreError):
        verify_url(str(store), retry=QUICK)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_store(name: str, tmp_path: Path, outside: Outside) -> None:
    """A link in a folder store that somebody else made does not bring files of this machine into a copy."""
    store = tmp_path / "store"
    shutil.copytree(STORE, store)
    plant(store, name, outside)
    outside.check(*attempts(store, tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_destination(name: str, tmp_path: Path, outside: Outside) -> None:
    """A link in the destination of a push or a pull does not lead what is written out of it."""
    for move in ("pull", "push"):
        target = tmp_path / move
        shutil.copytree(STORE, target)
        plant(target, name, outside)
        for replace in (False, True):
            with suppress(StoreError):
                if move == "pull":
                    pull(str(STORE), target, replace=replace, retry=QUICK)
                else:
                    push(STORE, str(target), replace=replace, retry=QUICK)
            outside.check()
    with suppress(StoreError):
        delete_published(str(tmp_path / "push"), force=True, retry=QUICK)
    outside.check()


@pytest.mark.parametrize("name", EXTRAS)
def test_a_linked_card_is_named(name: str, tmp_path: Path, outside: Outside) -> None:
    """The rest of the store arrives, with a note; a later push has nothing of it to publish."""
    store, back = tmp_path / "store", tmp_path / "back"
    shutil.copytree(STORE, store)
    plant(store, name, outside)
    report = pull(str(store), back, retry=QUICK)
    assert [note.split()[0] for note in report.notes] == [name]
    assert not (back / name).exists()
    push(back, str(tmp_path / "there"), retry=QUICK)
    outside.check(back, tmp_path / "there")
