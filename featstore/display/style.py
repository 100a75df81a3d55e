"""What all figures share: colours, axes, names from outside as text, class names on a map.

The page sets the colours of text, grid and background, so that they suit light and dark mode.
"""

import html
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

PALETTE = (
    "#3b78d8", "#e0812f", "#2f9e6e", "#cf4a55", "#8a64c2", "#8c7358", "#d670a6", "#7b8794", "#a5a02c", "#29a3b5",
)  # fmt: skip
"""Colours of series; distinguishable in light and in dark mode."""
BLUE, ORANGE, GREEN, RED, GREY = PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[3], PALETTE[7]
TINTS = [[0.0, "rgba(59,120,216,0)"], [1.0, "rgba(59,120,216,0.7)"]]
"""Colour scale of a share; text stays readable on both ends."""
GAINS = [
    [0.0, "rgba(207,74,85,0.75)"], [0.4999, "rgba(207,74,85,0)"],
    [0.5001, "rgba(47,158,110,0)"], [1.0, "rgba(47,158,110,0.75)"],
]  # fmt: skip
"""Colour scale of a difference: losses red, gains green."""

LONGEST = 26  # characters of a name on an axis
MOST_NAMED = 200
"""Classes whose names are drawn on a map; the page hides those that would overlap a larger class's name."""


def label(text: str, most: int = LONGEST) -> str:
    """A name from outside as text for plotly, which interprets some HTML.

    Long names lose their middle, so that paths keep their end.
    """
    clean = "".join(character if character.isprintable() else " " for character in text)
    if len(clean) > most:
        clean = f"{clean[: most // 2 - 1]}...{clean[len(clean) - most // 2 + 2 :]}"
    return html.escape(clean)


def symbol(name: str) -> str:
    """The name of a logged number with its indices as subscripts, as in f_s."""
    return re.sub(r"_([a-z])\b", r"<sub>\1</sub>", label(name, 60))


def rounded(values: npt.ArrayLike, digits: int = 4) -> list[float]:
    """Values with so many significant digits, so that pages of equal stores are equal and small."""
    flat = np.asarray(values, dtype=np.float64).tolist()
    return [float(f"{value:.{digits}g}") for value in flat]


def spec(figure: go.Figure) -> dict[str, Any]:
    """Data and layout as JSON values."""
    values: dict[str, Any] = json.loads(figure.to_json())
    values["layout"].pop("template", None)
    return values


def empty_figure(x: str = "", y: str = "") -> go.Figure:
    """A figure without data: thin axes, no zoom (a finger on it still scrolls the page), legend above on the left."""

    def axis(text: str) -> dict[str, Any]:
        return {
            "title": {"text": text, "standoff": 8, "font": {"size": 12}}, "automargin": True, "fixedrange": True,
            "zeroline": False, "ticks": "", "exponentformat": "none", "separatethousands": True,
        }  # fmt: skip

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


def percent_axis(figure: go.Figure, axis: str, **options: Any) -> None:
    """Show shares on an axis in percent, with as many digits as its ticks need."""
    figure.update_layout({f"{axis}axis": {"tickformat": ".2~%", "hoverformat": ".1%", **options}})


def log_axis(figure: go.Figure, axis: str, values: Sequence[float]) -> None:
    """A logarithmic axis with ticks at powers of ten, and at 2 and 5 between them where it spans few decades."""
    low, high = math.log10(min(values)), math.log10(max(values))
    factors = (1,) if high - low > 3 else (1, 2, 5)
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    pairs = [(factor * 10.0**power, max(0, -power)) for power in powers for factor in factors]
    figure.update_layout(
        {
            f"{axis}axis": {
                "type": "log", "tickvals": [tick for tick, _ in pairs], "hoverformat": ".3g",
                "ticktext": [f"{tick:,.{digits}f}" for tick, digits in pairs],
            }
        }
    )  # fmt: skip


def name_ticks(figure: go.Figure, axis: str, names: Sequence[str]) -> None:
    """Names at the places 0, 1, ... of an axis. Categories would merge two names that are shortened to one text."""
    ticks: dict[str, Any] = {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [label(name) for name in names],
        "ticklabeloverflow": "allow",
    }
    if axis == "x" and len(names) > 10:
        ticks["tickangle"] = -90
    figure.update_layout({f"{axis}axis": ticks})


