"""Rows as plotly figures.

Arguments of all figures: ``title``, its heading; ``note``, how to read it; ``wide``, whether it takes the whole width
of the page; ``x`` and ``y``, names of the axes.
"""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from distill.measures.score import MINUS, Measure
from distill.reports.run_files import Row
from featstore.display import style
from featstore.display.parts import Plot
from featstore.display.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    empty_figure,
    label,
    percent_axis,
    spec,
)

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # places and values by name


def curves(
    title: str,
    series: Series,
    *,
    x: str = "optimiser step",
    share: bool = False,
    unit: bool = False,
    log: bool = False,
    log_x: bool = False,
    wide: bool = False,
    note: str = "",
    colours: Mapping[str, str] | None = None,
) -> Plot:
    """Lines over time.

    Args:
        series: lines by name; a single line is not named.
        share: values are shares, shown in percent.
        unit: the value axis spans 0 to 1, so that small differences look small.
        log: logarithmic values, where they are positive and span more than a decade.
        log_x: logarithmic places, with a tick at each of them.
        colours: by name; default: the palette.
    """
    figure = empty_figure(x=x)
    for number, (name, (places, values)) in enumerate(series.items()):
        colour = (colours or {}).get(name, style.PALETTE[number % len(style.PALETTE)])
        figure.add_scatter(
            x=list(places), y=list(values), name=style.symbol(name),
            mode="lines+markers" if len(places) < 40 else "lines",
            line={"width": 2, "color": colour}, marker={"size": 4 if len(places) > 1 else 9},
            hovertemplate="%{y:.1%}" if share else "%{y:.4g}",
        )  # fmt: skip
    figure.update_layout(hovermode="x", showlegend=len(series) > 1)
    found = [value for _, values in series.values() for value in values]
    if share:
        percent_axis(figure, "y")
    if unit:
        figure.update_yaxes(range=[0, 1.03])
    if log and found and min(found) > 0 and max(found) > 10 * min(found):
        style.log_axis(figure, "y", found)
    if log_x:
        ticks = sorted({place for places, _ in series.values() for place in places})
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{place:g}" for place in ticks])
    ends = ", ".join(f"{name} {values[-1]:.3g}" for name, (_, values) in series.items())
    return Plot(title, spec(figure), f"{title} over {x}s; at the end: {ends}", note, wide=wide)


def accuracies(title: str, rows: Sequence[Row], *, own: str, note: str = "") -> Plot:
    """One line per class from a baseline's accuracy to the run's, with the teacher's as a mark.

    Args:
        rows: Rows of ``tables.per_class``, from top to bottom.
        own: name of the run.
    """
    figure = empty_figure(x="accuracy")
    for better, colour in ((True, GREEN), (False, RED)):
        xs: list[float | None] = []
        ys: list[float | None] = []
        for place, row in enumerate(rows):
            if row["gain"] is not None and (row["gain"] >= 0) == better:
                xs += [row["baseline"], row["accuracy"], None]
                ys += [place, place, None]
        figure.add_scatter(
            x=xs, y=ys, mode="lines", line={"width": 5, "color": colour}, opacity=0.45, showlegend=False,
            hoverinfo="skip",
        )  # fmt: skip
    for name, key, marker in (
        ("labels alone", "baseline", {"size": 10, "color": GREY}),
        (own, "accuracy", {"size": 10, "color": BLUE}),
        ("teacher's probe", "teacher", {"size": 16, "color": ORANGE, "symbol": "line-ns-open", "line": {"width": 2.5}}),
    ):  # fmt: skip
        found = [(place, row) for place, row in enumerate(rows) if row[key] is not None]
        if found:
            figure.add_scatter(
                x=[row[key] for _, row in found], y=[place for place, _ in found], mode="markers", name=label(name),
                marker=marker, customdata=[[label(row["class"], 60), row["images"]] for _, row in found],
                hovertemplate="%{customdata[0]}: %{x:.1%} of %{customdata[1]} images",
            )  # fmt: skip
    percent_axis(figure, "x", range=[-0.02, 1.02])
    style.name_ticks(figure, "y", [row["class"] for row in rows])
    figure.update_yaxes(range=[len(rows) - 0.4, -0.6], showgrid=False)
    worst = min(rows, key=lambda row: row["accuracy"])
    alt = f"Accuracy of {len(rows)} classes; lowest: {worst['class']} with {worst['accuracy']:.0%}"
    return Plot(title, spec(figure), alt, note, height=90 + 26 * len(rows), wide=True)


