"""Settings of the commands that work on finished runs: evaluate and report."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from distill.config import MOST_SEED, DataConfig, EvalConfig, TeacherConfig
from featstore.sources.config import SourceConfig, require


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure a trained student on any images."""

    COMMON: ClassVar[tuple[str, ...]] = (
        "model", "store", "source.kind", "source.path", "data.test", "data.holdout", "eval.corruptions", "workers",
        "out",
    )  # fmt: skip
    """What ``--help`` shows first."""

    model: str = "outputs/distill/customkd/seed0"
    """Folder that holds student.safetensors and config.json."""
    store: str = ""
    """Folder or URL of a feature store, for the agreement with the teacher; empty takes the run's own where it measures
    the run's own images, none measures the student alone."""
    field: str = ""
    """Field of the store; empty takes the run's own."""
    teachers: list[TeacherConfig] = dataclasses.field(default_factory=list)
    """Further teachers, as the run was given them; the agreement is then with all of them side by side."""
    source: SourceConfig | None = None
    """Images, as for training; empty takes the run's own. A path alone names another place of the same kind,
    with all that lies there."""
    data: DataConfig | None = None
    """Which images play which part, as for training; empty takes those of the run with its own images. For a backbone,
    all images with labels take part, and a fifth of each class is measured."""
    texts: str = ""
    """Folder of a run of texts in the same teacher's space (both of task none): measures how often its test texts find
    their image (column image of their table; without it, images of the class in column label) among the run's own
    test images, and the other way round."""
    backbone: bool = False
    """Measure the features only, on any classes: k-NN, linear probe and few-shot accuracy."""
    seed: int = 0
    """Seed of the draw of labelled images, for k-NN and linear probes."""
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    workers: int = 2
    """Processes that read and decode images; 0 decodes in the same process."""
    out: str = ""
    """JSON file to write; empty writes reevaluation.json into the folder of the model."""

    def __post_init__(self) -> None:
        require(bool(self.model), "--model is empty.")
        require(
            0 <= self.seed <= MOST_SEED, f"--seed {self.seed} must lie between 0 and {MOST_SEED:,}."
        )
        require(self.workers >= 0, f"--workers {self.workers} must not be negative.")
        require(
            not self.texts or not (self.source or self.data or self.store or self.backbone),
            f"--texts {self.texts}: measures both runs on their own test parts; leave out --source, --data, --store "
            "and --backbone.",
        )


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw the pages of finished runs again, from their folders alone."""

    out: str = "outputs/distill"
    """Folder that holds METHOD/seedK/, as pipelines/distill.py or pipelines/experiments.py wrote it."""

    def __post_init__(self) -> None:
        require(bool(self.out), "--out is empty.")
