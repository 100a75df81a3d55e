"""Measure an image student and a text student of one space: texts that find their image, images that find a text.

A text belongs to the image that it names in column image; in a table without this column, to the images of its class.
"""

# N samples of a test part, D width of the common space

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.lazy import Tensor, torch
from featstore.errors import ConfigError, shorten

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class SpaceVectors:
    """Test samples in the teacher's space, less the mean of the stored vectors that the student was taught by.

    A student that knows little of a sample answers with that mean, which would decide the cosine of every pair.
    """

    vectors_ND: Tensor
    subjects: np.ndarray[
        Any, Any
    ]  # (N,) id of an image, of a text that of its image; or the class, "" if unknown
    languages: np.ndarray[Any, Any]  # (N,) of texts; "" of images
    by_class: bool = False  # whether subjects are classes

    def part(self, members: Any) -> SpaceVectors:
        """Some of the samples, chosen by a mask."""
        chosen = np.flatnonzero(members)
        subjects, languages = self.subjects[chosen], self.languages[chosen]
        return SpaceVectors(self.vectors_ND[chosen], subjects, languages, self.by_class)

    def recall(self, items: SpaceVectors) -> dict[str, float]:
        """How often one of the items of the same subject is among the nearest; a sample is no item of its own.

        Samples without such an item are no queries; nothing is returned where none has one.
        """
        from distill.measures.retrieval import recall

        same = torch.from_numpy(self.subjects[:, None] == items.subjects[None])
        right = same & ~torch.eye(len(same), dtype=torch.bool) if items is self else same
        asked = right.any(1)
        if not asked.any():
            return {}
        return recall(self.vectors_ND[asked], items.vectors_ND, right[asked], ~same[asked])


def embed(
    folder: Path,
    *,
    flag: str,
    by_class: bool | None = None,
    accelerator: Accelerator,
    workers: int,
) -> tuple[SpaceVectors, SpaceVectors]:
    """Show a finished run of task none its own test part.

    Args:
        flag: that named the folder, for messages.
        by_class: what the subjects are; None: classes, unless the table of texts names images.

    Returns:
        The samples as the student sees them, and those of them that the teacher read itself, as it sees them.

    Raises:
        ConfigError: a run of another task, or one whose store is not there.
    """
    from distill.evaluation.evaluate import Viewer
    from distill.export.finished import open_data, read_finished_run
    from distill.tasks.none import Backbone

    run = read_finished_run(folder, flag=flag)
    head, opened = run.embedding_head, open_data(run)
    if head is None or not isinstance(opened.task, Backbone):
        raise ConfigError(
            f"{flag} {folder.absolute()}: a run of task {run.config.task}; expected task none, whose embedding "
            "head maps the student to the teacher's space."
        )
    data, members = opened.task.data, opened.part.test
    viewer = Viewer(data=data, settings=run.config.eval, workers=workers, accelerator=accelerator)
    features, _ = viewer.run(run.student.to(accelerator.device), members)
    samples, source = data.samples, data.samples.source
    positions = samples.positions[members]
    ids = subjects = np.array(samples.ids)[members]
    by_class = not source.images if by_class is None else by_class
    if by_class:
        names = np.array([*samples.class_names, ""])  # the last one of samples without a label
        subjects = names[samples.labels[members]]
    elif source.images:
        subjects = np.array(source.images)[positions]
    languages = np.array(source.languages or [""] * len(source))[positions]
    mean = data.features.take(opened.part.unlabelled).mean(0)
    stored = SpaceVectors(data.features.take(members) - mean, subjects, languages, by_class)
    return (
        SpaceVectors(head(features) - mean, subjects, languages, by_class),
        stored.part(np.array(samples.stored_ids)[members] == ids),
    )


def measure(
    images: tuple[SpaceVectors, SpaceVectors], texts: tuple[SpaceVectors, SpaceVectors]
) -> dict[str, Any]:
    """Recall in both directions for every language; images and texts without a counterpart take no part.

    Args:
        images: of ``embed``; likewise ``texts``.

    Returns:
        ``num_images``, ``num_texts`` and, under ``image_text``, recall at 1, 5 and 10 by direction. "en -> image": a
        text finds its image; "image -> en": an image finds one of its texts; with "stored en" the teacher's own vectors
        of the texts; "stored en -> stored en": a text finds another one of its image. By class, "image -> en" at 1 is
        the accuracy of zero-shot classification by the nearest text.

    Raises:
        ConfigError: no text belongs to a measured image, or the spaces have other widths.
    """
    pictures, words = images[0], texts[0]
    here, there = pictures.vectors_ND.shape[1], words.vectors_ND.shape[1]
    shared = np.setdiff1d(np.intersect1d(pictures.subjects, words.subjects), [""])
    if here != there or not len(shared):
        what = "classes" if words.by_class else "images"
        theirs, ours = (
            shorten(sorted(set(side.subjects.tolist())), 2) for side in (words, pictures)
        )
        raise ConfigError(
            f"--texts: {there} dimensions and {what} {theirs}; --model: {here} dimensions and {what} {ours}. One "
            "teacher must have taught both, and the table of the texts must name the image of each in column image, or "
            "its class in column label."
        )
    pictures = pictures.part(np.isin(pictures.subjects, shared))
    found: dict[str, dict[str, float]] = {}
    for prefix, side in zip(("", "stored "), texts, strict=True):
        for language in np.unique(side.languages):
            chosen = np.isin(side.subjects, shared) & (side.languages == language)
            items, name = side.part(chosen), f"{prefix}{language or 'text'}"
            found[f"{name} -> image"] = items.recall(pictures)
            found[f"image -> {name}"] = pictures.recall(items)
            if prefix:
                found[f"{name} -> {name}"] = items.recall(items)
    count = {
        "num_images": len(pictures.subjects),
        "num_texts": int(np.isin(words.subjects, shared).sum()),
    }
    return {**count, "image_text": {way: recalls for way, recalls in found.items() if recalls}}
