"""Settings of phase two, as frozen dataclasses that a YAML recipe or flags fill in.

Nothing heavy is imported here, so that a wrong flag fails at once. Values are checked on construction; an error is
a ``ConfigError`` that names the setting as it is spelled on the command line.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from featstore.config import SourceConfig, require

MethodName = Literal["labels", "features", "customkd", "probe_kd"]
Norm = Literal["none", "standardize", "layernorm", "l2"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples play which part, and which views of them the student is shown."""

    labelled: list[str] = field(default_factory=lambda: ["train/*"])
    """Shell patterns over sample ids: images whose labels may be used."""
    unlabelled: list[str] = field(default_factory=list)
    """Shell patterns: images that are used without their labels. Those drawn as labelled are left out."""
    test: list[str] = field(default_factory=lambda: ["test/*"])
    """Shell patterns: held-out images. Exact copies of them are dropped from the other two parts."""
    labels_per_class: int = 0
    """Labelled images drawn per class; 0 keeps all. What is not drawn is unlabelled if a pattern there matches."""
    label_seed: int = -1
    """Seed of that draw; -1 takes the seed of each run, so that three seeds also use three draws."""
    views: Literal["all", "canonical", "seeded"] = "all"
    """Which of the stored views training picks from, a new one at every pass over an image."""
    mirror: bool = False
    """Also pick mirrored views; refused unless the store holds them."""
    jitter: float = 0.0
    """Strength of random brightness, contrast and saturation on the student's side, 0 to 1; 0 is off."""
    cache_mb: int = 256
    """Memory for decoded views, in MB per loading process, so that small sets are decoded once; 0 is off."""

    def __post_init__(self) -> None:
        require(bool(self.labelled), "--data.labelled is empty: no image could give a label.")
        require(bool(self.test), "--data.test is empty: nothing could be measured.")
        require(
            self.labels_per_class >= 0,
            f"--data.labels_per_class {self.labels_per_class} must not be negative.",
        )
        require(
            self.label_seed >= -1,
            f"--data.label_seed {self.label_seed} must be -1 (each run's own seed) or at least 0.",
        )
        require(0 <= self.jitter <= 1, f"--data.jitter {self.jitter} must lie between 0 and 1.")
        require(self.cache_mb >= 0, f"--data.cache_mb {self.cache_mb} must not be negative.")


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The model that is trained and exported: any classifier of timm that ends in one Linear."""

    name: str = "mobilenetv3_small_050"
    """timm's model name, with a pretrained tag after a dot if wanted."""
    pretrained: bool = False
    """Start from the weights that timm fetches from the hub."""
    weights: str = ""
    """Start from a local file (safetensors, or a PyTorch file of plain tensors) with timm's keys."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of ``timm.create_model``, e.g. img_size or drop_rate."""
    image_size: int = 0
    """Side of the student's input in pixels; 0 keeps the model's own."""

    def __post_init__(self) -> None:
        require(bool(self.name), "--student.name is empty.")
        require(
            not (self.pretrained and self.weights),
            f"--student.pretrained true and --student.weights {self.weights} exclude each other; choose one.",
        )
        require(
            self.image_size >= 0, f"--student.image_size {self.image_size} must not be negative."
        )
        own = {"num_classes", "pretrained", "checkpoint_path"} & set(self.model_args)
        require(
            not own,
            f"--student.model_args must not set {', '.join(sorted(own))}: the labels decide the classes, and "
            "--student.pretrained or --student.weights the starting weights.",
        )


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Method ``features``: the student's feature, through one Linear, imitates the stored feature (MSE)."""

    weight: float = 1.0
    """Weight of the MSE beside the cross entropy."""
    norm: Norm = "none"
    """Normalisation of the stored feature."""

    def __post_init__(self) -> None:
        require(self.weight >= 0, f"--features.weight {self.weight} must not be negative.")


