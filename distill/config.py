"""Settings of phase two, as frozen dataclasses that a YAML recipe or flags fill in.

Nothing heavy is imported here, so that a wrong flag fails at once. Values are checked on construction; an error is
a ``ConfigError`` that names the setting as it is spelled on the command line.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from distill.options import CheckedOptions
from featstore.errors import ConfigError
from featstore.sources.config import SourceConfig, require

RECIPES = Path(__file__).parent / "recipes" / "digits"
"""Recipes that the commands of phase two use without ``--config``: the digits."""

MOST_SEED = 2**32 - 2**16
"""Largest seed: numpy takes 32 bits, to which the number of the process is added."""


@dataclass(frozen=True, kw_only=True)
class PhotometricConfig(
    CheckedOptions, name="data", share=("jitter", "grayscale", "blur"), most={"hue": 0.5}
):
    """Changes of colour and sharpness. They move no pixel, so the stored feature of the view nearly holds."""

    jitter: float = 0.0
    """Strength of random brightness, contrast and saturation on the student's side, 0 to 1; 0 is off."""
    hue: float = 0.0
    """Largest random shift of the hue as a share of the colour circle, 0 to 0.5; 0 is off."""
    grayscale: float = 0.0
    """Probability that a picture is turned to grey, 0 to 1."""
    blur: float = 0.0
    """Probability that a picture is blurred, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(
    CheckedOptions, name="data.strong", most={"magnitude": 10, "cutout": 1, "translate": 0.5}
):
    """Strong copies of unlabelled images, for partners only; the losses on stored features do not use them.

    The defaults are those of semi-supervised benchmarks on CIFAR, without their flip.
    """

    ops: int = 3
    """RandAugment operations per strong view, each drawn from thirteen; 0 is off."""
    magnitude: float = 10.0
    """Largest magnitude of an operation, 0 to 10; each draws its own, uniform from 0."""
    cutout: float = 0.5
    """Largest side of the square that is painted over, as a share of the picture's side; 0 is off."""
    translate: float = 0.125
    """Largest shift along each side as a share of it, with a reflected border; 0 is off."""
    flip: bool = False
    """Mirror every second strong view; only for images that keep their meaning when mirrored."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(PhotometricConfig, name="data", free=("fold", "label_seed")):
    """Which images train, test and stay unlabelled, and which stored views of them the student is shown."""

    labelled: list[str] = field(default_factory=lambda: ["train/*"])
    """Shell patterns over sample ids: images whose labels may be used."""
    unlabelled: list[str] = field(default_factory=list)
    """Shell patterns over sample ids: images that are used without their labels. Images drawn as labelled are left
    out."""
    test: list[str] = field(default_factory=lambda: ["test/*"])
    """Shell patterns: held-out images. Exact copies of them are removed from the other two parts, of texts also those
    that differ in white space and capitals alone. Task none holds out
    5 %, at most 2,000, chosen by content, unless this is changed."""
    holdout: float = 0.0
    """Share of every class of the labelled images to hold out as the test part, in place of ``test``, e.g. 0.2; at
    least one image per class. Decided by the content of each image, so that it stays the same when files are renamed
    or images are added. 0: ``test`` names the test part. Where ``labelled`` is not set and there is no train/, all
    images are used. Task none leaves out the same images, so that a classifier that starts from its backbone is
    measured on images that neither saw."""
    fold: int = 0
    """Number of the held-out part, 0 to 1 / holdout - 1; -1 takes the run's seed, so that seeds 0 to 4 with holdout
    0.2 are a five-fold cross-validation."""
    group: str = ""
    """Regular expression searched in every sample id, e.g. 'person_\\d+'. Images with the same match (of its first
    bracket, if it has one) are never on both sides: images of the group of a test or validation image do not train."""
    labels_per_class: int = 0
    """Labelled images drawn per class; 0 keeps all. Images that are not drawn are unlabelled if a pattern there
    matches."""
    validation: int = 0
    """Labelled images per class that are held out of training, to choose settings on (--eval.part validation)."""
    validation_share: float = 0.0
    """Share of the labelled images of every class that is held out of training to choose settings by (--eval.part
    validation), decided by the content of each image; for task none, of all images. The run's seed says which of the
    1 / share parts. 0: --data.validation says how many."""
    label_seed: int = -1
    """Seed of the draw of labelled images; -1 takes each run's own seed."""
    labels: Literal["source", "teacher"] = "source"
    """Where labels come from. source: the source, else the store. teacher: the class with the largest stored logit of
    every image (--field must hold logits), so that no image needs a label; the score is then agreement with the
    teacher, not accuracy."""
    classifier: Literal["probe", "stored"] = "probe"
    """The teacher's classifier, for methods and measures that need one. probe: fitted to the stored features of
    labelled images. stored: the teacher's own, an artefact of the store (--teacher.classifier in phase one), with
    --field pooled."""
    stored: Literal["all", "unlabelled"] = "all"
    """Which images must have a row in the store. unlabelled: labelled and test images may lack one, as those of a team
    that shares soft labels of a transfer set (methods labels, and kd with --kd.target field)."""
    views: Literal["all", "canonical", "seeded"] = "all"
    """Stored views that training picks from, a new one at every pass over an image: all, canonical, or seeded
    crops."""
    seeded: int = 0
    """Number of stored seeded views to pick from, counted from the first; 0 takes all."""
    mirror: bool = False
    """Also pick mirrored views, which the store must hold."""
    taught_by: str = ""
    """Texts only: language that the teacher read. A text of another language is taught by the stored row of its
    translation in this one (same value in column pair). Empty: every text by its own row."""
    strong: AugmentConfig = field(default_factory=AugmentConfig)
    decode: Literal["full", "reduced"] = "full"
    """reduced: decode a JPEG at 1/2, 1/4 or 1/8 of its sides where the view needs no more. For photos much larger than
    the student's input: several times faster, with slightly other pixels (docs/performance.md)."""
    cache_mb: int = 256
    """Memory for decoded views in MB per loading process, so that small data sets are decoded once; 0 is off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.validation and self.validation_share) and self.validation_share <= 0.5,
            f"--data.validation_share {self.validation_share} must be 0 or a share up to 0.5, and not be given "
            "together with --data.validation.",
        )
        require(
            self.label_seed >= -1,
            f"--data.label_seed {self.label_seed} must be -1 (each run's own seed) or at least 0.",
        )
        require(
            self.holdout <= 0.5, f"--data.holdout {self.holdout} must be 0 or a share up to 0.5."
        )
        parts = round(1 / self.holdout) if self.holdout else 1
        require(
            -1 <= self.fold < parts,
            f"--data.fold {self.fold} must be from 0 to {parts - 1} with --data.holdout {self.holdout}, or -1 for the "
            "run's seed.",
        )
        try:
            re.compile(self.group)
        except re.error as error:
            raise ConfigError(
                f"--data.group {self.group}: no regular expression ({error})."
            ) from None
        require(
            not (self.seeded and self.views == "canonical"),
            f"--data.seeded {self.seeded} counts seeded views, but --data.views canonical uses none of them.",
        )


FeatureTap = Literal["prelogits", "pooled"]
"""Which of a student's vectors is its feature."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig(CheckedOptions, name="student"):
    """The model that is trained and exported: a model of timm that ends in one Linear, or any module of your own."""

    name: str = "mobilenetv3_small_050"
    """Model name in timm, with a pretrained tag after a dot if wanted."""
    factory: str = ""
    """Function that returns a torch.nn.Module, in place of a timm model: package.module:function or
    path/to/file.py:function, e.g. torchvision.models:mobilenet_v3_small."""
    features: str = ""
    """What is compared to the teacher's vector, by name: a key of the module's output, a submodule's path
    (avgpool), or output; maps are averaged. Empty: see feature; with factory the input of the last Linear where the
    module ends in one, else its output."""
    map: str = ""
    """The feature map for methods that compare grids, likewise. Empty: the last one before pooling."""
    pretrained: bool | Literal["auto"] = False
    """Start from pretrained weights, which timm downloads. auto: where timm has some for the model, and neither weights
    nor factory are given."""
    weights: str = ""
    """Start from a local file (safetensors, or a PyTorch file of plain tensors) with timm's keys.
    ``{seed}`` in it is replaced by the run's seed."""
    freeze: bool = False
    """Train the last layer (or the task's own head) alone: all before it keeps its weights and the statistics of its
    batch norm. For a distilled backbone (weights) and few labels."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model or of factory, e.g. {drop_rate: 0.1}."""
    mean: list[float] = field(default_factory=list)
    """Channel means that the student's input is normalised with; empty takes the model's own, or ImageNet's with
    factory."""
    std: list[float] = field(default_factory=list)
    """Channel deviations, likewise."""
    image_size: int = 0
    """Side of the student's input in pixels; 0 keeps the model's own."""
    feature: FeatureTap = "prelogits"
    """Feature of the student that methods compare: the input of the last Linear (prelogits), or the output of global
    pooling (pooled), for models with layers between the two. All layers after it are the head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.name or self.factory), "--student.name is empty.")
        for name in ("mean", "std"):
            value = getattr(self, name)
            require(
                not value or (len(value) == 3 and (name == "mean" or min(value) > 0)),
                f"--student.{name} {value}: expected three numbers, deviations above 0.",
            )
        require(
            not self.factory or (self.feature == "prelogits" and self.pretrained is not True),
            "--student.factory: --student.feature and --student.pretrained are for timm's models. Use "
            "--student.features, and the function's own arguments in --student.model_args.",
        )
        require(
            self.feature == "prelogits" or not (self.features or self.map),
            f"--student.feature {self.feature} excludes --student.features and --student.map; choose one.",
        )
        require(
            not (self.pretrained is True and self.weights),
            f"--student.pretrained true and --student.weights {self.weights} exclude each other; choose one.",
        )
        require(
            not self.freeze or bool(self.pretrained or self.weights or self.factory),
            "--student.freeze true would keep random weights. Give a backbone: --student.weights RUN, or "
            "--student.pretrained true.",
        )
        own = {"num_classes", "pretrained", "checkpoint_path"} & set(self.model_args)
        own = set() if self.factory else own
        require(
            not own,
            f"--student.model_args must not set {', '.join(sorted(own))}: the labels decide the classes, and "
            "--student.pretrained or --student.weights the starting weights.",
        )

    @property
    def title(self) -> str:
        """Name of the model for tables and messages: timm's, or that of the function."""
        return self.factory.rpartition(":")[2] or self.name

    @property
    def setting(self) -> str:
        """Name of the model with its flag, for messages."""
        return (
            f"--student.factory {self.factory}" if self.factory else f"--student.name {self.name}"
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    CheckedOptions,
    name="train",
    positive=("epochs", "labelled_batch", "unlabelled_batch", "grad_accum", "log_every", "lr"),
    momentum=("ema", "momentum"),
):
    """The loop that all methods share."""

    epochs: int = 20
    """Number of epochs; one epoch passes once over the larger of the labelled and the unlabelled part."""
    epoch_steps: int = 0
    """Optimiser steps of an epoch, for parts so large that a pass takes too long; 0: one pass."""
    min_epoch_steps: int = 0
    """Least optimiser steps of an epoch, for parts so small that a pass is a few steps: it then passes over them more
    than once. Not used with epoch_steps."""
    finetune_epochs: int = 0
    """Number of last epochs that train on labels only, with all other loss terms switched off."""
    labelled_batch: int = 64
    """Labelled images per optimiser step, over all processes and accumulated parts."""
    unlabelled_batch: int = 64
    """Unlabelled images per optimiser step, over all processes and accumulated parts."""
    opt: str = "adamw"
    """Name of the optimiser in timm."""
    lr: float = 1e-3
    """Peak learning rate, reached after the warm-up."""
    weight_decay: float = 0.01
    """Weight decay; not applied to biases and normalisation layers."""
    momentum: float = 0.9
    """Momentum of optimisers that have one, 0 to below 1."""
    sched: Literal["cosine", "linear", "none"] = "cosine"
    """Course of the learning rate after the warm-up: cosine or linear to zero, or constant (none); updated every
    step."""
    warmup_epochs: int = 1
    """Epochs in which the learning rate rises linearly from zero."""
    grad_accum: int = 1
    """Parts that the batch of one optimiser step is split into to save memory."""
    clip_grad: float = 0.0
    """Largest norm of the gradient; 0 is off."""
    ema: float = 0.0
    """Decay per step of a moving average of the student, 0 to below 1; the average is then exported. 0 is off."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Arithmetic of the student's forward and backward pass: float32 (no), bf16 or fp16."""
    compile: bool = False
    """Compile the student's forward and backward pass in training (torch.compile; on a CPU it needs a C++ compiler).
    The first step then takes a minute or more; results differ in the last bits."""
    workers: int = 2
    """Processes that read and decode images, per training process; 0 decodes in the training process."""
    checkpoint_every: int = 0
    """Optimiser steps between two checkpoints, in addition to the one after every epoch; 0: none in addition."""
    log_every: int = 50
    """Optimiser steps between two lines in metrics.jsonl with the mean of every loss term."""
    keep_best: bool = False
    """Export the student of the epoch with the best score on the held-out images, not that of the last one."""
    patience: int = 0
    """Epochs without a better score after which training ends; 0 trains to the end. Only with keep_best."""
    time_limit: float = 0.0
    """Minutes after which the run writes a checkpoint and ends; run the same command again to resume. 0: no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.keep_best or not self.patience,
            f"--train.patience {self.patience} needs --train.keep_best true.",
        )
        require(
            self.finetune_epochs <= self.epochs,
            f"--train.finetune_epochs {self.finetune_epochs} must not be above --train.epochs {self.epochs}.",
        )
        require(
            self.warmup_epochs < self.epochs,
            f"--train.warmup_epochs {self.warmup_epochs} must be below --train.epochs {self.epochs}.",
        )


CorruptionName = Literal[
    "gaussian_noise", "shot_noise", "defocus_blur", "motion_blur", "contrast", "brightness", "jpeg", "pixelate",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvalConfig(
    CheckedOptions,
    name="eval",
    positive=("batch_size", "knn_k", "neighbours", "probe_rows", "bins"),
):
    """How a student is measured."""

    part: Literal["test", "validation"] = "test"
    """Images that the student is measured on: test, or validation (--data.validation) to choose settings."""
    batch_size: int = 256
    """Images per forward pass of one process."""
    every: int = 0
    """Epochs between two measurements of the score during training; 0: at the end only, for task none every epoch."""
    knn_k: int = 5
    """Neighbours of the k-NN classifier on the student's features."""
    neighbours: int = 10
    """k of the agreement of nearest neighbours with the teacher's, the score of task none."""
    probe_rows: int = 50_000
    """Most labelled images that a linear probe or k-NN is fitted on; drawn by the run's seed if there are more."""
    bins: int = 15
    """Bins of the expected calibration error."""
    corruptions: list[CorruptionName | Literal["all"]] = field(default_factory=list)
    """Corruptions of the test images under which the accuracy is measured too, at severities 1 to 5; all: every one.
    Each costs five more passes over the test part; none by default, so that training runs stay short."""


