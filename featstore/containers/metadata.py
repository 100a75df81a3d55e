"""The files that a container writes before its first shard; their content follows from the manifest alone.

They are made in a temporary folder and compared with those of a store. So every container is treated alike, and a file
that was damaged can be written again without a teacher.
"""

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from featstore.containers import make_backend
from featstore.format.manifest import Manifest, differences

_OPTIONAL = ("attributes", "configuration", "dimension_names", "storage_transformers")
"""Keys that one version of a Zarr library writes without content, and another leaves out."""

_SPELLINGS: tuple[dict[str, Any], ...] = (
    {"indent": 2},
    {"indent": 4},
    {"separators": (",", ":")},
    {},
)
"""How Zarr libraries write JSON. Anything else is a changed byte."""


def metadata_files(manifest: Manifest) -> dict[str, bytes]:
    """Content of each file that a container writes first, by path inside the store."""
    return _metadata_files(manifest.model_dump_json())


@lru_cache(maxsize=4)
def _metadata_files(text: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_backend(root, Manifest.model_validate_json(text)).create()
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }


def difference(found: bytes, expected: bytes) -> str:
    """What is wrong with a metadata file, in words; "" if its content is right.

    The same content may be spelled in the ways of other versions of the container's library.
    """
    if found == expected:
        return ""
    try:
        ours, theirs = json.loads(expected), json.loads(found)
        differing = differences(_plain(theirs), _plain(ours))
    except (ValueError, RecursionError) as error:
        return f"not readable as JSON ({error})"
    if differing:
        key, was, now = differing[0]
        return f"{key} is {was!r}, the manifest asks for {now!r}" + (
            f", and {len(differing) - 1} more keys differ" if len(differing) > 1 else ""
        )
    spellings = {json.dumps(theirs, **options).encode() for options in _SPELLINGS}
    if found.rstrip(b"\n") not in spellings:
        return "spelled as no library writes it, so a byte was changed"
    return ""


def _plain(value: Any) -> Any:
    """Without empty keys, and with codecs spelled in one way."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {
        key: _plain(item)
        for key, item in value.items()
        if not (key in _OPTIONAL and item in ({}, [], None))
    }
    return kept["name"] if kept.keys() == {"name"} else kept
