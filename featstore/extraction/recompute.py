"""Run the teacher again on some images of a store and compare the features with the stored ones.

Checksums show that bytes are unchanged since they were written. This checks what was written: the teacher named by the
manifest is built again, its weights are hashed, and images from the reader's own copy of the source go through it. A
manifest from another team chooses the shape of a model, but no file, address or code.
"""

# n rows, V views, ... the axes of a field, C classes

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from featstore.errors import (
    ConfigError,
    ManifestMismatch,
    MissingSamples,
    TeacherError,
    printable,
    shorten,
)
from featstore.extraction.config import TeacherConfig
from featstore.extraction.field_names import FIELD, OWN_NAMES
from featstore.extraction.images import inputs_of
from featstore.extraction.shards import run_teacher
from featstore.extraction.teachers import Teacher, build_teacher
from featstore.files.array_types import Array
from featstore.format.manifest import recorded_differences
from featstore.format.manifest_records import (
    FieldRecord,
    Int8Encoding,
    PreprocessingRecord,
    TeacherRecord,
    TopKEncoding,
)
from featstore.reading.store import FeatureStore
from featstore.sources import Source, open_source
from featstore.sources.config import SourceConfig

ARITHMETIC = {"fp32": 2e-3, "fp16": 1e-2, "bf16": 5e-2}
"""Relative error (L2, of one row and view) that another machine, library or batch may cause, by the precision of the
forward pass. fp32 leaves room for TF32 in convolutions, which is what GPUs compute them in unless told otherwise."""

ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-9}
"""Relative error of rounding to a stored type: half a unit in the last place."""

INT8_SPREAD = 3.0
"""An int8 field's manifest states the mean error; a single row may have this many times as much."""

INT8_MOST = 0.2  # largest error that eight bits cause; a larger one in a manifest is not believed
BATCH_BYTES = 64 * 2**20  # most bytes of decoded views in memory at a time
MOST_SIDE = 4096  # longest side of a teacher's input, pixels

_LOADING = re.compile(
    r"pretrain|checkpoint|cache|path|file|dir|url|hub|device|jit|load|trust|code|revision",
    re.IGNORECASE,
)
BY_PATH = ("transformers", "onnx", "run")
"""Libraries whose model is a file or folder that the reader has to name; the manifest does not say where it lies."""

_WORD = re.compile(r"[A-Za-z0-9_-]{0,64}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{0,200}")


@dataclass
class FieldComparison:
    """One field, as stored and as computed again."""

    field: str
    teacher: str
    tolerance: float  # largest relative L2 that counts as equal
    rows: int = 0  # that were compared
    max_abs: float = 0.0  # largest difference of two numbers
    relative_l2: float = 0.0  # largest |stored - computed| / |computed| of one view of one row
    cosine: float = 1.0  # smallest, of the same vectors
    worst: str = ""  # sample id of the row with the largest relative L2
    problem: str = ""  # what else is wrong; "" if nothing

    @property
    def sound(self) -> bool:
        """Whether what is stored is what the teacher gives."""
        return not self.problem and self.relative_l2 <= self.tolerance

    def add(self, sample_id: str, stored: Array, computed: Array) -> None:
        """Compare one row.

        Args:
            stored: (V, ...) finite.
            computed: (V, ...).
        """
        if stored.shape != computed.shape:
            self.problem = f"stored as {stored.shape} a row, the teacher gives {computed.shape}"
            return
        exact = computed.astype(np.float64).reshape(len(computed), -1)
        found = stored.astype(np.float64).reshape(exact.shape)
        if not np.isfinite(exact).all():
            self.problem = f"{printable(sample_id)}: what the teacher gives is not finite"
            return
        difference = found - exact
        length = np.maximum(np.linalg.norm(exact, axis=1), np.finfo(np.float32).tiny)
        relative = float((np.linalg.norm(difference, axis=1) / length).max())
        product = np.maximum(length * np.linalg.norm(found, axis=1), np.finfo(np.float32).tiny)
        self.rows += 1
        self.max_abs = max(self.max_abs, float(np.abs(difference).max()))
        self.cosine = min(self.cosine, float(((exact * found).sum(axis=1) / product).min()))
        if relative >= self.relative_l2:
            self.relative_l2, self.worst = relative, sample_id


