"""Tokenizers that libraries have for their own models, and the hash by which a store knows them."""

import hashlib
import json
from typing import Any

from featstore.errors import TeacherError
from featstore.extraction.teachers.base import Tokenizer, brief
from featstore.format.tokenizers import FastTokenizer


class OpenClipTokenizer:
    """A tokenizer of open_clip, which pads with zeros to the length of the model's context."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer([text])[0].tolist()  # type: ignore[no-any-return]


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
    """The tokenizer that transformers loads for a model, its kind and a hash of its description."""
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