def heatmap(
    title: str,
    cells: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    x: str = "",
    y: str = "",
    texts: Sequence[Sequence[str]] | None = None,
    gains: bool = False,
    most: float = 0,
    note: str = "",
    alt: str = "",
    square: bool = False,
    wide: bool = False,
) -> Plot:
    """Shares, or differences of shares, by row and column.

    Args:
        cells: One list per row; None stays empty.
        rows: names from top to bottom.
        columns: names from left to right.
        texts: Texts in the cells; by default percent, or none with more than 20 columns.
        gains: differences around zero.
        most: gain with the strongest colour; 0 for the largest of the cells.
        alt: the figure in a sentence.
        square: rows are about as high as columns are wide.
    """
    most = most or max((abs(value or 0) for row in cells for value in row), default=1) or 1
    figure = empty_figure(x=x, y=y)
    if len(columns) > 20:
        texts = [[""] * len(columns) for _ in rows]
    elif texts is None:
        texts = [["" if value is None else _cell(value, gains) for value in row] for row in cells]
    figure.add_heatmap(
        z=[list(row) for row in cells], text=[list(row) for row in texts], texttemplate="%{text}",
        customdata=[[[label(row, 60), label(column, 60)] for column in columns] for row in rows],
        colorscale=style.GAINS if gains else style.TINTS, zmin=-most if gains else 0, zmax=most if gains else 1,
        showscale=False, xgap=1, ygap=1, hoverongaps=False,
        hovertemplate="%{customdata[0]}, %{customdata[1]}: %{z:" + ("+" if gains else "") + ".1%}<extra></extra>",
    )  # fmt: skip
    style.name_ticks(figure, "x", columns)
    style.name_ticks(figure, "y", rows)
    figure.update_xaxes(showgrid=False, side="top" if len(rows) > len(columns) else "bottom")
    figure.update_yaxes(showgrid=False, autorange="reversed")
    step = 36 if square and len(rows) < 20 else 30 if len(rows) < 20 else 22
    height = 110 + len(rows) * step
    if len(columns) > 10:  # names are then vertical
        height += round(6.5 * min(style.LONGEST, max(map(len, columns))))
    alt = alt or f"{title}: {len(rows)} rows, {len(columns)} columns"
    least = 140 + 18 * len(columns) if len(columns) > 10 else 0
    return Plot(title, spec(figure), alt, note, height, wide, least)


def _cell(value: float, gains: bool) -> str:
    text = f"{100 * value:+.0f}" if gains and round(100 * value) else f"{abs(100 * value):.0f}"
    return text.replace("-", MINUS)


def reliability(title: str, rows: Sequence[Row], note: str = "") -> Plot:
    """Accuracy by confidence; a calibrated student lies on the diagonal. Areas of points are numbers of images."""
    figure = empty_figure(x="confidence", y="accuracy")
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "width": 1.5, "color": GREY}, hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    most = max(row["count"] for row in rows)
    figure.add_scatter(
        x=[row["confidence"] for row in rows], y=[row["accuracy"] for row in rows], mode="lines+markers",
        line={"color": BLUE, "width": 1.5}, customdata=[row["count"] for row in rows], showlegend=False,
        marker={"size": [6 + 22 * (row["count"] / most) ** 0.5 for row in rows], "color": BLUE, "opacity": 0.75},
        hovertemplate="confidence %{x:.1%}, accuracy %{y:.1%}, %{customdata} images<extra></extra>",
    )  # fmt: skip
    percent_axis(figure, "x", range=[0, 1.06])
    percent_axis(figure, "y", range=[-0.02, 1.06])
    worst = max(rows, key=lambda row: row["count"])
    alt = (
        f"Accuracy by confidence; most images ({worst['count']}) at confidence {worst['confidence']:.0%}, accuracy "
        f"{worst['accuracy']:.0%}"
    )
    return Plot(title, spec(figure), alt, note, height=320)


def stacked(title: str, parts: Mapping[str, tuple[float, str]]) -> Plot:
    """Shares of a whole as one bar; value and colour by name."""
    figure = empty_figure()
    for name, (share, colour) in parts.items():
        figure.add_bar(
            x=[share], y=[""], orientation="h", name=f"{label(name, 60)} {share:.1%}",
            marker={"color": colour, "opacity": 0.85}, hovertemplate="%{x:.1%}",
        )  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0.1, legend={"traceorder": "normal"})
    figure.update_xaxes(visible=False, range=[0, 1])
    figure.update_yaxes(visible=False)
    alt = "; ".join(f"{name}: {share:.1%}" for name, (share, _) in parts.items())
    return Plot(title, spec(figure), alt, height=150, wide=True)


