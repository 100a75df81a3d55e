"""Student ``hashed_text``: a bag of hashed character n-grams and an MLP; no tokenizer, any language. timm knows it.

A text is brought to NFKC and lower case and cut at white space. Of every word, with a mark at both ends, all n-grams of
1 to ``most`` characters and the whole word are hashed (CRC-32) into ``buckets`` rows of a table; the mean of the rows
goes through an MLP.
"""

# B batch, L n-grams of a text, E width of the table, C width of the feature, K classes

import unicodedata
import zlib
from typing import Any

import numpy as np
import torch
from timm.models import register_model
from torch import Tensor, nn

from featstore.files.array_types import Array

NAME = "hashed_text"

NOTHING = 0  # row of the table for places behind the end of a text


def ngrams(text: str, most: int) -> list[str]:
    """Every marked word, each followed by its n-grams of 1 to ``most`` characters."""
    found: list[str] = []
    for word in unicodedata.normalize("NFKC", text).lower().split():
        marked = f"<{word}>"
        found.append(marked)
        for size in range(1, most + 1):
            found += [marked[start : start + size] for start in range(len(marked) - size + 1)]
    return found


class HashedText(nn.Module):
    """(B, L) int32 rows of the table, ``NOTHING`` behind the end -> (B, K) logits, or (B, C) without classes.

    Args:
        num_classes: K; 0 for a backbone.
        buckets: rows of the table.
        embed: E.
        width: C.
        most: longest n-gram, characters.
        length: L, most n-grams of a text; further ones are left out.

    Attributes:
        encoding: what ``encode`` depends on.
    """

    def __init__(
        self,
        num_classes: int = 0,
        *,
        buckets: int = 2**15,
        embed: int = 128,
        hidden: int = 512,
        width: int = 384,
        most: int = 4,
        length: int = 256,
    ) -> None:
        super().__init__()
        if min(buckets - 1, embed, hidden, width, most, length) < 1:
            raise ValueError("buckets, embed, hidden, width, most and length must be positive")
        self.buckets, self.most, self.length = buckets, most, length
        self.encoding = (buckets, most, length)
        self.table = nn.EmbeddingBag(buckets, embed, mode="mean", padding_idx=NOTHING)
        self.layers = nn.Sequential(
            nn.LayerNorm(embed), nn.Linear(embed, hidden), nn.GELU(), nn.Linear(hidden, width)
        )
        self.classifier = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self.pretrained_cfg = {
            "architecture": NAME,
            "input_size": (1, 1, length),
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
        }

    def encode(self, text: str) -> Array:
        """(L,) int32 rows of the table for one text."""
        grams = ngrams(text, self.most)[: self.length]
        rows = np.full(self.length, NOTHING, np.int32)
        rows[: len(grams)] = [1 + zlib.crc32(gram.encode()) % (self.buckets - 1) for gram in grams]
        return rows

    def example_input(self) -> Tensor:
        """(1, L) int32 of some text."""
        return torch.from_numpy(self.encode("a text"))[None]

    def get_classifier(self) -> nn.Module:
        """The last Linear; Identity of a backbone."""
        return self.classifier

    def forward_features(self, rows_BL: Tensor) -> Tensor:
        """(B, C)."""
        return self.layers(self.table(rows_BL))  # type: ignore[no-any-return]

    def forward_head(self, features_BC: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, K), or the feature itself with ``pre_logits``."""
        return features_BC if pre_logits else self.classifier(features_BC)

    def forward(self, rows_BL: Tensor) -> Tensor:
        """(B, K), or (B, C) of a backbone."""
        return self.forward_head(self.forward_features(rows_BL))


@register_model
def hashed_text(pretrained: bool = False, **kwargs: Any) -> HashedText:
    """Bag of hashed n-grams and an MLP; 4.5 million parameters by default."""
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(name, None)
    if pretrained:
        raise RuntimeError("there are no pretrained weights of hashed_text")
    return HashedText(**kwargs)
