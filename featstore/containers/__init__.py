"""Containers behind one interface."""

from pathlib import Path

from featstore.containers.base import Backend, ColumnReader, EncodedObject
from featstore.containers.webdataset import WebDatasetBackend
from featstore.containers.zarr import ZarrBackend
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import Container

BACKENDS: dict[Container, type[Backend]] = {"zarr": ZarrBackend, "webdataset": WebDatasetBackend}


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
