"""The numbers of a store as plotly figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.card.explore import Map
from featstore.card.statistics import Statistics
from featstore.card.survey import class_name
from featstore.format.manifest import Manifest
from featstore.pages.parts import Plot
from featstore.pages.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    RED,
    empty,
    label,
    name_ticks,
    spec,
)

Floats = npt.NDArray[Any]

MOST_FIELDS = 6
"""Fields with a line of their own in a figure."""
MOST_BARS = 30
"""Classes with a named bar; of more, the sizes are shown in order."""
MOST_NAMED = 20
"""Classes that are named in the map; of more, only by pointing and searching."""
BINS = 60
MOST_POINTS = 300
"""Places of a line."""


def norms(fields: Sequence[Statistics]) -> Plot:
    """How the lengths of vectors are spread, each field around its own median."""
    figure = empty(x="norm / median norm of the field", y="share of vectors")
    relative = {item.name: item.norms / (np.median(item.norms) or 1) for item in fields}
    low = min(float(np.quantile(values, 0.001)) for values in relative.values())
    high = max(float(np.quantile(values, 0.999)) for values in relative.values())
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    for number, (name, values) in enumerate(relative.items()):
        share = np.histogram(values, edges)[0] / len(values)
        figure.add_scatter(
            x=_rounded((edges[1:] + edges[:-1]) / 2), y=_rounded(share), name=label(name), mode="lines",
            line={"width": 2, "shape": "hvh", "color": PALETTE[number]}, hovertemplate="%{y:.1%}",
        )  # fmt: skip
    figure.update_layout(hovermode="x", showlegend=True)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    alt = "; ".join(f"{item.name}: median norm {np.median(item.norms):.3g}" for item in fields)
    return Plot(
        "Norms",
        spec(figure),
        f"Spread of the norms: {alt}",
        "One in a thousand on either side lies outside of the axis.",
    )


def spectra(fields: Sequence[Statistics]) -> Plot:
    """Singular values of each field over its largest."""
    figure = empty(x="principal component", y="singular value / largest")
    for number, item in enumerate(fields):
        values = item.spectrum[item.spectrum > 0]
        places = _log_places(len(values))
        figure.add_scatter(
            x=(places + 1).tolist(), y=_rounded(values[places]), name=label(item.name), mode="lines",
            line={"width": 2, "color": PALETTE[number]}, hovertemplate="%{y:.3g}",
        )  # fmt: skip
    figure.update_layout(hovermode="x", showlegend=True)
    figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(type="log", dtick=1, exponentformat="power")
    alt = "; ".join(
        f"{item.name}: effective dimension {item.entropy:.0f} of {item.width}" for item in fields
    )
    return Plot(
        "Singular values", spec(figure), f"Singular values of the centred vectors: {alt}",
        "Of the centred vectors. A steep line: few directions hold what the field says. A cliff: the rest is empty.",
    )  # fmt: skip


def channels(fields: Sequence[Statistics]) -> Plot:
    """Standard deviations of the channels, in order."""
    figure = empty(x="channels, in order", y="standard deviation / median")
    for number, item in enumerate(fields):
        std = np.sort(item.channel_std)[::-1] / (np.median(item.channel_std) or 1)
        places = np.unique(np.linspace(0, len(std) - 1, MOST_POINTS).astype(np.int64))
        shown = std[places]
        figure.add_scatter(
            x=_rounded((places + 0.5) / len(std)), y=[value if value > 0 else None for value in _rounded(shown)],
            name=label(item.name), mode="lines", line={"width": 2, "color": PALETTE[number]}, hovertemplate="%{y:.3g}",
        )  # fmt: skip
    figure.update_layout(hovermode="x", showlegend=True)
    figure.update_xaxes(tickformat=".0%", hoverformat=".1%")
    # plotly leaves the decade out of what it writes between decades.
    ticks = [digit * 10.0**power for power in range(-6, 4) for digit in (1, 2, 5)]
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    dead = sum(len(item.dead) for item in fields)
    return Plot(
        "Spread of the channels", spec(figure), f"Standard deviation of each channel; {dead} channels do not move",
        "Outlier channels stand at the left end; channels that do not move are left out at the right end.",
    )  # fmt: skip


def classes(manifest: Manifest, counts: Mapping[int, int]) -> Plot:
    """Images per class; named where there is room."""
    names = [class_name(manifest, key) for key in counts]
    values = list(counts.values())
    alt = (
        f"Images per class: {names[0]} {values[0]:,} (most) to {names[-1]} {values[-1]:,} (fewest)"
    )
    if len(values) <= MOST_BARS:
        figure = empty(x="images")
        figure.add_bar(
            x=values, y=list(range(len(values))), orientation="h", marker={"color": BLUE, "opacity": 0.85},
            text=[f"{value:,}" for value in values], textposition="outside", cliponaxis=False, showlegend=False,
            customdata=[label(name, 60) for name in names], hovertemplate="%{customdata}: %{x:,}<extra></extra>",
        )  # fmt: skip
        name_ticks(figure, "y", names)
        figure.update_yaxes(autorange="reversed", showgrid=False)
        figure.update_xaxes(rangemode="tozero")
        figure.update_layout(bargap=0.35, margin={"r": 44})
        return Plot("Images per class", spec(figure), alt, height=70 + 24 * len(values), wide=True)
    figure = empty(x="classes, largest first", y="images")
    places = np.unique(np.linspace(0, len(values) - 1, 4 * MOST_POINTS).astype(np.int64)).tolist()
    figure.add_bar(
        x=[place + 1 for place in places], y=[values[place] for place in places], showlegend=False,
        marker={"color": BLUE, "opacity": 0.85, "line": {"width": 0}},
        customdata=[label(names[place], 60) for place in places],
        hovertemplate="%{customdata}: %{y:,}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(bargap=0.1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(showgrid=False)
    return Plot("Images per class", spec(figure), alt, "Point at a bar for its class.", wide=True)


def sample_map(manifest: Manifest, found: Map) -> dict[str, Any]:
    """Data and layout of the map: the samples, names of classes where there are few, and three empty traces.

    The last three show what was searched, the neighbours, and the chosen sample; the page's script fills them.
    """
    figure = empty()
    labels = found.sample.labels
    present = np.unique(labels[labels >= 0]).tolist()
    colours = dict(zip(present, _colours(len(present)), strict=True)) | {-1: GREY}
    names = {key: class_name(manifest, key) for key in present}
    texts = [
        label(sample_id, 60) + (f"<br>{label(names[key], 60)}" if key >= 0 else "")
        for sample_id, key in zip(found.sample.ids, labels.tolist(), strict=True)
    ]
    x, y = (_rounded(found.points[:, axis], 6) for axis in (0, 1))
    count = len(texts)
    figure.add_scatter(
        x=x, y=y, mode="markers", text=texts, hovertemplate="%{text}<extra></extra>", showlegend=False,
        marker={
            "size": 9 if count < 300 else 6 if count < 2500 else 5, "opacity": 0.8,
            "color": [colours[key] for key in labels.tolist()],
        },
    )  # fmt: skip
    if 1 < len(present) <= MOST_NAMED:
        middles = [np.median(found.points[labels == key], axis=0) for key in present]
        figure.add_scatter(
            x=_rounded(np.array([middle[0] for middle in middles]), 6),
            y=_rounded(np.array([middle[1] for middle in middles]), 6),
            mode="text", text=[f"<b>{label(names[key], 16)}</b>" for key in present], hoverinfo="skip",
            showlegend=False,
        )  # fmt: skip
    for symbol, size, colour, width in (
        ("circle-open", 11, BLUE, 2),
        ("circle-open", 13, ORANGE, 2.5),
        ("circle", 14, RED, 2),
    ):
        figure.add_scatter(
            x=[], y=[], mode="markers", hoverinfo="skip", showlegend=False,
            marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": width, "color": colour}},
        )  # fmt: skip
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(margin={"l": 4, "r": 4, "t": 4, "b": 4}, hovermode="closest")
    return spec(figure)


def nearest(cosines: Floats, threshold: float) -> Plot:
    """How alike every image is to the one most like it."""
    figure = empty(x="cosine with the nearest other image", y="images")
    low = float(np.floor(10 * max(-1.0, cosines.min())) / 10)
    counts, edges = np.histogram(cosines, np.linspace(min(low, 0.9), 1, BINS + 1))
    figure.add_bar(
        x=_rounded((edges[1:] + edges[:-1]) / 2), y=counts.tolist(), showlegend=False,
        width=float(edges[1] - edges[0]) * 0.92, marker={"color": BLUE, "opacity": 0.85},
        hovertemplate="cosine about %{x:.3f}: %{y:,} images<extra></extra>",
    )  # fmt: skip
    figure.add_vline(x=threshold, line={"color": RED, "width": 1.5, "dash": "dash"})
    figure.add_annotation(
        x=threshold, y=1, yref="paper", xanchor="right", yanchor="bottom", text=f"near duplicates from {threshold:g}",
        showarrow=False, font={"color": RED},
    )  # fmt: skip
    figure.update_layout(margin={"t": 28})
    figure.update_yaxes(rangemode="tozero")
    alt = f"Cosine of every image with its nearest: median {np.median(cosines):.3f}"
    return Plot(
        "The nearest other image", spec(figure), alt, "After the mean feature was taken off, as in neighbours and map.",
        height=250, wide=True,
    )  # fmt: skip


def rate(places: Sequence[int], rates: Sequence[float]) -> Plot:
    """Images per second of each shard."""
    figure = empty(x="shard", y="images per second")
    figure.add_scatter(
        x=list(places), y=_rounded(np.array(rates)), mode="lines+markers" if len(places) < 60 else "lines",
        line={"color": BLUE, "width": 2}, marker={"size": 6}, showlegend=False,
        hovertemplate="shard %{x}: %{y:,.3g} images/s<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    if len(places) <= 20:
        figure.update_xaxes(dtick=1)
    alt = f"Images per second by shard: median {np.median(rates):.3g}"
    return Plot(
        "Images per second, shard by shard", spec(figure), alt,
        "Of the process that made the shard: its images over the time that it waited for them and for the teacher.",
    )  # fmt: skip


def split(seconds: Mapping[str, float]) -> Plot:
    """Where the time went, as bars of seconds."""
    known = {
        "load": "waiting for images",
        "teacher": "teacher",
        "write": "writing (beside the rest)",
    }
    colours = {"load": ORANGE, "teacher": BLUE, "write": GREEN}
    order = [name for name in known if name in seconds] + sorted(set(seconds) - set(known))
    figure = empty(x="seconds, all processes together")
    figure.add_bar(
        x=_rounded(np.array([seconds[name] for name in order])), y=list(range(len(order))), orientation="h",
        marker={"color": [colours.get(name, GREY) for name in order], "opacity": 0.85}, showlegend=False,
        text=[f"{seconds[name]:,.0f} s" if seconds[name] >= 10 else f"{seconds[name]:.1f} s" for name in order],
        textposition="outside", cliponaxis=False, hovertemplate="%{x:,.1f} s<extra></extra>",
    )  # fmt: skip
    name_ticks(figure, "y", [known.get(name, name) for name in order])
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(rangemode="tozero")
    figure.update_layout(bargap=0.4, margin={"r": 60})
    alt = "; ".join(f"{name}: {seconds[name]:.1f} s" for name in order)
    return Plot("Where the time went", spec(figure), f"Seconds by part: {alt}")


def _rounded(values: Floats, digits: int = 4) -> list[float]:
    """So many significant digits: pages of equal stores are equal, and small."""
    return [float(f"{value:.{digits}g}") for value in np.asarray(values, dtype=np.float64).tolist()]


def _log_places(count: int) -> npt.NDArray[np.int64]:
    """Places of a list that are about even on a logarithmic axis."""
    return np.unique(np.geomspace(1, max(count, 1), MOST_POINTS).astype(np.int64)) - 1


def _colours(count: int) -> list[str]:
    """A colour per class; beyond the palette, steps of the golden angle, so that neighbours in the list differ."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return [
        f"hsl({number * 137.508 % 360:.0f},60%,{(48, 60, 38)[number % 3]}%)"
        for number in range(count)
    ]
