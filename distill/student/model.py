"""The student: a backbone or a classifier that ends in one Linear, split into feature and head unchanged."""

# B batch, C student width, K classes, H W input side in pixels, M channels and h w sides of a feature map

import difflib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import distill.student.hashed_text
import distill.student.one_step
import distill.student.pillars
import distill.student.slimmable
import distill.student.text_transformer
import distill.student.wideresnet  # noqa: F401  registers it with timm
from distill.config import FeatureTap, StudentConfig
from distill.student import tapped
from distill.student.start_weights import load_weights
from distill.student.tapped import Seen, TappedModel
from featstore.cli.schema import did_you_mean
from featstore.errors import ConfigError

SPLIT_TOLERANCE = 1e-4
"""Largest difference between head(feature) and the plain model, relative to the largest logit (float32)."""

STAGES = 4  # most maps among ``StudentOutput.stages``: the stages of the usual hierarchical network


class StudentOutput(NamedTuple):
    """What one forward pass gives; rows are images."""

    features: Tensor  # (B, C), f_s: what the head is given; without the head's dropout
    logits: Tensor
    """(B, K); K is 0 for a backbone without a classifier. With a task's own head: its output, (B, ...)."""
    map: Tensor
    """(B, M, h, w), the last feature map; of token models, the patch tokens on their grid."""
    stages: tuple[Tensor, ...]  # (B, M_i, h_i, w_i) each, from the input on; empty unless asked for


