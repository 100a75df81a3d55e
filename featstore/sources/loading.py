"""Loading processes: how many the limits of this machine allow, and an error instead of a hang where one fails.

A loading process hands over each batch in shared memory, under an open file. Where either is short it prints a
traceback and the batch never arrives, so both are compared with what is needed beforehand; Docker gives 64 MB.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TypeVar

from featstore.display.text import format_bytes
from featstore.errors import SourceError
from featstore.files.limits import SHARED_MEMORY, free_files, free_shared_memory

Batch = TypeVar("Batch")

TIMEOUT_S = 900
"""Longest wait for one batch: a slow network may take minutes, a lost batch would take forever."""

FILES_PER_WORKER = 8  # pipes of one loading process, and some more
SPARE_FILES = 16
SHARE_OF_MEMORY = 0.9  # of the free shared memory, at most so much is planned for


def fit_workers(workers: int, *, batch_bytes: int, ahead: int = 2, tensors: int = 1) -> int:
    """Lower a number of loading processes to what shared memory and open files allow; prints why, once.

    Args:
        batch_bytes: of one batch as it is handed over.
        ahead: batches that each loading process makes in advance.

    Returns:
        ``workers``, or fewer; 0 decodes in this process.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    memory, fitting = free_shared_memory(), workers

    def bytes_of(count: int) -> int:
        # One batch more is in use, and one may wait to be copied to the device.
        return (count * ahead + 2) * batch_bytes if count else 0

    while fitting and bytes_of(fitting) * processes > SHARE_OF_MEMORY * memory:
        fitting -= 1
    if fitting < workers:
        _print_once(
            f"{workers} loading processes need {format_bytes(bytes_of(workers) * processes)} of shared memory, "
            f"{format_bytes(memory)} are free in {SHARED_MEMORY}: using {fitting}. More of it: docker run --shm-size "
            "8g; or use a smaller --batch_size or fewer views."
        )

    def files_of(count: int) -> int:
        return count * FILES_PER_WORKER + (count * ahead + 2) * tensors + SPARE_FILES

    asked, files = fitting, free_files(files_of(fitting)) if fitting else 0
    while fitting and files_of(fitting) > files:
        fitting -= 1
    if fitting < asked:
        _print_once(
            f"{asked} loading processes need {files_of(asked)} open files, {max(0, files)} are left: using {fitting}. "
            "Raise the limit: ulimit -n 4096."
        )
    return fitting


def guarded(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Iterate over a loader; a loading process that ended or hangs is an error with advice."""
    try:
        yield from batches
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if "DataLoader" not in text:
            raise
        raise SourceError(
            f"a loading process failed: {text[:300]}. It ran out of memory, shared memory or open files, or the disk "
            "does not answer: featstore doctor shows the limits. Use fewer --workers (0 loads in the main process), "
            "then run the same command again to resume."
        ) from error


@cache
def _print_once(text: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr, flush=True)
