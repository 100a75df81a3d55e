"""Task ``multilabel``: a classifier of images with any number of labels each."""

# L labelled images of a batch, N test images, K labels

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distill.lazy import F, Tensor, torch
from distill.measures.score import Measure
from distill.tasks.base import Task
from featstore.errors import ConfigError
from featstore.sources.base import NO_LABEL

if TYPE_CHECKING:
    from distill.data.pictures import Batch
    from distill.data.samples import Samples
    from distill.data.targets import Targets
    from distill.methods.base import Output


class MultiLabel(Task):
    """Binary cross entropy of every label; the mean average precision on the test part counts."""

    name = "multilabel"
    measures = (
        Measure("map", "mAP"),
        Measure("micro_f1", "F1 over all labels"),
        Measure("exact", "all labels right"),
    )
    kind = "image-classification"
    meaning = "one value per label; its sigmoid is the confidence, above 0 the image has the label"

    @property
    def num_outputs(self) -> int:
        return len(self.label_names())

    def label_names(self) -> Sequence[str]:
        return self.data.samples.source.class_names

    def targets(self, samples: Samples) -> Targets:
        """(n, K) of 0 and 1, NaN where it is not known."""
        from distill.data.targets import Values

        sets = samples.source.label_sets
        if sets is None:
            raise ConfigError(
                f"--task multilabel: {samples.source.uri} has no image with several labels. Give them by "
                "--source.labels: several labels in one cell (cat;dog), or a column of 0 and 1 for each label."
            )
        own = sets[samples.positions].astype(np.float32)
        return Values(np.where(own < 0, np.nan, own))

    def labelled(self, samples: Samples, targets: Targets) -> Samples:
        """Samples whose class is their rarest label, so that a held-out part has some of every label."""
        import dataclasses

        sets = samples.source.label_sets
        assert sets is not None
        own = sets[samples.positions] == 1
        counts = np.where(own.any(axis=0), own.sum(axis=0), len(own))
        rarest = np.where(own, counts, len(own) + 1).argmin(axis=1)
        classes = np.where(own.any(axis=1), rarest, own.shape[1])
        labels = np.where(targets.known, classes, NO_LABEL).astype(np.int64)
        return dataclasses.replace(samples, labels=labels, class_names=())

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Mean over what is known."""
        assert batch.targets is not None
        known = torch.isfinite(batch.targets)
        logits = output.logits[: batch.num_labelled].float()
        terms = F.binary_cross_entropy_with_logits(
            logits, batch.targets.nan_to_num(nan=0.0), reduction="none"
        )
        return {"bce": (terms * known).sum() / known.sum().clamp(min=1)}

    def numbers(self, *kept: Tensor) -> dict[str, Any]:
        """Average precision of every label that some known images have and others have not, and its mean."""
        from sklearn.metrics import average_precision_score

        logits, targets = (item.double().numpy() for item in kept)
        known = np.isfinite(targets)
        precision: dict[str, float | None] = {}
        for number, name in enumerate(self.label_names()):
            rows = known[:, number]
            truth = targets[rows, number]
            mixed = len(np.unique(truth)) == 2
            precision[name] = (
                float(average_precision_score(truth, logits[rows, number])) if mixed else None
            )
        found = [value for value in precision.values() if value is not None]
        if not found:
            raise ConfigError(
                "--task multilabel: no label is present in some test images and absent in others, so nothing can be "
                "measured. Name more test images (--data.test, --data.holdout)."
            )
        right = (logits > 0) == (targets > 0.5)
        true = ((logits > 0) & (targets > 0.5) & known).sum()
        wrong = (~right & known).sum()
        return {
            "map": float(np.mean(found)),
            "micro_f1": float(2 * true / max(1, 2 * true + wrong)),
            "exact": float((right | ~known).all(axis=1).mean()),
            "per_label": precision,
        }

    def errors(self, *kept: Tensor) -> npt.NDArray[np.float64]:
        """(N,) mean binary cross entropy."""
        logits, targets = (item.double() for item in kept)
        terms = F.binary_cross_entropy_with_logits(
            logits, targets.nan_to_num(nan=0.0), reduction="none"
        )
        known = torch.isfinite(targets)
        found: npt.NDArray[np.float64] = (
            (terms * known).sum(1) / known.sum(1).clamp(min=1)
        ).numpy()
        return found