@dataclass(frozen=True, kw_only=True)
class CustomKDConfig:
    """Method ``customkd``. No source gives these values of the paper: all are choices of this product [I]."""

    w_general: float = 1.0
    """Weight of MSE(P_s(f_s), f_t), the task-general term."""
    w_specific: float = 1.0
    """Weight of MSE(f_s, P_t(f_t)), the task-specific term."""
    w_logits: float = 0.0
    """Weight of a further KL term towards the logits named by ``logits_from``; 0 is the method without it."""
    logits_from: Literal["custom", "probe"] = "custom"
    """custom: the student's head on P_t(f_t). probe: a linear probe on f_t."""
    temperature: float = 4.0
    """Temperature of the KL term."""
    norm: Norm = "none"
    """Normalisation of the stored feature f_t."""
    match_activation: Literal["none", "relu"] = "none"
    """relu: P_t ends in a ReLU, for students whose feature is never negative."""
    match_norm: Literal["none", "layernorm"] = "none"
    """layernorm: both sides of the task-specific MSE are normalised, which stops a drift of scale."""
    stage1_epochs: int = 1
    """Passes over the labelled features in each stage 1."""
    stage2_epochs: int = 1
    """Epochs of training between two stages 1; the paper alternates every epoch [P]."""
    stage1_batch: int = 64
    """Features per step of stage 1."""
    stage1_lr: float = 1e-3
    """Learning rate of AdamW in stage 1, constant."""
    stage1_weight_decay: float = 1e-4
    """Weight decay of AdamW in stage 1."""

    def __post_init__(self) -> None:
        for name in ("w_general", "w_specific", "w_logits", "stage1_weight_decay"):
            require(
                getattr(self, name) >= 0,
                f"--customkd.{name} {getattr(self, name)} must not be negative.",
            )
        for name in (
            "temperature",
            "stage1_epochs",
            "stage2_epochs",
            "stage1_batch",
            "stage1_lr",
        ):
            require(
                getattr(self, name) > 0,
                f"--customkd.{name} {getattr(self, name)} must be positive.",
            )