class Student(nn.Module):
    """A plain timm model, or a module of the user's, whose forward pass also returns what its head sees.

    The feature is what the last Linear sees (``prelogits``) or what comes out of global pooling (``pooled``): 1024 or
    576 channels in MobileNetV3-small. Both are readings of the CustomKD paper, which does not say. Without a last
    Linear (``num_classes=0``) the feature is the model's output.

    Attributes:
        model: the timm model or ``TappedModel``.
        feature: "prelogits" or "pooled".
        width: C.
        num_classes: K; 0 for a backbone without a classifier.
        input_size: (H, W), pixels.
        mean: channel means of the normalisation.
        std: channel deviations of the normalisation.
        drop_rate: of the dropout in front of the last Linear; it acts on the logits and not on the feature.
        map_channels: M.
        map_size: (h, w).
        stage_channels: M_i of every stage; empty if the model cannot give its stages.
        notes: notes for the user about how it was built.
        loaded_head: whether the last layer came with the starting weights.
        frozen: whether the last layer or the task's head alone is trained, see ``freeze``.
        task_head: of a task that brings its own: (features, map, stages) -> output, in place of the logits; else None.
            It is given the maps of the stages if its attribute ``stages`` is true.

    Raises:
        ConfigError: the model does not take the size, or head(feature) is not its output.
    """

    task_head: nn.Module | None

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int = 0,
        feature: FeatureTap = "prelogits",
        notes: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.task_head = None
        self.loaded_head = False
        self.frozen = False
        settings: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
        self.name = str(settings.get("architecture", type(model).__name__))
        size = image_size or settings["input_size"][-1]
        self.input_size = (size, size)
        self.mean: tuple[float, ...] = tuple(settings["mean"])
        self.std: tuple[float, ...] = tuple(settings["std"])
        self.notes = notes or []
        self.feature = feature
        self.has_classifier = not isinstance(model.get_classifier(), nn.Identity)  # type: ignore[operator]
        self.num_classes = self.classifier.out_features if self.has_classifier else 0
        self.drop_rate = 0.0
        # In a tuple, because a module that is an attribute would add its keys to the state dict.
        self._pooled_head: tuple[PooledHead, ...] = ()
        self._stages: list[int] = []
        self.stage_channels: tuple[int, ...] = ()
        with evaluating(self), torch.no_grad():
            self._measure()

    @property
    def library_model(self) -> nn.Module:
        """The model as timm or the user's function builds it; its state dict is what is exported, key for key."""
        return self.model.module if isinstance(self.model, TappedModel) else self.model

    @property
    def num_parameters(self) -> int:
        """Parameters that the output depends on."""
        unused = set(self.model.unused) if isinstance(self.model, TappedModel) else set()
        own = [v for name, v in self.library_model.named_parameters() if name not in unused]
        for part in (getattr(self.model, "output_layer", None), self.task_head):
            own += [] if part is None else part.parameters()
        return sum(value.numel() for value in own)

    @property
    def classifier(self) -> nn.Linear:
        """The last Linear, a module of ``model``."""
        classifier = self.model.get_classifier()  # type: ignore[operator]
        if not isinstance(classifier, nn.Linear):
            raise ConfigError(
                f"--student.name {self.name}: its classifier is a {type(classifier).__name__}; the "
                "feature is defined as the input of one last Linear. Choose a model that ends in one."
            )
        return classifier

    def freeze(self) -> None:
        """Train the last layer and a task's head alone; all before keeps weights and statistics."""
        self.frozen = True
        self.library_model.requires_grad_(False)
        if self.has_classifier:
            self.classifier.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; layers that are frozen stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    @property
    def head(self) -> nn.Module:
        """From the feature (B, C) to logits (B, K), without dropout: the last Linear, or all that follows pooling."""
        return self._pooled_head[0] if self._pooled_head else self.classifier

    def frozen_head(self, features: Tensor) -> Tensor:
        """The head with its present weights as constants: gradients reach only what it is given (stage 1 of CustomKD).

        Args:
            features: (B, C).

        Returns:
            (B, K). Batch statistics are used as they are, and stay as they are.
        """
        head = self.head
        values = {name: value.detach() for name, value in head.state_dict().items()}
        with evaluating(head):
            return torch.func.functional_call(head, values, (features,))  # type: ignore[no-any-return]

    def forward(
        self, images: Tensor, *, adapter: nn.Module | None = None, stages: bool = False
    ) -> StudentOutput:
        """Run the model once.

        Args:
            images: (B, 3, H, W) float, normalised.
            adapter: (B, C) -> (B, C); the head is given its output in place of the feature.
            stages: also return the maps of the stages.

        Raises:
            ConfigError: stages are asked of a model that cannot give them.
        """
        model: Any = self.model
        maps: list[Tensor] = []
        if stages or getattr(self.task_head, "stages", False):
            if not self._stages:
                raise ConfigError(
                    f"--student.name {self.name}: this model cannot give the maps of its stages, which a method or "
                    "partner of this run needs. Choose a student whose timm model has forward_intermediates."
                )
            last, maps = model.forward_intermediates(images, indices=self._stages)
        else:
            last = model.forward_features(images)
        pooled = self._pooled_head[0] if self._pooled_head else None
        features = (
            pooled.pool(last) if pooled is not None else model.forward_head(last, pre_logits=True)
        )
        seen = features if adapter is None else adapter(features)
        hidden = seen if pooled is None else pooled.hidden(seen)
        last_map = self._as_map(last, features)
        if self.task_head is not None:
            logits = self.task_head(features, last_map, tuple(maps))
        elif self.has_classifier:
            logits = self.classifier(F.dropout(hidden, self.drop_rate, self.training))
        else:
            logits = features.new_zeros(len(features), 0)
        return StudentOutput(features, logits, last_map, tuple(maps))

    def finer_stage(self, share: int) -> int | None:
        """The last stage whose map has at least 1 / share of the input's height; None if the model has none."""
        if not self._stages:
            return None
        with evaluating(self), torch.no_grad():
            picture = torch.zeros(1, 3, *self.input_size)
            _, maps = self.model.forward_intermediates(picture, indices=self._stages)  # type: ignore[operator]
        fine = [
            place for place, item in enumerate(maps) if item.shape[2] * share >= self.input_size[0]
        ]
        return fine[-1] if fine else 0

    def plain(self) -> nn.Module:
        """What is exported: the timm model; with a task's own head, a module that gives its output."""
        return self.model if self.task_head is None else WithHead(self)

    def _as_map(self, last: Tensor | Seen, features: Tensor) -> Tensor:
        """What ``forward_features`` gave, as (B, M, h, w); without a grid, the feature as one place."""
        if isinstance(last, Seen):
            return last.map
        if last.dim() == 4:
            return last.permute(0, 3, 1, 2) if _channels_last(self.model) else last
        if last.dim() == 3:
            patches = last[:, getattr(self.model, "num_prefix_tokens", 0) :]
            count = patches.shape[1]
            embed = getattr(self.model, "patch_embed", None)
            sides = tuple(getattr(embed, "grid_size", None) or ())
            if math.prod(sides) != count:
                sides = (math.isqrt(count),) * 2
            if math.prod(sides) == count:
                return patches.transpose(1, 2).unflatten(2, sides)  # type: ignore[no-any-return]
        return features[:, :, None, None]

    def _measure(self) -> None:
        """Look at one picture: widths, shapes, and whether head(feature) is the plain model's output."""
        model: Any = self.model
        generator = torch.Generator().manual_seed(0)
        picture = torch.rand(1, 3, *self.input_size, generator=generator)
        if hasattr(model, "example_input"):  # of texts or point clouds
            picture = model.example_input()
        try:
            plain = model(picture)
            last = model.forward_features(picture)
            self.drop_rate = _take_dropout(model, last)
            if self.feature == "pooled":
                self._pooled_head = _pooled_head(model, self.name, last)
            features, logits, last_map, _ = self(picture)
        except ConfigError:
            raise
        except Exception as error:  # models check their input with asserts and plain errors
            first = str(error).strip().split("\n")[0][:200]
            raise ConfigError(
                f"--student.name {self.name} does not run on {self.input_size[0]} x {self.input_size[1]} pictures "
                f"({first}). Choose another --student.image_size; a ViT needs the same in "
                f"--student.model_args, '{{img_size: {self.input_size[0]}}}'."
            ) from error
        self.width, self.map_channels = features.shape[1], last_map.shape[1]
        self.map_size = (last_map.shape[2], last_map.shape[3])
        if not self.has_classifier:
            self._check_backbone(plain, features)
        elif features.dim() != 2 or plain.shape != (1, self.num_classes):
            raise ConfigError(
                f"--student.name {self.name}: feature {tuple(features.shape)} and logits {tuple(plain.shape)}; "
                f"expected (1, width) and (1, {self.num_classes}). Choose a plain classifier."
            )
        elif not _alike(plain, logits) or not _alike(plain, self.head(features)):
            raise ConfigError(
                f"--student.name {self.name}: its head on its feature ({self.feature}) is not the model's output, so "
                "the feature cannot be told from the head. Choose another model"
                + (", or --student.feature prelogits." if self._pooled_head else ".")
            )
        if hasattr(model, "forward_intermediates"):
            final, maps = model.forward_intermediates(picture)
            if _alike(last, final) and all(item.dim() == 4 for item in maps):
                self._stages = _spread(len(maps))
                self.stage_channels = tuple(maps[index].shape[1] for index in self._stages)

    def _check_backbone(self, plain: Tensor, features: Tensor) -> None:
        """Check that the feature is the model's output, or what its last layers make of it."""
        output = self._pooled_head[0].hidden(features) if self._pooled_head else features
        if features.dim() != 2 or not _alike(plain, output):
            raise ConfigError(
                f"--student.name {self.name}: its output has shape {tuple(plain.shape)}, its feature "
                f"({self.feature}) {tuple(features.shape)}; expected one vector per image, and the output to follow "
                "from it. Choose another model, or --student.feature prelogits."
            )


