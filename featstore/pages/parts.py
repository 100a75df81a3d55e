"""What a page is made of. The template draws each kind; all text is plain and is escaped there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Cell = str | int | float | None


@dataclass(frozen=True)
class Tile:
    """One number that matters.

    Attributes:
        label: what it is.
        value: as shown.
        note: what to compare it with.
    """

    label: str
    value: str
    note: str = ""


class Block:
    """What stands under a heading; ``templates/<kind>.html`` draws it. Each has ``title``, ``note`` and ``wide``."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Plot(Block):
    """One plotly figure.

    Attributes:
        title: what it shows.
        spec: data and layout as JSON values; its texts were made safe by ``style.label``.
        alt: the figure in a sentence, for those who cannot see it.
        note: how to read it.
        height: pixels.
        wide: takes the whole width of the page.
    """

    title: str
    spec: dict[str, Any]
    alt: str
    note: str = ""
    height: int = 300
    wide: bool = False
    kind: ClassVar[str] = "plot"


@dataclass(frozen=True)
class Table(Block):
    """Rows of text.

    Attributes:
        title: what it shows.
        columns: headings.
        rows: of cells as shown; numbers are aligned to the right.
        note: how to read it.
        marked: row to stand out; -1 for none.
        links: addresses for the cells of the first column, relative to the page; empty for none.
        wide: takes the whole width of the page.
        names: leading columns that hold names, aligned to the left.
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
    """One image with what was said of it.

    Attributes:
        source: data URI; "" where the image could not be had.
        title: sample id.
        lines: name, answer and how it turned out.
    """

    source: str
    title: str
    lines: Sequence[tuple[str, str, Literal["right", "wrong", ""]]]


@dataclass(frozen=True)
class Gallery(Block):
    """Images side by side."""

    title: str
    pictures: Sequence[Picture]
    note: str = ""
    kind: ClassVar[str] = "gallery"
    wide: ClassVar[bool] = True


@dataclass(frozen=True)
class Text(Block):
    """Preformatted text that is folded away."""

    title: str
    text: str
    note: ClassVar[str] = ""
    kind: ClassVar[str] = "text"
    wide: ClassVar[bool] = True


@dataclass(frozen=True)
class Section:
    """A heading and what belongs under it.

    Attributes:
        title: heading.
        blocks: in order; those that are not wide share a line where there is room.
        lead: one or two sentences that say what is to be seen.
        columns: narrow blocks in one line, at most.
    """

    title: str
    blocks: Sequence[Block]
    lead: str = ""
    columns: int = 2


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: of the page.
        subtitle: what was done, in a line.
        finding: what came out, in a sentence or two.
        tiles: the numbers that matter.
        sections: in order; those without blocks are left out.
        files: names of the plain files beside the page.
        closing: last line.
    """

    title: str
    subtitle: str
    finding: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    files: Sequence[str] = field(default_factory=list)
    closing: str = ""
