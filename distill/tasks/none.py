"""Task ``none``: a backbone, taught by stored features alone. No label is needed; where there are some, they measure.

The score is the agreement of nearest neighbours: it depends on no head, no scale and no method, so that all methods can
be compared by it, and it is what retrieval, k-NN and clustering make use of (docs/decisions).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from distill.config import DataConfig, DistillConfig
from distill.lazy import Tensor, torch
from distill.measures.score import Measure
from distill.tasks.base import Task
from featstore.cli.schema import given
from featstore.errors import ConfigError
from featstore.sources.base import NO_LABEL

if TYPE_CHECKING:
    from distill.data.joined import Data, JoinedData
    from distill.data.samples import Samples, Split
    from distill.data.schedule import Indices
    from distill.evaluation.evaluate import Evaluation, Viewer
    from distill.measures.linear_probe import LinearProbe
    from distill.student.model import Student, StudentOutput

SHARE, MOST, FEWEST = 0.05, 2000, 100
"""Held-out images: this share, at most and (of a fifth of all) at least so many."""

MOST_FOR_HEAD = 10_000
"""Most training images that the embedding head is fitted on: more change it little and have to be shown again."""

NEEDED = 20
"""Fewest images; below, nothing that is measured means anything."""


class Backbone(Task):
    """No supervised loss: the stored features of all images teach."""

    name = "none"
    measures = (
        Measure("neighbour_agreement", "same 10 nearest neighbours"),
        Measure("explained_variance", "explained variance", percent=False),
        Measure("cosine", "cosine to teacher", percent=False),
        Measure("recall_at_1", "recall@1"),
        Measure("recall_at_10", "recall@10"),
        Measure("cka", "CKA(f_s, f_t)", percent=False),
        Measure("knn_top1", "k-NN"),
        Measure("linear_probe_top1", "linear probe"),
        Measure("translation_recall_at_1", "translation@1"),
    )
    supervised = False
    every = 1
    methods = ("fitnet",)
    meaning = "the feature of the image; the output embedding maps it to the teacher's space"
    data: JoinedData

    def __init__(self, config: DistillConfig, data: Data, options: None = None) -> None:
        super().__init__(config, data, options)
        label = f"same {config.eval.neighbours} nearest neighbours"
        score = Measure("neighbour_agreement", label)
        self.measures = (score, *type(self).measures[1:])

    @property
    def num_outputs(self) -> int:
        """None: a backbone."""
        return 0

    @classmethod
    def settings(cls, data: DataConfig) -> DataConfig:
        """All images train."""
        said = [
            f"--data.{item} {getattr(data, item)}"
            for item in ("labels_per_class", "validation")
            if getattr(data, item)
        ]
        if said:
            raise ConfigError(
                f"--task none: trains without labels; leave out {', '.join(said)}. What a recipe says is taken back "
                f"by {' '.join(item.rpartition(' ')[0] + ' 0' for item in said)}."
            )
        return without_labels(data)

    def split(self, seed: int, *, measured: Literal["test", "validation"] = "test") -> Split:
        """All images train, but for those that are held out: the same for every seed, unless ``--data.fold -1``.

        ``--data.holdout`` holds out the images that a classifier would be measured on; here at most ``MOST`` of them
        are. A validation part is another one, held out of those that would train.
        """
        share = self.config.data.validation_share
        if measured == "validation" and not share:
            raise ConfigError(
                "--eval.part validation: --task none needs --data.validation_share, e.g. 0.05."
            )
        from distill.data.samples import Split
        from distill.data.split_parts import held_out_part, keys_that_stay_together, share_a_key

        samples, config = self.data.samples, self.config.data
        everything = np.arange(len(samples.ids))
        keys = keys_that_stay_together(samples, config)
        if config.holdout:
            kept_back = held_out_part(samples, config, keys, seed)
            test = held_out(samples, kept_back, 1.0)
        else:
            given = samples.groups["test"]
            kept_back = test = given if len(given) else held_out(samples)
        train = samples.groups["unlabelled"]
        train = train[~share_a_key(keys, kept_back)[train]]
        if measured == "validation":
            test = held_out(samples, train, share, salt=b"validation")
            train = train[~share_a_key(keys, test)[train]]
        if len(everything) < NEEDED or len(test) < 3 or len(train) < 2:
            raise ConfigError(
                f"{samples.source.uri}: {len(train)} images to train on and {len(test)} to measure on; expected "
                f"{NEEDED} or more together. Give more images (--source.path, --data.unlabelled)."
            )
        return Split(np.empty(0, np.int64), train, test)

    def take(self, seen: StudentOutput, targets: Tensor | None) -> Sequence[Tensor]:
        """The student's features beside the stored ones."""
        assert targets is not None
        return seen.features.float(), targets

    def numbers(self, *kept: Tensor) -> dict[str, float]:
        """The agreement of neighbours, for files of an export."""
        from distill.evaluation import embedding

        student, teacher = kept
        neighbours = self.config.eval.neighbours
        agreement = embedding.neighbour_agreement(student, teacher, neighbours)
        return {"neighbour_agreement": agreement}

    def score(self, viewer: Viewer, student: Student, part: Split) -> float:
        """Agreement of the nearest neighbours of the held-out images."""
        from distill.evaluation import embedding

        features, _ = viewer.run(student, part.test)
        teacher = self.data.features.take(part.test)
        return embedding.neighbour_agreement(features, teacher, self.config.eval.neighbours)

    def measure(
        self, viewer: Viewer, student: Student, part: Split, *, seed: int, probe: LinearProbe | None
    ) -> Evaluation:
        """See ``embedding.compare_embeddings``; where labels are known, also k-NN and a linear probe on them."""
        from distill.data.joined import few
        from distill.data.texts import Translations
        from distill.evaluation import embedding
        from distill.evaluation.evaluate import MOST_FOR_CKA, Evaluation
        from distill.measures import retrieval
        from distill.measures.feature_similarity import mean_norm, thin_out

        fit = few(part.unlabelled, min(MOST_FOR_HEAD, viewer.settings.probe_rows), seed)
        shown = np.concatenate([part.test, fit])
        every, _ = viewer.run(student, shown)
        count = len(part.test)
        head = embedding.fit_head(every[count:], self.data.features.take(fit))
        teacher = self.data.features.take(part.test)
        rows = thin_out(count, MOST_FOR_CKA, seed=0)
        translations = retrieval.between_languages(
            every[:count],
            head(every[:count]),
            teacher,
            Translations(self.data.samples).between(part.test),
        )
        result = {
            "num_images": count,
            **embedding.compare_embeddings(
                every[:count], teacher, head, rows=rows, neighbours=viewer.settings.neighbours
            ),
            "feature_norm": mean_norm(every[:count]),
            **labelled_quality(self.data, every, shown, count, k=viewer.settings.knn_k),
            **retrieval.mean_recall_at_1(translations),
            **({"translations": translations} if translations else {}),
        }
        return Evaluation(result, every[:count], head=head)


