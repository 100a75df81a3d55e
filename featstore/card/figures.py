"""The numbers of a store as plotly figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.card.explore import Map
from featstore.card.statistics import FieldStatistics
from featstore.card.survey import class_name
from featstore.display.parts import Plot
from featstore.display.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    RED,
    bars,
    class_colours,
    empty_figure,
    label,
    log_axis,
    name_classes,
    percent_axis,
    rounded,
    spec,
)
from featstore.format.manifest import Manifest

Floats = npt.NDArray[Any]

MOST_FIELDS = 6  # fields with a line of their own in a figure
MOST_BARS = 30  # classes with a named bar; of more, the sizes are drawn in descending order
BINS = 60
MOST_POINTS = 300  # points of a line
SMALLEST = 1e-3
"""Singular values below this share of the largest are outside the axis: centring alone leaves one near zero."""


def norms(fields: Sequence[FieldStatistics]) -> Plot:
    """Distribution of the vectors' norms, each field relative to its own median."""
    figure = empty_figure(x="norm / median norm of the field", y="share of vectors")
    relative = {item.name: item.norms / (np.median(item.norms) or 1) for item in fields}
    low = min(float(np.quantile(values, 0.001)) for values in relative.values())
    high = max(float(np.quantile(values, 0.999)) for values in relative.values())
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    for number, (name, values) in enumerate(relative.items()):
        share = np.histogram(values, edges)[0] / len(values)
        figure.add_scatter(
            x=rounded((edges[1:] + edges[:-1]) / 2), y=rounded(share), name=label(name), mode="lines",
            line={"width": 2, "shape": "hvh", "color": PALETTE[number]}, hovertemplate="%{y:.1%}",
        )  # fmt: skip
    figure.update_layout(hovermode="x", showlegend=True)
    percent_axis(figure, "y", rangemode="tozero")
    alt = "; ".join(f"{item.name}: median norm {np.median(item.norms):.3g}" for item in fields)
    note = "0.1% of the vectors at either end are outside the axis."
    return Plot("Norms", spec(figure), f"Distribution of the norms: {alt}", note)


def spectra(fields: Sequence[FieldStatistics]) -> Plot:
    """Singular values of each field relative to its largest."""
    figure = empty_figure(x="principal component", y="singular value / largest")
    lowest, widest = 1.0, 1
    for number, item in enumerate(fields):
        values = item.spectrum[item.spectrum >= SMALLEST]
        if not len(values):  # a constant field
            continue
        # About evenly spaced on a logarithmic axis.
        at = np.unique(np.geomspace(1, max(len(values), 1), MOST_POINTS).astype(np.int64)) - 1
        figure.add_scatter(
            x=(at + 1).tolist(), y=rounded(values[at]), name=label(item.name), mode="lines",
            line={"width": 2, "color": PALETTE[number]}, hovertemplate="%{y:.3g}",
        )  # fmt: skip
        lowest, widest = min(lowest, float(values[-1])), max(widest, len(values))
    figure.update_layout(hovermode="x", showlegend=True)
    log_axis(figure, "x", [1, max(widest, 2000)])  # a narrow figure: powers of ten only
    log_axis(figure, "y", [lowest, 1])
    alt = "; ".join(
        f"{item.name}: effective dimension {item.entropy:.0f} of {item.width}" for item in fields
    )
    return Plot(
        "Singular values", spec(figure), f"Singular values of the centred vectors: {alt}",
        "Of the centred vectors, down to 0.001. A steep line: few directions hold most of the variance.",
    )  # fmt: skip


def channels(fields: Sequence[FieldStatistics]) -> Plot:
    """Standard deviations of the channels in descending order."""
    figure = empty_figure(x="channels, by standard deviation", y="standard deviation / median")
    found = []
    for number, item in enumerate(fields):
        std = np.sort(item.channel_std)[::-1] / (np.median(item.channel_std) or 1)
        places = np.unique(np.linspace(0, len(std) - 1, MOST_POINTS).astype(np.int64))
        shown = rounded(std[places])
        found += [value for value in shown if value > 0]
        figure.add_scatter(
            x=rounded((places + 0.5) / len(std)), y=[value if value > 0 else None for value in shown],
            name=label(item.name), mode="lines", line={"width": 2, "color": PALETTE[number]}, hovertemplate="%{y:.3g}",
        )  # fmt: skip
    figure.update_layout(hovermode="x", showlegend=True)
    percent_axis(figure, "x")
    log_axis(figure, "y", found or [1])
    dead = sum(len(item.dead) for item in fields)
    return Plot(
        "Standard deviations of the channels", spec(figure),
        f"Standard deviation of each channel; {dead} channels are constant",
        "Outlier channels are at the left end; constant channels are left out at the right end.",
    )  # fmt: skip