def points(title: str, rows: Sequence[Row], space: str, classes: Sequence[str]) -> Plot:
    """One feature map; colours are classes, crosses are images that the student classifies wrongly.

    Args:
        rows: Rows of feature_map.csv; ``class`` and ``answer`` are absent or empty for images without labels.
        space: teacher, customised or student.
        classes: all names, in the order that decides their colours.
    """
    colours = dict(zip(classes, style.class_colours(len(classes)), strict=True))
    places = np.array([[float(row[f"{space}_{axis}"]) for axis in "xy"] for row in rows])
    names = [row.get("class") or "" for row in rows]
    right = np.array(
        [row.get("answer", name) == name for row, name in zip(rows, names, strict=True)]
    )
    figure = empty_figure()
    for some, shape, size in ((right, "circle", 6), (~right, "x", 8)):
        shown = np.flatnonzero(some).tolist()
        texts = [
            label(rows[at]["id"], 60)
            + (f"<br>class {label(names[at], 60)}" if names[at] else "")
            + (f"<br>student: {label(rows[at]['answer'], 60)}" if "answer" in rows[at] else "")
            for at in shown
        ]
        figure.add_scatter(
            x=places[some, 0].tolist(), y=places[some, 1].tolist(), mode="markers", text=texts, showlegend=False,
            marker={
                "size": size, "symbol": shape, "opacity": 0.85, "color": [colours.get(names[at], BLUE) for at in shown],
            },
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    style.name_classes(figure, places, names)
    alt = f"{title}: {len(rows)} images" + (f" of {len(classes)} classes" if classes else "")
    return Plot(title, spec(figure), alt, height=340)


def seeds(
    title: str,
    groups: Mapping[str, Sequence[float]],
    references: Mapping[str, Sequence[float]],
    measure: Measure,
    note: str = "",
) -> Plot:
    """The score by name: a point per seed, a diamond at the mean; references as dashed lines.

    Args:
        groups: values by name, from top to bottom.
        references: values by label, one per seed.
    """
    names = list(groups)
    figure = empty_figure(x=measure.title.lower())
    means = [statistics.fmean(values) for values in groups.values()]
    deviations = [statistics.stdev(values) if len(values) > 1 else 0 for values in groups.values()]
    form = "%{x:.1%}" if measure.percent else "%{x:.4g}"
    figure.add_scatter(
        x=[value for values in groups.values() for value in values],
        y=[place for place, values in enumerate(groups.values()) for _ in values], mode="markers", showlegend=False,
        marker={"color": BLUE, "size": 7, "opacity": 0.4}, hovertemplate=f"one run: {form}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=means, y=list(range(len(names))), mode="markers", showlegend=False,
        marker={"color": BLUE, "size": 12, "symbol": "diamond"},
        error_x={"type": "data", "array": deviations, "thickness": 2, "width": 0, "color": BLUE},
        hovertemplate=f"mean {form}<extra></extra>",
    )  # fmt: skip
    for name, values in references.items():
        mean = statistics.fmean(values)
        figure.add_vline(x=mean, line={"color": ORANGE, "width": 2, "dash": "dash"})
        figure.add_annotation(
            x=mean, y=1, yref="paper", yanchor="bottom", text=f"{label(name)} {measure.text(mean)}", showarrow=False,
            font={"color": ORANGE}, xanchor="auto",
        )  # fmt: skip
    if measure.percent:
        percent_axis(figure, "x")
    style.name_ticks(figure, "y", names)
    figure.update_yaxes(range=[len(names) - 0.5, -0.5], showgrid=False)
    figure.update_layout(margin={"t": 30})
    ends = "; ".join(
        f"{name} {measure.text(mean)}" for name, mean in zip(names, means, strict=True)
    )
    alt = f"Mean {measure.title.lower()}: {ends}"
    return Plot(title, spec(figure), alt, note, height=100 + 34 * len(names), wide=True)


def against(
    title: str, rows: Sequence[tuple[str, float, float]], measure: Measure, *, x: str
) -> Plot:
    """The score against a cost, a named point per method.

    Args:
        rows: name, cost and score.
    """
    figure = empty_figure(x=x, y=measure.title.lower())
    names, xs, ys = (list(column) for column in zip(*rows, strict=True))
    figure.add_scatter(
        x=xs, y=ys, mode="markers+text", showlegend=False, text=[label(name) for name in names],
        textposition=style.text_positions([0, *xs], [ys[0], *ys], ["", *names], size=(1000, 300))[1:], cliponaxis=False,
        marker={"size": 10, "color": BLUE},
        hovertemplate="%{text}: " + ("%{y:.1%}" if measure.percent else "%{y:.4g}") + " at %{x:.4g}<extra></extra>",
    )  # fmt: skip
    if measure.percent:
        percent_axis(figure, "y")
    figure.update_xaxes(rangemode="tozero")
    alt = "; ".join(f"{name}: {measure.text(value)} at {place:.3g}" for name, place, value in rows)
    return Plot(title, spec(figure), alt, height=340, wide=True)
