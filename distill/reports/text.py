"""Numbers as text, in the unit that suits."""

import math
from pathlib import Path

from distill.reports.run_files import Run


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent; a dash for None."""
    return "-" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def points(value: float) -> str:
    """A difference of shares in points of percent."""
    return f"{100 * value:+.1f} points"


def duration(seconds: float | None) -> str:
    """In the unit that suits; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float | None) -> str:
    """Bytes in the unit that suits; a dash for None."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``count`` images."""
    from scipy.stats import binomtest

    found = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def number(value: float | None, digits: int = 3) -> str:
    """With so many digits after the point; a dash for None and for what is not finite."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def source_name(run: Run) -> str:
    """What the images are called: the last part of their path, or the kind of a source without one."""
    source = run.settings.get("source", {})
    return Path(source.get("path") or source.get("kind", "unknown")).name
