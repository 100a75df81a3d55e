"""JSON files with a checksum of their own bytes, so that a flipped byte is found even where the JSON remains valid.

The key ``file_crc32c`` holds the CRC-32C of the file's own bytes, with the eight digits of that very value taken as
the character 0. A file without the key is accepted: other writers may leave it out, and no flipped byte removes it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import google_crc32c

KEY = "file_crc32c"

_ZEROS = b"0" * 8
_SEAL = re.compile(rb'"file_crc32c"\s*:\s*"([0-9a-f]{8})"')


class SealError(ValueError):
    """The checksum of a file does not match its bytes."""


def seal(values: Mapping[str, Any]) -> bytes:
    """Bytes of a JSON file with these values and its checksum; equal values give equal bytes."""
    text = json.dumps({**values, KEY: _ZEROS.decode()}, sort_keys=True, indent=1, allow_nan=False)
    data = f"{text}\n".encode()
    found = _SEAL.search(data)
    assert found is not None
    start, stop = found.span(1)
    return data[:start] + f"{google_crc32c.value(data):08x}".encode() + data[stop:]


def unseal(data: bytes) -> Any:
    """Parse a JSON file, compare its checksum, and remove the key.

    Raises:
        SealError: The checksum does not match.
        ValueError: The file is not JSON.
    """
    try:
        values = json.loads(data, object_pairs_hook=_unique)
        if rb"\ud" in data.lower():  # a surrogate: refused unless it is one of a pair
            json.dumps(values, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict) or KEY not in values:
        return values
    del values[KEY]
    found = list(_SEAL.finditer(data))
    if len(found) != 1:
        raise SealError(f"{KEY} is not eight hexadecimal digits")
    start, stop = found[0].span(1)
    crc = f"{google_crc32c.value(data[:start] + _ZEROS + data[stop:]):08x}"
    if crc.encode() != found[0].group(1):
        raise SealError(f"crc32c of the file {crc}, expected {found[0].group(1).decode()}")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a repeated key is refused, because readers would choose different values."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return values
