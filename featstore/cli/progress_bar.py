"""Progress bars of commands and of the functions of ``featstore``."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from featstore.files.progress import Progress


@contextmanager
def progress_bar(unit: str, *, show: bool = True, unit_scale: bool = False) -> Iterator[Progress]:
    """Show a progress bar on standard error, if that is a terminal or a notebook.

    Args:
        unit: Of what is counted, with a leading space (" shards").
        unit_scale: Show large numbers as 1.2M.

    Yields:
        Function to call with (done, total).
    """
    visible = show and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    with tqdm(
        total=1, unit=unit, unit_scale=unit_scale, disable=not visible, file=sys.stderr, leave=False
    ) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
