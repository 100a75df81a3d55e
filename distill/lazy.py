"""torch, imported at its first use instead of at import time.

The options of a method stand beside it in one file, and options are read before anything heavy is imported: ``--help``
and a wrong flag take half a second, torch another two to four. Files that hold options take torch from here; what
subclasses ``nn.Module`` stands in ``methods/modules.py`` and ``partners/modules.py``.
"""

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["F", "Tensor", "nn", "no_grad", "torch"]

Function = TypeVar("Function", bound=Callable[..., Any])

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F
else:
    Tensor = Any

    class _Lazy:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(importlib.import_module(self._name), attribute)

    torch, nn, F = _Lazy("torch"), _Lazy("torch.nn"), _Lazy("torch.nn.functional")


def no_grad(function: Function) -> Function:
    """As the decorator ``torch.no_grad()``."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]
