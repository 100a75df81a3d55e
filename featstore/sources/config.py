"""Settings of image sources."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from featstore.errors import ConfigError, SourceError

TEXT_SUFFIXES = (".jsonl", ".parquet")


def require(condition: bool, message: str) -> None:
    """Raise ``ConfigError(message)`` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where the images (or texts) are."""

    kind: Literal["folder", "tars", "hf", "digits", "store", "text", "synthetic", "points"] = (
        "digits"
    )
    """folder: image files below a folder. tars: WebDataset tars. hf: a Hugging Face data set (saved, or Parquet).
    digits: the 1,797 handwritten digits of scikit-learn. store: what a feature store holds of its images, for phase
    two: copies (--store.pictures), or the record of its pseudo-samples; without a path, of --store. text: a table with
    columns id and text. synthetic: pseudo-samples that are drawn from a record, which ``featstore statistics`` wrote.
    points: point clouds below a folder, .npy, .bin (KITTI: N x 4 float32; .pcd.bin: N x 5) or .ply. If only a path is
    given, the kind is detected, but for points."""
    path: str = ""
    """folder, points: the folder, also as a URL. tars: a folder of tars, or a brace or glob pattern; also as a URL,
    s3://bucket/{000..999}.tar (gs://, az://, https://, ...). hf: what ``save_to_disk`` wrote, or Parquet files in the
    ways of tars, also hf://datasets/organisation/name. text: a .jsonl or .parquet file. synthetic: the record."""
    include: list[str] = field(default_factory=lambda: ["*"])
    """Shell patterns over sample ids ("train/*"); a sample is taken if any of them matches."""
    labels_from: Literal["parent", "top", "none"] = "parent"
    """folder and points: the class is the folder of a sample, the topmost folder, or nothing."""
    labels: str = ""
    """CSV or Parquet file with the label of each image (columns id and label), in place of labels_from. Images that it
    does not name have no label. An image is named by its id, or by its file name where that is unique. Several labels
    per image: in one cell with ; or | between them, or a column of 0 and 1 for each label."""
    classes: list[str] = field(default_factory=list)
    """Names of all classes in their order, where these images may be of some of them only; images of others count
    as not labelled. Empty: the names that are found, sorted."""
    image_column: str = "image"
    """hf only."""
    label_column: str = "label"
    """hf and text; a data set without that column has no labels."""
    text_column: str = "text"
    """text only: column with the texts; the content hash is that of their UTF-8 bytes."""
    language_column: str = "language"
    """text only: column with the language of each text; a table without a column of the default name has none."""
    languages: list[str] = field(default_factory=list)
    """text only: take the texts of these languages; empty takes all."""
    cache_gb: float = 20.0
    """hf in Parquet files: limit of the images that are kept on the local disk (in FEATSTORE_CACHE), where single ones
    can be read; random access wants room for all images."""
    allow_cut_tars: bool = False
    """tars only: take the complete samples of a tar that breaks off, instead of refusing it."""

    samples: int = 0
    """synthetic only: pseudo-samples of each class, or of all where the record has no classes."""
    first_seed: int = 0
    """synthetic only: seed of the first one; a class and a seed are one picture, on every machine."""

    image_member: str = ""
    """tars only: extension of the member that is the image, e.g. jpg, img or seg.png; empty: any ending of an image."""

    def __post_init__(self) -> None:
        if self.kind == "digits" and self.path:
            object.__setattr__(self, "kind", source_of(self.path)["kind"])
        require(
            self.kind in ("digits", "store") or bool(self.path),
            f"--source.path is missing: a source of kind {self.kind!r} needs to know where the "
            f"{'texts' if self.kind == 'text' else 'images'} are.",
        )
        require(
            self.kind == "text" or not self.languages,
            f"--source.languages is for --source.kind text; this source is {self.kind!r}.",
        )
        require(
            (self.kind == "synthetic") == (self.samples > 0)
            and self.samples >= 0 <= self.first_seed,
            f"--source.samples {self.samples} --source.first_seed {self.first_seed}: --source.kind synthetic, and no "
            f"other, needs a number of samples above 0, and a seed of at least 0; this source is {self.kind!r}.",
        )
        require(
            len(set(self.classes)) == len(self.classes),
            f"--source.classes repeats one: {' '.join(self.classes)}.",
        )
        require(self.cache_gb > 0, f"--source.cache_gb {self.cache_gb} must be positive.")
        require(bool(self.include), "--source.include is empty: no sample could match.")


def source_of(images: str | os.PathLike[str]) -> dict[str, Any]:
    """Detect the settings of section ``source`` for a path; ``"digits"`` names the data set."""
    text = os.fspath(images)
    if text == "digits":
        return {"kind": "digits"}
    folder = Path(text)
    # One file that is missing is a table too: the error then names a file.
    one_file = "://" not in text and not set(text) & set("*?[{")
    if text.endswith(TEXT_SUFFIXES) and one_file:
        kind = "text"
    elif text.endswith(".safetensors"):
        kind = "synthetic"
    elif text.endswith(".parquet") or (text.startswith("hf://") and not text.endswith(".tar")):
        kind = "hf"
    elif "://" in text or text.endswith(".tar") or (folder.is_dir() and any(folder.glob("*.tar"))):
        kind = "tars"
    elif is_saved(folder) or any(any(folder.glob(f"{sub}*.parquet")) for sub in ("", "data/")):
        kind = "hf"
    else:
        kind = "folder"
    return {"kind": kind, "path": text}


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote a folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def is_parquet(path: str) -> bool:
    """Whether the path of a source of kind hf names Parquet files, rather than what ``save_to_disk`` wrote."""
    if "://" in path or path.endswith(".parquet"):
        return True
    folder = Path(path)
    return not is_saved(folder) and next(folder.rglob("*.parquet"), None) is not None


def check_path(config: SourceConfig) -> None:
    """Look whether the place of the images or texts is there, before anything heavy is imported."""
    if "://" in config.path or (config.kind == "hf" and config.path.endswith(".parquet")):
        return
    if (
        config.kind in ("folder", "hf", "text", "synthetic", "points")
        and not Path(config.path).exists()
    ):
        missing = Path(config.path).absolute()
        there = next(parent for parent in missing.parents if parent.exists())
        raise SourceError(
            f"{config.path}: no such {'file' if config.kind == 'text' else 'folder'} (the path exists up to {there}). "
            f"Set --source.path to the {'file of the texts' if config.kind == 'text' else 'folder of the images'}."
        )
