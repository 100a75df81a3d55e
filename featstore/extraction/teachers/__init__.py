"""Frozen teachers: built from a config, hashed, and asked for fields. One file for each library.

Everything here runs in phase one only; nothing in ``distill`` imports this package (a test holds that).
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from featstore.errors import TeacherError
from featstore.extraction.config import TeacherConfig
from featstore.extraction.teachers.base import (
    Built,
    Head,
    Precision,
    Teacher,
    Tower,
    best_precision,
    use_batch_statistics,
)
from featstore.extraction.teachers.fields import select_field
from featstore.extraction.teachers.hub import setting_restored
from featstore.format import classifier
from featstore.format.manifest_records import BATCH_ROWS, FloatType, TeacherRecord
from featstore.format.weights_hash import state_sha256

__all__ = [
    "Precision",
    "Teacher",
    "Tower",
    "best_precision",
    "build_teacher",
    "check_teacher",
    "select_field",
    "state_sha256",
]

NO_WEIGHTS = "0" * 64

WITH_SKELETONS = ("timm", "open_clip", "transformers")
"""Libraries whose models can be built without their weights, to look at names and shapes."""


def check_teacher(config: TeacherConfig, *, fields: Sequence[str], texts: bool = False) -> None:
    """Look whether a teacher can give some fields, before its weights are fetched and read: on its shapes alone.

    Args:
        fields: names of the fields that it will be asked for.
        texts: the samples are texts, not images.

    Raises:
        TeacherError: unknown name or tag, or a field it cannot give.
    """
    _check_files(config)
    if config.library not in WITH_SKELETONS or texts:
        return
    try:
        with torch.device("meta"):
            built = _build(config, torch.device("cpu"), skeleton=True)
    except TeacherError:
        raise
    except Exception:  # some models need numbers while they are built; the real one will tell
        return
    try:
        _wrap(config, built, fields=fields, dtype="float32", device=torch.device("meta"))
    except (RuntimeError, NotImplementedError):  # an operation without shapes alone
        return


def build_teacher(
    config: TeacherConfig,
    *,
    fields: Sequence[str],
    dtype: FloatType,
    precision: Precision,
    device: torch.device,
    texts: bool = False,
    batch_rows: int = 0,
) -> Teacher:
    """Build the frozen teacher that a config names.

    Args:
        config: what to build; its ``precision`` may still be "auto".
        fields: names of the fields that it will be asked for.
        precision: of the forward pass, resolved.
        texts: the samples are texts, not images.
        batch_rows: rows of a batch, which are part of the contract where normalisation uses the batch's statistics.

    Raises:
        TeacherError: unknown name, weights that cannot be had or do not fit, a field it cannot give.
    """
    _check_files(config)
    if texts:
        from featstore.extraction.teachers import text_teachers

        with setting_restored():
            built = text_teachers.build(config, cuda=device.type == "cuda")
    else:
        built = _build(config, device)
    built.weights_sha256 = built.weights_sha256 or state_sha256(built.tower)
    if config.bn_mode == "batch":
        use_batch_statistics(built.tower, config.name)
        arguments = config.model_args if built.recorded_args is None else built.recorded_args
        built.recorded_args = {**arguments, BATCH_ROWS: batch_rows}
    if config.classifier:
        built.heads[classifier.NAME] = _classifier(config, built.tower, fields)
    return _wrap(config, built, fields=fields, dtype=dtype, device=device, precision=precision)


def _classifier(config: TeacherConfig, tower: Tower, fields: Sequence[str]) -> Head:
    layer = tower.classifier()
    if not isinstance(layer, torch.nn.Linear):
        raise TeacherError(
            f"--teacher.classifier: {config.name} ({config.library}) has no classifier of one Linear on the field "
            f"pooled (found {'none' if layer is None else type(layer).__name__}). Leave it out: phase two then fits "
            "a probe."
        )
    if classifier.FIELD not in fields:
        raise TeacherError(
            f"--teacher.classifier: classifies the field {classifier.FIELD}, which is not among --store.fields "
            f"{list(fields)}. Add it."
        )
    return Head(classifier.MEANING, classifier.tensors_of(layer))


def _check_files(config: TeacherConfig) -> None:
    if config.weights and not Path(config.weights).is_file():
        raise TeacherError(f"--teacher.weights {config.weights}: no such file.")


def _build(config: TeacherConfig, device: torch.device, *, skeleton: bool = False) -> Built:
    with setting_restored():
        return _of_library(config, device, skeleton=skeleton)


def _of_library(config: TeacherConfig, device: torch.device, *, skeleton: bool) -> Built:
    # Each library is imported only where it is asked for.
    if config.library == "timm":
        from featstore.extraction.teachers import timm_teacher

        return timm_teacher.build(config, skeleton=skeleton)
    if config.library == "open_clip":
        from featstore.extraction.teachers import open_clip_teacher

        return open_clip_teacher.build(config, skeleton=skeleton)
    if config.library == "transformers":
        from featstore.extraction.teachers import transformers_teacher

        return transformers_teacher.build(config, skeleton=skeleton)
    if config.library == "onnx":
        from featstore.extraction.teachers import onnx_teacher

        return onnx_teacher.build(config, cuda=device.type == "cuda")
    if config.library == "python":
        from featstore.extraction.teachers import python_teacher

        return python_teacher.build(config)
    from featstore.extraction.teachers import run_teacher

    return run_teacher.build(config)


def _wrap(
    config: TeacherConfig,
    built: Built,
    *,
    fields: Sequence[str],
    dtype: FloatType,
    device: torch.device,
    precision: Precision = "fp32",
) -> Teacher:
    record = TeacherRecord(
        library=config.library,
        name=built.recorded_name or config.name,
        tag=config.tag,
        model_args=config.model_args if built.recorded_args is None else built.recorded_args,
        weights_sha256=built.weights_sha256 or NO_WEIGHTS,
        licence=config.licence or built.licence,
        mode=config.bn_mode,
        batch_seed=0 if config.bn_mode == "batch" else None,
        precision=precision,
        preprocessing=built.preprocessing,
    )
    return Teacher(
        built.tower,
        record=record,
        preprocessing=built.preprocessing,
        fields=fields,
        dtype=dtype,
        device=device,
        tokenizer=built.tokenizer,
        compile_tower=config.compile,
        notes=built.notes,
        heads=built.heads,
    )
