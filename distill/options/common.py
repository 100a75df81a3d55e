"""Words and checks that several options share."""

from typing import Any, Literal

from featstore.config import require

Norm = Literal["none", "standardize", "layernorm", "l2"]
"""Normalisation of the stored feature before it is compared."""


def not_negative(part: str, options: Any, *names: str) -> None:
    """Check options of one method or partner.

    Raises:
        ConfigError: names the first one below zero.
    """
    for name in names:
        value = getattr(options, name)
        require(value >= 0, f"--{part}.{name} {value} must not be negative.")


def positive(part: str, options: Any, *names: str) -> None:
    """Check options of one method or partner.

    Raises:
        ConfigError: names the first one that is not above zero.
    """
    for name in names:
        value = getattr(options, name)
        require(value > 0, f"--{part}.{name} {value} must be positive.")