class WithHead(nn.Module):
    """A backbone and the head of its task as one module: (B, 3, H, W) -> the head's output."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        """Run both."""
        return self.student(images).logits  # type: ignore[no-any-return]


class PooledHead(nn.Module):
    """All that follows global pooling, as one callable of the pooled feature; its modules are the model's own.

    It runs the model's ``forward_head`` on a map of one place, whose pooling is the identity.
    """

    def __init__(self, model: nn.Module, pool: nn.Module, parts: list[nn.Module]) -> None:
        super().__init__()
        # In a tuple, so that only the parts count as modules of this one.
        self._of: tuple[Any, nn.Module] = (model, pool)
        self.parts = nn.ModuleList(parts)

    def pool(self, last: Tensor) -> Tensor:
        """(B, ...) of ``forward_features`` -> (B, C)."""
        return self._of[1](last).flatten(1)  # type: ignore[no-any-return]

    def hidden(self, features: Tensor) -> Tensor:
        """(B, C) -> (B, P), what the last Linear sees."""
        model = self._of[0]
        place = features[:, None, None] if _channels_last(model) else features[:, :, None, None]
        return model.forward_head(place, pre_logits=True)  # type: ignore[no-any-return]

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) -> (B, K)."""
        return self._of[0].get_classifier()(self.hidden(features))  # type: ignore[no-any-return]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside, and afterwards every part in the mode in which it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def build_student(config: StudentConfig, num_classes: int, *, seed: int = 0) -> Student:
    """Build a student and check that splitting it into feature and head changes nothing.

    Args:
        num_classes: K; 0 builds a backbone without a classifier.
        seed: Seed of the run, for layers that start at random; takes the place of ``{seed}`` in ``config.weights``.

    Raises:
        ConfigError: unknown model, weights that cannot be fetched or do not fit, or a model that cannot be split.
    """
    notes: list[str] = []
    model: nn.Module
    if config.factory:
        model, notes = tapped.from_factory(config, num_classes)
    else:
        model = _create(config, num_classes)
        if config.features or config.map or not _splits(model):
            # Without its own classifier, whose form is not known; the task's layer goes on the feature.
            model, notes = tapped.tap(_create(config, 0), config, num_classes)
    notes += _starts_at_random(config)
    path = config.weights.replace("{seed}", str(seed))
    notes += load_weights(model, Path(path)) if path else []
    student = Student(model, image_size=config.image_size, feature=config.feature, notes=notes)
    student.loaded_head = bool(path) and not any("starts fresh" in note for note in notes)
    student.mean = tuple(config.mean) or student.mean
    student.std = tuple(config.std) or student.std
    if config.freeze:
        student.freeze()
    return student


