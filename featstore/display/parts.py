"""Parts of a page. The template draws each kind of block; all text is plain and is escaped there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class Tile:
    """One key number."""

    label: str
    value: str
    note: str = ""  # what to compare it with


class Block:
    """Content of a section, drawn by ``templates/<kind>.html``. Each has ``title``, ``note`` and ``wide``."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Plot(Block):
    """One plotly figure."""

    title: str
    # data and layout as JSON values; names in it were escaped by ``style.label``
    spec: dict[str, Any]
    alt: str  # the figure in a sentence, for screen readers
    note: str = ""
    height: int = 300
    wide: bool = False  # takes the whole width of the page
    least_width: int = 0  # pixels; on a narrower page the figure scrolls sideways. 0 for none
    kind: ClassVar[str] = "plot"


@dataclass(frozen=True)
class Table(Block):
    """Rows of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]  # cells as shown; numbers are aligned to the right
    note: str = ""
    marked: int = -1  # index of a highlighted row; -1 for none
    # addresses for the cells of the first column, relative to the page; empty for none
    links: Sequence[str] = ()
    wide: bool = True  # takes the whole width of the page
    names: int = 1  # number of leading columns that hold names, aligned to the left
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """One image with its answers."""

    source: str  # data URI; "" if the image could not be read
    title: str
    # name, answer, and whether the answer is right
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
    """A heading and its blocks."""

    title: str
    blocks: Sequence[Block]  # in order; those that are not wide share a row
    lead: str = ""  # one or two sentences below the heading
    columns: int = 2  # narrow blocks per row, at most


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    subtitle: str
    finding: str  # the result, in a sentence or two
    tiles: Sequence[Tile]
    sections: Sequence[Section]  # in order; those without blocks are left out
    files: Sequence[str] = field(default_factory=list)  # names of the data files beside the page
    closing: str = ""
