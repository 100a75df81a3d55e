"""Types and checks that the options of methods and partners share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
Rule = tuple[Names, Callable[[float], bool], str]


class CheckedOptions:
    """Base of the options of a method or partner: no number may be negative, and what is stated with the class.

    Args:
        name: Of the method or partner, for messages.
        positive: Fields that must be above zero.
        share: Fields from 0 to 1.
        momentum: Fields from 0 to below 1.
    """

    _name: ClassVar[str]
    _rules: ClassVar[Sequence[Rule]]

    def __init_subclass__(
        cls, *, name: str, positive: Names = (), share: Names = (), momentum: Names = ()
    ) -> None:
        cls._name, cls._rules = name, (
            (positive, lambda value: value > 0, "must be positive"),
            (share, lambda value: 0 <= value <= 1, "must lie between 0 and 1"),
            (momentum, lambda value: 0 <= value < 1, "must be at least 0 and below 1"),
        )  # fmt: skip

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float):
                for names, holds, text in self._rules:
                    require(
                        name not in names or holds(value), f"--{self._name}.{name} {value} {text}."
                    )
                require(value >= 0, f"--{self._name}.{name} {value} must not be negative.")


@dataclass(frozen=True)
class NoOptions:
    """Of a method that has none."""