@dataclass
class Recomputed:
    """Result of a comparison."""

    path: Path  # folder of the store
    rows: int = 0  # images that went through the teacher
    in_source: int = 0  # valid rows of the store that the given source has, by id
    valid: int = 0  # valid rows of the store
    # ids of sampled rows whose image is another one here than the one that was extracted
    other_content: list[str] = field(default_factory=list)
    # sampled rows whose image cannot be used here, though the store says that it could, with the reason
    unusable: list[str] = field(default_factory=list)
    # fields that cannot be computed again, with the reason
    skipped: dict[str, str] = field(default_factory=dict)
    fields: list[FieldComparison] = field(default_factory=list)  # the comparisons

    @property
    def sound(self) -> bool:
        """Whether every image and every field is the one that was extracted."""
        if self.other_content or self.unusable or not self.rows:
            return False
        return all(item.sound for item in self.fields)


def recompute(
    path: str | Path,
    *,
    source: SourceConfig,
    rows: int,
    seed: int = 0,
    weights: Mapping[str, str] | None = None,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Recomputed:
    """Compare features of some random rows with those that their teachers give.

    Args:
        source: the reader's own copy of the images; not what the manifest says of theirs.
        rows: how many to draw, among the valid ones whose ids the source has.
        weights: by name of teacher, "" for the only one: the file of weights, where the hub is not to be asked; of
            transformers, onnx and run the folder or file of the model, which only the reader can name.
        device: where teachers run; the first GPU, or the CPU, if not given.
        progress: called with (images done, of how many).

    Raises:
        StoreError: the store cannot be read.
        SourceError: the images cannot be listed.
        ConfigError: weights for a teacher that the store has not.
        TeacherError: no field has a teacher that can be built here; or one cannot.
        ManifestMismatch: the teacher that can be built is not the one that the manifest describes.
        MissingSamples: the source has none of the store's valid rows.
    """
    store = FeatureStore.open(path, allow_incomplete=True)
    result = Recomputed(store.path)
    fields = _fields_of_teachers(store, weights or {}, result.skipped)
    files = _files_of_teachers(store, fields, weights or {})
    images = open_source(source)
    row_of = {sample_id: row for row, sample_id in enumerate(images.sample_ids)}
    valid = np.flatnonzero(store.valid)
    shared = [row for row in valid.tolist() if store.sample_ids[row] in row_of]
    result.valid, result.in_source = len(valid), len(shared)
    if not shared:
        raise MissingSamples(
            f"{store.path}: the source has none of its {len(valid):,} valid rows. Ids of the store, such as "
            f"{shorten([store.sample_ids[row] for row in valid[:2].tolist()])}; ids of {images.uri}, such as "
            f"{shorten(images.sample_ids[:2])}. Set --source.path to the folder that was extracted from."
        )
    drawn = np.random.default_rng(seed).choice(shared, size=min(rows, len(shared)), replace=False)
    chosen: list[int] = np.sort(drawn).tolist()
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for number, name in enumerate(fields):
        teacher = _build(
            store, name, sorted(set(fields[name].values())), files.get(name, ""), device
        )
        found = {
            item: FieldComparison(
                item, name, tolerance(store.manifest.fields[item], teacher.record)
            )
            for item in fields[name]
        }
        # Problems of images are the same for all teachers: report them once.
        told = result if number == 0 else Recomputed(store.path)
        done = number * len(chosen)
        for batch in _batches(store, teacher, chosen):
            sources = [row_of[store.sample_ids[row]] for row in batch]
            usable, features = _features(store, images, teacher, batch, sources, told)
            for item, called in fields[name].items():
                if usable:
                    _compare(store, found[item], usable, features[called])
            done += len(batch)
            progress(done, len(fields) * len(chosen))
        result.fields += found.values()
    result.fields.sort(key=lambda item: item.field)
    return result


def tolerance(spec: FieldRecord, teacher: TeacherRecord) -> float:
    """Largest relative L2 of a row that arithmetic and rounding to the stored type explain."""
    arithmetic = ARITHMETIC[teacher.precision]
    if isinstance(spec.encoding, Int8Encoding):
        return arithmetic + min(INT8_SPREAD * spec.encoding.relative_l2, INT8_MOST)
    return arithmetic + ROUNDING[spec.dtype]


def _why_not(name: str, record: TeacherRecord | None, given: Mapping[str, str]) -> str:
    """Why a teacher cannot be built again; "" if it can be tried."""
    if record is None:
        return "no teacher made it"
    if record.preprocessing is not None and not isinstance(
        record.preprocessing, PreprocessingRecord
    ):
        return "its teacher reads no images, which cannot be computed again"
    if record.library in BY_PATH and not {name, ""} & given.keys():
        return f"made by {record.library}: give its model, --weights {printable(name)}=PATH"
    if record.library == "python":
        return "made by a Python function that its author named; code that a store names is not run"
    if record.library not in ("timm", "open_clip", *BY_PATH) or record.preprocessing is None:
        return f"made by {printable(record.library)}, which cannot be built here"
    if record.mode == "batch":
        return "its rows depend on the batches that they were in"
    return ""


def _fields_of_teachers(
    store: FeatureStore, given: Mapping[str, str], skipped: dict[str, str]
) -> dict[str, dict[str, str]]:
    """Return by teacher its fields and the teacher's name for each; add reasons for other fields to ``skipped``."""
    manifest = store.manifest
    found: dict[str, dict[str, str]] = {}
    for name, spec in sorted(manifest.fields.items()):
        record = manifest.teachers.get(spec.teacher)
        plain = name.removeprefix(spec.teacher).lstrip("._-") if spec.teacher else name
        called = next((item for item in (name, plain) if FIELD.fullmatch(item)), "")
        if record is not None and record.library in OWN_NAMES:
            called = called or plain
        if reason := _why_not(spec.teacher, record, given):
            skipped[name] = reason
        elif not called or not spec.per_view or spec.encoding.kind == "ragged":
            skipped[name] = "not a field that teachers give under this name"
        elif spec.dtype not in ROUNDING:
            skipped[name] = f"stored as {spec.dtype}"
        else:
            found.setdefault(spec.teacher, {})[name] = called
    if not found:
        reasons = [f"{name}: {reason}" for name, reason in skipped.items()]
        raise TeacherError(f"{store.path}: no field can be computed again: {shorten(reasons)}.")
    return found


def _files_of_teachers(
    store: FeatureStore, fields: Mapping[str, object], given: Mapping[str, str]
) -> dict[str, str]:
    unknown = sorted(given.keys() - fields.keys() - {""})
    if unknown or ("" in given and len(fields) > 1):
        raise ConfigError(
            f"--weights: {store.path} has the teachers {shorten(sorted(fields))}; write NAME=FILE for each of them."
        )
    return {name or next(iter(fields)): path for name, path in given.items()}


def recorded_config(store: FeatureStore, name: str, weights: str) -> TeacherConfig:
    """Settings that build the teacher which the manifest describes.

    Args:
        weights: local weights, or the model of a library of ``BY_PATH``; empty for the library's own.

    Raises:
        TeacherError: its description names a file or an address, or it has no preprocessing.
    """
    record = store.manifest.teachers[name]
    _check_harmless(store, name, record)
    rule = record.preprocessing
    assert isinstance(rule, PreprocessingRecord)  # see _why_not
    by_path = record.library in BY_PATH
    return TeacherConfig(
        library=cast(Any, record.library),
        name=(weights if by_path else "") or record.name,
        tag=record.tag,
        weights="" if by_path else weights,
        model_args=_arguments(record),
        image_size=rule.size[0] if rule.size[0] == rule.size[1] else 0,
        crop_pct=rule.crop_pct,
        mean=list(rule.mean),
        std=list(rule.std),
        interpolation=rule.interpolation,
    )


def _arguments(record: TeacherRecord) -> dict[str, Any]:
    """Arguments of the library for the model; the rest of the record follows from the model itself."""
    if record.library == "run":
        return {}
    return {name: value for name, value in record.model_args.items() if name != "model_type"}


def _build(
    store: FeatureStore, name: str, fields: list[str], weights: str, device: torch.device
) -> Teacher:
    """Build the teacher that the manifest describes, and compare it with that description."""
    record, config = store.manifest.teachers[name], recorded_config(store, name, weights)
    try:
        teacher = build_teacher(
            config, fields=fields, dtype="float32", precision=record.precision, device=device
        )
    except TeacherError as error:
        raise TeacherError(str(error).replace("--teacher.weights", "--weights")) from None
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        why = f"{type(error).__name__}: {str(error)[:300]}"
        raise TeacherError(
            f"{store.path}: teacher {name!r} cannot be built as its manifest describes it ({why})."
        ) from None
    if teacher.record.weights_sha256 != record.weights_sha256:
        raise ManifestMismatch(
            f"{store.path}: teacher {name!r} ({record.name}): the weights here have sha256 "
            f"{teacher.record.weights_sha256}, the manifest says {record.weights_sha256}. Pass the weights that the "
            "store was made with (--weights FILE); if these are they, its features come from another model."
        )
    ours, theirs = (
        item.model_copy(update={"licence": ""}).model_dump(mode="json")
        for item in (teacher.record, record)
    )
    if differing := recorded_differences(theirs, ours):
        lines = [f"{key} is {was!r}, the manifest says {said!r}" for key, said, was in differing]
        raise ManifestMismatch(
            f"{store.path}: teacher {name!r} cannot be built as it is described: {shorten(lines)}. Use the versions of "
            f"{record.library} and featstore that the store was made with: {store.manifest.created_by}."
        )
    return teacher


def _check_harmless(store: FeatureStore, name: str, record: TeacherRecord) -> None:
    """Refuse values that could make a library open files or addresses chosen by the store's author."""

    def odd(value: Any, key: str = "") -> Iterator[str]:
        if isinstance(value, dict):
            for inner, item in value.items():
                yield from odd(item, inner)
        elif isinstance(value, list):
            for item in value:
                yield from odd(item, key)
        elif _LOADING.search(key) or (isinstance(value, str) and not _WORD.fullmatch(value)):
            yield f"{key}={value!r}"

    rule = record.preprocessing
    assert isinstance(rule, PreprocessingRecord)  # see _why_not
    found = list(odd(_arguments(record)))
    found += [text for text in (record.name, record.tag) if not _NAME.fullmatch(text)]
    if max(rule.size) > MOST_SIDE:
        found.append(f"inputs of {rule.size[0]} x {rule.size[1]} pixels")
    if found:
        raise TeacherError(
            f"{store.path}: teacher {name!r} is not built from what its manifest says: {shorten(found)}. That could "
            "load files or addresses of its author's choice, or fill the memory."
        )


def _batches(store: FeatureStore, teacher: Teacher, rows: list[int]) -> Iterator[list[int]]:
    assert isinstance(teacher.preprocessing, PreprocessingRecord)
    height, width = teacher.preprocessing.size
    row_bytes = 3 * height * width * len(store.manifest.views)
    step = max(1, min(store.manifest.work.batch_size, BATCH_BYTES // row_bytes))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _features(
    store: FeatureStore,
    images: Source,
    teacher: Teacher,
    rows: list[int],
    sources: list[int],
    result: Recomputed,
) -> tuple[list[int], dict[str, Array]]:
    """Return the rows whose image is unchanged, and the teacher's features of them, (n, V, ...)."""
    dataset = inputs_of(images, store.manifest.views, teacher)
    batch = dataset.load(sources)
    usable = []
    for i, row in enumerate(rows):
        if (batch.hashes[i] != store.content_sha256[row]).any() and batch.hashes[i].any():
            result.other_content.append(store.sample_ids[row])
        elif batch.reasons[i] is not None:
            result.unusable.append(f"{store.sample_ids[row]} ({batch.reasons[i]})")
        else:
            usable.append(i)
    result.rows += len(usable)
    features = run_teacher(teacher, batch.inputs[usable]) if usable else {}
    computed = {name: values.float().numpy() for name, values in features.items()}
    return [rows[i] for i in usable], computed


def _compare(
    store: FeatureStore, comparison: FieldComparison, rows: list[int], computed: Array
) -> None:
    name, spec = comparison.field, store.manifest.fields[comparison.field]
    if isinstance(spec.encoding, TopKEncoding):
        found = store.gather_topk(name, rows)
        if computed.shape[-1] != spec.encoding.num_classes:
            comparison.problem = (
                f"of {spec.encoding.num_classes:,} classes, the teacher has {computed.shape[-1]:,}"
            )
            return
        # The classes that are stored, and those that should be: both must have these values.
        kept = np.take_along_axis(computed, found.indices.astype(np.int64), axis=-1)
        largest = -np.sort(-computed, axis=-1)[..., : found.values.shape[-1]]
        stored = np.concatenate([found.values, found.values], axis=-1)
        computed = np.concatenate([kept, largest], axis=-1)
    else:
        stored = store.gather(name, rows)
    for i, row in enumerate(rows):
        comparison.add(store.sample_ids[row], stored[i], computed[i])
