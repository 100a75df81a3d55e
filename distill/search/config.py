"""Settings of ``distill search``."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from distill.config import DataConfig, DistillConfig
from distill.options import CheckedOptions
from featstore.sources.config import SourceConfig, require

Weights = Literal["gaussian", "kaiming"]
ScoreName = Literal[
    "relation", "semantic", "semantic_ours", "diswot", "diswot_ours", "parameters", "macs"
]
"""Keys of ``scores.SCORES``."""


@dataclass(frozen=True, kw_only=True)
class LimitConfig(CheckedOptions, name="limit", positive=("threads",)):
    """What a student may cost at most; 0 is no limit."""

    parameters: float = 0.0
    """Number of parameters, e.g. 1.5e6."""
    macs: float = 0.0
    """Multiply-adds of one image."""
    latency_ms: float = 0.0
    """Median time of one image with ONNX Runtime on this machine, in ms. Every student that meets the other limits is
    then exported and timed, which takes seconds."""
    threads: int = 1
    """Threads of a call, for the latency."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(CheckedOptions, name="probe", positive=("draws",)):
    """The batch that untrained students are shown, and their weights."""

    images: int = 64
    """Images of the batch, drawn from those for training."""
    init: Weights = "gaussian"
    """Weights of convolutions and linear layers: N(0, 1), as in the paper (gaussian), or Kaiming's normal."""
    draws: int = 1
    """Draws of initial weights; the score is the mean over them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.images >= 2, f"--probe.images {self.images} must be at least 2.")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Find a student for a store by scores of untrained models, under limits. Nothing is trained."""

    COMMON: ClassVar[tuple[str, ...]] = (
        "store", "field", "source.kind", "source.path", "data.labelled", "space", "score", "limit.parameters",
        "limit.macs", "limit.latency_ms", "tries", "against", "slices", "out",
    )  # fmt: skip
    """What ``--help`` shows first."""

    store: str = "outputs/store"
    """Folder or URL of the feature store."""
    field: str = "cls"
    """Field of the store with one vector per view."""
    grid_field: str = ""
    """Field with patch grids that gives the teacher's relations of images; empty: the vector."""
    source: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    out: str = "outputs/search"
    """Folder of the results."""
    space: dict[str, Any] = dataclasses.field(default_factory=dict)
    """By name of a family: settings of its students (name, image_size, model_args, ...), where ``{one_of: [...]}`` and
    ``{range: [lowest, highest, step]}`` stand for choices."""
    score: ScoreName = "relation"
    """What students are ranked by, see docs/edge.md."""
    limit: LimitConfig = dataclasses.field(default_factory=LimitConfig)
    probe: ProbeConfig = dataclasses.field(default_factory=ProbeConfig)
    tries: int = 1000
    """Students that are looked at. A space of no more than this is scored as a whole."""
    population: int = 64
    """Best students so far, of which one is changed for the next try."""
    mutations: int = 2
    """Choices of a student that are changed for the next try."""
    seed: int = 0
    """Seed of the probe batch, the initial weights and the search."""
    against: str = ""
    """Folder with finished runs: no search; the students of these runs are scored, and the scores compared with what
    the runs reached."""
    bins: int = 3
    """With against: bins of equally many students, by parameters."""
    slices: list[str] = dataclasses.field(default_factory=list)
    """Folders of finished runs of method autodistil: no space; the sizes of their slimmable students are ranked by
    their loss, and the best that fits is written as an ordinary model. Store, images and task are the first run's."""
    measure: int = 0
    """With slices: sizes that are also measured on the test part, evenly spread by parameters, and the best one."""

    def __post_init__(self) -> None:
        for name in ("store", "field", "out"):
            require(bool(getattr(self, name)), f"--{name} is empty.")
        for name in ("tries", "population", "mutations", "bins"):
            require(getattr(self, name) >= 1, f"--{name} {getattr(self, name)} must be at least 1.")
        require(self.seed >= 0, f"--seed {self.seed} must not be negative.")
        require(
            self.score in get_args(ScoreName),
            f"--score {self.score}: there is no such score. Expected one of {', '.join(get_args(ScoreName))}.",
        )
        require(
            bool(self.space or self.against or self.slices),
            "--space is empty: name families of students in a recipe, finished runs (--against DIR), or slimmable "
            "students (--slices RUN).",
        )
        require(self.measure >= 0, f"--measure {self.measure} must not be negative.")

    def run(self) -> DistillConfig:
        """The settings of store and images as those of a run."""
        return DistillConfig(
            store=self.store, field=self.field, grid_field=self.grid_field, source=self.source, data=self.data,
            seeds=[self.seed],
        )  # fmt: skip
