"""Tables as plotly figures."""

import statistics
from collections.abc import Mapping, Sequence

from distill.reports.run_files import Row
from featstore.pages.parts import Plot
from featstore.pages.style import (
    BLUE,
    GAINS,
    GREEN,
    GREY,
    LONGEST,
    ORANGE,
    PALETTE,
    RED,
    TINTS,
    empty,
    label,
    name_ticks,
    spec,
    symbol,
)

MOST_NAMED = 20
"""Classes of a feature map that are named in it; of more, only by pointing."""


def curves(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str = "optimiser step",
    y: str = "",
    share: bool = False,
    unit: bool = False,
    log: bool = False,
    log_x: bool = False,
    legend: bool = True,
    wide: bool = False,
    note: str = "",
    colours: Mapping[str, str] | None = None,
) -> Plot:
    """Lines over time.

    Args:
        title: of the figure.
        series: by name, places and values.
        x: name of the time axis.
        y: name of the other axis.
        share: values are shares and are shown in percent.
        unit: the axis of the values goes from 0 to 1, so that small differences look small.
        log: logarithmic values, where they are positive and span more than a decade.
        log_x: logarithmic places, with a tick at each of them.
        legend: names the lines.
        wide: takes the whole width of the page.
        note: how to read it.
        colours: by name; else from the palette.
    """
    figure = empty(x=x, y=y)
    for number, (name, (places, values)) in enumerate(series.items()):
        colour = (colours or {}).get(name, PALETTE[number % len(PALETTE)])
        figure.add_scatter(
            x=list(places), y=list(values), name=symbol(name), mode="lines+markers" if len(places) < 40 else "lines",
            line={"width": 2, "color": colour}, marker={"size": 4}, hovertemplate="%{y:.4g}",
        )  # fmt: skip
    figure.update_layout(hovermode="x", showlegend=legend)
    if share:
        figure.update_yaxes(tickformat=".0%")
        figure.update_traces(hovertemplate="%{y:.1%}")
    if unit:
        figure.update_yaxes(range=[0, 1.03])
    found = [value for _, values in series.values() for value in values]
    if log and found and min(found) > 0 and max(found) > 10 * min(found):
        figure.update_yaxes(type="log", dtick=1)
    if log_x:
        ticks = sorted({place for places, _ in series.values() for place in places})
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{place:g}" for place in ticks])
    ends = ", ".join(
        f"{name} {values[-1]:.3g}" for name, (_, values) in series.items() if len(values)
    )
    return Plot(title, spec(figure), f"{title} over {x}s; at the end: {ends}", note, wide=wide)


