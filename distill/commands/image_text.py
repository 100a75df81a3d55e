"""Measure an image student and a text student of one space: texts that find their image, images that find a text."""

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
    images: np.ndarray[Any, Any]  # (N,) id of the image that a text describes; of an image its own
    languages: np.ndarray[Any, Any]  # (N,) of texts; "" of images

    def part(self, members: Any) -> SpaceVectors:
        """Some of the samples, chosen by a mask."""
        chosen = np.flatnonzero(members)
        return SpaceVectors(self.vectors_ND[chosen], self.images[chosen], self.languages[chosen])

    def recall(self, items: SpaceVectors) -> dict[str, float]:
        """How often one of the items of the same image is among the nearest; a sample is no item of its own.

        Samples without such an item are no queries; nothing is returned where none has one.
        """
        from distill.measures.retrieval import recall

        same = torch.from_numpy(self.images[:, None] == items.images[None])
        right = same & ~torch.eye(len(same), dtype=torch.bool) if items is self else same
        asked = right.any(1)
        if not asked.any():
            return {}
        return recall(self.vectors_ND[asked], items.vectors_ND, right[asked], ~same[asked])


def embed(
    folder: Path, *, accelerator: Accelerator, workers: int
) -> tuple[SpaceVectors, SpaceVectors]:
    """Show a finished run of task none its own test part.

    Returns:
        The samples as the student sees them, and those of them that the teacher read itself, as it sees them.

    Raises:
        ConfigError: a run of another task, or one whose store is not there.
    """
    from distill.evaluation.evaluate import Viewer
    from distill.export.finished import open_data, read_finished_run
    from distill.tasks.none import Backbone

    run = read_finished_run(folder)
    head, opened = run.embedding_head, open_data(run)
    if head is None or not isinstance(opened.task, Backbone):
        raise ConfigError(
            f"{folder.absolute()}: a run of task {run.config.task}; expected task none, whose embedding head maps the "
            "student to the teacher's space."
        )
    data, members = opened.task.data, opened.part.test
    viewer = Viewer(data=data, settings=run.config.eval, workers=workers, accelerator=accelerator)
    features, _ = viewer.run(run.student.to(accelerator.device), members)
    samples, source = data.samples, data.samples.source
    positions = samples.positions[members]
    ids = np.array(samples.ids)[members]
    images = np.array(source.images)[positions] if source.images else ids
    languages = np.array(source.languages or [""] * len(source))[positions]
    mean = data.features.take(opened.part.unlabelled).mean(0)
    stored = SpaceVectors(data.features.take(members) - mean, images, languages)
    return (
        SpaceVectors(head(features) - mean, images, languages),
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
        of the texts; "stored en -> stored en": a text finds another one of its image.

    Raises:
        ConfigError: no text names a measured image, or the spaces have other widths.
    """
    pictures, words = images[0], texts[0]
    here, there = pictures.vectors_ND.shape[1], words.vectors_ND.shape[1]
    described = np.isin(words.images, pictures.images)
    if here != there or not described.any():
        raise ConfigError(
            f"--texts: {there} dimensions and texts of {shorten(sorted(set(words.images)), 2)}; --model: {here} "
            f"dimensions and images {shorten(sorted(pictures.images), 2)}. One teacher must have taught both, and the "
            "table of the texts must name the image of each in column image."
        )
    pictures = pictures.part(np.isin(pictures.images, words.images))
    found: dict[str, dict[str, float]] = {}
    for prefix, side in zip(("", "stored "), texts, strict=True):
        for language in np.unique(side.languages):
            chosen = np.isin(side.images, pictures.images) & (side.languages == language)
            items, name = side.part(chosen), f"{prefix}{language or 'text'}"
            found[f"{name} -> image"] = items.recall(pictures)
            found[f"image -> {name}"] = pictures.recall(items)
            if prefix:
                found[f"{name} -> {name}"] = items.recall(items)
    count = {"num_images": len(pictures.images), "num_texts": int(described.sum())}
    return {**count, "image_text": {way: recalls for way, recalls in found.items() if recalls}}
