"""Write and load the student of a run: a plain timm model, or a module of the user's.

``student.safetensors`` holds the model's own keys; ``config.json`` says how to use it and holds checksums.
The head of a task that brings its own lies beside it, in ``task_head.safetensors``.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import nn

from distill.config import StudentConfig
from distill.data.joined import Data, JoinedData
from distill.data.stored_features import StoredField
from distill.evaluation.embedding import HEAD
from distill.register import component_of, load_plugins
from distill.student.files import (
    CHECKSUMS,
    CONFIG,
    OUTPUT_LAYER,
    SHA256,
    TASK_HEAD,
    TOKENIZER_SHA256,
    TOKENIZERS,
    WEIGHTS,
    read_config,
    student_config,
    with_own_tokenizer,
)
from distill.student.model import Student, build_student
from distill.student.start_weights import load_saved
from distill.student.tapped import TappedModel
from distill.tasks import Task
from distill.training.run_record import check_sha256
from distill.training.run_settings import absolute_factory, read_settings
from featstore.errors import ConfigError, command
from featstore.files.atomic import write_bytes
from featstore.format.checksummed_json import seal


def save_student(
    folder: Path, student: Student, *, config: StudentConfig, task: Task, head: bool = False
) -> None:
    """Write the student; nothing of the training (projections, probes, wrappers) is in it.

    Args:
        head: whether an embedding head lies beside it.
    """
    files = {WEIGHTS: save(plain_state(student.library_model))}
    if isinstance(student.model, TappedModel) and student.model.output_layer.state_dict():
        files[OUTPUT_LAYER] = save(plain_state(student.model.output_layer))
    described = describe_student(student, config, task.data, label_names=task.label_names())
    described["task"] = task.name
    described |= _write_tokenizer(folder, student, config)
    if head:
        described["embedding_head"] = HEAD
    if student.task_head is not None:
        data = save(plain_state(student.task_head))
        write_bytes(folder / TASK_HEAD, data)
        described["task_head"] = {
            "file": TASK_HEAD,
            SHA256: hashlib.sha256(data).hexdigest(),
            "outputs": task.num_outputs,
            "options": dataclasses.asdict(task.options),
        }
    for name, content in files.items():
        write_bytes(folder / name, content)
        described[CHECKSUMS[name]] = hashlib.sha256(content).hexdigest()
    write_bytes(folder / CONFIG, seal(described))


def plain_state(model: nn.Module) -> dict[str, Any]:
    """The state dict of a model on the CPU, each tensor with memory of its own."""
    return {
        key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()
    }


def _write_tokenizer(folder: Path, student: Student, config: StudentConfig) -> dict[str, Any]:
    """Copy the tokenizer of a text student beside it. Returns what config.json has of it; nothing without one."""
    data: bytes = getattr(student.library_model, "tokenizer_data", b"")
    if not data:
        return {}
    name = own_tokenizer_name(config)
    write_bytes(folder / name, data)
    return {
        "model_args": {**config.model_args, "tokenizer": name},
        TOKENIZER_SHA256: hashlib.sha256(data).hexdigest(),
    }


def own_tokenizer_name(config: StudentConfig) -> str:
    """File name of the copy of a text student's tokenizer."""
    return TOKENIZERS[Path(config.model_args["tokenizer"]).suffix != ".json"]


HEAD_KEY = "task_head."


def whole_state(student: Student) -> dict[str, Any]:
    """Weights of the model, and of the task's own head if there is one."""
    head = {} if student.task_head is None else plain_state(student.task_head)
    return plain_state(student.model) | {HEAD_KEY + key: value for key, value in head.items()}


def load_whole_state(student: Student, state: dict[str, Any]) -> None:
    """Take back what ``whole_state`` returned."""
    own = {key for key in state if key.startswith(HEAD_KEY)} if student.task_head else set()
    student.model.load_state_dict({key: state[key] for key in state.keys() - own})
    if student.task_head is not None:
        head = {key.removeprefix(HEAD_KEY): state[key] for key in own}
        student.task_head.load_state_dict(head)


def describe_student(
    student: Student, config: StudentConfig, data: Data, *, label_names: Sequence[str]
) -> dict[str, Any]:
    """What a user of the model must know; the first keys are those of a timm model folder."""
    values: dict[str, Any] = {
        "architecture": config.title.split(".")[0],
        **_factory_of(student, config),
        "num_classes": student.num_classes,
        "model_args": config.model_args,
        "feature": config.feature,
        "label_names": list(label_names),
        "input": {
            "size": list(student.input_size),
            "mean": list(student.mean),
            "std": list(student.std),
            "region": data.rule.describe(),
        },
    }
    if isinstance(data, JoinedData):
        values["teachers"] = [describe_teacher(stored) for stored in data.features.teachers]
        # The first alone as well: it decides what the student is shown.
        values["teacher"] = values["teachers"][0]
    return values


