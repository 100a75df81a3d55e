"""Write, read, check and share stores of vision foundation model features.

Importing this package pulls in nothing; the first use of a name below pulls in numpy, zarr and pydantic. A team that
wants rows of numbers needs no torch, and the ``featstore`` command answers at once. ``featstore.extraction.shards`` and
``featstore.extraction.teachers`` are the parts that run a teacher.
"""

from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError
from featstore.version import __version__

if TYPE_CHECKING:
    from featstore.format.manifest import Manifest, read_manifest
    from featstore.reading.store import FeatureStore

__all__ = ["FeatstoreError", "FeatureStore", "Manifest", "__version__", "read_manifest"]


def __getattr__(name: str) -> Any:
    """Import what a public name stands for when it is used first (PEP 562)."""
    if name == "FeatureStore":
        from featstore.reading.store import FeatureStore

        return FeatureStore
    if name in ("Manifest", "read_manifest"):
        from featstore.format import manifest

        return getattr(manifest, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
