"""The page that helps to choose: accuracy against latency and against size, with the fronts."""

from collections.abc import Callable, Sequence
from pathlib import Path

from distill.experiments.cost import Cost
from distill.measures.score import TOP1
from distill.students import tables
from distill.students.measure import Choice, Student
from distill.students.pareto_front import steps
from featstore.files.atomic import write_bytes
from featstore.pages.parts import Page, Plot, Section, Table, Tile
from featstore.pages.render import render
from featstore.pages.style import BLUE, GREY, empty, label, spec
from featstore.text import count, format_bytes, format_seconds

NAME = "students.html"


def write(out: Path, choice: Choice, cost: Cost) -> Path:
    """Draw the page.

    Args:
        out: of the experiment.
        choice: students.
        cost: of their training.

    Returns:
        The page.
    """
    write_bytes(out / NAME, render(build(choice, cost)).encode())
    return out / NAME


def build(choice: Choice, cost: Cost) -> Page:
    """Put the page together."""
    best, timing = choice.students[0], choice.students[0].latency
    fastest = min(choice.students, key=lambda item: item.latency.median_ms)
    smallest = min(choice.students, key=lambda item: item.bytes)
    seeds = sorted({seed for student in choice.students for seed in student.top1})
    kind = f"batch {timing.batch}, {count(timing.threads, 'thread')}"
    rows = tables.cells(choice)
    return Page(
        title="Which student?",
        subtitle=f"{len(choice.students)} students of timm over one feature store, the same budget for each; seeds "
        f"{', '.join(map(str, seeds))}. Latency: ONNX Runtime, float32, {kind}.",
        finding=tables.finding(choice),
        tiles=[
            Tile("Most accurate", TOP1.text(best.mean), best.name),
            Tile("Fastest", f"{tables.milliseconds(fastest.latency.median_ms)} ms", fastest.name),
            Tile("Smallest", format_bytes(smallest.bytes), smallest.name),
            Tile("Teacher's probe", TOP1.text(best.probe_top1), "linear, on the stored features"),
            Tile(
                "Teacher",
                format_seconds(sum(sum(store.seconds.values()) for store in cost.stores)),
                f"paid once; students {format_seconds(3600 * cost.hours)} for {cost.runs} runs",
            ),
        ],
        sections=[
            Section(
                "Accuracy and what it costs",
                [
                    picture(choice.students, choice.by_latency, lambda item: item.latency.median_ms,
                            "Accuracy against latency", "latency, ms (median)", kind),
                    picture(choice.students, choice.by_size, lambda item: item.bytes / 1e6,
                            "Accuracy against size", "ONNX file, MB", "float32"),
                ],
                lead="Up and to the left is better. Blue: on the front, no other student is as accurate and as "
                "cheap; grey: beaten by another. Bars are the sample standard deviation over seeds.",
                columns=1,
            ),
            Section(
                "All numbers",
                [
                    Table("Students", rows[0], rows[1:], note=" ".join(tables.notes(choice, cost)), names=3),
                ],
            ),
        ],
        files=tables.NAMES,
    )  # fmt: skip


def picture(
    students: Sequence[Student],
    on: Sequence[bool],
    cost: Callable[[Student], float],
    title: str,
    axis: str,
    note: str,
) -> Plot:
    """Accuracy against one cost, with the front as a line of steps."""
    figure = empty(x=axis, y="test top-1")
    corners = steps([cost(item) for item in students], [item.mean for item in students])
    figure.add_scatter(
        x=[x for x, _ in corners], y=[y for _, y in corners], mode="lines",
        line={"color": BLUE, "width": 1.5, "dash": "dot"}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    for wanted, colour, name in ((True, BLUE, "on the front"), (False, GREY, "beaten")):
        own = [item for item, is_on in zip(students, on, strict=True) if is_on == wanted]
        if own:
            figure.add_scatter(
                x=[cost(item) for item in own], y=[item.mean for item in own], name=name, mode="markers+text",
                text=[label(item.name) for item in own],
                textposition="top center" if wanted else "bottom center", textfont={"size": 11},
                marker={"size": 10, "color": colour}, cliponaxis=False,
                error_y={"array": [item.deviation for item in own], "thickness": 1.2, "width": 3},
                hovertemplate="%{text}<br>%{x:.3g}, %{y:.1%}<extra></extra>",
            )  # fmt: skip
    found = [cost(item) for item in students]
    if max(found) > 4 * min(found):
        ticks = _ticks(found)
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_yaxes(tickformat=".0%")
    # Room for the names of the outer points.
    figure.update_layout(margin={"r": 60})
    alt = ", ".join(f"{item.name} {TOP1.text(item.mean)} at {cost(item):.3g}" for item in students)
    return Plot(title, spec(figure), f"{title}: {alt}", note, height=420, wide=True)


def _ticks(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 of every decade within the values."""
    ticks = [factor * 10.0**power for power in range(-6, 7) for factor in (1, 2, 5)]
    return [tick for tick in ticks if min(values) / 1.5 <= tick <= max(values) * 1.5]
