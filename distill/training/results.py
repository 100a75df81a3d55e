"""Write what a run leaves in its folder: student, numbers, predictions, and the record that marks it as finished."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.config import StudentConfig
from distill.data.joined import JoinedData
from distill.data.schedule import Indices
from distill.evaluation import predictions
from distill.evaluation.embedding import HEAD
from distill.evaluation.evaluate import Evaluation
from distill.student.files import CONFIG, OUTPUT_LAYER, TASK_HEAD, TOKENIZERS, WEIGHTS
from distill.student.model import Student
from distill.tasks import Task
from distill.training.run_record import write_record
from distill.training.saved_student import save_student
from featstore.files.atomic import write_json

RECORDED = (
    "config.yaml", CONFIG, WEIGHTS, OUTPUT_LAYER, TASK_HEAD, HEAD, "evaluation.json", predictions.NAME, "metrics.jsonl",
    *TOKENIZERS,
)  # fmt: skip
"""Files whose checksums go into the record of a run."""


@dataclass(frozen=True)
class TrainedRun:
    """A run that has just been measured and written."""

    folder: Path  # folder of the run
    data: JoinedData  # images and stored features
    test: Indices  # indices of the images it was measured on
    evaluation: Evaluation  # measurements
    # maps stored features (B, D) to those made for the student (B, C); None if the method does not
    customise: Callable[[Tensor], Tensor] | None
    device: torch.device  # device of that mapping


FinishHook = Callable[[TrainedRun], None]
"""Called in the main process after the record of a run was written, for example to draw its page."""


def write_results(
    folder: Path,
    student: Student,
    evaluation: Evaluation,
    *,
    task: Task,
    config: StudentConfig,
    record: dict[str, Any],
) -> dict[str, Any]:
    """Write all files of a finished run, the record last. Returns the record with its checksums."""
    if evaluation.head is not None:
        evaluation.head.write(folder)
    save_student(folder, student, config=config, task=task, head=evaluation.head is not None)
    write_json(folder / "evaluation.json", evaluation.result)
    if evaluation.predictions is not None:
        predictions.write_predictions(folder, evaluation.predictions)
    return write_record(folder, record, RECORDED)
