"""Teachers that are students: the folder of a finished run of phase two (student.safetensors and config.json).

Nothing of the training code is imported: the folder is read as what it is, a timm model with its preprocessing. The
manifest records which teachers and stores the student learnt from, and theirs in turn.
"""

import json
from pathlib import Path
from typing import Any

from featstore.errors import TeacherError
from featstore.extraction.config import TeacherConfig
from featstore.extraction.teachers.base import Built, brief, stated_preprocessing
from featstore.extraction.teachers.timm_teacher import TimmTower
from featstore.extraction.teachers.weights import load_state, read_state
from featstore.format.manifest_records import CLASS_NAMES

WEIGHTS = "student.safetensors"
CONFIG = "config.json"
CHAIN = "learnt_from"
"""Key of ``model_args`` in the manifest that holds the teachers of this teacher."""

_RECORDED = ("name", "tag", "weights_sha256", "store_fingerprint", "field", CHAIN)


def build(config: TeacherConfig) -> Built:
    """Load the student of a run."""
    import timm

    folder = Path(config.name)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise TeacherError(
                f"--teacher.name {config.name}: {folder.absolute()} has no {name}. Expected the folder of one finished "
                "run of phase two, such as outputs/distill/customkd/seed0."
            )
    if config.weights or config.model_args:
        raise TeacherError(
            "--teacher.weights and --teacher.model_args: a run has its own; leave them out."
        )
    try:
        described: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
        architecture, classes = described["architecture"], described["num_classes"]
        model_args = dict(described["model_args"])
        shown = described["input"]
        region = shown["region"]
        own = {
            "size": tuple(shown["size"]),
            "mean": shown["mean"],
            "std": shown["std"],
            "crop_pct": region["crop_pct"],
            "crop_mode": region["crop_mode"],
            "interpolation": region["interpolation"],
        }
        chain = [_recorded(item) for item in _teachers(described)]
        names = [str(name) for name in described.get("label_names", ())]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TeacherError(
            f"--teacher.name {config.name}: {CONFIG} is not one of phase two's ({brief(error)})."
        ) from None
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise TeacherError(
            f"--teacher.name {config.name}: its student is {architecture!r}, which timm does not have. Use "
            "--teacher.library python with a function that builds it."
        )
    try:
        model = timm.create_model(architecture, pretrained=False, num_classes=classes, **model_args)
    except Exception as error:  # models check their arguments with asserts and plain errors
        raise TeacherError(
            f"--teacher.name {config.name}: {architecture} cannot be built with {model_args} ({brief(error)})."
        ) from error
    load_state(
        model, read_state(str(folder / WEIGHTS)), where=str(folder / WEIGHTS), name=architecture
    )
    return Built(
        TimmTower(model),
        stated_preprocessing(config, own),
        recorded_name=architecture,
        recorded_args={
            **model_args,
            CHAIN: chain,
            **({CLASS_NAMES: names} if classes and len(names) == classes else {}),
        },
    )


def _teachers(described: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a config.json; older files know one alone, and a run on labels alone has none."""
    found = described.get("teachers") or [described.get("teacher")]
    return [item for item in found if item]


def _recorded(teacher: dict[str, Any]) -> dict[str, Any]:
    return {key: teacher[key] for key in _RECORDED if teacher.get(key)}