def bars(
    names: Sequence[str],
    values: Sequence[float],
    texts: Sequence[str],
    *,
    x: str,
    colours: Sequence[str] | str = BLUE,
) -> tuple[go.Figure, int]:
    """Horizontal bars from top to bottom with their values at the ends; the figure and its height in pixels."""
    figure = empty_figure(x=x)
    figure.add_bar(
        x=rounded(values), y=list(range(len(values))), orientation="h", text=list(texts), textposition="outside",
        cliponaxis=False, marker={"color": colours, "opacity": 0.85}, showlegend=False,
        customdata=[label(name, 60) for name in names], hovertemplate="%{customdata}: %{text}<extra></extra>",
    )  # fmt: skip
    name_ticks(figure, "y", names)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(rangemode="tozero")
    figure.update_layout(bargap=0.35, margin={"r": 60})
    return figure, 70 + 24 * len(values)


def class_colours(count: int) -> list[str]:
    """A colour per class: the palette, or steps of the golden angle, so that neighbours in the list differ."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return [
        f"hsl({number * 137.508 % 360:.0f},60%,{(48, 60, 38)[number % 3]}%)"
        for number in range(count)
    ]


def name_classes(figure: go.Figure, points: npt.NDArray[Any], classes: Sequence[str]) -> None:
    """Make a map of a figure: no axes, and the name of each class at the median of its points, the largest first.

    Args:
        points: (N, 2).
        classes: N names; "" for none.
    """
    own = np.asarray(classes)
    found, counts = np.unique(own[own != ""], return_counts=True)
    if len(found) > 1:
        names = found[np.argsort(-counts, kind="stable")][:MOST_NAMED]
        middles = np.array([np.median(points[own == name], axis=0) for name in names])
        figure.add_scatter(
            x=rounded(middles[:, 0], 6), y=rounded(middles[:, 1], 6), mode="text", hoverinfo="skip", showlegend=False,
            cliponaxis=False, text=[f"<b>{label(str(name), 20)}</b>" for name in names],
            textfont={"size": 11 if len(found) > 20 else 12},
        )  # fmt: skip
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(margin={"l": 4, "r": 4, "t": 4, "b": 4}, hovermode="closest")


POSITIONS = (
    ("top center", 0, -1), ("bottom center", 0, 1), ("middle right", 1, 0), ("middle left", -1, 0),
    ("top right", 1, -1), ("bottom right", 1, 1), ("top left", -1, -1), ("bottom left", -1, 1),
)  # fmt: skip


def text_positions(
    x: Sequence[float], y: Sequence[float], texts: Sequence[str], *, size: tuple[int, int]
) -> list[str]:
    """Plotly's ``textposition`` for each named point: the first that overlaps no point and no earlier name.

    Args:
        x: places; logarithms for a logarithmic axis.
        size: width and height of the plot in pixels, about.
    """
    width, height = size
    spans = [(max(values) - min(values)) or 1 for values in (x, y)]
    places = [
        (width * (0.08 + 0.84 * (a - min(x)) / spans[0]), height * (0.9 - 0.8 * (b - min(y)) / spans[1]))
        for a, b in zip(x, y, strict=True)
    ]  # fmt: skip
    taken = [(a - 6, b - 6, a + 6, b + 6) for a, b in places]
    found = []
    for (a, b), text in zip(places, texts, strict=True):
        half, boxes = 3.4 * len(text) + 2, []
        for name, right, down in POSITIONS:
            middle, centre = a + right * (half + 9), b + down * (15 if right == 0 else 10)
            box = (middle - half, centre - 7, middle + half, centre + 7)
            inside = box[0] >= 0 and box[2] <= width
            clashes = sum(
                box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
                for other in taken
            )
            boxes.append((clashes + (not inside), name, box))
        _, name, box = min(boxes, key=lambda item: item[0])
        taken.append(box)
        found.append(name)
    return found
