"""Arguments that the public functions share."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from featstore.errors import ConfigError
from featstore.places.open_place import is_url
from featstore.reading.store import FeatureStore

Address: TypeAlias = str | os.PathLike[str] | FeatureStore
"""A store: its folder, its URL, or the opened store."""
Folder: TypeAlias = str | os.PathLike[str]
Settings: TypeAlias = Mapping[str, Any]
"""Settings of one section of a recipe by name."""
Container: TypeAlias = Literal["zarr", "webdataset"]
Codec: TypeAlias = Literal["raw", "zstd", "bitshuffle"]
Dtype: TypeAlias = Literal["float16", "bfloat16", "float32", "int8"]


def address_of(store: Address) -> str:
    """Folder or URL as text."""
    return store.address if isinstance(store, FeatureStore) else os.fspath(store)


def folder_of(store: Address) -> Path:
    """Folder of a store that is not at a URL."""
    text = address_of(store)
    if is_url(text):
        raise ConfigError(f"{text}: pull the store first: featstore.pull({text!r}, FOLDER).")
    return Path(text)


def given(**values: Any) -> dict[str, Any]:
    """Arguments that are not None."""
    return {name: value for name, value in values.items() if value is not None}
