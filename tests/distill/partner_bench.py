"""A tiny student, and partners with batches as the loop makes them, shared by the tests of the partners."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from distill.config import DistillConfig, TrainConfig
from distill.data.pictures import Batch
from distill.data.samples import Split
from distill.losses import IGNORE
from distill.measures.linear_probe import LinearProbe
from distill.methods.base import Output, Setup
from distill.methods.trainee import Trainee
from distill.partners import PARTNERS
from distill.student.model import Student, StudentOutput

CLASSES, WIDTH, PIXELS, STORED = 3, 4, 6, 5
LABELLED, UNLABELLED = np.arange(0, 6), np.array([11, 7, 9, 6, 8, 10])
PICTURES = torch.randn(12, PIXELS, generator=torch.Generator().manual_seed(1))
LABELS = np.array([0, 1, 2] * 4)


class TinyStudent(nn.Module):
    """A Linear and a head in place of a timm model; pictures are vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(PIXELS, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.width = WIDTH
        self.dtype = torch.float32  # of the logits

    def forward(
        self, images: Tensor, *, adapter: nn.Module | None = None, stages: bool = False
    ) -> StudentOutput:
        features = torch.tanh(self.body(images))
        logits = (4 * self.head(features)).clamp(-6e4, 6e4).to(self.dtype)
        return StudentOutput(features, logits, features[:, :, None, None], ())


class Bench:
    """A partner with a tiny student, and batches as the loop makes them."""

    def __init__(
        self,
        name: str,
        *,
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        unlabelled: Any = UNLABELLED,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        if name in ("sentry", "shot"):
            options = {"source_epochs": 1, **options}
        config = DistillConfig(
            partner=name,
            train=TrainConfig(epochs=3, warmup_epochs=0),
            options={name: PARTNERS[name].Options(**options)},
        )
        self.config, self.options = config, config.options[name]
        self.student = TinyStudent()
        generator = np.random.default_rng(0)
        self.setup = cast(
            Setup,
            SimpleNamespace(
                config=self.config,
                samples=SimpleNamespace(num_classes=CLASSES, labels=LABELS),
                split=Split(LABELLED, unlabelled, np.zeros(0, np.int64)),
                probe=LinearProbe(
                    generator.standard_normal((CLASSES, STORED)).astype(np.float32),
                    np.zeros(CLASSES, np.float32),
                ),
                student_width=WIDTH,
                device=torch.device("cpu"),
                epochs=3,
                steps_per_epoch=2,
                gather=gather,
                predict=self.predict,
                labels_of=lambda indices: torch.from_numpy(LABELS[indices]),
            ),
        )
        self.partner = PARTNERS[name](self.setup, self.options)
        self.trainee = Trainee(cast(Student, self.student), self.partner.student_sides())

    @torch.no_grad()
    def predict(self, indices: Any) -> tuple[Tensor, Tensor]:
        seen = self.student(PICTURES[indices])
        return seen.features, seen.logits

    def batch(self, labelled: Any = LABELLED[:4], unlabelled: Any = UNLABELLED[:4]) -> Batch:
        indices = torch.from_numpy(np.concatenate([labelled, unlabelled]))
        labels = torch.from_numpy(LABELS)[indices]
        labels[len(labelled) :] = IGNORE
        copies = PARTNERS[self.config.partner].strong_views(self.options)
        strong = [PICTURES[unlabelled] + 0.3 * (copy + 1) for copy in range(copies)]
        return Batch(
            images=torch.cat([PICTURES[indices], *strong]),
            labels=labels,
            teacher=PICTURES[indices, :STORED],
            grid=None,
            indices=indices,
            num_labelled=len(labelled),
            num_unlabelled=len(unlabelled),
            num_strong=copies,
        )

    def terms(self, batch: Batch | None = None) -> dict[str, Tensor]:
        """One call, with the rows cut as the loop cuts them."""
        batch = batch or self.batch()
        output: Output = self.trainee(batch.images)
        labelled, unlabelled = batch.num_labelled, batch.num_unlabelled
        both = labelled + unlabelled
        strong = [
            output.rows(both + copy * unlabelled, both + (copy + 1) * unlabelled)
            for copy in range(batch.num_strong)
        ]
        return self.partner.loss(
            output.rows(0, labelled),
            output.rows(labelled, both),
            strong,
            batch,
        )

    def epoch(self, number: int) -> None:
        """Two calls, with what comes before and after them."""
        self.partner.begin_epoch(number, cast(Student, self.student))
        for start in (0, 2):
            self.terms(self.batch(LABELLED[start : start + 4], UNLABELLED[start : start + 4]))
        self.partner.end_epoch(number)
