"""Files of a run's student: read config.json, and compare the checksum of the weights. No torch is needed."""

import hashlib
from pathlib import Path
from typing import Any

from distill.config import StudentConfig
from featstore.errors import ConfigError
from featstore.format.checksummed_json import unseal

WEIGHTS = "student.safetensors"
TASK_HEAD = "task_head.safetensors"
CONFIG = "config.json"
OUTPUT_LAYER = "output_layer.safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.txt")
"""Copy of the tokenizer of a text student, of which a run has at most one; its name says which kind it is."""
TOKENIZER_SHA256 = "tokenizer_sha256"
SHA256 = "weights_sha256"
CHECKSUMS = {WEIGHTS: SHA256, OUTPUT_LAYER: "output_layer_sha256"}
"""Files of a run's student, and the keys of config.json with their checksums. The output layer has a file of its own
where it is no layer of the user's module, so that the weights have exactly the module's keys."""


def check_weights(path: Path, data: bytes) -> list[str]:
    """Compare the weights of a run to the checksum in the config.json beside them.

    Returns:
        A note where an older version has written no checksum; nothing for files that are not those of a run.

    Raises:
        ConfigError: other bytes than the run wrote, or config.json is damaged.
    """
    if path.name not in CHECKSUMS:
        return []
    described = read_config(path.parent)
    if described is None:
        return []
    key = CHECKSUMS[path.name]
    if key not in described:
        return ["written by an older version, without a checksum: damage cannot be detected"]
    found = hashlib.sha256(data).hexdigest()
    if found != described[key]:
        raise ConfigError(
            f"{path.absolute()}: damaged or replaced: SHA-256 {found[:16]}, expected "
            f"{str(described[key])[:16]} ({CONFIG}). Restore the file, or run again."
        )
    return []


def read_config(folder: Path) -> dict[str, Any] | None:
    """Read config.json beside a student; None if there is none. Raises ConfigError: damaged."""
    path = folder / CONFIG
    try:
        values = unseal(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path.absolute()}: cannot be read ({error}).") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path.absolute()}: expected an object, found {type(values).__name__}.")
    return values


def with_own_tokenizer(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a config.json, with the path of the tokenizer that lies beside it, if there is one.

    Raises:
        ConfigError: It is missing, or another than the one that the run used, or lies elsewhere.
    """
    args = values.get("model_args", {})
    if TOKENIZER_SHA256 not in values:
        return values
    if args.get("tokenizer") not in TOKENIZERS:
        raise ConfigError(
            f"{(folder / CONFIG).absolute()}: model_args.tokenizer: found {args.get('tokenizer')!r}, expected one of "
            f"{', '.join(TOKENIZERS)}, in the same folder."
        )
    path = folder / args["tokenizer"]
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if found != values[TOKENIZER_SHA256]:
        raise ConfigError(
            f"{path.absolute()}: SHA-256 {found[:16]}, expected {values[TOKENIZER_SHA256][:16]} ({CONFIG}). Restore "
            "the file, or run again."
        )
    return {**values, "model_args": {**args, "tokenizer": str(path)}}


def student_config(values: dict[str, Any]) -> StudentConfig:
    """Settings that build the student of a config.json, without starting weights. Raises KeyError: a key is missing."""
    factory = values.get("factory", "")
    # Torchvision's functions would download these once more.
    fetched = ("weights", "weights_backbone") if factory.startswith("torchvision.") else ()
    args = {key: None if key in fetched else value for key, value in values["model_args"].items()}
    return StudentConfig(
        **({"factory": factory} if factory else {"name": values["architecture"]}),
        features=values.get("features", ""),
        map=values.get("map", ""),
        model_args=args,
        feature=values["feature"],
        image_size=values["input"]["size"][0],
        mean=values["input"]["mean"],
        std=values["input"]["std"],
    )
