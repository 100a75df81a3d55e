"""Text from outside as Markdown and as BibTeX, with all markup escaped."""

import html
import re

LONGEST = 200  # characters of one text from outside; longer texts lose their middle


def plain(text: str, most: int = LONGEST) -> str:
    """One line of printable characters."""
    clean = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    if len(clean) <= most:
        return clean
    return f"{clean[: most // 2 - 2]}...{clean[len(clean) - most // 2 + 2 :]}"


def escape(text: str) -> str:
    """Markdown that shows the text as it is. Not for the start of a line."""
    shown = html.escape(plain(text), quote=False)
    # An underscore inside a word is no markup.
    return re.sub(r"([\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", shown)


def code(text: str) -> str:
    """Markdown that shows the text as code, also in a table."""
    shown = plain(text).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") or not shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def bibtex(text: str) -> str:
    """A value of a BibTeX entry."""
    marks = {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        **{mark: f"\\{mark}" for mark in "&%$#_"},
    }  # fmt: skip
    return "".join(marks.get(one, one) for one in plain(text).replace("`", "'"))
