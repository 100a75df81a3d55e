"""Tokenizers in files: token numbers of a text, and the hash by which a store knows them."""

# L tokens

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from featstore.errors import TeacherError
from featstore.files.array_types import Array

INSTALL = "pip install 'featstore-distill[text]'"

PADDING = -1  # token number behind the end of a text; no tokenizer has it
MOST_TOKENS = 128  # longest input where neither the settings nor the model say one


class FastTokenizer:
    """A tokenizer of the library ``tokenizers``.

    Args:
        max_tokens: longest result; the rest of a text is cut off.

    Attributes:
        pad_id: number of the padding token: some models count positions by it.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        known = [tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>")]
        self.pad_id = next((number for number in known if number is not None), 0)

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids  # type: ignore[no-any-return]


def pad(token_ids: list[int], length: int) -> Array:
    """(L,) int32 token numbers, ``PADDING`` behind the end."""
    row = np.full(length, PADDING, np.int32)
    row[: len(token_ids)] = token_ids
    return row


def read_tokenizer(
    path: Path, max_tokens: int, *, option: str = "--teacher.tokenizer"
) -> tuple[FastTokenizer, str, str]:
    """Read a ``tokenizer.json``, or the vocabulary of a lower-case WordPiece tokenizer (``vocab.txt``).

    Returns:
        The tokenizer, its kind and the SHA-256 of the file.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise TeacherError(f"{option}: {error}. {INSTALL}") from None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TeacherError(
            f"{option} {path}: cannot be read ({error.strerror or error}). Give a tokenizer.json, or a "
            "WordPiece vocabulary (vocab.txt)."
        ) from None
    kind = "tokenizers" if path.suffix == ".json" else "wordpiece"
    try:
        found: Any = (
            tokenizers.Tokenizer.from_str(data.decode())
            if kind == "tokenizers"
            else _wordpiece(data.decode().splitlines())
        )
    except Exception as error:  # the library raises plain Exceptions
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise TeacherError(
            f"{option} {path}: is neither a tokenizer.json nor a WordPiece vocabulary ({reason})."
        ) from None
    return FastTokenizer(found, max_tokens), kind, hashlib.sha256(data).hexdigest()


def _wordpiece(lines: list[str]) -> Any:
    from tokenizers.implementations import BertWordPieceTokenizer

    vocabulary = {token: number for number, token in enumerate(lines)}
    return BertWordPieceTokenizer(vocab=vocabulary, lowercase=True)._tokenizer
