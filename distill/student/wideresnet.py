"""WideResNet for 32 x 32 pictures, the student of the CIFAR setting; timm has none.

Zagoruyko and Komodakis, "Wide Residual Networks" (2016), in the form that semi-supervised benchmarks train: leaky
ReLU, convolutions with a bias, slow batch statistics. Importing this file makes ``timm.create_model`` know it.
"""

# B batch, H W input side in pixels, k width factor

from itertools import pairwise
from typing import Any

from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

SLOPE = 0.1  # slope of the leaky ReLU below zero
EPSILON = 1e-3  # epsilon of batch normalisation

SETTINGS: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "num_classes": 10,
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0.4914, 0.4822, 0.4465),  # of CIFAR-10's training images
    "std": (0.2471, 0.2435, 0.2616),
    "first_conv": "stem",
    "classifier": "fc",
}

default_cfgs = generate_default_cfgs({"wide_resnet28_2": SETTINGS, "wide_resnet28_8": SETTINGS})


class Activation(nn.Sequential):
    """Batch normalisation and leaky ReLU."""

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__(
            nn.BatchNorm2d(channels, eps=EPSILON, momentum=momentum),
            nn.LeakyReLU(SLOPE, inplace=True),
        )


class WideBlock(nn.Module):
    """Two 3 x 3 convolutions, each behind its activation, added to the input.

    Where the width changes, the input is added after its activation and a 1 x 1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, momentum: float) -> None:
        super().__init__()
        self.act1 = Activation(inputs, momentum)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.act2 = Activation(outputs, momentum)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride) if inputs != outputs else None

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h / stride, w / stride)."""
        active = self.act1(maps)
        around = maps if self.shortcut is None else self.shortcut(active)
        return around + self.conv2(self.act2(self.conv1(active)))  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """Three groups of pre-activation blocks of widths 16 k, 32 k and 64 k, with the interface of timm's models.

    Args:
        depth: 6 n + 4 layers, n blocks per group.
        width: k.
        num_classes: of the last Linear; 0 leaves it out.
        in_chans: channels of a picture.
        global_pool: timm's name of the pooling.
        drop_rate: of the dropout in front of the last Linear; 0 in the benchmarks.
        bn_momentum: share of a batch in the running statistics. 0.001 suits runs of 10^5 steps and more: after n
            steps the initial statistics still weigh 0.999^n, 0.6 after 500. Take 0.1 for short runs.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 2,
        *,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        bn_momentum: float = 0.001,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth {depth} is not 6 n + 4")
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = widths[-1]
        self.stem = nn.Conv2d(in_chans, widths[0], 3, padding=1)
        self.stages = nn.Sequential()
        self.feature_info: list[dict[str, Any]] = []
        for number, (inputs, outputs) in enumerate(pairwise(widths)):
            first = WideBlock(inputs, outputs, stride=2 if number else 1, momentum=bn_momentum)
            others = [
                WideBlock(outputs, outputs, stride=1, momentum=bn_momentum)
                for _ in range(blocks - 1)
            ]
            self.stages.append(nn.Sequential(first, *others))
            self.feature_info.append(
                {"num_chs": outputs, "reduction": 2**number, "module": f"stages.{number}"}
            )
        self.norm = Activation(widths[-1], bn_momentum)
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)
        self.head_drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Identity()
        self.reset_classifier(num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="leaky_relu")

    def get_classifier(self) -> nn.Module:
        """The last Linear."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh Linear at the end, or nothing if there are no classes."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)
        if not num_classes:
            self.fc = nn.Identity()
            return
        linear = nn.Linear(self.num_features, num_classes)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.fc = linear

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, 64 k, H / 4, W / 4), after the last activation."""
        return self.norm(self.stages(self.stem(images)))  # type: ignore[no-any-return]

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """Also give the maps of the groups.

        Args:
            images: (B, in_chans, H, W).
            indices: of the groups; a number takes the last ones, None takes all.
            norm: put the last activation behind the last group's map, too.
            intermediates_only: leave out what ``forward_features`` gives.

        Returns:
            ``forward_features(images)`` and a list of (B, 16 k 2^i, H / 2^i, W / 2^i), before activation.
        """
        count = len(self.stages)
        if indices is None or isinstance(indices, int):
            indices = list(range(count - (count if indices is None else indices), count))
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        final = self.norm(maps[-1])
        if norm:
            maps[-1] = final
        taken = [maps[1:][index] for index in indices]
        return taken if intermediates_only else (final, taken)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, 64 k, h, w) -> (B, num_classes), or (B, 64 k) with ``pre_logits``."""
        features = self.head_drop(self.global_pool(maps))
        return features if pre_logits else self.fc(features)  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) normalised -> (B, num_classes)."""
        return self.forward_head(self.forward_features(images))


@register_model
def wide_resnet28_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-28-2: 1.5 million parameters, feature of 128 channels."""
    return build_model_with_cfg(
        WideResNet, "wide_resnet28_2", pretrained, depth=28, width=2, **kwargs
    )


@register_model
def wide_resnet28_8(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-28-8: 23 million parameters, feature of 512 channels."""
    return build_model_with_cfg(
        WideResNet, "wide_resnet28_8", pretrained, depth=28, width=8, **kwargs
    )
