"""Brace and glob patterns of paths and URLs."""

from featstore.errors import SourceError


def expand(pattern: str) -> list[str]:
    """Expand braces. Raises SourceError: they do not pair up."""
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError as error:  # its UnbalancedBracesError, which the stubs leave out
        raise SourceError(
            f"{pattern}: the braces of this pattern do not pair up ({error}). "
            "Expected for example shard-{000000..000099}.tar (--source.path)."
        ) from None


def is_glob(text: str) -> bool:
    """Whether a text has wildcards."""
    return any(character in text for character in "*?[")
