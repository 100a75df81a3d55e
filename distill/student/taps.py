"""Find in any module what a student needs: its feature, its last map, and its last Linear, on one batch of pictures.

A tap says where a tensor is read: the input or output of a submodule, an entry of a module's output that is a mapping,
or the output itself.
"""

# B batch, C channels, M channels and h w sides of a map, N tokens

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from featstore.cli.schema import did_you_mean
from featstore.errors import ConfigError

OUTPUT = "output"
"""Value of ``--student.features`` and ``--student.map`` that means the module's own output."""

PREFIX_TOKENS = 5  # most tokens in front of the patches of a grid: a class token and four registers
LISTED = 12  # most submodules that a message lists, from the last


class Tap(NamedTuple):
    """Where a tensor is read."""

    kind: Literal["input", "output", "key", "whole"]
    """Input or output of the submodule ``name``; entry ``name`` of the module's output; the whole output."""
    name: str = ""

    def __str__(self) -> str:
        return {
            "input": f"input of {self.name}",
            "output": f"output of {self.name}",
            "key": f"output {self.name!r}",
            "whole": "output of the module",
        }[self.kind]


class Call(NamedTuple):
    """A submodule that has run."""

    path: str
    module: nn.Module
    given: Any
    output: Any


@dataclass(frozen=True)
class Taps:
    """What was found in a module."""

    feature: Tap  # where the feature is read
    map: Tap | None  # where the last map is read; None where there is none
    last_linear: str  # path of the Linear whose output is the module's output; "" if there is none
    heads: bool  # whether the feature is the input of that Linear
    dropout: str  # path of the dropout that makes the feature; "" if there is none
    channels: int  # C


def as_vector(value: Any) -> Tensor:
    """(B, C), or (B, C, h, w) averaged over its places. Raises TypeError: another shape, or no tensor."""
    if isinstance(value, Tensor) and value.dim() in (2, 4):
        return value if value.dim() == 2 else value.mean((2, 3))
    raise TypeError(f"{shape_of(value)}; expected (B, C) or (B, C, h, w)")


def as_map(value: Any) -> Tensor:
    """(B, M, h, w), or tokens (B, N, M) of which the last ones fill the largest square; a vector is one place.

    Raises:
        TypeError: another shape, or no tensor.
    """
    if isinstance(value, Tensor) and value.dim() == 4:
        return value
    if isinstance(value, Tensor) and value.dim() == 3:
        side = math.isqrt(value.shape[1])
        return value[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))  # type: ignore[no-any-return]
    if isinstance(value, Tensor) and value.dim() == 2:
        return value[:, :, None, None]
    raise TypeError(f"{shape_of(value)}; expected (B, M, h, w) or tokens (B, N, M)")


def entries(output: Any) -> dict[str, Any]:
    """The entries of a module's output by name: of a mapping, or of a list by number."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, list | tuple):
        return {str(number): value for number, value in enumerate(output)}
    return {}


def shape_of(value: Any) -> str:
    """A value as a message shows it: shapes of tensors, with B for the batch."""
    if isinstance(value, Tensor):
        return f"({', '.join(['B', *map(str, value.shape[1:])])})" if value.dim() else "()"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {shape_of(item)}' for key, item in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(shape_of, value))}]"
    return type(value).__name__


def read_tap(tap: Tap, output: Any, seen: Mapping[tuple[str, str], Any]) -> Any:
    """The value at a tap.

    Args:
        seen: what hooks have kept, by kind and path.
    """
    if tap.kind == "whole":
        return output
    return entries(output)[tap.name] if tap.kind == "key" else seen[tap.kind, tap.name]


def find_taps(
    module: nn.Module, pictures: Tensor, *, name: str, feature: str = "", map_name: str = ""
) -> Taps:
    """Run a module once in eval mode and find its taps.

    Args:
        module: takes pictures.
        pictures: (B, 3, H, W), B at least 2.
        feature: key of its output, path of a submodule, or ``output``; "" takes the input of the last Linear where
            the module ends in one, else its output.
        map_name: likewise; "" takes the last map that is not made by pooling.

    Raises:
        ConfigError: no such key or path, or a shape that is none of a feature or a map; says what was found.
    """
    calls, output = _run(module, pictures)
    found = _describe(calls, output)
    linear = _last_linear(calls, output)
    if feature:
        tap = _named(feature, "features", calls, output, name=name, found=found)
    else:
        last = list(entries(output))[-1:] if _is_pyramid(output) else []
        tap = Tap("input", linear.path) if linear else Tap("key", last[0]) if last else Tap("whole")
    seen = {("output", call.path): call.output for call in calls}
    if linear:
        seen["input", linear.path] = linear.given
    vector = _shaped(as_vector, tap, output, seen, f"--student.features {feature}", name, found)
    map_tap = (
        _named(map_name, "map", calls, output, name=name, found=found)
        if map_name
        else _last_map(calls, output)
    )
    if map_tap is not None:
        _shaped(as_map, map_tap, output, seen, f"--student.map {map_name}", name, found)
    heads = linear is not None and torch.equal(vector, linear.given)
    dropouts = [
        call.path
        for call in calls
        if heads and isinstance(call.module, nn.Dropout) and call.output is linear.given  # type: ignore[union-attr]
    ]
    if heads and linear is not None:
        tap = Tap("input", linear.path)
    return Taps(
        tap,
        map_tap,
        linear.path if linear else "",
        heads,
        dropouts[-1] if dropouts else "",
        vector.shape[1],
    )


def _run(module: nn.Module, pictures: Tensor) -> tuple[list[Call], Any]:
    """Run a module; return its submodules in the order in which they finished, and its output."""
    calls: list[Call] = []

    def hook_of(path: str) -> Any:
        def hook(part: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            calls.append(Call(path, part, given[0] if given else None, output))

        return hook

    hooks = [
        part.register_forward_hook(hook_of(path)) for path, part in module.named_modules() if path
    ]
    try:
        output = module(pictures)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, output


def _last_linear(calls: Sequence[Call], output: Any) -> Call | None:
    """The Linear whose output is the module's output."""
    for call in reversed(calls):
        if isinstance(call.module, nn.Linear):
            ends = call.output is output and call.given.dim() == 2
            return call if ends else None
    return None