def accuracies(title: str, rows: Sequence[Row], *, own: str, note: str = "") -> Plot:
    """One line per class from a baseline's accuracy to the run's, the teacher's beside it.

    Args:
        title: of the figure.
        rows: of ``tables.per_class``, from top to bottom.
        own: name of the run.
        note: how to read it.
    """
    names = [row["class"] for row in rows]
    places = list(range(len(rows)))
    figure = empty(x="accuracy")
    known = [
        (place, row) for place, row in zip(places, rows, strict=True) if row["gain"] is not None
    ]
    for good, colour in ((True, GREEN), (False, RED)):
        xs: list[float | None] = []
        ys: list[float | None] = []
        for place, row in known:
            if (row["gain"] >= 0) == good:
                xs += [row["baseline"], row["accuracy"], None]
                ys += [place, place, None]
        figure.add_scatter(
            x=xs, y=ys, mode="lines", line={"width": 5, "color": colour}, opacity=0.45, showlegend=False,
            hoverinfo="skip",
        )  # fmt: skip
    series = (
        ("labels alone", "baseline", GREY, "circle"),
        (own, "accuracy", BLUE, "circle"),
        ("teacher's probe", "teacher", ORANGE, "line-ns-open"),
    )
    for name, key, colour, shape in series:
        found = [
            (place, row) for place, row in zip(places, rows, strict=True) if row[key] is not None
        ]
        if found:
            tick = "open" in shape
            marker = {
                "size": 16 if tick else 10,
                "color": colour,
                "symbol": shape,
                "line": {"width": 2.5 * tick},
            }
            figure.add_scatter(
                x=[row[key] for _, row in found], y=[place for place, _ in found], mode="markers", name=label(name),
                marker=marker, customdata=[[label(row["class"], 60), row["images"]] for _, row in found],
                hovertemplate="%{customdata[0]}: %{x:.1%} of %{customdata[1]} images",
            )  # fmt: skip
    figure.update_xaxes(tickformat=".0%", range=[-0.02, 1.02])
    name_ticks(figure, "y", names)
    figure.update_yaxes(range=[len(rows) - 0.4, -0.6], showgrid=False)
    worst = min(rows, key=lambda row: row["accuracy"])
    return Plot(
        title, spec(figure), f"Accuracy of {len(rows)} classes; lowest: {worst['class']} with {worst['accuracy']:.0%}",
        note, height=90 + 26 * len(rows), wide=True,
    )  # fmt: skip


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
    note: str = "",
    alt: str = "",
    square: bool = False,
    wide: bool = False,
) -> Plot:
    """Shares, or differences of shares, of rows and columns.

    Args:
        title: of the figure.
        cells: one list per row; None stays empty.
        rows: names from top to bottom.
        columns: names from left to right.
        x: what the columns are.
        y: what the rows are.
        texts: in the cells; None writes percent, or nothing where there is no room.
        gains: differences around zero.
        note: how to read it.
        alt: the figure in a sentence.
        square: rows are as high as columns are wide, about.
        wide: takes the whole width of the page.
    """
    most = (
        max((abs(value) for row in cells for value in row if value is not None), default=1.0) or 1.0
    )
    figure = empty(x=x, y=y)
    if texts is None:
        form = "{:+.0f}" if gains else "{:.0f}"
        texts = [
            ["" if value is None else form.format(100 * value) for value in row] for row in cells
        ]
    if len(columns) > 20:
        texts = [[""] * len(columns) for _ in rows]
    figure.add_heatmap(
        z=[list(row) for row in cells], text=[list(row) for row in texts], texttemplate="%{text}",
        customdata=[[[label(row, 60), label(column, 60)] for column in columns] for row in rows],
        colorscale=GAINS if gains else TINTS, zmin=-most if gains else 0, zmax=most if gains else 1, showscale=False,
        xgap=1, ygap=1, hoverongaps=False,
        hovertemplate="%{customdata[0]}, %{customdata[1]}: %{z:" + ("+" if gains else "") + ".1%}<extra></extra>",
    )  # fmt: skip
    name_ticks(figure, "x", columns)
    name_ticks(figure, "y", rows)
    figure.update_xaxes(showgrid=False, side="bottom")
    figure.update_yaxes(showgrid=False, autorange="reversed")
    height = min(900, 110 + len(rows) * (36 if square else 30))
    if len(columns) > 10:  # names then stand upright
        height += round(6.5 * min(LONGEST, max(len(column) for column in columns)))
    return Plot(
        title,
        spec(figure),
        alt or f"{title}: {len(rows)} rows, {len(columns)} columns",
        note,
        height,
        wide,
    )


def reliability(title: str, rows: Sequence[Row], note: str = "") -> Plot:
    """Accuracy by confidence; a calibrated student lies on the diagonal. Areas of points are numbers of images."""
    figure = empty(x="confidence", y="accuracy")
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
    figure.update_xaxes(tickformat=".0%", range=[0, 1.04])
    figure.update_yaxes(tickformat=".0%", range=[0, 1.04])
    worst = max(rows, key=lambda row: row["count"])
    alt = (
        f"Accuracy by confidence; most images ({worst['count']}) at confidence {worst['confidence']:.0%}, accuracy "
        f"{worst['accuracy']:.0%}"
    )
    return Plot(title, spec(figure), alt, note, height=320)


def stacked(title: str, parts: Mapping[str, tuple[float, str]], note: str = "") -> Plot:
    """Shares of one whole, by name with their colours, as one bar."""
    figure = empty()
    for name, (share, colour) in parts.items():
        figure.add_bar(
            x=[share], y=[""], orientation="h", name=label(name, 60), marker={"color": colour, "opacity": 0.85},
            text=f"{share:.1%}" if share > 0.06 else "", textposition="inside", insidetextanchor="middle",
            textfont={"color": "#ffffff"}, hovertemplate="%{x:.1%}",
        )  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0.1, legend={"traceorder": "normal"})
    figure.update_xaxes(visible=False, range=[0, 1])
    figure.update_yaxes(visible=False)
    alt = "; ".join(f"{name}: {share:.1%}" for name, (share, _) in parts.items())
    return Plot(title, spec(figure), alt, note, height=150, wide=True)


