"""Options of changed pictures: photometric ones that a teacher's loss may see, and strong ones for the partners."""

from dataclasses import dataclass

from featstore.sources.config import require


@dataclass(frozen=True, kw_only=True)
class PhotometricConfig:
    """Changes of colour and sharpness. They move no pixel, so the stored feature of the view still fits, nearly."""

    jitter: float = 0.0
    """Strength of random brightness, contrast and saturation on the student's side, 0 to 1; 0 is off."""
    hue: float = 0.0
    """Largest turn of the hue, as a part of the colour circle, 0 to 0.5; 0 is off."""
    grayscale: float = 0.0
    """Probability that a picture loses its colours."""
    blur: float = 0.0
    """Probability that a picture is blurred."""

    def __post_init__(self) -> None:
        for name, most in (("jitter", 1), ("hue", 0.5), ("grayscale", 1), ("blur", 1)):
            value = getattr(self, name)
            require(0 <= value <= most, f"--data.{name} {value} must lie between 0 and {most}.")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Strong copies of unlabelled images, which a partner compares to the view itself. No teacher's loss sees them.

    The defaults are those of semi-supervised benchmarks on CIFAR [C], without their flip.
    """

    ops: int = 3
    """Operations of RandAugment on every copy, each drawn from thirteen; 0 is off."""
    magnitude: float = 10.0
    """Largest magnitude of an operation, 0 to 10; each draws its own, uniform from 0 up to it."""
    cutout: float = 0.5
    """Largest side of a square that is painted over, as a part of the picture's side; 0 is off."""
    translate: float = 0.125
    """Largest shift along each side, as a part of it, with a reflected border; 0 is off."""
    flip: bool = False
    """Mirror every second copy, for images that keep their meaning when mirrored."""

    def __post_init__(self) -> None:
        require(self.ops >= 0, f"--data.strong.ops {self.ops} must not be negative.")
        for name, most in (("magnitude", 10), ("cutout", 1), ("translate", 0.5)):
            value = getattr(self, name)
            require(
                0 <= value <= most, f"--data.strong.{name} {value} must lie between 0 and {most}."
            )
