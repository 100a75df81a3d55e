"""Base class of sources whose samples are in large files that are listed once: tars and Parquet files."""

import multiprocessing
import signal
import threading
import warnings
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from tqdm import tqdm

from featstore.errors import SourceError
from featstore.files.limits import share_of_cores
from featstore.sources.base import Source
from featstore.sources.find_files import find_files, unreadable
from featstore.sources.listing import (
    FileListing,
    Listing,
    keep_listing,
    listing_path,
    read_listing,
)
from featstore.sources.source_files import LocalFile, RemoteFile, SourceFile

MAX_OPEN_FILES = 64
"""Files that one process keeps open, far below the usual limit of 1,024."""

LISTING_THREADS = 8  # files that are listed at a time by one process
FILES_PER_PROCESS = 32  # fewer are not worth the start of a process


class ListedFiles(Source):
    """Samples in large files, in the order of the files' names. A subclass lists one file and reads one sample."""

    @abstractmethod
    def _list(self, name: str, file: SourceFile) -> FileListing:
        """List the samples of one file.

        Args:
            name: of the file, as ids begin.
        """

    def _list_files(self, path: str, *, suffix: str, key: Sequence[object]) -> list[FileListing]:
        """Set ids, places of samples and notes, from listings of earlier starts where files have not changed.

        Args:
            path: folder, file or pattern of files, on a disk or behind a URL.
            key: settings that a listing depends on.

        Raises:
            SourceError: no such files, or one that cannot be read.
        """
        self.uri = path
        self._place, named = find_files(path, suffix)
        self._handles: dict[int, SourceFile] = {}
        self._lock = threading.Lock()
        kept = listing_path(path, [file for _, file in named], *key)
        listing = read_listing(kept)
        known = {file.name: file for file in listing.files} if listing else {}

        def unchanged(item: tuple[str, str]) -> FileListing | None:
            found = known.get(item[0])
            return found if found is not None and found.stamp == self._open(item[1]).stamp else None

        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            earlier = list(pool.map(unchanged, named))
        changed = [item for item, found in zip(named, earlier, strict=True) if found is None]
        anew = iter(self._list_anew(changed))
        files = [next(anew) if found is None else found for found in earlier]
        self._files = [file for _, file in named]
        # As kept, its arrays are mapped from the file, so that processes share them.
        if listing is None or list(map(id, files)) != list(map(id, listing.files)):
            listing = keep_listing(kept, Listing.of(files))
        self.notes = [note for file in files for note in file.notes]
        self.sample_ids, self._spans = listing.ids, listing.spans
        self._stamps = [file.stamp for file in files]
        self._ends = np.cumsum([len(file.ids) for file in files]).tolist()
        return listing.files

    def _list_anew(self, named: list[tuple[str, str]]) -> list[FileListing]:
        """List files in order, by processes where it pays; threads share one core but wait for a server together."""
        processes = min(share_of_cores(0), len(named) // FILES_PER_PROCESS)
        pool: Executor
        if processes > 1 and self._place is None and not multiprocessing.current_process().daemon:
            # Forked, because other ways to start run the user's script once more; Ctrl-C is for the parent.
            pool = ProcessPoolExecutor(
                processes,
                mp_context=multiprocessing.get_context("fork"),
                initializer=signal.signal,
                initargs=(signal.SIGINT, signal.SIG_IGN),
            )
        else:
            pool = ThreadPoolExecutor(LISTING_THREADS)
        with (
            pool,
            tqdm(
                desc="list",
                total=len(named),
                unit=" files",
                delay=3,
                leave=False,
                disable=None,  # where nobody looks
            ) as bar,
            warnings.catch_warnings(),
        ):
            # Python warns of any thread at a fork; these children read files and build arrays only.
            warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
            files = []
            try:
                for found in pool.map(self._list_one, named, chunksize=4):
                    files.append(found)
                    bar.update()
            except BrokenProcessPool:
                raise SourceError(
                    f"{self.uri}: a process that listed its files was killed, after {len(files):,} of {len(named):,} "
                    "files. Where the machine has too little memory, close other programs; run the same command again."
                ) from None
            return files

    def _list_one(self, item: tuple[str, str]) -> FileListing:
        name, file = item
        return self._list(name, self._open(file))

    def _file_of(self, row: int) -> int:
        """The number of the file that holds a row."""
        return bisect_right(self._ends, row)

    def __getstate__(self) -> dict[str, Any]:
        # File handles and locks belong to one process.
        return {**self.__dict__, "_handles": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _handle(self, number: int) -> SourceFile:
        """Return an open file.

        Raises:
            SourceError: it was replaced since it was listed, or cannot be opened.
        """
        with self._lock:
            file = self._handles.pop(number, None)
            if file is None:
                file = self._open(self._files[number])
                self._check_same(file, number)
            if len(self._handles) >= MAX_OPEN_FILES:
                del self._handles[next(iter(self._handles))]
            self._handles[number] = file  # the last place: dropped last
            return file

    def _check_same(self, file: SourceFile, number: int) -> None:
        if file.stamp != self._stamps[number]:
            raise SourceError(
                f"{file.name}: was replaced since it was listed ({file.stamp}, was {self._stamps[number]}). Run "
                "the same command again to list it anew."
            )

    def _open(self, file: str) -> SourceFile:
        if self._place is not None:
            return RemoteFile(self._place, file)
        try:
            return LocalFile(file)
        except OSError as error:
            raise unreadable(file, error) from error
