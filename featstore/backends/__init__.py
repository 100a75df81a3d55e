"""Containers behind one interface."""

from featstore.backends.base import Backend, Column, columns_of
from featstore.backends.zarr import ZarrBackend

__all__ = ["Backend", "Column", "ZarrBackend", "columns_of"]
