"""Settings of phase one, as frozen dataclasses that a YAML recipe or flags fill in.

Nothing heavy is imported here, so that a wrong flag fails at once. Values are checked on construction; an error is
a ``ConfigError`` that names the setting as it is spelled on the command line.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from featstore.extraction.field_names import check_fields
from featstore.format.pictures import PICTURES, PictureFormat
from featstore.sources.config import SourceConfig, require

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "digits" / "extract.yaml"
"""Recipe that is used without ``--config``: the digits, and the small teacher beside it."""


LIBRARIES = {"text": ("transformers", "open_clip", "onnx"), "points": ("python",)}
"""Libraries of the teachers of samples that are no images, by kind of the source."""
OF_TEXTS = ("tokenizer", "max_tokens", "pooling")
OF_IMAGES = ("image_size", "crop_pct", "mean", "std", "interpolation")
"""Settings of a teacher that only texts, or only images have."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The frozen model whose features are stored."""

    library: Literal["timm", "open_clip", "transformers", "onnx", "python", "run"] = "timm"
    """Where the model comes from. transformers: a name on the hub or a folder. onnx: a model file. python: a function
    of your own. run: the folder of a finished run of phase two, whose student becomes the teacher."""
    name: str = "vit_large_patch14_dinov2.lvd142m"
    """timm: model name with its pretrained tag after a dot, e.g. vit_small_patch14_dinov2.lvd142m; local weights need
    the tag too: it decides the preprocessing. python: package.module:function or path/to/file.py:function."""
    tag: str = ""
    """open_clip only: the pretrained tag, e.g. laion2b_s32b_b82k; with local weights, the tag that they are of."""
    weights: str = ""
    """Local weights (safetensors, or a PyTorch file of plain tensors) instead of the hub's."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the library's create_model, e.g. img_size; python: arguments of the function."""
    tokenizer: str = ""
    """Texts only: a tokenizer.json, or the vocabulary of a lower-case WordPiece tokenizer (vocab.txt). transformers and
    open_clip take the model's own."""
    max_tokens: int = 0
    """Texts only: longest input with special tokens, the rest of a text is cut off; 0: the model's own, at most 128."""
    pooling: Literal["", "mean", "cls"] = ""
    """Texts only: how the field pooled is made of the tokens; empty: as the model's folder states, else their mean."""
    licence: str = ""
    """Licence of the weights, written into the manifest; taken from the library where it states one."""
    image_size: int = 0
    """Side of the teacher's input in pixels; 0 keeps the model's own."""
    crop_pct: float = 0.0
    """Share of the resized image that the canonical crop keeps; 0 keeps the model's own."""
    mean: list[float] = field(default_factory=list)
    """Channel means of the normalisation; empty keeps the model's own."""
    std: list[float] = field(default_factory=list)
    """Channel standard deviations of the normalisation; empty keeps the model's own."""
    interpolation: Literal["", "bicubic", "bilinear", "lanczos", "nearest"] = ""
    """Resampling of the preprocessing; empty keeps the model's own."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass (autocast); the stored dtype is ``store.dtype``. auto: half precision where the
    hardware computes in it, else fp32; a store that is there already keeps its own."""
    bn_mode: Literal["eval", "batch"] = "eval"
    """Statistics that the teacher's batch normalisation uses: its own (eval), or those of the batch, for inputs unlike
    its training images. batch makes a row depend on the rows beside it: batches are --batch_size rows in the order of
    the ids, and a store keeps its batch size."""
    classifier: bool = False
    """timm and run: also keep the classifier, one Linear on the field pooled, as the artefact classifier of the store.
    Phase two takes it in place of a fitted probe (--data.classifier stored)."""
    compile: bool = False
    """Run the teacher through torch.compile."""

    def __post_init__(self) -> None:
        require(bool(self.name), "--teacher.name is empty.")
        require(
            self.library == "open_clip" or not self.tag,
            f"--teacher.tag {self.tag!r} is for open_clip; with timm the tag follows the name after a dot.",
        )
        require(
            self.library != "onnx" or (self.precision in ("auto", "fp32") and not self.compile),
            "--teacher.library onnx: the model file fixes its arithmetic; leave out --teacher.precision and "
            "--teacher.compile.",
        )
        require(
            self.max_tokens >= 0, f"--teacher.max_tokens {self.max_tokens} must not be negative."
        )
        require(
            self.image_size >= 0, f"--teacher.image_size {self.image_size} must not be negative."
        )
        require(
            0 <= self.crop_pct <= 1, f"--teacher.crop_pct {self.crop_pct} must lie between 0 and 1."
        )
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            require(
                count in (0, 3), f"--teacher.{name} has {count} values; one for each of 3 channels."
            )


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Which parts of each image the teacher sees."""

    canonical: bool = True
    """The region of the teacher's own evaluation transform."""
    seeded: int = 0
    """Number of random resized crops per image; a student can replay them exactly. Each costs one more pass of the
    teacher, and pays where training shows an image many times."""
    mirrored: bool = False
    """Store every view a second time, mirrored left to right."""
    seed: int = 0
    """Seed of the crops; with an image's id and the number of the crop it decides the region."""
    scale: list[float] = field(default_factory=lambda: [0.35, 1.0])
    """Share of the image's area that a seeded crop covers, smallest and largest."""
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    """Width over height of a seeded crop, smallest and largest."""

    def __post_init__(self) -> None:
        require(self.seeded >= 0, f"--views.seeded {self.seeded} must not be negative.")
        require(self.seed >= 0, f"--views.seed {self.seed} must not be negative.")
        require(
            self.canonical or self.seeded > 0,
            "--views.canonical false with --views.seeded 0 leaves no view to store.",
        )
        require(
            len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1,
            f"--views.scale {self.scale} must be two numbers, 0 < low <= high <= 1.",
        )
        require(
            len(self.ratio) == 2 and 0 < self.ratio[0] <= self.ratio[1],
            f"--views.ratio {self.ratio} must be two numbers, 0 < low <= high.",
        )


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """What is written, and where."""

    path: str = "outputs/store"
    """Folder of the store, or its URL in a bucket: s3://bucket/store, gs://, az://."""
    fields: list[str] = field(default_factory=lambda: ["cls"])
    """cls, mean, pooled, tokens, registers, projected, logits, gridK (patch grid pooled to K x K, e.g. grid7),
    logits_topK (the K largest logits and their classes), confidence, argmax (one number each, of the classifier),
    blockN.cls, blockN.gridK and so on (output of transformer block N, from 0), q, k, v (of the last block; q.cls,
    k.grid7). onnx, python: also the model's own outputs."""
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    """int8: standardised by channel, one scale per row, measured error in the manifest; half the bytes of float16."""
    container: Literal["zarr", "webdataset"] = "zarr"
    """zarr: arrays that are memory-mapped. webdataset: tars that mirror the image tars, for streaming."""
    codec: Literal["raw", "zstd", "bitshuffle"] = "raw"
    """zarr only. raw: rows can be memory-mapped. zstd, bitshuffle: for archives; float features hardly compress."""
    calibration_rows: int = 256
    """dtype int8 only: images, evenly spaced, on which scales and error are measured."""
    pictures: int = 0
    """Also store a copy of every image with this shorter side in pixels (field pictures), e.g. 224: phase two then
    needs no original file, and decodes several times faster. 0: none. Mind the licence of the images."""
    picture_quality: int = 90
    """JPEG quality of these copies, 1 to 100; 0 stores uncompressed pixels."""
    shard_rows: int = 4096
    """Most rows of one shard, the unit of work of a process: an interruption loses at most the shards in work."""
    shard_s: int = 60
    """Most seconds of one shard (of a batch or more), as measured when the store is made; 0 cuts by rows and megabytes
    alone. A store that is there keeps its shards."""
    shard_mb: int = 256
    """Most megabytes of one shard object; wide fields get fewer rows."""
    lease_s: int = 60
    """Seconds without a sign of life after which another process takes over a shard; longer where disks hang."""

    def __post_init__(self) -> None:
        require(bool(self.path), "--store.path is empty.")
        require(bool(self.fields), "--store.fields is empty: nothing would be stored.")
        require(
            len(set(self.fields)) == len(self.fields), f"--store.fields repeats one: {self.fields}."
        )
        require(
            self.container == "zarr" or self.codec == "raw",
            f"--store.codec {self.codec} needs --store.container zarr; tars are compressed from outside.",
        )
        require(
            self.calibration_rows > 0,
            f"--store.calibration_rows {self.calibration_rows} must be positive.",
        )
        require(
            0 <= self.pictures <= 4096,
            f"--store.pictures {self.pictures} must lie between 0 and 4096 pixels.",
        )
        require(
            0 <= self.picture_quality <= 100,
            f"--store.picture_quality {self.picture_quality} must lie between 0 and 100.",
        )
        require(
            not self.pictures or PICTURES not in self.fields,
            f"--store.fields {PICTURES}: the name of the field that --store.pictures writes.",
        )
        require(self.shard_rows > 0, f"--store.shard_rows {self.shard_rows} must be positive.")
        require(self.shard_s >= 0, f"--store.shard_s {self.shard_s} must not be negative.")
        require(self.shard_mb > 0, f"--store.shard_mb {self.shard_mb} must be positive.")
        require(self.lease_s > 0, f"--store.lease_s {self.lease_s} must be positive.")

    @property
    def picture_format(self) -> PictureFormat | None:
        """How copies of the images are made; None if none are stored."""
        return PictureFormat(self.pictures, self.picture_quality) if self.pictures else None


