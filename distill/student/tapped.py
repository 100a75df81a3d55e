"""Any ``nn.Module`` as a student, of the user's or of timm: its feature and map are read by forward hooks."""

# B batch, C student width, K classes, M channels and h w sides of a feature map

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.config import StudentConfig
from distill.student.taps import Tap, Taps, as_map, as_vector, find_taps, read_tap
from featstore.errors import ConfigError, shorten
from featstore.files.user_code import find_function

IMAGENET: dict[str, Any] = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "input_size": (3, 224, 224),
}
"""Input of a module that does not say what it expects; the settings of a student change it."""


class Seen(NamedTuple):
    """What one pass through a module gives."""

    vector: Tensor  # (B, C)
    map: Tensor  # (B, M, h, w)


class TappedModel(nn.Module):
    """A module with the functions of timm's models that ``Student`` uses.

    Its output is the feature (B, C), or the logits (B, K) of a task with classes.

    Attributes:
        module: its state dict is what is exported, key for key.
        taps: where feature and map are read.
        output_layer: the task's layer on the feature, where the module's own last Linear does not take the feature;
            Identity otherwise.
        unused: names of the parameters in ``module`` that the output does not depend on; they are not trained.
    """

    def __init__(
        self, module: nn.Module, taps: Taps, num_classes: int, pretrained_cfg: dict[str, Any]
    ) -> None:
        super().__init__()
        self.module = module
        self.taps = taps
        self.pretrained_cfg = pretrained_cfg
        self.num_classes = num_classes
        self.drop_rate = 0.0
        self.output_layer: nn.Module = nn.Identity()
        self.unused: list[str] = []
        if num_classes and taps.heads:
            last = module.get_submodule(taps.last_linear)
            if last.out_features != num_classes:
                layer = nn.Linear(taps.channels, num_classes, bias=last.bias is not None)
                module.set_submodule(taps.last_linear, layer)
        elif num_classes:
            self.output_layer = nn.Linear(taps.channels, num_classes)
        if taps.dropout:
            # ``Student`` applies it: a feature that is compared to a teacher's should not be half zeros.
            dropout: Any = module.get_submodule(taps.dropout)
            self.drop_rate, dropout.p = float(dropout.p), 0.0

    def get_classifier(self) -> nn.Module:
        """The Linear from the feature to the logits; Identity without classes."""
        if self.num_classes and self.taps.heads:
            return self.module.get_submodule(self.taps.last_linear)
        return self.output_layer

    def forward_features(self, images: Tensor) -> Seen:
        """(B, 3, H, W) -> feature and map."""
        wanted = [tap for tap in (self.taps.feature, self.taps.map) if tap is not None]
        with _hooks(self.module, wanted) as seen:
            output = self.module(images)
        vector = as_vector(read_tap(self.taps.feature, output, seen))
        last = self.taps.map
        return Seen(vector, as_map(vector if last is None else read_tap(last, output, seen)))

    def forward_head(self, seen: Seen, *, pre_logits: bool = False) -> Tensor:
        """The feature, or with its layer on it the output."""
        return seen.vector if pre_logits else self.get_classifier()(seen.vector)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K), or (B, C) without classes."""
        if self.num_classes and self.taps.heads:
            return self.module(images)  # type: ignore[no-any-return]
        return self.forward_head(self.forward_features(images))


@contextmanager
def _hooks(module: nn.Module, taps: list[Tap]) -> Iterator[dict[tuple[str, str], Any]]:
    """Keep what submodules are given and give while the body runs. Nothing of it stays in the module."""
    seen: dict[tuple[str, str], Any] = {}

    def keep_input(path: str) -> Any:
        return lambda _, given: seen.__setitem__(("input", path), given[0])

    def keep_output(path: str) -> Any:
        return lambda _, given, output: seen.__setitem__(("output", path), output)

    hooks = []
    for tap in taps:
        if tap.kind == "input":
            part = module.get_submodule(tap.name)
            hooks.append(part.register_forward_pre_hook(keep_input(tap.name)))
        elif tap.kind == "output":
            part = module.get_submodule(tap.name)
            hooks.append(part.register_forward_hook(keep_output(tap.name)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def from_factory(config: StudentConfig, num_classes: int) -> tuple[TappedModel, list[str]]:
    """Call a factory, and find feature and map of its module on one batch.

    Args:
        num_classes: K; 0 for a backbone.

    Returns:
        The model, and notes for the user: what was found.

    Raises:
        ConfigError: the factory cannot be called or returns no module; see ``tap``.
    """
    return tap(_call(config), config, num_classes)


def tap(
    module: nn.Module, config: StudentConfig, num_classes: int
) -> tuple[TappedModel, list[str]]:
    """Find feature and map of a module on one batch.

    Args:
        module: takes images.
        config: names feature and map, or leaves them to be found.
        num_classes: K; 0 for a backbone.

    Returns:
        The model, and notes for the user: what was found.

    Raises:
        ConfigError: the module does not take the pictures, or what the settings name is not in it.
    """
    settings = {
        **IMAGENET,
        **(getattr(module, "pretrained_cfg", None) or {}),
        "architecture": config.title.split(".")[0],
    }
    side = config.image_size or settings["input_size"][-1]
    pictures = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            taps = find_taps(
                module, pictures, name=config.title, feature=config.features, map_name=config.map
            )
        model = TappedModel(module, taps, num_classes, settings)
        model.unused = _freeze_unused(model, pictures)
    except ConfigError:
        raise
    except Exception as error:  # the user's code: any kind
        raise ConfigError(
            f"{config.setting}: its module does not run on a batch of {tuple(pictures.shape)} ({type(error).__name__}: "
            f"{str(error).strip()[:200]}). Set --student.image_size, and what it needs in --student.model_args."
        ) from error
    finally:
        for part, mode in modes:
            part.training = mode
    return model, _notes(model)


def _call(config: StudentConfig) -> nn.Module:
    where = config.setting
    function = find_function(config.factory, setting="--student.factory")
    try:
        module = function(**config.model_args)
    except Exception as error:  # the user's code: any kind
        raise ConfigError(
            f"{where}: called with {config.model_args}, it failed ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{where}: returned {type(module).__name__}; expected a torch.nn.Module.")
    return module


def _freeze_unused(model: TappedModel, pictures: Tensor) -> list[str]:
    """Exclude from training what neither feature nor map depends on: it would have no gradient."""
    named = [item for item in model.module.named_parameters() if item[1].requires_grad]
    seen = model.forward_features(pictures)
    total = model.forward_head(seen).float().sum() + seen.map.float().sum()
    gradients = (
        torch.autograd.grad(total, [value for _, value in named], allow_unused=True)
        if named and total.requires_grad
        else [None] * len(named)
    )
    unused = [name for (name, _), found in zip(named, gradients, strict=True) if found is None]
    for name, value in named:
        value.requires_grad_(name not in unused)
    if len(unused) == len(named):
        raise ConfigError(
            f"--student.features: the feature ({model.taps.feature}) depends on no trainable parameter of the module. "
            "Name another output or submodule."
        )
    return unused


def _notes(model: TappedModel) -> list[str]:
    taps = model.taps
    notes = [
        f"the student's feature is the {taps.feature} ({taps.channels} channels), its map "
        + (f"the {taps.map}" if taps.map else "one place")
        + "; --student.features and --student.map choose others"
    ]
    if model.unused:
        layers = sorted({name.rpartition(".")[0] for name in model.unused})
        notes.append(
            f"layers that the feature does not depend on stay as they are: {shorten(layers, 3)}"
        )
    return notes
