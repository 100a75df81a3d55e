"""Settings of the export command. Nothing heavy is imported here."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from featstore.sources.config import require

Format = Literal["safetensors", "onnx", "int8", "program", "executorch"]

ALL_FORMATS: tuple[Format, ...] = ("safetensors", "onnx", "int8", "program", "executorch")


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """The images that the ranges of int8 activations are measured on; no test image is among them."""

    images: int = 256
    """Images, drawn from the run's training images, the same number of every class where labels are known."""
    held_out: int = 512
    """Further images, without the ones above, on which settings of int8 are compared. Labels are not used."""
    method: Literal["auto", "minmax", "entropy", "percentile"] = "auto"
    """How a range is computed from the measured values; auto chooses on the held-out images."""
    percentile: float = 99.99
    """Share of the values, in percent, that is inside the range (percentile)."""
    weights: Literal["int7", "uint8", "int8"] = "int7"
    """Type of the weights. int7: int8 of which 7 bits are used; right on every processor and taken by every runtime.
    uint8: finer, and not for NNAPI or XNNPACK. int8: all 8 bits, for ARM and x86 with VNNI only. The others are tried
    too and reported."""
    seed: int = 0
    """Seed of the draw of images."""

    def __post_init__(self) -> None:
        require(self.images > 0, f"--calibration.images {self.images} must be positive.")
        require(self.held_out > 0, f"--calibration.held_out {self.held_out} must be positive.")
        require(
            50 < self.percentile < 100,
            f"--calibration.percentile {self.percentile} must lie between 50 and 100.",
        )
        require(self.seed >= 0, f"--calibration.seed {self.seed} must not be negative.")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Quantisation-aware fine-tuning: a short phase two from the finished student, with fake quantisation."""

    epochs: int = 4
    """Epochs of the run's own method over the run's own store and images."""
    lr_scale: float = 0.1
    """Peak learning rate as a share of the run's."""

    def __post_init__(self) -> None:
        require(self.epochs > 0, f"--finetune.epochs {self.epochs} must be positive.")
        require(self.lr_scale > 0, f"--finetune.lr_scale {self.lr_scale} must be positive.")


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """Latency of every file and of PyTorch, measured in turn in one process."""

    rounds: int = 20
    """Measurements of every model, taken in turn, of at least three calls each; 0 measures nothing."""
    batches: list[int] = field(default_factory=lambda: [1, 8])
    """Pictures per call."""
    threads: list[int] = field(default_factory=lambda: [1, 2])
    """Threads of one call; numbers above the machine's cores are left out."""

    def __post_init__(self) -> None:
        require(self.rounds >= 0, f"--latency.rounds {self.rounds} must not be negative.")
        for name in ("batches", "threads"):
            values = getattr(self, name)
            require(
                bool(values) and min(values) > 0 and len(set(values)) == len(values),
                f"--latency.{name} {values} must be different positive numbers.",
            )


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a finished run for edge devices."""

    COMMON: ClassVar[tuple[str, ...]] = (
        "model", "out", "store", "images", "formats", "bake_normalisation", "uint8_input", "calibration.images", "qat",
        "most_lost", "latency.rounds", "latency.batches", "latency.threads", "browser", "workers",
    )  # fmt: skip
    """What ``--help`` shows first."""

    model: str = "outputs/digits/distill/customkd/seed0"
    """Folder of a finished run of distill.py."""
    out: str = ""
    """Folder of the export; empty takes MODEL/export. An older export is replaced when the new one is complete."""
    store: str = ""
    """The run's feature store, if it has moved since; empty takes the path that the run was started with."""
    images: str = ""
    """The run's images, if they have moved since; empty takes the path that the run was started with."""
    formats: list[Format] = field(default_factory=list)
    """What to make; empty makes all that this installation can. One that is named and cannot be made is an error."""
    bake_normalisation: bool = False
    """Put mean and deviation into the graph: its input is then RGB between 0 and 1."""
    uint8_input: bool = False
    """With bake_normalisation: the input is bytes between 0 and 255."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    qat: Literal["auto", "always", "never"] = "auto"
    """Quantisation-aware fine-tuning; auto: where int8 loses more than ``most_lost``."""
    most_lost: float = 1.0
    """Points of test accuracy that int8 may lose before auto fine-tunes."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    browser: bool = False
    """Make browser/index.html, one file that opens from disk and runs the ONNX files on any picture."""
    browser_runtime: str = ""
    """With browser: onnxruntime-web as npm's .tgz, or its unpacked folder; empty fetches it by npm once."""
    workers: int = 2
    """Processes that read and decode images; 0 decodes in line."""

    def __post_init__(self) -> None:
        require(bool(self.model), "--model is empty.")
        require(
            self.browser or not self.browser_runtime,
            "--browser_runtime does nothing without --browser true.",
        )
        require(
            not self.browser or not self.formats or bool({"onnx", "int8"} & set(self.formats)),
            "--browser true needs the format onnx or int8.",
        )
        require(
            len(set(self.formats)) == len(self.formats), f"--formats repeats one: {self.formats}."
        )
        require(
            self.bake_normalisation or not self.uint8_input,
            "--uint8_input true needs --bake_normalisation true: bytes must be normalised in the graph.",
        )
        require(
            not self.formats or "int8" in self.formats or self.qat != "always",
            "--qat always needs the format int8.",
        )
        require(self.most_lost >= 0, f"--most_lost {self.most_lost} must not be negative.")
        require(self.workers >= 0, f"--workers {self.workers} must not be negative.")


def wants(config: ExportConfig, name: str) -> bool:
    """Whether a format is to be made."""
    return not config.formats or name in config.formats