def points(
    title: str, rows: Sequence[Row], space: str, classes: Sequence[str], note: str = ""
) -> Plot:
    """One feature map; colours are classes, crosses are images that the student has wrong.

    Args:
        title: of the figure.
        rows: of feature_map.csv.
        space: teacher, customised or student.
        classes: all names, in the order that decides their colours.
        note: how to read it.
    """
    colour = class_colours(classes)
    figure = empty()
    for right, shape, size in ((True, "circle", 6), (False, "x", 8)):
        some = [row for row in rows if (row["answer"] == row["class"]) == right]
        figure.add_scatter(
            x=[float(row[f"{space}_x"]) for row in some], y=[float(row[f"{space}_y"]) for row in some], mode="markers",
            marker={"size": size, "symbol": shape, "color": [colour[row["class"]] for row in some], "opacity": 0.85},
            customdata=[[label(row["id"], 60), label(row["class"], 60), label(row["answer"], 60)] for row in some],
            hovertemplate="%{customdata[0]}<br>class %{customdata[1]}<br>student: %{customdata[2]}<extra></extra>",
            showlegend=False,
        )  # fmt: skip
    if len(classes) <= MOST_NAMED:
        own = {name: [row for row in rows if row["class"] == name] for name in classes}
        middle = {
            name: [statistics.median(float(row[f"{space}_{axis}"]) for row in some) for axis in "xy"]
            for name, some in own.items() if some
        }  # fmt: skip
        figure.add_scatter(
            x=[x for x, _ in middle.values()], y=[y for _, y in middle.values()], mode="text", hoverinfo="skip",
            text=[f"<b>{label(name, 16)}</b>" for name in middle], showlegend=False,
        )  # fmt: skip
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(margin={"l": 4, "r": 4, "t": 4, "b": 4}, hovermode="closest")
    return Plot(
        title,
        spec(figure),
        f"{title}: {len(rows)} test images of {len(classes)} classes",
        note,
        height=340,
    )


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """A colour for every class; beyond the palette, hues that repeat late."""
    if len(classes) <= len(PALETTE):
        return dict(zip(classes, PALETTE, strict=False))
    # Steps of the golden angle: neighbours in the list lie far apart on the colour circle.
    return {
        name: f"hsl({number * 137.508 % 360:.0f},60%,{(48, 60, 38)[number % 3]}%)"
        for number, name in enumerate(classes)
    }


def seeds(
    title: str, groups: Mapping[str, Sequence[float]], teacher: Sequence[float], note: str = ""
) -> Plot:
    """Accuracy by name: a point per seed, a diamond at the mean; the teacher's probe as a line.

    Args:
        title: of the figure.
        groups: accuracies by name, from top to bottom.
        teacher: the probe's accuracies, one per seed.
        note: how to read it.
    """
    names = list(groups)
    figure = empty(x="top-1 accuracy")
    means = [statistics.fmean(values) for values in groups.values()]
    deviations = [statistics.stdev(values) if len(values) > 1 else 0 for values in groups.values()]
    figure.add_scatter(
        x=[value for values in groups.values() for value in values],
        y=[place for place, values in enumerate(groups.values()) for _ in values], mode="markers", showlegend=False,
        marker={"color": BLUE, "size": 7, "opacity": 0.4}, hovertemplate="one run: %{x:.1%}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=means, y=list(range(len(names))), mode="markers", showlegend=False,
        marker={"color": BLUE, "size": 12, "symbol": "diamond"},
        error_x={"type": "data", "array": deviations, "thickness": 2, "width": 0, "color": BLUE},
        hovertemplate="mean %{x:.1%}<extra></extra>",
    )  # fmt: skip
    if teacher:
        mean = sum(teacher) / len(teacher)
        figure.add_vline(x=mean, line={"color": ORANGE, "width": 2, "dash": "dash"})
        figure.add_annotation(
            x=mean, y=1, yref="paper", yanchor="bottom", text=f"teacher's probe {mean:.1%}", showarrow=False,
            font={"color": ORANGE},
        )  # fmt: skip
    figure.update_xaxes(tickformat=".0%")
    name_ticks(figure, "y", names)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(margin={"t": 30})
    alt = "; ".join(f"{name} {mean:.1%}" for name, mean in zip(names, means, strict=True))
    return Plot(
        title,
        spec(figure),
        f"Mean test accuracy: {alt}",
        note,
        height=100 + 34 * len(names),
        wide=True,
    )


def against(
    title: str, rows: Sequence[tuple[str, float, float]], *, x: str, note: str = ""
) -> Plot:
    """Accuracy against something, a point per name.

    Args:
        title: of the figure.
        rows: name, place and accuracy.
        x: what the place is.
        note: how to read it.
    """
    figure = empty(x=x, y="top-1 accuracy")
    figure.add_scatter(
        x=[place for _, place, _ in rows], y=[value for _, _, value in rows], mode="markers+text", showlegend=False,
        text=[label(name) for name, _, _ in rows], textposition="top center", cliponaxis=False,
        marker={"size": 10, "color": BLUE}, hovertemplate="%{text}: %{y:.1%} at %{x:.4g}<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(tickformat=".0%")
    figure.update_xaxes(rangemode="tozero")
    alt = "; ".join(f"{name}: {value:.1%} at {place:.3g}" for name, place, value in rows)
    return Plot(title, spec(figure), alt, note, height=340, wide=True)