def _factory_of(student: Student, config: StudentConfig) -> dict[str, Any]:
    """How a module with taps is built again; nothing for a plain timm model."""
    if not isinstance(student.model, TappedModel):
        return {}
    return {
        **({"factory": absolute_factory(config.factory)} if config.factory else {}),
        "features": config.features,
        "map": config.map,
        "last_linear": student.model.taps.last_linear,
    }


def describe_teacher(stored: StoredField) -> dict[str, Any]:
    """Who made the features that a student imitated, and which store holds them."""
    teacher = stored.store.manifest.teacher_of(stored.field)
    return {
        "name": teacher.name,
        "tag": teacher.tag,
        "weights_sha256": teacher.weights_sha256,
        "licence": teacher.licence,
        "store_fingerprint": stored.store.fingerprint,
        "field": stored.field,
        "weight": stored.weight,
        # Of a teacher that was a student itself: its own teachers.
        **{key: teacher.model_args[key] for key in ("learnt_from",) if key in teacher.model_args},
    }


def teachers_of(described: dict[str, Any]) -> list[dict[str, Any]]:
    """The teachers in a config.json, the first one first; older files know that one alone."""
    found = described.get("teachers") or [described.get("teacher")]
    return [teacher for teacher in found if teacher]


def store_fingerprints(described: dict[str, Any]) -> list[str]:
    """Of the stores behind a config.json."""
    return [str(teacher["store_fingerprint"]) for teacher in teachers_of(described)]


def snippet(folder: Path, student: Student, config: StudentConfig) -> str:
    """Code that loads the exported model: without this package, unless its task has a head of its own."""
    if student.task_head is not None:
        return f'import distill\nmodel = distill.load_student("{folder}")'
    if config.factory and isinstance(student.model, TappedModel):
        return factory_snippet(folder / WEIGHTS, student.model, config)
    args = dict(config.model_args)
    if hasattr(student.library_model, "tokenizer_data"):
        args["tokenizer"] = str(folder / own_tokenizer_name(config))
    extra = "".join(f", {key}={value!r}" for key, value in args.items())
    classes = 0 if isinstance(student.model, TappedModel) else student.num_classes
    module = type(student.library_model).__module__
    ours = "" if module.startswith("timm.") else f"import {module}  # registers it with timm\n"
    return (
        f"import timm\n{ours}"
        f'model = timm.create_model("{config.name.split(".")[0]}", num_classes={classes}{extra},\n'
        f'                          checkpoint_path="{folder / WEIGHTS}").eval()'
    )


def factory_snippet(path: Path, model: TappedModel, config: StudentConfig) -> str:
    """Code that loads weights into a module of the user's."""
    place, _, function = config.factory.rpartition(":")
    extra = ", ".join(f"{key}={value!r}" for key, value in config.model_args.items())
    module = Path(place).stem if place.endswith(".py") else place
    lines = [
        f"from {module} import {function}",
        "from safetensors.torch import load_file",
        f"model = {function}({extra})",
    ]
    head: Any = model.get_classifier()
    if model.num_classes and model.taps.heads:
        layer = f"torch.nn.Linear({head.in_features}, {head.out_features}, bias={head.bias is not None})"
        lines = [
            "import torch",
            *lines,
            f'model.set_submodule("{model.taps.last_linear}", {layer})',
        ]
    lines.append(f'model.load_state_dict(load_file("{path}"))')
    return "\n".join(lines)


def load_exported(folder: Path) -> tuple[Student, dict[str, Any]]:
    """Load what ``save_student`` wrote.

    Returns:
        The student and the values of its config.json.

    Raises:
        ConfigError: a file is missing, or does not fit the other.
    """
    values = read_config(folder)
    if values is None or not (folder / WEIGHTS).is_file():
        lacking = CONFIG if values is None else WEIGHTS
        raise ConfigError(
            f"--model {folder.absolute()}: has no {lacking}. Expected the folder of one run of {command('distill')}, "
            "such as outputs/distill/customkd/seed0."
        )
    try:
        values = with_own_tokenizer(folder, values)
        student = build_student(student_config(values), values["num_classes"])
        notes = load_saved(student.model, folder / WEIGHTS)
        if "task_head" in values:
            student.task_head = _load_head(folder, student, values)
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--model {folder.absolute()}: {CONFIG} and {WEIGHTS}: {error}"
        ) from error
    student.notes = notes
    return student, values


def _load_head(folder: Path, student: Student, values: dict[str, Any]) -> nn.Module:
    """The head of the task that a student was trained for.

    Raises:
        ConfigError: no such task is registered, or the file is damaged.
    """
    described = values["task_head"]
    settings = read_settings(folder) or {}
    load_plugins(settings.get("plugins", []))
    task = component_of(values["task"])
    assert issubclass(task, Task)
    data = (folder / described["file"]).read_bytes()
    check_sha256(folder / described["file"], data, described[SHA256])
    options = task.Options(**described["options"])
    head = task.head(student, described["outputs"], options)
    head.load_state_dict(load(data))
    return head