@dataclass(frozen=True, kw_only=True)
class TextTableConfig:
    """Texts that the teacher's text side embeds, kept in the store as artefact ``texts.<name>``."""

    name: str = "classes"
    """Name of the table, e.g. one for each set of classes and language."""
    names: str = ""
    """Text file with one name per line, or name, tab and a text to use in its place; empty takes the classes of the
    images."""
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    """Prompts, with {} for the name; the mean direction of all of them stands for the name."""

    def __post_init__(self) -> None:
        require(bool(self.name), "--texts: name is empty.")
        require(bool(self.templates), f"--texts {self.name}: templates are empty.")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Phase one: run a frozen teacher once over the images and write its features into a store."""

    COMMON: ClassVar[tuple[str, ...]] = (
        "source.kind", "source.path", "source.include", "source.labels_from", "source.labels", "teacher.library",
        "teacher.name", "teacher.weights", "teacher.image_size", "teacher.precision", "views.seeded", "store.path",
        "store.fields", "store.dtype", "store.container", "batch_size", "workers", "dry_run", "repair", "append",
    )  # fmt: skip
    """What ``--help`` shows first."""

    source: SourceConfig = field(default_factory=SourceConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    texts: list[TextTableConfig] = field(default_factory=list)
    """Text tables from the teacher's text side (open_clip), for zero-shot students; fields must include projected."""
    batch_size: int = 64
    """Images per forward pass of one process. Part of the contract: it can change a feature's last bits."""
    workers: int = 2
    """Processes that read and decode images, for each process with a teacher; 0 decodes in line."""
    max_invalid_share: float = 0.01
    """Share of unusable images above which the run ends with exit status 3."""
    dry_run: bool = False
    """Print the plan and stop."""
    repair: bool = False
    """Check every byte of the store first, and make damaged shards again."""
    append: bool = False
    """The source has more images than the finished store: run only those through the teacher, and put them behind its
    rows. Every other image is read once, and compared with what the store was made of."""

    def __post_init__(self) -> None:
        check_fields(self.store.fields, library=self.teacher.library)
        require(
            not self.texts or "projected" in self.store.fields,
            f"--texts: texts are in the space of field projected; --store.fields has {self.store.fields}.",
        )
        named = [table.name for table in self.texts]
        require(len(set(named)) == len(named), f"--texts: names repeat: {named}.")
        self._check_kind()
        if self.teacher.bn_mode == "batch":
            self._check_batch_statistics()
        require(self.batch_size > 0, f"--batch_size {self.batch_size} must be positive.")
        require(self.workers >= 0, f"--workers {self.workers} must not be negative.")
        require(
            0 <= self.max_invalid_share <= 1,
            f"--max_invalid_share {self.max_invalid_share} must lie between 0 and 1.",
        )
        require(
            not (self.repair and self.dry_run),
            "--repair takes damaged shards back, --dry_run changes nothing; to look only: featstore verify STORE.",
        )
        require(
            not (self.repair and self.append),
            "--repair and --append are two runs: first make the store whole, then let it grow.",
        )

    @property
    def of_texts(self) -> bool:
        """Whether the samples are texts."""
        return self.source.kind == "text"

    def _check_batch_statistics(self) -> None:
        """Refuse what would put rows into other batches than those that the manifest states."""
        for found, what in (
            (self.append, "--append"),
            (self.store.dtype == "int8", "--store.dtype int8"),
            (self.store.container == "webdataset", "--store.container webdataset"),
            (self.teacher.library == "onnx", "--teacher.library onnx"),
            (self.batch_size < 2, "--batch_size 1"),
        ):
            require(not found, f"--teacher.bn_mode batch: does not go with {what}.")

    def _check_kind(self) -> None:
        """Refuse settings that do not go with the kind of the samples."""
        kind = self.source.kind
        if not self.of_texts:
            given = [name for name in OF_TEXTS if getattr(self.teacher, name)]
            require(not given, f"--teacher.{given and given[0]} is for texts (--source.kind text).")
        if kind not in LIBRARIES:
            return
        require(
            self.teacher.library in LIBRARIES[kind],
            f"--teacher.library {self.teacher.library}: with --source.kind {kind}, teachers are of "
            f"{', '.join(LIBRARIES[kind])}.",
        )
        given = [f"--teacher.{name}" for name in OF_IMAGES if getattr(self.teacher, name)]
        given += [
            f"--views.{name}"
            for name in ("seeded", "mirrored")
            if getattr(self.views, name) != getattr(ViewsConfig, name)
        ]
        given += ["--store.pictures"] if self.store.pictures else []
        given += ["--texts"] if self.texts else []
        given += ["--store.dtype int8"] if kind == "points" and self.store.dtype == "int8" else []
        require(not given, f"{', '.join(given)}: is for images, but --source.kind is {kind}.")
