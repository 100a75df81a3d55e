"""Settings of image sources."""

from dataclasses import dataclass, field
from typing import Literal

from featstore.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raise ``ConfigError(message)`` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where the images are."""

    kind: Literal["folder", "tars", "hf", "digits"] = "digits"
    """folder: image files below a folder. tars: WebDataset tars. hf: a Hugging Face dataset saved on disk.
    digits: the 1,797 handwritten digits that scikit-learn ships."""
    path: str = ""
    """folder: the folder. tars: a folder of tars, or a brace or glob pattern. hf: what ``save_to_disk`` wrote."""
    include: list[str] = field(default_factory=lambda: ["*"])
    """Shell patterns over sample ids ("train/*"); a sample is taken if any of them matches."""
    labels_from: Literal["parent", "top", "none"] = "parent"
    """folder only: the class is the folder an image lies in, the topmost folder, or nothing."""
    image_column: str = "image"
    """hf only."""
    label_column: str = "label"
    """hf only; a data set without that column has no labels."""
    allow_cut_tars: bool = False
    """tars only: take the complete samples of a tar that breaks off, instead of refusing it."""

    image_member: str = ""
    """tars only: extension of the member that is the image, e.g. jpg, img or seg.png; empty: any ending of an image."""

    def __post_init__(self) -> None:
        require(
            self.kind == "digits" or bool(self.path),
            f"--source.path is missing: a source of kind {self.kind!r} needs to know where the images are.",
        )
        require(bool(self.include), "--source.include is empty: no sample could match.")
