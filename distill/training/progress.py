"""Show how far a run is: a bar on a terminal, a line every 30 s in a log."""

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 30.0


class RunProgress:
    """Progress of one run. Use as a context manager.

    Args:
        step: optimiser steps done before.
        enabled: False for all processes of a run but one.
    """

    def __init__(self, title: str, *, step: int, steps: int, images: int, enabled: bool) -> None:
        self.title, self.steps, self.images = title, steps, images
        self.enabled = enabled
        self.score = ""
        """Latest measurement of the number that counts, as text."""
        self._first = step
        self._began = self._shown = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(
                total=steps * images, initial=step * images, unit="img", desc=title, leave=False
            )

    def __enter__(self) -> "RunProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int, loss: float) -> None:
        """Show that a step is done."""
        if self._bar is not None:
            self._bar.update(self.images)
            self._bar.set_postfix_str(
                f"loss={loss:.3f}" + (f", {self.score}" if self.score else ""), refresh=False
            )
        elif self.enabled and time.monotonic() - self._shown >= LINE_EVERY_S:
            self._shown = time.monotonic()
            print(self.line(step, loss, self._shown - self._began), flush=True)

    def line(self, step: int, loss: float, seconds: float) -> str:
        """One line of the log after a number of seconds in this process."""
        rate = (step - self._first) / seconds
        left = round((self.steps - step) / rate)
        hours, minutes = divmod(left // 60, 60)
        return (
            f"{self.title}: step {step:,} of {self.steps:,}, loss {loss:.4f}, {rate * self.images:,.0f} images/s, "
            f"{hours}:{minutes:02d}:{left % 60:02d} left"
            + (f", {self.score}" if self.score else "")
        )
