"""Page of measured students: accuracy against latency and against size, with the Pareto fronts."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from distill.experiments.cost import ExperimentCost
from distill.export.numbers import milliseconds
from distill.measures.score import Measure
from distill.students import tables
from distill.students.measure import MeasuredStudent, StudentComparison
from distill.students.pareto_front import steps
from featstore.display.parts import Page, Plot, Section, Table, Tile
from featstore.display.render import render
from featstore.display.style import (
    BLUE,
    GREY,
    empty_figure,
    label,
    log_axis,
    percent_axis,
    spec,
    text_positions,
)
from featstore.display.text import count, format_bytes, format_seconds
from featstore.files.atomic import write_bytes

NAME = "students.html"


def write_students_page(out: Path, choice: StudentComparison, cost: ExperimentCost) -> Path:
    """Write the page. Returns its path."""
    write_bytes(out / NAME, render(build_students_page(choice, cost)).encode())
    return out / NAME


def build_students_page(choice: StudentComparison, cost: ExperimentCost) -> Page:
    measure = choice.measure
    reference = [
        Tile(name[:1].upper() + name[1:], measure.text(value), "on the stored features")
        for name, value in [choice.reference or ("", 0.0)]
        if name
    ]
    best, timing = choice.students[0], choice.students[0].latency
    fastest = min(choice.students, key=lambda item: item.latency.median_ms)
    smallest = min(choice.students, key=lambda item: item.bytes)
    seeds = sorted({seed for student in choice.students for seed in student.scores})
    kind = f"batch {timing.batch}, {count(timing.threads, 'thread')}"
    head, *rows = tables.student_cells(choice)
    what = "Accuracy" if measure.name == "top1" else measure.title
    notes = "\n".join(line[0].upper() + line[1:] for line in tables.student_notes(choice, cost))
    extraction = sum(sum(store.seconds.values()) for store in cost.stores)
    students = f"students: {format_seconds(3600 * cost.hours)} for {count(cost.runs, 'run')}"
    return Page(
        title="Students compared",
        subtitle=f"{count(len(choice.students), 'student')} distilled from one feature store, "
        f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}. Latency: ONNX Runtime, "
        f"float32, {kind}.",
        finding=tables.finding(choice).replace("+-", "\N{PLUS-MINUS SIGN}"),
        tiles=[
            Tile(f"Best {measure.label}", measure.text(best.mean), best.name),
            Tile("Fastest", f"{milliseconds(fastest.latency.median_ms)} ms", fastest.name),
            Tile("Smallest", format_bytes(smallest.bytes), smallest.name),
            *reference,
            Tile("Feature extraction", format_seconds(extraction), f"once; {students}"),
        ],
        sections=[
            Section(
                f"{what} and cost",
                [
                    picture(choice.students, choice.by_latency, lambda item: item.latency.median_ms,
                            f"{what} against latency", "latency, ms (median)", kind, measure),
                    picture(choice.students, choice.by_size, lambda item: item.bytes / 1e6,
                            f"{what} against size", "ONNX file, MB", "float32", measure),
                ],
                lead=f"{'Up' if measure.higher_is_better else 'Down'} and to the left is better. Blue: on the Pareto "
                "front, no other student has at least its score at no more cost; grey: dominated by another student. "
                "Error bars: sample standard deviation over seeds.",
                columns=1,
            ),
            Section(
                "All numbers",
                [Table("Students", head, rows, note=notes, names=3)],
            ),
        ],
        files=tables.NAMES,
    )  # fmt: skip


def picture(
    students: Sequence[MeasuredStudent],
    on: Sequence[bool],
    cost: Callable[[MeasuredStudent], float],
    title: str,
    axis: str,
    note: str,
    measure: Measure,
) -> Plot:
    """The score against one cost, with the front as a line of steps."""
    figure = empty_figure(x=axis, y="top-1 accuracy" if measure.name == "top1" else measure.label)
    costs, means = [cost(item) for item in students], [item.mean for item in students]
    # The rank of a rank is the value.
    corners = steps(costs, [measure.rank(value) for value in means])
    figure.add_scatter(
        x=[x for x, _ in corners], y=[measure.rank(y) for _, y in corners], mode="lines",
        line={"color": BLUE, "width": 1.5, "dash": "dot"}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    wide = max(costs) > 4 * min(costs)
    if wide:
        log_axis(figure, "x", costs)
    names = [label(item.name) for item in students]
    places = [math.log10(item) for item in costs] if wide else costs
    positions = text_positions(places, means, names, size=(1000, 380))
    for wanted, colour, name in ((True, BLUE, "on the front"), (False, GREY, "dominated")):
        own = [at for at, is_on in enumerate(on) if is_on == wanted]
        if own:
            figure.add_scatter(
                x=[costs[at] for at in own], y=[means[at] for at in own], name=name, mode="markers+text",
                text=[names[at] for at in own], textposition=[positions[at] for at in own], textfont={"size": 11},
                marker={"size": 10, "color": colour}, cliponaxis=False,
                error_y={"array": [students[at].deviation for at in own], "thickness": 1.2, "width": 3},
                hovertemplate="%{text}<br>%{x:.3g}, %{y:" + (".1%" if measure.percent else ".3f") + "}<extra></extra>",
            )  # fmt: skip
    if measure.percent:
        percent_axis(figure, "y")
    figure.update_layout(margin={"r": 60})  # room for the names of the outer points
    alt = ", ".join(
        f"{item.name} {measure.text(item.mean)} at {cost(item):.3g}" for item in students
    )
    return Plot(
        title, spec(figure), f"{title}: {alt}", note, height=420, wide=True, least_width=600
    )
