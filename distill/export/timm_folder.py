"""A folder that timm loads: safetensors with plain timm keys, and config.json in the form of the Hugging Face hub.

``timm.create_model("local-dir:FOLDER", pretrained=True)``; uploaded to the hub as it is, ``"hf-hub:NAME"`` does it.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save

from distill.student.files import OUTPUT_LAYER
from distill.student.model import Student
from distill.student.tapped import TappedModel
from distill.training.saved_student import plain_state
from featstore.files.atomic import write_bytes, write_json
from featstore.sources.load import ViewRule

WEIGHTS = "model.safetensors"
CONFIG = "config.json"  # both names are those that timm looks for


def write_timm_folder(
    folder: Path,
    student: Student,
    rule: ViewRule,
    *,
    described: dict[str, Any],
    teachers: list[dict[str, Any]],
) -> list[Path]:
    """Write weights and config.

    Args:
        student: plain; of a module of the user's the same files, which timm does not load.
        rule: which region of an image it is shown; timm's own transform cuts the same one up to a pixel.

    Returns:
        The files.
    """
    files = {WEIGHTS: student.library_model}
    if isinstance(student.model, TappedModel) and student.model.output_layer.state_dict():
        files[OUTPUT_LAYER] = student.model.output_layer
    for name, module in files.items():
        write_bytes(folder / name, save(plain_state(module), metadata={"format": "pt"}))
    write_json(folder / CONFIG, hub_config(student, rule, described, teachers))
    return [*(folder / name for name in files), folder / CONFIG]


def hub_config(
    student: Student, rule: ViewRule, described: dict[str, Any], teachers: list[dict[str, Any]]
) -> dict[str, Any]:
    """The values of config.json; keys as ``timm.models.push_to_hf_hub`` writes them."""
    own: Any = student.model.pretrained_cfg
    kept = {
        key: own[key]
        for key in ("first_conv", "classifier", "fixed_input_size", "pool_size")
        if own.get(key)
    }
    # The task's layer lies beside a model with taps.
    classes = 0 if isinstance(student.model, TappedModel) else described["num_classes"]
    return {
        "architecture": described["architecture"],
        **{key: described[key] for key in ("factory", "features", "map") if key in described},
        "num_classes": classes,
        "num_features": int(getattr(student.model, "num_features", student.width)),
        "label_names": described["label_names"],
        "model_args": described["model_args"],
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, *student.input_size],
            "interpolation": rule.interpolation,
            "crop_pct": rule.crop_pct,
            "crop_mode": rule.crop_mode,
            "mean": list(student.mean),
            "std": list(student.std),
            "num_classes": classes,
            **kept,
        },
        "distilled_from": teachers,
    }  # fmt: skip