def starts_pretrained(config: StudentConfig) -> bool:
    """Whether its initial weights are those that timm downloads; ``auto`` is decided here."""
    if config.pretrained == "auto":
        own = config.weights or config.factory
        return not own and timm.models.is_model_pretrained(config.name)
    return config.pretrained


def _starts_at_random(config: StudentConfig) -> list[str]:
    """A note where ``auto`` found no weights. Raises ConfigError: they would be kept as they are."""
    if config.pretrained != "auto" or config.weights or config.factory or starts_pretrained(config):
        return []
    known = f"timm {timm.__version__} has no pretrained weights of {config.name}"
    if config.freeze:
        raise ConfigError(
            f"--student.freeze true would keep random weights, {known}. Give a backbone: --student.weights RUN."
        )
    return [f"{known}: it starts from random ones"]


def _splits(model: Any) -> bool:
    """Whether a model of timm ends in one Linear, or in its feature."""
    parts = ("forward_features", "forward_head", "get_classifier")
    return all(hasattr(model, part) for part in parts) and isinstance(
        model.get_classifier(), nn.Linear | nn.Identity
    )


def _create(config: StudentConfig, num_classes: int) -> nn.Module:
    base = config.name.split(".")[0]
    if not timm.is_model(base):
        plain = {name.replace("_", ""): name for name in timm.list_models()}
        near = difflib.get_close_matches(base.replace("_", "").lower(), plain, n=3)
        raise ConfigError(
            f"--student.name {config.name}: timm {timm.__version__} has no such model. "
            + did_you_mean([plain[name] for name in near])
        )
    pretrained = starts_pretrained(config)
    try:
        return timm.create_model(
            config.name, pretrained=pretrained, num_classes=num_classes, **config.model_args
        )
    except Exception as error:  # the hub's client raises many unrelated types
        first = str(error).strip().split("\n")[0][:200]
        if pretrained:
            raise ConfigError(
                f"--student.name {config.name}: its pretrained weights could not be had ({type(error).__name__}: "
                f"{first}). Fetch them where there is a network and give the file, "
                "--student.weights PATH, or start from "
                "scratch, --student.pretrained false."
            ) from error
        raise ConfigError(
            f"--student.name {config.name} with --student.model_args {config.model_args} cannot be built: {first}"
        ) from error


def _alike(plain: Tensor, other: Tensor) -> bool:
    """Equal but for rounding."""
    if plain.shape != other.shape:
        return False
    scale = float(plain.abs().max().clamp(min=1))
    return float((plain - other).abs().max()) <= SPLIT_TOLERANCE * scale


def _channels_last(model: nn.Module) -> bool:
    """Whether a model's maps are (B, h, w, M)."""
    return getattr(model, "output_fmt", "NCHW") == "NHWC"


def _spread(count: int) -> list[int]:
    """Which of ``count`` maps are taken: the last four, or of many (the blocks of a ViT) four in even distances."""
    if count <= STAGES + 1:
        return list(range(max(0, count - STAGES), count))
    return [math.ceil(count * number / STAGES) - 1 for number in range(1, STAGES + 1)]


def _called(model: nn.Module, run: Callable[[], object]) -> list[nn.Module]:
    """The modules that take part in a run, in the order in which they finish."""
    called: list[nn.Module] = []
    hooks = [
        part.register_forward_hook(lambda module, *_: called.append(module))
        for part in model.modules()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _take_dropout(model: Any, last: Tensor) -> float:
    """Switch off the dropout in front of the last Linear and return its rate: ``Student`` applies it.

    timm's ``forward_head(pre_logits=True)`` applies it to the pre-logits, and a feature that is compared to a
    teacher's should not be half zeros.
    """
    called = _called(model, lambda: model.forward_head(last, pre_logits=True))
    dropouts = [part for part in called if isinstance(part, nn.Dropout)]
    if dropouts:
        rate, dropouts[-1].p = dropouts[-1].p, 0.0
    else:
        rate, model.drop_rate = getattr(model, "drop_rate", 0.0), 0.0
    return float(rate)


def _pooled_head(model: Any, name: str, last: Tensor) -> tuple[PooledHead, ...]:
    """The head of the pooled feature; none if nothing with weights lies in front of the last Linear."""
    called = _called(model, lambda: model.forward_head(last, pre_logits=True))
    parts = [
        part for part in called if [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    ]
    if not parts:
        return ()
    pools = [getattr(place, "global_pool", None) for place in (model, getattr(model, "head", None))]
    for pool in pools:
        if isinstance(pool, nn.Module):
            last_layers = (
                [] if isinstance(model.get_classifier(), nn.Identity) else [model.get_classifier()]
            )
            return (PooledHead(model, pool, [*parts, *last_layers]),)
    raise ConfigError(
        f"--student.feature pooled: {name} has {len(parts)} layers in front of its last Linear, and no pooling module "
        "that could be told from them. Choose --student.feature prelogits."
    )
