"""Student ``text_transformer``: a small transformer over the tokens of a text, with a tokenizer from a file.

Token numbers are those of the teacher's tokenizer, so that both have the same tokens. timm knows the model. A slimmable
one (``slimmable_text``) trains all sizes at once, see ``distill.student.slimmable``.
"""

# B batch, L longest input in tokens, C width, K classes

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models import register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from distill.student.slimmable import Size, Slimmable
from featstore.errors import ConfigError
from featstore.files.array_types import Array
from featstore.format.tokenizers import MOST_TOKENS, PADDING, FastTokenizer, pad, read_tokenizer

NAME = "text_transformer"


@cache
def tokenizer_of(path: str, length: int) -> tuple[FastTokenizer, str, bytes]:
    """The tokenizer in a file, the SHA-256 of the file, and its bytes; read once per process."""
    found, _, sha256 = read_tokenizer(Path(path), length, option="tokenizer")
    data = Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ConfigError(f"tokenizer {path}: was replaced while it was read. Run again.")
    return found, sha256, data


class TextTransformer(nn.Module):
    """(B, L) int32 token numbers, ``PADDING`` behind the end -> (B, K) logits, or (B, C) without classes.

    The feature is the mean over a text's own tokens after the last norm.

    Args:
        num_classes: K; 0 for a backbone.
        tokenizer: A tokenizer.json or a WordPiece vocabulary (vocab.txt).
        length: L; the rest of a text is cut off.
        embed_dim: C.
        mlp_ratio: Width of the MLPs, as a multiple of C.

    Attributes:
        encoding: What ``encode`` depends on.
        tokenizer_sha256: Hash of the tokenizer's file.
        tokenizer_data: Bytes of the tokenizer's file; a copy is kept beside a trained student.
    """

    def __init__(
        self,
        num_classes: int = 0,
        *,
        tokenizer: str,
        length: int = MOST_TOKENS,
        embed_dim: int = 192,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} does not divide by {num_heads} heads")
        self.tokenizer, self.tokenizer_sha256, self.tokenizer_data = tokenizer_of(tokenizer, length)
        self.length = length
        self.encoding = (self.tokenizer_sha256, length)
        self.token_embed = nn.Embedding(self.tokenizer.tokenizer.get_vocab_size(), embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, length, embed_dim))
        self.blocks = nn.Sequential(
            *(Block(embed_dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=True) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.classifier = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        if not self.pos_embed.is_meta:
            self._initialise()
        self.pretrained_cfg = {
            "architecture": NAME, "input_size": (1, 1, length), "mean": (0.0,) * 3, "std": (1.0,) * 3,
            "classifier": "classifier",
        }  # fmt: skip

    def _initialise(self) -> None:
        trunc_normal_(self.pos_embed, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                trunc_normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def encode(self, text: str) -> Array:
        """(L,) int32 token numbers of one text."""
        return pad(self.tokenizer(text), self.length)

    def example_input(self) -> Tensor:
        """(1, L) int32 of some text."""
        return torch.from_numpy(self.encode("a text"))[None]

    def get_classifier(self) -> nn.Module:
        """The last Linear; Identity of a backbone."""
        return self.classifier

    def forward_features(self, ids_BL: Tensor) -> Tensor:
        """(B, C)."""
        mask_BL = ids_BL != PADDING
        tokens = self.token_embed(ids_BL.clamp(min=0).long()) + self.pos_embed
        # Attention to no token at all would be NaN: a text without tokens looks everywhere, and its feature is 0.
        seen_BL = mask_BL | ~mask_BL.any(1, keepdim=True)
        attended = seen_BL[:, None, None].expand(-1, 1, self.length, -1)
        for block in self.blocks:
            tokens = block(tokens, attn_mask=attended)
        weights = mask_BL[..., None].to(tokens.dtype)
        return (self.norm(tokens) * weights).sum(1) / weights.sum(1).clamp(min=1)  # type: ignore[no-any-return]

    def forward_head(self, features_BC: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, K), or the feature itself with ``pre_logits``."""
        return features_BC if pre_logits else self.classifier(features_BC)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """(B, K), or (B, C) of a backbone."""
        return self.forward_head(self.forward_features(ids_BL))


class SlimmableText(Slimmable, TextTransformer):
    """A ``TextTransformer`` whose ``embed_dim``, ``depth``, ``num_heads`` and ``mlp_ratio`` are lists.

    Args:
        given: Further arguments of ``TextTransformer``: tokenizer, length.
    """

    plain_name = NAME

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        ratios: Sequence[float],
        **given: Any,
    ) -> None:
        self.given = dict(given)
        self.num_outputs = self.given.pop("num_classes", 0)
        largest = self.prepare(widths, depths, heads, ratios)
        super().__init__(self.num_outputs, **self.plain_args(largest))
        self.num_tokens = self.length
        self.pretrained_cfg["architecture"] = "slimmable_text"

    def plain(self, size: Size) -> nn.Module:
        with torch.device("meta"):
            return TextTransformer(self.num_outputs, **self.plain_args(size)).eval()

    def token_mask(self, inputs: Tensor) -> Tensor:
        return inputs != PADDING


@register_model
def text_transformer(pretrained: bool = False, **kwargs: Any) -> TextTransformer:
    """A small transformer over tokens; needs ``tokenizer``."""
    return TextTransformer(**_own(kwargs, NAME, pretrained))


@register_model
def slimmable_text(pretrained: bool = False, **kwargs: Any) -> SlimmableText:
    """A sub-space of text transformers; ``widths``, ``depths``, ``heads`` and ``ratios`` are lists."""
    return SlimmableText(**_own(kwargs, "slimmable_text", pretrained))


def _own(kwargs: dict[str, Any], name: str, pretrained: bool) -> dict[str, Any]:
    """The arguments without those that timm adds."""
    if pretrained:
        raise RuntimeError(f"there are no pretrained weights of {name}")
    added = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    return {key: value for key, value in kwargs.items() if key not in added}
