"""The folder in which what can be fetched or made again is kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``FEATSTORE_CACHE``, or ~/.cache/featstore."""
    given = os.environ.get("FEATSTORE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "featstore"
