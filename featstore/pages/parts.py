"""Parts of a page. The template draws each kind of block; all text is plain and is escaped there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class Tile:
    """One key number.

    Attributes:
        note: what to compare it with.
    """

    label: str
    value: str
    note: str = ""


class Block:
    """Content of a section, drawn by ``templates/<kind>.html``. Each has ``title``, ``note`` and ``wide``."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Plot(Block):
    """One plotly figure.

    Attributes:
        spec: data and layout as JSON values; names in it were escaped by ``style.label``.
        alt: the figure in a sentence, for screen readers.
        wide: takes the whole width of the page.
        least_width: pixels; on a narrower page the figure scrolls sideways. 0 for none.
    """

    title: str
    spec: dict[str, Any]
    alt: str
    note: str = ""
    height: int = 300
    wide: bool = False
    least_width: int = 0
    kind: ClassVar[str] = "plot"


@dataclass(frozen=True)
class Table(Block):
    """Rows of text.

    Attributes:
        rows: cells as shown; numbers are aligned to the right.
        marked: index of a highlighted row; -1 for none.
        links: addresses for the cells of the first column, relative to the page; empty for none.
        wide: takes the whole width of the page.
        names: number of leading columns that hold names, aligned to the left.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    marked: int = -1
    links: Sequence[str] = ()
    wide: bool = True
    names: int = 1
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """One image with its answers.

    Attributes:
        source: data URI; "" if the image could not be read.
        lines: name, answer, and whether the answer is right.
    """

    source: str
    title: str
    lines: Sequence[tuple[str, str, Literal["right", "wrong", ""]]]


@dataclass(frozen=True)
class Gallery(Block):
    """Images in a grid."""

    title: str
    pictures: Sequence[Picture]
    note: str = ""
    kind: ClassVar[str] = "gallery"
    wide: ClassVar[bool] = True


@dataclass(frozen=True)
class Text(Block):
    """Preformatted text, collapsed."""

    title: str
    text: str
    note: ClassVar[str] = ""
    kind: ClassVar[str] = "text"
    wide: ClassVar[bool] = True


@dataclass(frozen=True)
class Section:
    """A heading and its blocks.

    Attributes:
        blocks: in order; those that are not wide share a row.
        lead: one or two sentences below the heading.
        columns: narrow blocks per row, at most.
    """

    title: str
    blocks: Sequence[Block]
    lead: str = ""
    columns: int = 2


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        finding: the result, in a sentence or two.
        sections: in order; those without blocks are left out.
        files: names of the data files beside the page.
    """

    title: str
    subtitle: str
    finding: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    files: Sequence[str] = field(default_factory=list)
    closing: str = ""