def classes(manifest: Manifest, counts: Mapping[int, int]) -> Plot:
    """Images per class; named if there are few."""
    names = [class_name(manifest, key) for key in counts]
    values = list(counts.values())
    alt = (
        f"Images per class: {names[0]} {values[0]:,} (most) to {names[-1]} {values[-1]:,} (fewest)"
    )
    if len(values) <= MOST_BARS:
        figure, height = bars(names, values, [f"{value:,}" for value in values], x="images")
        return Plot("Images per class", spec(figure), alt, height=height, wide=True)
    figure = empty_figure(x="classes, largest first", y="images")
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
    note = "Hover over a bar for its class."
    return Plot("Images per class", spec(figure), alt, note, wide=True)


def sample_map(manifest: Manifest, found: Map) -> dict[str, Any]:
    """Data and layout of the map: the samples, names of classes, and three empty traces.

    The page's script fills the last three: search results, neighbours, and the selected sample.
    """
    figure = empty_figure()
    labels = found.sample.labels.tolist()
    present = sorted(set(labels) - {-1})
    colours = dict(zip(present, class_colours(len(present)), strict=True)) | {-1: GREY}
    names = [class_name(manifest, key) for key in labels]
    texts = [
        label(sample_id, 60) + (f"<br>{label(name, 60)}" if name else "")
        for sample_id, name in zip(found.sample.ids, names, strict=True)
    ]
    figure.add_scatter(
        x=rounded(found.points[:, 0], 6), y=rounded(found.points[:, 1], 6), mode="markers", text=texts,
        hovertemplate="%{text}<extra></extra>", showlegend=False,
        marker={
            "size": 9 if len(texts) < 300 else 6 if len(texts) < 2500 else 5, "opacity": 0.8,
            "color": [colours[key] for key in labels],
        },
    )  # fmt: skip
    name_classes(figure, found.points, names)
    for symbol, size, colour, width in (
        ("circle-open", 11, BLUE, 2),
        ("circle-open", 13, ORANGE, 2.5),
        ("circle", 14, RED, 2),
    ):
        figure.add_scatter(
            x=[], y=[], mode="markers", hoverinfo="skip", showlegend=False,
            marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": width, "color": colour}},
        )  # fmt: skip
    return spec(figure)


def nearest_figure(cosines: Floats, threshold: float) -> Plot:
    """Cosine of every image with its nearest neighbour."""
    figure = empty_figure(x="cosine with the nearest neighbour", y="images")
    low = float(np.floor(10 * max(-1.0, cosines.min())) / 10)
    counts, edges = np.histogram(cosines, np.linspace(min(low, 0.9), 1, BINS + 1))
    figure.add_bar(
        x=rounded((edges[1:] + edges[:-1]) / 2), y=counts.tolist(), showlegend=False,
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
    alt = f"Cosine of every image with its nearest neighbour: median {np.median(cosines):.3f}"
    note = "Cosines of the centred features, as in the map."
    return Plot("Nearest neighbours", spec(figure), alt, note, height=250, wide=True)


def rate(places: Sequence[int], rates: Sequence[float]) -> Plot:
    """Images per second of each shard."""
    figure = empty_figure(x="shard", y="images per second")
    figure.add_scatter(
        x=list(places), y=rounded(rates), mode="lines+markers" if len(places) < 60 else "lines",
        line={"color": BLUE, "width": 2}, marker={"size": 6}, showlegend=False,
        hovertemplate="shard %{x}: %{y:,.3g} images/s<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    if len(places) <= 20:
        figure.update_xaxes(dtick=1)
    alt = f"Images per second by shard: median {np.median(rates):.3g}"
    note = "Of the process that wrote the shard: images divided by the time spent loading images and in the teacher."
    return Plot("Images per second by shard", spec(figure), alt, note)


TIMES = {
    "load": ("loading images", ORANGE),
    "teacher": ("teacher", BLUE),
    "write": ("writing (in parallel)", GREEN),
}
"""Names and colours of the parts of the extraction time."""


def times(seconds: Mapping[str, float], *, wide: bool) -> Plot:
    """Time of the extraction by part."""
    order = [name for name in TIMES if name in seconds] + sorted(set(seconds) - set(TIMES))
    shown = [TIMES.get(name, (name, GREY)) for name in order]
    values = [seconds[name] for name in order]
    texts = [f"{value:,.0f} s" if value >= 10 else f"{value:.2g} s" for value in values]
    figure, height = bars(
        [name for name, _ in shown], values, texts, x="seconds, summed over processes",
        colours=[colour for _, colour in shown],
    )  # fmt: skip
    alt = "; ".join(f"{name}: {text}" for name, text in zip(order, texts, strict=True))
    height = height + 24 if wide else 300
    return Plot("Time by part", spec(figure), f"Seconds by part: {alt}", height=height, wide=wide)
