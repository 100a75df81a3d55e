"""Task ``generate``: a student draws in one step the picture that the teacher sampled from the same noise and class.

The pairs are rows of the store: the noise is drawn again from the id, the picture is the field ``--field``. The
regression loss is all; distribution matching needs the teacher's score of the student's own pictures, which no store
can hold.
"""

# L labelled samples of a batch, N test samples, P numbers of a picture

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distill.data.targets import Targets
from distill.lazy import F, Tensor, torch
from distill.measures.score import Measure, record
from distill.options import CheckedOptions
from distill.tasks.base import Task
from featstore.errors import ConfigError, shorten
from featstore.sources.base import NO_LABEL
from featstore.sources.config import require

if TYPE_CHECKING:
    from distill.config import DistillConfig
    from distill.data.joined import Data
    from distill.data.pictures import Batch
    from distill.data.samples import Samples, Split
    from distill.data.schedule import Indices
    from distill.data.stored_features import Features
    from distill.methods.base import Output
    from distill.student.model import Student, StudentOutput
    from featstore.sources.load import Frame

ERROR = Measure("smooth_l1", "error to the teacher", percent=False, higher_is_better=False)
JUDGED = (
    Measure(
        "frechet_distance",
        "Frechet distance of classifier features",
        percent=False,
        higher_is_better=False,
    ),
    Measure("classified", "recognised as their class"),
)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(CheckedOptions, name="generate", positive=("beta",)):
    """Task ``generate``: one-step generators from stored pairs of noise and picture."""

    classifier: str = ""
    """Folder of a finished run of task classify with the same classes: its features give the Frechet distance, which is
    then the score, and its answers how many pictures are recognised. Empty: the score is the error to the teacher."""
    images: str = ""
    """Folder of real images that the Frechet distance is measured to, at most 5,000 of them; empty takes the teacher's
    pictures of the test part."""
    beta: float = 1.0
    """Error from which the smooth L1 loss is linear; pictures lie between -1 and 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.classifier) or not self.images,
            f"--generate.images {self.images} needs --generate.classifier.",
        )


class StoredPairs(Targets):
    """The stored picture of each sample, and behind it its class."""

    def __init__(self, features: Features, labels: Indices) -> None:
        self.features, self.labels = features, labels
        self.known = labels != NO_LABEL

    def of(self, sample: int, frame: Frame) -> npt.NDArray[np.float32]:
        """(P + 1,)."""
        picture = self.features.take(np.array([sample]))[0].numpy()
        return np.append(picture, np.float32(self.labels[sample]))


class Generate(Task):
    """Smooth L1 loss to the stored picture."""

    name = "generate"
    Options = GenerateConfig
    options: GenerateConfig
    measures: Sequence[Measure] = (*JUDGED, ERROR)
    methods = ("labels",)
    draws = True
    kind = "unconditional-image-generation"
    meaning = "a grey picture, row by row, from -1 (black) to 1 (white)"

    def __init__(self, config: DistillConfig, data: Data, options: Any = None) -> None:
        super().__init__(config, data, options)
        names = self.data.samples.class_names
        if self.options.classifier:
            from distill.evaluation.judge import judge_of

            known = judge_of(self.options.classifier).class_names
            if known != names:
                raise ConfigError(
                    f"--generate.classifier {self.options.classifier}: has the classes {shorten(known)}, the samples "
                    f"{shorten(names)}. Give a classifier of the same classes in the same order."
                )
            self.measures = (*JUDGED, ERROR)
        else:
            self.measures = (ERROR,)

    @property
    def num_outputs(self) -> int:
        """None: the student's feature is the picture."""
        return 0

    def targets(self, samples: Samples) -> Targets:
        """The stored pictures."""
        from distill.data.joined import JoinedData

        if not isinstance(self.data, JoinedData):
            raise ConfigError(
                "--task generate: the pictures are in the feature store; give --store."
            )
        settings = self.config.data
        changed = [
            f"--data.{name}" for name in ("jitter", "grayscale", "blur") if getattr(settings, name)
        ]
        if changed or len(self.data.columns) > 1 or samples.source.kind != "synthetic":
            raise ConfigError(
                f"--task generate: takes pseudo-samples of noise in one view and as they are; {samples.source.uri} is "
                f"of kind {samples.source.kind}, with {len(self.data.columns)} views and {', '.join(changed) or 'no'} "
                "changes of colour."
            )
        return StoredPairs(self.data.features, samples.labels)

    def prepare(self, data: Data) -> Data:
        """With the stored pictures."""
        self.data = data
        return super().prepare(data)

    def labelled(self, samples: Samples, targets: Targets) -> Samples:
        """As they are: labels are the classes of the condition."""
        return samples

    def begin(self, student: Student, part: Split, targets: Any) -> None:
        """Compare the student with the pairs."""
        features, samples = self.data.features, self.data.samples  # type: ignore[attr-defined]
        side = math.isqrt(features.width)
        if student.width != features.width or student.input_size != (side, side):
            raise ConfigError(
                f"--student.name {student.name}: draws {student.width} numbers from noise of "
                f"{student.input_size[0]} x {student.input_size[1]} pixels; --field {self.config.field} holds "
                f"{features.width} = {side} x {side}. one_step: --student.model_args '{{size: {side}, ...}}'."
            )
        if self.options.images:
            from distill.evaluation.judge import real_features

            # Kept for later; a wrong path is found before training.
            real_features(self.options.classifier, self.options.images, side)
        route = getattr(student.model, "route", None)
        if route is None:
            return
        if len(route) != samples.num_classes:
            raise ConfigError(
                f"--student.model_args: classes {len(route)}, but the pairs have {samples.num_classes}."
            )
        shares = torch.bincount(
            route[torch.from_numpy(samples.labels[part.labelled])],
            minlength=int(route.max()) + 1,
        )
        empty = (shares == 0).nonzero()[:, 0].tolist()
        if empty:
            raise ConfigError(
                f"--student.model_args students: no training sample is of a class of student {shorten(empty)} (counted "
                f"from 0); samples of the {len(shares)} students: {shares.tolist()}. Change their where, or "
                "--data.labelled."
            )

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Smooth L1 loss on the labelled samples."""
        if batch.targets is None:
            return {"smooth_l1": 0 * output.features.float().sum()}
        found = output.features[: batch.num_labelled].float()
        return {"smooth_l1": F.smooth_l1_loss(found, batch.targets[:, :-1], beta=self.options.beta)}

    def take(self, seen: StudentOutput, targets: Tensor | None) -> Sequence[Tensor]:
        """The student's pictures, and the teacher's with their classes."""
        assert targets is not None
        return seen.features.float(), targets

    def numbers(self, *kept: Tensor) -> dict[str, Any]:
        """Error to the teacher's pictures; with a classifier the distances and accuracies of both."""
        drawn, teacher, classes = kept[0], kept[1][:, :-1], kept[1][:, -1]
        found: dict[str, Any] = {
            "smooth_l1": float(F.smooth_l1_loss(drawn, teacher, beta=self.options.beta))
        }
        folder, images = self.options.classifier, self.options.images
        if not folder:
            return found
        from distill.evaluation.judge import judge_of, real_features
        from distill.measures.frechet import frechet_distance

        judge = judge_of(folder)
        (features, seen), (stored, told) = judge(drawn), judge(teacher)
        reference = real_features(folder, images, math.isqrt(drawn.shape[1])) if images else stored
        found |= {
            "frechet_distance": frechet_distance(features, reference),
            "classified": float((seen == classes).double().mean()),
            "teacher": {"classified": float((told == classes).double().mean())},
        }
        if images:
            found["teacher"]["frechet_distance"] = frechet_distance(stored, reference)
        return found

    def record(self, result: dict[str, Any]) -> dict[str, Any]:
        """The score beside that of the teacher's own pictures."""
        own = result.get("teacher", {}).get("frechet_distance")
        return record(
            result, self.measures, None if own is None else ("teacher, Frechet distance", own)
        )

    def errors(self, *kept: Tensor) -> npt.NDArray[np.float64]:
        """(N,) mean absolute error of each picture."""
        found: npt.NDArray[np.float64] = (kept[0] - kept[1][:, :-1]).abs().double().mean(1).numpy()
        return found

    def draw(self, pixels: Tensor, seen: StudentOutput, targets: Tensor) -> Tensor:
        """The teacher's picture and the student's."""
        from distill.tasks.drawing import enlarge

        side = pixels.shape[-1]
        both = torch.stack([targets[:, :-1], seen.features.float()], 1)
        grey = ((both + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
        grey = grey.view(-1, 2, side, side).transpose(1, 2).flatten(2)  # side by side
        return enlarge(grey[:, None].expand(-1, 3, -1, -1))