@dataclass(frozen=True, kw_only=True)
class AutoConfig:
    """How --methods '[auto]' chooses a method and its weights (docs/methods.md)."""

    budget: str = ""
    """What all tries together may take: a time (2h, 30m, 90s) or a number of optimiser steps; empty: the steps of six
    runs of full length. The chosen method is then trained with all seeds."""

    def __post_init__(self) -> None:
        require(
            not self.budget
            or bool(
                re.fullmatch(r"\d+|\d*\.?\d+[hms]", self.budget) and self.steps + self.seconds > 0
            ),
            f"--auto.budget {self.budget}: expected a time such as 2h, 30m or 90s, or a number of optimiser steps.",
        )

    @property
    def steps(self) -> int:
        """Optimiser steps; 0 if the budget is a time, or is left to the program."""
        return int(self.budget) if self.budget.isdecimal() else 0

    @property
    def seconds(self) -> float:
        """Time; 0 if the budget is none."""
        unit = {"h": 3600, "m": 60, "s": 1}.get(self.budget[-1:], 0)
        return float(self.budget[:-1]) * unit if unit else 0.0


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A further teacher: one vector field of another feature store of the same images."""

    store: str = ""
    """Folder or URL of its feature store; rows are found by sample id, then by content."""
    field: str = "cls"
    """Field of that store with one vector per view."""
    weight: float = 1.0
    """Weight of this teacher; only the ratio to --teacher_weight and to other teachers counts."""

    def __post_init__(self) -> None:
        require(bool(self.store), "--teachers: store is empty.")
        require(bool(self.field), "--teachers: field is empty.")
        require(self.weight > 0, f"--teachers: weight {self.weight} must be positive.")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Phase two: train students from a feature store and images. The teacher is not needed."""

    COMMON: ClassVar[tuple[str, ...]] = (
        "store", "field", "source.kind", "source.path", "source.labels_from", "data.labelled", "data.test",
        "data.holdout", "data.labels_per_class", "student.name", "student.weights", "student.image_size", "task",
        "methods", "seeds", "out", "train.epochs", "train.lr", "train.labelled_batch", "train.workers",
    )  # fmt: skip
    """What ``--help`` shows first."""

    store: str = "outputs/store"
    """Folder or URL (s3://, https://, ...) of the feature store; what is read from a URL is cached."""
    field: str = "cls"
    """Field of the store that the student imitates, with one vector per view."""
    teacher_weight: float = 1.0
    """Weight of this teacher where --teachers names further ones."""
    teachers: list[TeacherConfig] = dataclasses.field(default_factory=list)
    """Further teachers: '[{store: DIR, field: pooled, weight: 0.5}]'. Vectors are put side by side; a squared error
    over them is the weighted mean of the teachers' own."""
    grid_field: str = ""
    """Field with patch grids, for methods that need one; empty takes the largest gridK of the store."""
    out: str = "outputs/distill"
    """Folder of the results: OUT/METHOD/seedK for every run, and tables and a page over all."""
    source: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    student: StudentConfig = dataclasses.field(default_factory=StudentConfig)
    task: str = "auto"
    """Task of the student. none: a backbone, taught by the stored features of all images; no label is needed.
    classify: a classifier. auto: classify where images with labels were chosen or found by --data, else none. Further
    ones in docs/tasks.md."""
    methods: list[str] = dataclasses.field(default_factory=list)
    """Methods to run one after another; empty takes those of the task: labels and customkd, or fitnet without labels.
    [auto] tries several with several weights and trains the best (--auto.budget). labels: cross entropy only, with as
    many steps as the others."""
    auto: AutoConfig = dataclasses.field(default_factory=AutoConfig)
    partner: str = "none"
    """Semi-supervised or domain-adaptation loss on the student's predictions, added to every method."""
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0, 1, 2])
    """Seeds of the runs, one run per method and seed; a seed decides initial weights, order, views and the draw of
    labels."""
    plugins: list[str] = dataclasses.field(default_factory=list)
    """Python files of yours that call ``distill.register_method`` or ``distill.register_task``, read first."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """By name of a method, partner or task: its options, an instance of its class. In recipes and as flags each name
    is a section of its own (``--kd.weight 2``). What is missing has its defaults; see ``register.options_of``."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = dataclasses.field(
        default_factory=lambda: ["tensorboard"]
    )
    """Experiment trackers that curves are sent to; metrics.jsonl is always written."""
    report: bool = True
    """Draw report.html for every run, and a page in OUT that compares all runs."""

    def __post_init__(self) -> None:
        for name in ("store", "field", "out"):
            require(bool(getattr(self, name)), f"--{name} is empty.")
        require(
            self.teacher_weight > 0, f"--teacher_weight {self.teacher_weight} must be positive."
        )
        require(bool(self.seeds), "--seeds is empty: nothing would be run.")
        for name in ("methods", "seeds", "trackers"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"--{name} repeats one: {values}.")
        require(
            "auto" not in self.methods or len(self.methods) == 1,
            f"--methods {self.methods}: auto stands alone; it chooses one method.",
        )
        require(
            min(self.seeds) >= 0 and max(self.seeds) <= MOST_SEED,
            f"--seeds {self.seeds} must lie between 0 and {MOST_SEED:,}.",
        )

    def plain(self) -> dict[str, Any]:
        """All settings as a recipe holds them."""
        values = dataclasses.asdict(self)
        options = values.pop("options")
        return {**values, **options}