def _last_map(calls: Sequence[Call], output: Any) -> Tap | None:
    """The last map in front of the global pooling; the module's output if that is a map."""
    if isinstance(output, Tensor) and output.dim() == 4:
        return Tap("whole")
    if _is_pyramid(output):
        return Tap("key", list(entries(output))[-1])
    maps = [
        (number, call, places) for number, call in enumerate(calls) if (places := _places(call))
    ]
    pools = [
        number
        for number, call, places in maps
        if _pools(call) and places == 1 and not any(True for _ in call.module.children())
    ]
    # Pooling inside a squeeze-excite block is followed by larger maps.
    after = [places for number, _, places in maps if pools and number > pools[-1]]
    if pools and max(after, default=1) == 1:
        maps = [item for item in maps if item[0] < pools[-1]]
    paths = [call.path for _, call, _ in maps if not _pools(call)]
    return Tap("output", paths[-1]) if paths else None


def _places(call: Call) -> int:
    """h w of a square map, or of tokens of which all but a few lie on a square; 0 of other outputs."""
    shape = call.output.shape if isinstance(call.output, Tensor) else ()
    if len(shape) == 4:
        return int(shape[2] * shape[3]) if shape[2] == shape[3] else 0
    if len(shape) == 3 and shape[1] > 1:
        places = math.isqrt(shape[1]) ** 2
        return places if shape[1] - places <= PREFIX_TOKENS else 0
    return 0


def _is_pyramid(output: Any) -> bool:
    """Whether a module gives a list of maps, as timm's ``features_only`` does."""
    return isinstance(output, list | tuple) and all(
        isinstance(item, Tensor) and item.dim() == 4 for item in output
    )


def _pools(call: Call) -> bool:
    return "Pool" in type(call.module).__name__


def _named(
    wanted: str, setting: str, calls: Sequence[Call], output: Any, *, name: str, found: str
) -> Tap:
    keys = list(entries(output))
    if wanted in keys:
        return Tap("key", wanted)
    if wanted == OUTPUT:
        return Tap("whole")
    paths = [call.path for call in calls]
    if wanted in paths:
        return Tap("output", wanted)
    near = difflib.get_close_matches(wanted, [*keys, *paths], n=3)
    raise ConfigError(
        f"--student.{setting} {wanted}: {name} has no such output or submodule, or it did not run. "
        f"{did_you_mean(near) + ' ' if near else ''}{found}"
    )


def _shaped(
    shape: Any, tap: Tap, output: Any, seen: Any, setting: str, name: str, found: str
) -> Tensor:
    try:
        return shape(read_tap(tap, output, seen))  # type: ignore[no-any-return]
    except TypeError as error:
        raise ConfigError(
            f"{setting.strip()}: {tap} of {name} is {error}. Name another output or submodule. {found}"
        ) from None


def _describe(calls: Sequence[Call], output: Any) -> str:
    listed = [
        f"{call.path} {shape_of(call.output)}" for call in calls if not isinstance(call.output, str)
    ]
    return (
        f"Found on one batch: output {shape_of(output)}; submodules, the last first: "
        f"{', '.join(listed[: -LISTED - 1 : -1])}{', ...' if len(listed) > LISTED else ''}."
    )
