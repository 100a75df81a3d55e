"""Tokenizers of text teachers, and the hash by which a store knows them."""

# B texts, L tokens

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from featstore.errors import TeacherError
from featstore.extraction.teachers.base import Tokenizer, brief
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


class OpenClipTokenizer:
    """A tokenizer of open_clip, which pads with zeros to the length of the model's context."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer([text])[0].tolist()  # type: ignore[no-any-return]


def pad(token_ids: list[int], length: int) -> Array:
    """(L,) int32 token numbers, ``PADDING`` behind the end."""
    row = np.full(length, PADDING, np.int32)
    row[: len(token_ids)] = token_ids
    return row


def read_tokenizer(path: Path, max_tokens: int) -> tuple[FastTokenizer, str, str]:
    """Read a ``tokenizer.json``, or the vocabulary of a lower-case WordPiece tokenizer (``vocab.txt``).

    Returns:
        The tokenizer, its kind and the SHA-256 of the file.

    Raises:
        TeacherError: not installed, no such file, or neither format.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise TeacherError(f"--teacher.tokenizer: {error}. {INSTALL}") from None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TeacherError(
            f"--teacher.tokenizer {path}: cannot be read ({error.strerror or error}). Give a tokenizer.json, or a "
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
        raise TeacherError(
            f"--teacher.tokenizer {path}: is neither a tokenizer.json nor a WordPiece vocabulary ({brief(error)})."
        ) from None
    return FastTokenizer(found, max_tokens), kind, hashlib.sha256(data).hexdigest()


def _wordpiece(lines: list[str]) -> Any:
    from tokenizers.implementations import BertWordPieceTokenizer

    vocabulary = {token: number for number, token in enumerate(lines)}
    return BertWordPieceTokenizer(vocab=vocabulary, lowercase=True)._tokenizer


def open_clip_tokenizer(name: str, length: int) -> tuple[Tokenizer, str, str]:
    """The tokenizer that open_clip has for a model, its kind and a hash of its vocabulary and rules."""
    import open_clip

    tokenizer: Any = open_clip.get_tokenizer(name, context_length=length)
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:  # byte pairs in plain Python
        rules: Any = [sorted(tokenizer.encoder.items()), sorted(tokenizer.bpe_ranks.items())]
        text = json.dumps(rules)
    else:
        text = inner.backend_tokenizer.to_str()
    digest = hashlib.sha256(text.encode()).hexdigest()
    return OpenClipTokenizer(tokenizer), type(tokenizer).__name__, digest


def own_tokenizer(name: str, max_tokens: int) -> tuple[FastTokenizer, str, str]:
    """The tokenizer that transformers loads for a model, its kind and a hash of its description.

    Raises:
        TeacherError: there is none, or it is written in Python.
    """
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(name)
        inner = loaded.backend_tokenizer
    except Exception as error:  # hub client and transformers raise their own kinds
        raise TeacherError(
            f"teacher {name}: its tokenizer cannot be loaded ({brief(error)}). Give its tokenizer.json with "
            "--teacher.tokenizer."
        ) from error
    inner.no_padding()
    inner.no_truncation()
    sha256 = hashlib.sha256(inner.to_str().encode()).hexdigest()
    return FastTokenizer(inner, max_tokens), "tokenizers", sha256
