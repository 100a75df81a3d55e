"""Types and checks of settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from featstore.sources.config import require

Norm = Literal["none", "standardize", "layernorm", "l2"]
"""Normalisation of the stored feature before it is compared."""

Target = Literal["teacher", "labels"]
"""Class of an image that a loss needs one for. teacher: its label where known, else the class with the largest
teacher logit. labels: its label; images without one are left out of the term."""

LabelsFrom = Literal["student", "probe"]
"""Where the label of an unlabelled image comes from: the student's prediction on the weak view, or the linear probe's
on the stored feature."""


Names = Sequence[str]


class CheckedOptions:
    """Base of settings: no number may be negative, and what is stated with the class and its bases.

    Args:
        name: Section of the settings, e.g. the method's name, for messages.
        positive: Fields that must be above zero.
        share: Fields from 0 to 1.
        momentum: Fields from 0 to below 1.
        most: Largest value by field; the smallest is 0.
        free: Fields that may be negative.
    """

    _name: ClassVar[str]
    _rules: ClassVar[Sequence[tuple[Names, Callable[[float], bool], str]]] = ()
    _free: ClassVar[Names] = ()

    def __init_subclass__(
        cls,
        *,
        name: str,
        positive: Names = (),
        share: Names = (),
        momentum: Names = (),
        most: Mapping[str, float] | None = None,
        free: Names = (),
    ) -> None:
        limits = {**dict.fromkeys(share, 1), **(most or {})}
        cls._name, cls._free = name, free
        cls._rules = (
            *cls._rules,
            (positive, lambda value: value > 0, "must be positive"),
            (momentum, lambda value: 0 <= value < 1, "must be at least 0 and below 1"),
            *(([field], partial(_up_to, limit), f"must lie between 0 and {limit}") for field, limit in limits.items()),
        )  # fmt: skip

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float):
                where = f"--{self._name}.{name} {value}"
                for names, holds, text in self._rules:
                    require(name not in names or holds(value), f"{where} {text}.")
                require(value >= 0 or name in self._free, f"{where} must not be negative.")


def _up_to(most: float, value: float) -> bool:
    return 0 <= value <= most


@dataclass(frozen=True)
class NoOptions:
    """Of a method that has none."""


@dataclass(frozen=True, kw_only=True)
class VectorOptions(CheckedOptions, name=""):
    """Base of the options of methods that compare with the stored vector."""

    norm: Norm = "none"
    """Normalisation of the stored feature before it is compared: none, standardize (zero mean and unit variance per
    channel over the training images), layernorm (per image) or l2 (length 1)."""
