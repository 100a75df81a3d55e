"""A page of what a selection took and left, as one HTML file."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from featstore.duplicates.unit_vectors import Floats, Rows
from featstore.files.atomic import write_bytes
from featstore.pages.parts import Block, Page, Section, Table, Tile
from featstore.pages.render import render
from featstore.reading.store import FeatureStore
from featstore.selection.choose import Selection, Step

SHOWN = 12
"""Rows of each table of examples."""


def write_page(path: Path, store: FeatureStore, selection: Selection, *, asked: str) -> None:
    """Write the page.

    Args:
        path: HTML file.
        store: Whose rows were chosen.
        selection: What was chosen.
        asked: What was asked for, in a line.
    """
    write_bytes(path, render(make_page(store, selection, asked=asked)).encode())


def make_page(store: FeatureStore, selection: Selection, *, asked: str) -> Page:
    """The page as data: counts per step and class, and examples from both sides of each choice."""
    total, taken = store.num_rows, len(selection.rows)
    sections = [
        Section(
            "Steps",
            [
                Table(
                    "Rows after each step",
                    ["step", "candidates", "taken", "left"],
                    [
                        [
                            step.name,
                            f"{len(step.taken) + len(step.left):,}",
                            f"{len(step.taken):,}",
                            f"{len(step.left):,}",
                        ]
                        for step in selection.steps
                    ],
                )
            ],
        ),
        *(
            Section(f"Step: {step.name}", _examples(store, step), lead=f"Number: {step.score}.")
            for step in selection.steps
        ),
    ]
    if store.manifest.source.has_labels:
        sections.append(Section("Classes", [_classes(store, selection)]))
    return Page(
        title="Selected images",
        subtitle=asked,
        finding=f"{taken:,} of {total:,} rows were taken ({taken / total:.1%}). "
        + " ".join(selection.notes),
        tiles=[
            Tile("rows taken", f"{taken:,}"),
            Tile("rows of the store", f"{total:,}"),
            Tile("field", selection.field),
        ],
        sections=sections,
        files=[],
        closing=f"Store {store.address}, fingerprint {store.fingerprint}",
    )


def _examples(store: FeatureStore, step: Step) -> list[Block]:
    def table(title: str, rows: Rows, scores: Floats, note: str) -> Table:
        return Table(
            title,
            ["sample", step.score],
            [
                [store.sample_ids[row], f"{score:.3f}"]
                for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
            ],
            note=note,
            wide=False,
        )

    first, last = slice(0, SHOWN), slice(-SHOWN, None)
    blocks: list[Block] = [
        table("Taken, best", step.taken[first], step.taken_scores[first], "Fit best."),
        table("Taken, last", step.taken[last], step.taken_scores[last], "Just taken."),
    ]
    if len(step.left):
        blocks += [
            table("Left, first", step.left[first], step.left_scores[first], "Just left."),
            table("Left, last", step.left[last], step.left_scores[last], "Fit least."),
        ]
    return blocks


def _classes(store: FeatureStore, selection: Selection) -> Table:
    names: Sequence[str] = store.manifest.source.class_names
    labels = store.labels
    before, after = Counter(labels.tolist()), Counter(labels[selection.rows].tolist())

    def name(label: int) -> str:
        return "no label" if label < 0 else names[label] if names else str(label)

    rows = [
        [
            name(label),
            f"{before[label]:,}",
            f"{after[label]:,}",
            f"{after[label] / before[label]:.1%}",
        ]
        for label in sorted(before, key=lambda label: (-after[label], label))
    ]
    return Table("Rows of each class", ["class", "in the store", "taken", "share"], rows)