@dataclass(frozen=True, kw_only=True)
class ProbeKDConfig:
    """Method ``probe_kd``: KL towards the logits of a linear probe on the stored features (Hinton's loss)."""

    weight: float = 1.0
    """Weight of T^2 KL beside the cross entropy."""
    temperature: float = 4.0
    """T."""

    def __post_init__(self) -> None:
        require(self.weight >= 0, f"--probe_kd.weight {self.weight} must not be negative.")
        require(
            self.temperature > 0, f"--probe_kd.temperature {self.temperature} must be positive."
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop that all methods share."""

    epochs: int = 20
    """Epochs; one epoch passes once over the larger of the two training parts."""
    labelled_batch: int = 64
    """Labelled images per optimiser step, over all processes and accumulated parts."""
    unlabelled_batch: int = 64
    """Unlabelled images per optimiser step, over all processes and accumulated parts."""
    opt: str = "adamw"
    """timm's name of the optimiser."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Not applied to biases and normalisation layers."""
    momentum: float = 0.9
    """For optimisers that have one."""
    sched: Literal["cosine", "linear", "none"] = "cosine"
    """Course of the learning rate after the warm-up, down to zero, or constant (none); updated at every step."""
    warmup_epochs: int = 1
    """Epochs in which the learning rate rises from zero."""
    grad_accum: int = 1
    """Parts that the batch of one optimiser step is cut into, to save memory."""
    clip_grad: float = 0.0
    """Largest norm of the gradient; 0 is off."""
    ema: float = 0.0
    """Decay per step of a moving average of the student, which is then what is exported; 0 is off."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Arithmetic of the student's forward and backward pass."""
    workers: int = 2
    """Processes that read and decode images, for each training process; 0 decodes in line."""
    checkpoint_every: int = 0
    """Optimiser steps between two checkpoints, besides the one after every epoch."""
    log_every: int = 50
    """Optimiser steps between two logged means of the loss terms."""

    def __post_init__(self) -> None:
        for name in ("epochs", "labelled_batch", "unlabelled_batch", "grad_accum", "log_every"):
            require(
                getattr(self, name) > 0, f"--train.{name} {getattr(self, name)} must be positive."
            )
        require(self.lr > 0, f"--train.lr {self.lr} must be positive.")
        for name in ("weight_decay", "clip_grad", "warmup_epochs", "workers", "checkpoint_every"):
            require(
                getattr(self, name) >= 0,
                f"--train.{name} {getattr(self, name)} must not be negative.",
            )
        require(0 <= self.ema < 1, f"--train.ema {self.ema} must be at least 0 and below 1.")
        require(
            0 <= self.momentum < 1,
            f"--train.momentum {self.momentum} must be at least 0 and below 1.",
        )
        require(
            self.warmup_epochs < self.epochs,
            f"--train.warmup_epochs {self.warmup_epochs} must be below --train.epochs {self.epochs}.",
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How a student is measured."""

    batch_size: int = 256
    """Images per forward pass of one process."""
    every: int = 0
    """Epochs between two measurements of the test accuracy during training; 0 measures at the end only."""
    knn_k: int = 5
    """Neighbours of the k-NN classifier on the student's features."""
    probe_rows: int = 50_000
    """Most labelled images used to fit a linear probe or k-NN; more are thinned out by the run's seed."""
    bins: int = 15
    """Bins of the calibration error."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "knn_k", "probe_rows", "bins"):
            require(
                getattr(self, name) > 0, f"--eval.{name} {getattr(self, name)} must be positive."
            )
        require(self.every >= 0, f"--eval.every {self.every} must not be negative.")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Phase two: train students from a feature store and images; the teacher is not needed."""

    store: str = "outputs/store"
    """Folder of the feature store."""
    field: str = "cls"
    """Field of the store that the student imitates; one vector per view."""
    out: str = "outputs/distill"
    """Folder of the results: OUT/METHOD/seedK/ for every run, and one table over all."""
    source: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    student: StudentConfig = dataclasses.field(default_factory=StudentConfig)
    methods: list[MethodName] = dataclasses.field(default_factory=lambda: ["labels", "customkd"])
    """Methods to run one after another. labels: cross entropy only, with as many steps as the others."""
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0, 1, 2])
    """One run of each method per seed: initial weights, order, views, and the draw of labels."""
    features: FeaturesConfig = dataclasses.field(default_factory=FeaturesConfig)
    customkd: CustomKDConfig = dataclasses.field(default_factory=CustomKDConfig)
    probe_kd: ProbeKDConfig = dataclasses.field(default_factory=ProbeKDConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = dataclasses.field(
        default_factory=lambda: ["tensorboard"]
    )
    """Where curves go besides metrics.jsonl."""

    def __post_init__(self) -> None:
        for name in ("store", "field", "out"):
            require(bool(getattr(self, name)), f"--{name} is empty.")
        require(bool(self.methods), "--methods is empty: nothing would be run.")
        require(bool(self.seeds), "--seeds is empty: nothing would be run.")
        for name in ("methods", "seeds", "trackers"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"--{name} repeats one: {values}.")
        require(min(self.seeds) >= 0, f"--seeds {self.seeds} must not be negative.")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure an exported student again, on any source."""

    model: str = "outputs/distill/customkd/seed0"
    """Folder that holds student.safetensors and config.json."""
    store: str = ""
    """Feature store, for the agreement with the teacher; empty measures the student alone."""
    field: str = "cls"
    """Field of the store."""
    source: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    seed: int = 0
    """Seed of the draw of labels, for the probes and k-NN."""
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    workers: int = 2
    """Processes that read and decode images; 0 decodes in line."""
    out: str = ""
    """JSON file to write; empty writes reevaluation.json beside the model."""

    def __post_init__(self) -> None:
        require(bool(self.model), "--model is empty.")
        require(self.seed >= 0, f"--seed {self.seed} must not be negative.")
        require(self.workers >= 0, f"--workers {self.workers} must not be negative.")
