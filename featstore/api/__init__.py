"""The public functions of ``featstore``: make, open, combine, check and share feature stores.

Use them as ``featstore.extract(...)``. Each takes plain arguments, writes a folder, and returns the opened store or a
report. A run that was stopped resumes when the same function is called again with the same arguments.
Command ``featstore`` does the same from a shell.

In all of them, ``store`` is a complete store (its folder, or the opened store), ``out`` the folder of the new one,
which is returned, and ``progress`` shows a progress bar. A store that is not there, of another version of the format,
not complete or damaged raises ``StoreNotFound``, ``ManifestMismatch``, ``StoreIncomplete`` or ``ShardCorrupt``; one
that another process writes ``StoreBusy``; a disk that is full or refuses ``StoreWriteError``.
"""

from featstore.api.derive import append, convert, fuse, merge, requantise, split, subset, text_table
from featstore.api.make import extract, from_arrays, import_, plan
from featstore.api.share import export, open, pull, push, repair, verify

__all__ = [
    "append",
    "convert",
    "export",
    "extract",
    "from_arrays",
    "fuse",
    "import_",
    "merge",
    "open",
    "plan",
    "pull",
    "push",
    "repair",
    "requantise",
    "split",
    "subset",
    "text_table",
    "verify",
]
