"""Containers behind one interface."""

from pathlib import Path

from featstore.backends.base import Backend, ColumnReader, EncodedObject
from featstore.backends.webdataset import WebDatasetBackend
from featstore.backends.zarr import ZarrBackend
from featstore.format.manifest import Container, Manifest

BACKENDS: dict[Container, type[Backend]] = {
    "zarr": ZarrBackend,
    "webdataset": WebDatasetBackend,
}


def make_backend(store: Path, manifest: Manifest) -> Backend:
    """The backend that a manifest names, at a place."""
    return BACKENDS[manifest.container](store, manifest)


__all__ = [
    "BACKENDS",
    "Backend",
    "ColumnReader",
    "EncodedObject",
    "WebDatasetBackend",
    "ZarrBackend",
    "make_backend",
]
