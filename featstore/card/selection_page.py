"""Page of a selection: kept and dropped images, as one HTML file."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featstore.card.pictures import thumbnails
from featstore.card.survey import Sample
from featstore.display.parts import Block, Gallery, Page, Picture, Section, Table, Tile
from featstore.display.render import render
from featstore.files.array_types import Rows
from featstore.files.atomic import write_bytes
from featstore.reading.store import FeatureStore
from featstore.selection.choose import Selection, Step
from featstore.selection.unit_vectors import Floats

SHOWN = 12  # images at each end


def write_page(
    path: Path,
    store: FeatureStore,
    selection: Selection,
    *,
    asked: str,
    images: Path | None = None,
) -> None:
    """Write the page.

    Args:
        store: Whose rows were chosen.
        asked: What was asked for, in a line.
        images: Folder of the images: show them instead of their ids alone.

    Raises:
        ConfigError: No image was found in the folder.
    """
    page = make_page(store, selection, asked=asked, images=images)
    write_bytes(path, render(page).encode())


def make_page(
    store: FeatureStore, selection: Selection, *, asked: str, images: Path | None = None
) -> Page:
    """The page as data: counts per step and class, and examples from both sides of each choice."""
    pictures = None if images is None else _pictures(images, store, selection)
    total, taken = store.num_rows, len(selection.rows)
    sections = [
        Section(
            "Steps",
            [
                Table(
                    "Rows after each step",
                    ["step", "candidates", "taken", "not taken"],
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
            Section(
                f"Step: {step.name}",
                _examples(store, step, pictures),
                lead=f"Sorted by {step.score}.",
            )
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


def _ends(step: Step) -> list[tuple[str, Rows, Floats]]:
    """First and last rows of the kept and of the dropped ones: title, rows, scores."""
    first, last = slice(0, SHOWN), slice(-SHOWN, None)
    ends = [
        ("Taken, best fit", step.taken[first], step.taken_scores[first]),
        ("Taken, least fit", step.taken[last], step.taken_scores[last]),
        ("Not taken, best fit", step.left[first], step.left_scores[first]),
        ("Not taken, least fit", step.left[last], step.left_scores[last]),
    ]
    return [end for end in ends if len(end[1])]


def _pictures(images: Path, store: FeatureStore, selection: Selection) -> dict[int, str]:
    """Data URI of each row that is shown, "" where its image is not there."""
    rows = np.unique(np.concatenate([end[1] for step in selection.steps for end in _ends(step)]))
    ids = [store.sample_ids[row] for row in rows]
    sample = Sample(rows, ids, store.labels[rows], store.content_sha256[rows], whole=False)
    return dict(zip(rows.tolist(), thumbnails(images, store.manifest, sample), strict=True))


def _examples(store: FeatureStore, step: Step, pictures: dict[int, str] | None) -> list[Block]:
    blocks: list[Block] = []
    for title, rows, scores in _ends(step):
        shown = [
            (row, store.sample_ids[row], f"{score:.3f}")
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
        ]
        if pictures is None:
            cells = [[name, score] for _, name, score in shown]
            blocks.append(Table(title, ["sample", step.score], cells, wide=False))
        else:
            tiles = [
                Picture(pictures[row], name, [(step.score, score, "")])
                for row, name, score in shown
            ]
            blocks.append(Gallery(title, tiles))
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
