"""Slimmable students: one set of weights for all widths, depths, numbers of heads and MLP ratios of a sub-space.

A smaller size is made of slices of the largest: evenly spread blocks, of every matrix the first rows and columns. The
slices of one size are the weights of an ordinary model, ``plain``. After AutoDistil (Xu et al., NeurIPS 2022), but for
the heads: the paper keeps the size of a head and drops heads, timm divides the width by them, and so do we.
"""

# B images, N tokens, C width of a size

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call


class Size(NamedTuple):
    """One student of a sub-space."""

    width: int
    depth: int
    heads: int
    ratio: float  # width of the MLPs, as a multiple of ``width``

    def __str__(self) -> str:
        return f"width={self.width} depth={self.depth} heads={self.heads} ratio={self.ratio:g}"


class Slimmable:
    """Base of slimmable students, beside the class of the ordinary model; its weights are those of the largest size.

    Attributes:
        sizes: All sizes of the sub-space.
        given: Arguments that all sizes share.
        plain_name: Name in timm of the ordinary model.
        num_tokens: N, class token included.
    """

    plain_name: str
    num_tokens: int
    given: dict[str, Any]
    blocks: nn.Sequential

    def prepare(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        ratios: Sequence[float],
    ) -> Size:
        """Set ``sizes`` and return the largest. Raises ValueError: a width does not divide by a number of heads."""
        choices = [sorted(set(values)) for values in (widths, depths, heads, ratios)]
        if not all(values and values[0] > 0 for values in choices):
            raise ValueError(
                "widths, depths, heads and ratios must be lists of numbers above 0, e.g. widths [48, 96]"
            )
        unfit = [(w, h) for w in choices[0] for h in choices[2] if w % h]
        if unfit:
            raise ValueError(f"width {unfit[0][0]} does not divide by {unfit[0][1]} heads")
        self.sizes = [Size(*values) for values in product(*choices)]  # type: ignore[arg-type]
        self._plain: dict[Size, nn.Module] = {}
        return self.largest

    @property
    def largest(self) -> Size:
        """The size whose weights are the model's own."""
        return self.sizes[-1]

    @property
    def smallest(self) -> Size:
        """The size of the smallest value of every choice."""
        return self.sizes[0]

    def plain_args(self, size: Size) -> dict[str, Any]:
        """Arguments of ``timm.create_model(plain_name, ...)`` for a size."""
        return {
            **self.given, "embed_dim": size.width, "depth": size.depth, "num_heads": size.heads,
            "mlp_ratio": size.ratio,
        }  # fmt: skip

    def plain(self, size: Size) -> nn.Module:
        """The ordinary model of a size, without memory for its weights."""
        raise NotImplementedError

    def token_mask(self, inputs: Tensor) -> Tensor | None:
        """(B, N) whether a token belongs to its sample; None where all do."""
        return None

    def slices(self, size: Size) -> dict[str, Tensor]:
        """Weights of the ordinary model of a size, by its own keys; gradients flow into this model's."""
        assert isinstance(self, nn.Module)
        own, found = dict(self.named_parameters()), {}
        kept = spread(len(self.blocks), size.depth)
        for name, like in self._skeleton(size).named_parameters():
            parts = name.split(".")
            if parts[0] == "blocks":
                parts[1] = str(kept[int(parts[1])])
            value: Tensor = own[".".join(parts)]
            shape = tuple(like.shape)
            if "qkv" in parts:  # three matrices, one below the other
                value, shape = value.unflatten(0, (3, -1)), (3, shape[0] // 3, *shape[1:])
            value = value[tuple(slice(length) for length in shape)]
            found[name] = value.flatten(0, 1) if "qkv" in parts else value
        return found

    def qkv(self, size: Size, inputs: Tensor) -> Tensor:
        """(B, N, 3 C): queries, keys and values of the last block of a size, side by side."""
        kept: list[Tensor] = []
        model = self._skeleton(size)
        layer = model.blocks[-1].attn.qkv  # type: ignore[union-attr,index]
        handle = layer.register_forward_hook(lambda *args: kept.append(args[2]))
        try:
            functional_call(model, self.slices(size), (inputs,))
        finally:
            handle.remove()
        return kept[0]

    def _skeleton(self, size: Size) -> nn.Module:
        if size not in self._plain:
            self._plain[size] = self.plain(size)
        return self._plain[size]


def spread(count: int, kept: int) -> list[int]:
    """Places of the kept blocks, in even distances; the last block is always among them."""
    return [(place + 1) * count // kept - 1 for place in range(kept)]


class SlimmableViT(Slimmable, VisionTransformer):
    """A ViT of timm whose ``embed_dim``, ``depth``, ``num_heads`` and ``mlp_ratio`` are lists.

    Args:
        given: Further arguments of ``VisionTransformer``, e.g. img_size, patch_size.
    """

    plain_name = "vit_tiny_patch16_224"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        ratios: Sequence[float],
        **given: Any,
    ) -> None:
        self.given = {"img_size": 224, "patch_size": 16, **given}
        self.num_outputs = self.given.pop("num_classes", 0)
        largest = self.prepare(widths, depths, heads, ratios)
        super().__init__(num_classes=self.num_outputs, **self.plain_args(largest))
        self.num_tokens = self.patch_embed.num_patches + self.num_prefix_tokens
        side = self.given["img_size"]
        self.pretrained_cfg = {
            "architecture": "slimmable_vit", "input_size": (3, side, side), "mean": (0.5,) * 3, "std": (0.5,) * 3,
            "classifier": "head",
        }  # fmt: skip

    def plain(self, size: Size) -> nn.Module:
        with torch.device("meta"):
            return VisionTransformer(num_classes=self.num_outputs, **self.plain_args(size)).eval()


@register_model
def slimmable_vit(pretrained: bool = False, **kwargs: Any) -> SlimmableViT:
    """A sub-space of ViTs; ``widths``, ``depths``, ``heads`` and ``ratios`` are lists."""
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(name, None)
    if pretrained:
        raise RuntimeError("there are no pretrained weights of slimmable_vit")
    return SlimmableViT(**kwargs)
