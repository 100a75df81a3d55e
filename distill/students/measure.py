"""The rows of an experiment as ONNX files, measured in turn in one process."""

# B batch, H W student input, K classes

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.config import StudentConfig
from distill.experiments.results import RowResult
from distill.export import onnx_model, parity, preprocessing, program
from distill.export.latency import Timing, count_macs, describe_machine, measure_latency
from distill.export.memory import weigh
from distill.export.runtimes import ModelFile
from distill.measures.score import TOP1, Measure, reference_of, score_of
from distill.student.model import starts_pretrained
from distill.students.pareto_front import front
from distill.training.saved_student import load_exported
from featstore.errors import ConfigError
from featstore.sources.load import ViewRule

FARTHEST = 1e-2  # largest difference of a logit between PyTorch and ONNX that rounding may make

Say = Callable[[str], None]


@dataclass(frozen=True)
class MeasuredStudent:
    """One row, measured."""

    name: str  # of the row
    architecture: str  # timm's name
    start: str  # what its weights began as
    scores: dict[int, float]  # of the task on the test images, by seed
    train_s: float  # mean over seeds
    parameters: int  # weights and biases
    macs: int  # multiply-adds of one image
    bytes: int  # of the ONNX file, float32
    # memory of one picture on top of the runtime, MB; None where the system does not tell
    model_mb: float | None
    timings: list[Timing]  # ONNX Runtime in float32

    @property
    def mean(self) -> float:
        """Of the score over seeds."""
        return statistics.fmean(self.scores.values())

    @property
    def deviation(self) -> float:
        """Sample standard deviation over seeds; 0 for one seed."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else 0.0

    @property
    def latency(self) -> Timing:
        """The first batch size on the first number of threads; what the front is drawn by."""
        return self.timings[0]


@dataclass(frozen=True)
class StudentComparison:
    """All students of one experiment."""

    students: list[MeasuredStudent]  # at least one; the best score first
    by_latency: list[bool]  # whether each is on the front of score and latency
    by_size: list[bool]  # whether each is on the front of score and file size
    machine: dict[str, Any]  # where latency was measured
    rounds: int  # of the measurement
    unfinished: list[str]  # names of rows without a finished run
    measure: Measure = TOP1  # what the score is
    # label and value of what it is compared with, mean over the seeds of the best student
    reference: tuple[str, float] | None = None


def measure_students(
    results: Sequence[RowResult],
    out: Path,
    *,
    batches: Sequence[int] = (1, 8),
    threads: Sequence[int] = (1, 2),
    rounds: int = 20,
    say: Say = print,
) -> StudentComparison:
    """Export every row with a finished run to ONNX and measure them all in turn.

    A row's seeds share its architecture, so that one of them is measured; the score is that of all.

    Args:
        out: gets NAME.onnx of every row.
        batches: images per call; the front is drawn by the first.
        threads: of one call; likewise.
        rounds: see ``measure_latency``.

    Raises:
        ConfigError: no row is finished, or one has no ONNX form.
    """
    done = [result for result in results if result.records]
    if not done:
        raise ConfigError("no student is finished, so there is none to measure.")
    machine = describe_machine()
    files: dict[str, ModelFile] = {}
    facts: dict[str, dict[str, int]] = {}
    for result in done:
        seed = min(result.records)
        name = result.row.name
        files[name], facts[name] = export(result.runs[seed].folder, out, name)
    say(f"measuring {len(files)} students in turn, {rounds} rounds")
    first = done[0].row.name  # ratios refer to the first row of the file
    timings = measure_latency(
        [*files.values()], batches=batches, threads=threads, rounds=rounds, reference=first
    )
    machine["load_average_1min_after"] = describe_machine()["load_average_1min"]
    students = [
        _measured(result, files[result.row.name], facts[result.row.name], timings)
        for result in done
    ]
    judged = done[0].measure
    students.sort(key=lambda item: (-judged.rank(item.mean), item.latency.median_ms))
    ranks = [judged.rank(item.mean) for item in students]
    best = next(result for result in done if result.row.name == students[0].name)
    return StudentComparison(
        students,
        front([item.latency.median_ms for item in students], ranks),
        front([item.bytes for item in students], ranks),
        machine,
        min(item.rounds for item in timings),
        [result.row.name for result in results if not result.records],
        judged,
        _reference(best),
    )


def _measured(
    result: RowResult, file: ModelFile, facts: dict[str, int], timings: Sequence[Timing]
) -> MeasuredStudent:
    config, memory = next(iter(result.runs.values())).config.student, weigh(file)
    return MeasuredStudent(
        name=result.row.name,
        architecture=config.title,
        start=start_of(config),
        scores={seed: score_of(record)[1] for seed, record in sorted(result.records.items())},
        train_s=statistics.fmean(result.values("seconds")),
        bytes=file.path.stat().st_size,
        model_mb=None if memory is None else memory.model_mb,
        timings=[item for item in timings if item.name == file.name],
        **facts,
    )


def _reference(result: RowResult) -> tuple[str, float] | None:
    found = [item for record in result.records.values() if (item := reference_of(record))]
    return (found[0][0], statistics.fmean(value for _, value in found)) if found else None


def start_of(config: StudentConfig) -> str:
    """What its weights began as, in words."""
    if config.weights:
        return "local weights"
    return "timm's weights" if starts_pretrained(config) else "scratch"


def export(folder: Path, out: Path, name: str) -> tuple[ModelFile, dict[str, int]]:
    """One run as an ONNX file that answers as PyTorch does.

    Args:
        out: gets the file.
        name: of the file, without its suffix.

    Returns:
        The file, and the parameters and multiply-adds of the student.

    Raises:
        ConfigError: no ONNX form, or other answers than PyTorch's.
    """
    student, described = load_exported(folder)
    model = student.model.eval()
    spec = preprocessing.input_spec(student, baked=False, uint8=False)
    path = out / f"{name}.onnx"
    out.mkdir(parents=True, exist_ok=True)
    content = onnx_model.translate(program.trace(model, spec), spec)
    path.write_bytes(content)
    onnx_model.check_onnx(path)
    rule = ViewRule.from_description(described["input"]["region"])
    pixels = preprocessing.reference_pixels(spec, rule)
    far = float(
        np.abs(onnx_model.runner(path, spec)(pixels) - parity.torch_runner(student)(pixels)).max()
    )
    if not far < FARTHEST:
        raise ConfigError(
            f"{path}: its logits are {far:.2g} away from PyTorch's; expected rounding, below {FARTHEST}."
        )
    facts = {
        "parameters": student.num_parameters,
        "macs": count_macs(model, student.input_size),
    }
    return ModelFile(name, "ONNX Runtime", "fp32", path, student.input_size), facts
