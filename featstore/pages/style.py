"""The manner of all figures: colours, names from outside as text, and an empty figure.

Colours of text, grid and ground are set by the page, so that they suit light and dark.
"""

import html
import json
import re
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

PALETTE = (
    "#3b78d8", "#e0812f", "#2f9e6e", "#cf4a55", "#8a64c2", "#8c7358", "#d670a6", "#7b8794", "#a5a02c", "#29a3b5",
)  # fmt: skip
"""Colours of series; they can be told apart on light and on dark ground."""
BLUE, ORANGE, GREEN, RED, GREY = PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[3], PALETTE[7]
TINTS = [[0.0, "rgba(59,120,216,0)"], [1.0, "rgba(59,120,216,0.7)"]]
"""Scale of a share; its ends keep the page's text readable on top."""
GAINS = [
    [0.0, "rgba(207,74,85,0.75)"], [0.4999, "rgba(207,74,85,0)"],
    [0.5001, "rgba(47,158,110,0)"], [1.0, "rgba(47,158,110,0.75)"],
]  # fmt: skip
"""Scale of a difference, losses red and gains green."""

LONGEST = 26
"""Characters of a name on an axis."""


def label(text: str, most: int = LONGEST) -> str:
    """A name from outside as text that plotly shows as it is: it takes some HTML for markup.

    Long names lose their middle, so that paths keep their end.
    """
    clean = "".join(character if character.isprintable() else " " for character in text)
    if len(clean) > most:
        clean = f"{clean[: most // 2 - 1]}...{clean[len(clean) - most // 2 + 2 :]}"
    return html.escape(clean)


def symbol(name: str) -> str:
    """The name of a logged number with its indices set low, as in f_s."""
    return re.sub(r"_([a-z])\b", r"<sub>\1</sub>", label(name, 60))


def spec(figure: go.Figure) -> dict[str, Any]:
    """Data and layout as JSON values."""
    values: dict[str, Any] = json.loads(figure.to_json())
    values["layout"].pop("template", None)
    return values


def empty(x: str = "", y: str = "") -> go.Figure:
    """An empty figure in the page's manner: thin axes, no zoom, so that a finger on it still scrolls the page."""

    def axis(text: str) -> dict[str, Any]:
        title = {"text": text, "standoff": 8, "font": {"size": 12}}
        return {
            "title": title,
            "automargin": True,
            "fixedrange": True,
            "zeroline": False,
            "ticks": "",
        }

    return go.Figure(
        layout={
            "template": "none", "dragmode": False, "margin": {"l": 8, "r": 12, "t": 8, "b": 8}, "xaxis": axis(x),
            "yaxis": axis(y),
            "legend": {
                "orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "xanchor": "left", "itemclick": False,
                "itemdoubleclick": False,
            },
        }
    )  # fmt: skip


def name_ticks(figure: go.Figure, axis: str, names: Sequence[str]) -> None:
    """Names on an axis whose places are numbers: as categories, two that are cut to one text would become one."""
    ticks = {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [label(name) for name in names],
    }
    figure.update_layout({f"{axis}axis": ticks})
