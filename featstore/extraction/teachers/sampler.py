"""Class-conditional diffusion models as teachers: for a pseudo-sample of noise the picture that is sampled from it.

Preconditioning, noise levels and Heun's method are those of EDM (Karras et al., NeurIPS 2022, arXiv:2206.00364),
deterministic. The network is yours: a function for ``--teacher.library python`` that returns a ``Sampler`` of it.
"""

# B pictures, H W sides, S steps

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from featstore.errors import TeacherError
from featstore.format.pseudo_samples import CONDITION_MEAN, CONDITION_STD, split_condition


def noise_levels(steps: int, low: float, high: float, rho: float = 7.0) -> list[float]:
    """S standard deviations from ``high`` to ``low``, even in their ``rho``-th root, and 0."""
    first, last = high ** (1 / rho), low ** (1 / rho)
    ramp = [step / max(1, steps - 1) for step in range(steps)]
    return [*((first + share * (last - first)) ** rho for share in ramp), 0.0]


def heun(denoise: Callable[[Tensor, float], Tensor], x: Tensor, levels: list[float]) -> Tensor:
    """Solve dx/ds = (x - D(x, s)) / s from the first noise level to the last.

    Args:
        denoise: D(x, s).
        x: noise times the first level.
        levels: descending; after the step to 0 there is no correction.
    """
    for now, after in pairwise(levels):
        slope = (x - denoise(x, now)) / now
        there = x + (after - now) * slope
        if after:
            slope = (slope + (there - denoise(there, after)) / after) / 2
            there = x + (after - now) * slope
        x = there
    return x


class Sampler(nn.Module):
    """(B, 3, H, W) normalised noise with classes -> ``sample`` (B, H W), grey pictures from -1 to 1, row by row.

    Args:
        network: called with scaled noisy pictures (B, 1, H, W), log(level) / 4 (B,) and classes (B,) int64.
        size: H = W, pixels.
        steps: S; the network runs 2 S - 1 times.
        data: standard deviation of the pictures that the network was trained on.

    Attributes:
        preprocessing: see ``featstore.extraction.teachers.python_teacher``.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        size: int,
        classes: int,
        steps: int = 18,
        low: float = 0.002,
        high: float = 80.0,
        data: float = 0.5,
    ) -> None:
        super().__init__()
        self.network = network
        self.classes = classes
        self.data = data
        self.levels = noise_levels(steps, low, high)
        self.preprocessing = {"size": size, "mean": CONDITION_MEAN, "std": CONDITION_STD}

    def denoise(self, noisy: Tensor, level: Tensor, classes: Tensor) -> Tensor:
        """D(x, s), with the preconditioning of EDM.

        Args:
            noisy: (B, 1, H, W).
            level: (B,) standard deviations of the noise.
            classes: (B,).
        """
        s = level.view(-1, 1, 1, 1)
        total = s.square() + self.data**2
        found = self.network(noisy / total.sqrt(), level.log() / 4, classes)
        denoised: Tensor = noisy * self.data**2 / total + found * s * self.data / total.sqrt()
        return denoised

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Sample one picture from each."""
        noise, classes = split_condition(images)
        flat = (images[:, 1:] == images[:, 1:, :1, :1]).all()
        if not flat or int(classes.max()) >= self.classes:
            raise TeacherError(
                f"the sampler takes pseudo-samples of noise with at most {self.classes} classes (featstore statistics "
                "noise FILE --classes ...), not pictures."
            )
        sample = heun(
            lambda x, level: self.denoise(x, x.new_full((len(x),), level), classes),
            noise * self.levels[0],
            self.levels,
        )
        return {"sample": sample.clamp(-1, 1).flatten(1)}
