"""``ofa``: OFA-KD (Hao et al., NeurIPS 2023, arXiv:2310.19444): every stage of the student learns the teacher's logits.

Where teacher and student are built unlike each other (a ViT and a CNN), features are hard to match; logits are not. So
each stage of the student gets an exit of its own, and every exit imitates the logits of a linear probe on the stored
features. The exits are thrown away after training.
"""

# B batch, K classes, M_i h_i w_i the map of stage i

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from distill.data.pictures import Batch
from distill.losses.logits import ofa
from distill.methods.base import Output, Setup, Side
from distill.methods.probe_logits import ProbeLogits, classes_of
from distill.student.model import Student
from featstore.errors import ConfigError


class OFA(ProbeLogits):
    """L = CE(D_L) + weight (OFA(z_s) + sum over stages OFA(exit)) over all images.

    Trained: student, exits. Frozen: probe, stored f_t.

    Raises:
        ConfigError: the student cannot give the maps of its stages.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.options = setup.config.ofa
        channels = setup.student.stage_channels
        if self.options.stages and not channels:
            raise ConfigError(
                f"--ofa.stages true: {setup.student.name} cannot give the maps of its stages. Choose a student whose "
                "timm model has forward_intermediates, or --ofa.stages false."
            )
        self.exits = Exits(channels, setup.student.num_classes) if self.options.stages else None

    def student_sides(self) -> dict[str, Side]:
        """One exit per stage."""
        return {} if self.exits is None else {"exits": Side(self.exits, tap="stages")}

    def compare(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        """The term of one exit."""
        options = self.options
        return options.weight * ofa(
            student_BK,
            target_BK,
            classes_of(options.target, labels_B, target_BK),
            eps=options.eps,
            temperature=options.temperature,
        )

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        terms = super().loss(output, batch, student)
        target = self.target(batch)
        for number, logits in enumerate(output.projected.get("exits", ())):
            terms[f"exit{number}"] = self.compare(logits, target, batch.labels)
        return terms


class Exits(nn.Module):
    """From the maps of all stages to logits, one exit per stage.

    An exit goes through the channels of the later stages by separable convolutions that halve the map, is averaged over
    places, and ends in a Linear. The parts are the paper's [C], the number of convolutions and their widths ours [I].

    Args:
        channels: M_i of every stage, from the input on.
        num_classes: K.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.exits = nn.ModuleList(
            nn.Sequential(
                *(_halve(wide, wider) for wide, wider in pairwise(channels[stage:])),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(channels[-1], num_classes),
            )
            for stage in range(len(channels))
        )

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(B, M_i, h_i, w_i) of every stage -> (B, K) of every stage."""
        return tuple(leave(seen) for leave, seen in zip(self.exits, stages, strict=True))


def _halve(channels: int, to_channels: int) -> nn.Sequential:
    """Separable convolution: (B, channels, h, w) -> (B, to_channels, ceil(h / 2), ceil(w / 2))."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, to_channels, 1, bias=False),
        nn.BatchNorm2d(to_channels),
        nn.ReLU(),
    )