def held_out(
    samples: Samples,
    members: Indices | None = None,
    share: float = SHARE,
    *,
    salt: bytes = b"held-out",
) -> Indices:
    """Images to measure on, chosen by their content alone: the same whatever the files are called.

    Copies of a chosen image are chosen too.

    Args:
        samples: joined to a store.
        members: images to choose from; None for all.
        share: of these, at most ``MOST`` and at least ``FEWEST`` or a fifth.
        salt: another one chooses others.
    """
    from distill.data.split_parts import content

    assert samples.hashes is not None
    members = np.arange(len(samples.ids)) if members is None else members
    keys = []
    for index in members:
        stored = samples.hashes[index]  # zeros: the store knows no content hash
        own = stored.tobytes() if stored.any() else content(samples, index)
        keys.append(hashlib.sha256(salt + own).digest())
    count = min(MOST, max(round(share * len(keys)), min(FEWEST, len(keys) // 5)))
    last = sorted(keys)[count - 1] if count else b""
    return members[np.array([key <= last for key in keys], np.bool_)]


def labelled_quality(
    data: Data, features_SC: Tensor, indices: Indices, count: int, *, k: int
) -> dict[str, float]:
    """k-NN and linear probe on the images whose labels are known.

    Args:
        features_SC: the student's features of ``indices``.
        indices: (S,) the measured images first, then those that may fit a classifier.
        count: of the measured ones.
        k: neighbours.

    Returns:
        See ``feature_quality``; nothing where there are too few labels.
    """
    labels = data.samples.labels[indices]
    known = labels != NO_LABEL
    test, fit = np.flatnonzero(known[:count]), count + np.flatnonzero(known[count:])
    if not len(test) or len(np.unique(labels[fit])) < 2:
        return {}
    from distill.measures.metrics import feature_quality

    return feature_quality(
        features_SC[torch.from_numpy(fit)],
        torch.from_numpy(labels[fit]),
        features_SC[torch.from_numpy(test)],
        torch.from_numpy(labels[test]),
        k=k,
        num_classes=data.samples.num_classes,
    )


def without_labels(settings: DataConfig) -> DataConfig:
    """The same settings with no labelled part, but where ``holdout`` cuts from it; all images train, and none is named
    as held out unless a user did."""
    return dataclasses.replace(
        settings,
        labelled=(settings.labelled or ["*"]) if settings.holdout else [],
        unlabelled=settings.unlabelled or ["*"],
        test=settings.test if "test" in given(settings) else [],
    )
