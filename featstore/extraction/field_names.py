"""Names of the fields that a teacher can be asked for; without heavy imports, so that a wrong name fails at once."""

import re
from collections.abc import Sequence

from featstore.errors import ConfigError, StoreError
from featstore.format.ids import check_name

GRID = re.compile(r"grid([1-9][0-9]{0,2})")
TOP_K = re.compile(r"logits_top([1-9][0-9]{0,4})")
BLOCK = re.compile(r"block(0|[1-9][0-9]{0,2})")
PROJECTIONS = ("q", "k", "v")  # queries, keys and values of the last block

_OF_TOKENS = r"(?:cls|mean|tokens|registers|grid[1-9][0-9]{0,2})"
FIELD = re.compile(
    rf"{_OF_TOKENS}|(?:block(?:0|[1-9][0-9]{{0,2}})|[qkv])\.{_OF_TOKENS}|[qkv]"
    r"|pooled|projected|confidence|argmax|logits|logits_top[1-9][0-9]{0,4}"
)

KNOWN = (
    "cls, mean, pooled, tokens, registers, projected, logits, gridK (grid7), logits_topK (logits_top20), blockN.cls, "
    "blockN.mean, blockN.tokens, blockN.gridK (block8.grid7), q, k, v"
)

OWN_NAMES = ("onnx", "python")  # libraries whose models may name their outputs as they like


def check_fields(names: Sequence[str], *, library: str) -> None:
    """Refuse names that no teacher of a library can give. Raises ConfigError: names the field and what there is."""
    for name in names:
        if library in OWN_NAMES:
            try:
                check_name(name)
            except StoreError as error:
                raise ConfigError(f"--store.fields: {error}") from None
        elif not FIELD.fullmatch(name):
            raise ConfigError(f"--store.fields: there is no field {name!r}. Fields: {KNOWN}.")


def split_prefix(name: str) -> tuple[str, str]:
    """Split ``block8.grid7`` into ("block8", "grid7"); ("", name) of a field of the last layer."""
    if name in PROJECTIONS:
        return name, "tokens"
    prefix, dot, rest = name.rpartition(".")
    return (prefix, rest) if dot else ("", name)
