"""The student: any timm classifier that ends in one Linear, split into feature and head without changing it."""

# B batch, C student width, K classes, H W input side in pixels

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.config import StudentConfig
from featstore.errors import ConfigError, shorten

SPLIT_TOLERANCE = 1e-4
"""Largest difference between head(feature) and the plain model, relative to the largest logit (float32)."""


class Student(nn.Module):
    """A plain timm model whose forward pass also returns what its last Linear sees (pre-logits) [I].

    Attributes:
        model: the timm model; its state dict is what is exported, key for key.
        head: its last Linear, a module of ``model``.
        width: C.
        num_classes: K.
        input_size: (H, W), pixels.
        mean: channel means of the normalisation.
        std: channel deviations of the normalisation.
        notes: what a user should hear about how it was built.
    """

    def __init__(
        self, model: nn.Module, *, image_size: int = 0, notes: list[str] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        settings: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
        size = image_size or settings["input_size"][-1]
        self.input_size = (size, size)
        self.mean: tuple[float, ...] = tuple(settings["mean"])
        self.std: tuple[float, ...] = tuple(settings["std"])
        self.notes = notes or []
        classifier = model.get_classifier()  # type: ignore[operator]
        if not isinstance(classifier, nn.Linear):
            raise ConfigError(
                f"--student.name {settings.get('architecture')}: its classifier is a {type(classifier).__name__}; the "
                "feature is defined as the input of one last Linear. Choose a model that ends in one."
            )
        self.width, self.num_classes = classifier.in_features, classifier.out_features

    @property
    def head(self) -> nn.Linear:
        """The last Linear."""
        return self.model.get_classifier()  # type: ignore[operator]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model.

        Args:
            images: (B, 3, H, W) float, normalised.

        Returns:
            Features (B, C) and logits (B, K).
        """
        model: Any = self.model
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        return features, self.head(features)


def build_student(config: StudentConfig, num_classes: int) -> Student:
    """Build a student and check that splitting it into feature and head changes nothing.

    Raises:
        ConfigError: unknown model, weights that cannot be fetched or do not fit, or a model that cannot be split.
    """
    model = _create(config, num_classes)
    notes = load_weights(model, Path(config.weights)) if config.weights else []
    student = Student(model, image_size=config.image_size, notes=notes)
    _check_split(student, config)
    return student


def _create(config: StudentConfig, num_classes: int) -> nn.Module:
    base = config.name.split(".")[0]
    if not timm.is_model(base):
        near = timm.list_models(f"*{base.split('_')[0]}*")[:5]
        raise ConfigError(
            f"--student.name {config.name}: timm {timm.__version__} has no such model"
            + (f"; near: {', '.join(near)}." if near else ".")
        )
    try:
        return timm.create_model(
            config.name, pretrained=config.pretrained, num_classes=num_classes, **config.model_args
        )
    except Exception as error:  # the hub's client raises many unrelated types
        first = str(error).strip().split("\n")[0][:200]
        if config.pretrained:
            raise ConfigError(
                f"--student.name {config.name}: its pretrained weights could not be had ({type(error).__name__}: "
                f"{first}). Fetch them where there is a network and give the file, "
                "--student.weights PATH, or start from "
                "scratch, --student.pretrained false."
            ) from error
        raise ConfigError(
            f"--student.name {config.name} with --student.model_args {config.model_args} cannot be built: {first}"
        ) from error


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Load a local file into a timm model; a missing or differently sized classifier stays as initialised.

    Returns:
        Notes for the user; one if the classifier starts fresh.

    Raises:
        ConfigError: no such file, not a file of plain tensors, or keys or shapes that do not fit.
    """
    found = read_weights(path)
    wanted = model.state_dict()
    head: Any = model.get_classifier()  # type: ignore[operator]
    prefix = next(name for name, module in model.named_modules() if module is head)
    head_keys = {key for key in wanted if key.startswith(f"{prefix}.")}
    fresh = any(key not in found or found[key].shape != wanted[key].shape for key in head_keys)
    skipped = head_keys if fresh else set()
    missing = sorted(wanted.keys() - found.keys() - skipped)
    unknown = sorted(found.keys() - wanted.keys())
    unlike = [
        f"{key} has {tuple(found[key].shape)}, the model {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & found.keys() - skipped)
        if found[key].shape != wanted[key].shape
    ]
    problems = [
        f"{len(items)} {what}: {shorten(items, 3)}"
        for items, what in (
            (missing, "keys are missing"),
            (unknown, "keys are not the model's"),
            (unlike, "shapes differ"),
        )
        if items
    ]
    if problems:
        raise ConfigError(
            f"--student.weights {path} does not fit the model: {'; '.join(problems)}. Expected the state dict of the "
            "same timm model (--student.name, --student.model_args)."
        )
    model.load_state_dict({**found, **{key: wanted[key] for key in skipped}})
    return [f"{path}: the classifier starts fresh ({prefix})"] if fresh else []


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of plain tensors, safetensors or PyTorch's, without running any code in it.

    Raises:
        ConfigError: no such file, or something else inside.
    """
    if not path.is_file():
        raise ConfigError(f"--student.weights {path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        first = str(error).strip().split("\n")[0][:200]
        raise ConfigError(f"--student.weights {path} cannot be read: {first}") from error
    except Exception as error:  # pickle.UnpicklingError and its kin: not plain tensors
        raise ConfigError(
            f"--student.weights {path}: holds more than plain tensors ({type(error).__name__}); "
            "it is not loaded, because "
            "loading could run code. Save its state dict as safetensors."
        ) from error
    values = values.get("state_dict", values) if isinstance(values, dict) else values
    if not isinstance(values, dict) or not all(
        isinstance(item, Tensor) for item in values.values()
    ):
        raise ConfigError(
            f"--student.weights {path}: expected a dict of tensors, found {type(values).__name__}."
        )
    return values


def _check_split(student: Student, config: StudentConfig) -> None:
    """Compare head(feature) to the plain model on one picture; also catches a size the model does not take."""
    training = student.training
    student.eval()
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, *student.input_size, generator=generator)
    try:
        with torch.no_grad():
            features, logits = student(picture)
            plain = student.model(picture)
    except Exception as error:  # models check their input with asserts and plain errors
        first = str(error).strip().split("\n")[0][:200]
        raise ConfigError(
            f"--student.name {config.name} does not run on {student.input_size[0]} x {student.input_size[1]} pictures "
            f"({first}). Choose another --student.image_size; a ViT needs the same in "
            "--student.model_args, e.g. '{img_size: 32}'."
        ) from error
    finally:
        student.train(training)
    if features.shape != (1, student.width) or plain.shape != (1, student.num_classes):
        raise ConfigError(
            f"--student.name {config.name}: feature {tuple(features.shape)} and logits {tuple(plain.shape)}; expected "
            f"(1, {student.width}) and (1, {student.num_classes}). Choose a plain classifier."
        )
    scale = float(plain.abs().max().clamp(min=1))
    if float((plain - logits).abs().max()) > SPLIT_TOLERANCE * scale:
        raise ConfigError(
            f"--student.name {config.name}: its last Linear on its pre-logits is not the model's "
            "output, so the feature "
            "cannot be told from the head. Choose another model."
        )
