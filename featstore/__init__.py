"""Write, read, check and share stores of features of vision foundation models.

All public names are listed in ``__all__``; they are imported when they are used first, so ``import featstore`` is fast.
Reading needs numpy, zarr and pydantic; only ``extract`` and the loaders for PyTorch need torch.

Examples:
    >>> store = featstore.open("stores/photos")
    >>> store.num_rows
    10
"""

import importlib
from typing import TYPE_CHECKING, Any

from featstore.errors import (
    ConfigError,
    DecodeError,
    FeatstoreError,
    ManifestMismatch,
    MissingSamples,
    RemoteError,
    RemoteNotFound,
    ShardCorrupt,
    SourceError,
    StoreBusy,
    StoreError,
    StoreIncomplete,
    StoreNotFound,
    StoreWriteError,
    TeacherError,
    TooManyInvalid,
    ViewMismatch,
)
from featstore.format.version import __version__

if TYPE_CHECKING:
    from featstore.api import (
        append,
        convert,
        export,
        extract,
        from_arrays,
        fuse,
        import_,
        merge,
        open,
        plan,
        pull,
        push,
        repair,
        requantise,
        split,
        subset,
        text_table,
        verify,
    )
    from featstore.derive.exporters.shard_table import shard_table
    from featstore.format.manifest import Manifest, read_manifest
    from featstore.importing.create import create
    from featstore.reading.store import FeatureStore
    from featstore.selection.choose import select

__all__ = [
    "ConfigError",
    "DecodeError",
    "FeatstoreError",
    "FeatureStore",
    "Manifest",
    "ManifestMismatch",
    "MissingSamples",
    "RemoteError",
    "RemoteNotFound",
    "ShardCorrupt",
    "SourceError",
    "StoreBusy",
    "StoreError",
    "StoreIncomplete",
    "StoreNotFound",
    "StoreWriteError",
    "TeacherError",
    "TooManyInvalid",
    "ViewMismatch",
    "__version__",
    "append",
    "convert",
    "create",
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
    "read_manifest",
    "repair",
    "requantise",
    "select",
    "shard_table",
    "split",
    "subset",
    "text_table",
    "verify",
]

_MODULES = {
    "FeatureStore": "featstore.reading.store",
    "Manifest": "featstore.format.manifest",
    "create": "featstore.importing.create",
    "read_manifest": "featstore.format.manifest",
    "select": "featstore.selection.choose",
    "shard_table": "featstore.derive.exporters.shard_table",
}


_ADAPTORS = ("hf", "torch", "webdataset")
"""Modules that are imported when they are used first: stored features in the loops of other libraries."""


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name in _ADAPTORS:
        return importlib.import_module(f"featstore.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "featstore.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
