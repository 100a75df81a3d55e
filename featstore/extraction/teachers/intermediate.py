"""Outputs of intermediate transformer blocks, and queries, keys and values of the last one, through forward hooks."""

# B images, N tokens, D width

import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from featstore.errors import TeacherError, shorten
from featstore.extraction.field_names import BLOCK, PROJECTIONS

_BLOCKS = re.compile(r"(?:.*\.)?(?:blocks|resblocks|layers|layer)")
_ATTENTION = {"attn", "attention", "self_attn", "self_attention"}
_SEPARATE = {
    "q": ("q_proj", "query"),
    "k": ("k_proj", "key"),
    "v": ("v_proj", "value"),
}
"""Names of the three linear layers, where a library keeps them apart."""


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Transformer blocks of a model, in order; empty if no list of modules looks like that."""
    lists = [
        module
        for name, module in model.named_modules()
        if _BLOCKS.fullmatch(name)
        and isinstance(module, nn.ModuleList | nn.Sequential)
        and len(module)
        and all(_is_block(item) for item in module)
    ]
    return list(max(lists, key=len, default=[]))


def _is_block(module: nn.Module) -> bool:
    """Whether it attends, and is no stage of several blocks, whose maps would differ in size."""
    parts = {name.rpartition(".")[2]: part for name, part in module.named_modules()}
    return bool(parts.keys() & _ATTENTION) and not any(
        _BLOCKS.fullmatch(name) and isinstance(part, nn.ModuleList | nn.Sequential)
        for name, part in parts.items()
    )


def watch(model: nn.Module, prefixes: Iterable[str], found: dict[str, Tensor]) -> None:
    """Have a model write (B, N, D) of each wanted prefix into ``found`` in each forward pass.

    Args:
        model: with transformer blocks.
        prefixes: block0, block1, ..., q, k, v.
    """
    blocks = find_blocks(model)
    for prefix in sorted(set(prefixes)):
        number = BLOCK.fullmatch(prefix)
        if not blocks:
            raise TeacherError(
                f"field {prefix!r}: no list of transformer blocks was found in this teacher."
            )
        if number is None:
            _watch_projection(blocks[-1], prefix, found)
        elif int(number[1]) < len(blocks):
            blocks[int(number[1])].register_forward_hook(_keep(found, prefix))
        else:
            raise TeacherError(
                f"field {prefix!r}: this teacher has {len(blocks)} blocks, block0 to block{len(blocks) - 1}."
            )


def _keep(
    found: dict[str, Tensor], name: str, part: Callable[[Tensor], Tensor] = lambda out: out
) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: object, output: Any) -> None:
        found[name] = part(output[0] if isinstance(output, tuple) else output)

    return hook


def _watch_projection(block: nn.Module, name: str, found: dict[str, Tensor]) -> None:
    place = PROJECTIONS.index(name)
    modules = {path.rpartition(".")[2]: module for path, module in block.named_modules()}
    if "qkv" in modules:
        modules["qkv"].register_forward_hook(
            _keep(found, name, lambda out: out.chunk(3, dim=-1)[place])
        )
        return
    for own in _SEPARATE[name]:
        if own in modules:
            modules[own].register_forward_hook(_keep(found, name))
            return
    joint = [item for item in block.modules() if isinstance(item, nn.MultiheadAttention)]
    if not joint:
        raise TeacherError(
            f"field {name!r}: the last block of this teacher has no layer that is known to make it. Its parts: "
            f"{shorten(sorted(modules), 20)}."
        )
    # nn.MultiheadAttention keeps the three as one matrix and calls no module for them.
    attention = joint[0]

    def project(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = args[place] if len(args) > place else kwargs[("query", "key", "value")[place]]
        weight = attention.in_proj_weight.chunk(3)[place]
        biases: Tensor | None = getattr(attention, "in_proj_bias", None)
        bias = None if biases is None else biases.chunk(3)[place]
        out = F.linear(tokens, weight, bias)
        found[name] = out if attention.batch_first else out.transpose(0, 1)

    attention.register_forward_pre_hook(project, with_kwargs=True)
