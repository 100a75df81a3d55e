"""A trained classifier that judges generated pictures: its features of them, and which class it sees."""

# N pictures, P numbers of a grey picture, D width of the classifier's feature

import functools
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.config import DataConfig
from distill.data.join_samples import join_samples
from distill.data.pictures import ViewDataset
from distill.data.schedule import CANONICAL, Request
from distill.student.files import WEIGHTS, read_config, student_config
from distill.student.model import build_student
from distill.student.start_weights import load_saved
from featstore.errors import ConfigError
from featstore.format.views import ViewSet
from featstore.sources import open_source
from featstore.sources.config import SourceConfig, source_of
from featstore.sources.load import ViewRule

AT_ONCE = 500  # pictures

MOST_REAL = 5000
"""Most real images that samples are compared with, evenly spaced."""


class Judge:
    """The student of a finished run of task classify.

    Args:
        folder: Folder of the run.

    Raises:
        ConfigError: no such run, or one of another task.
    """

    def __init__(self, folder: str) -> None:
        described = read_config(Path(folder)) or {"task": "none that is finished"}
        if described.get("task", "classify") != "classify":
            raise ConfigError(
                f"--generate.classifier {Path(folder).absolute()}: expected a run of task classify, found task "
                f"{described['task']}."
            )
        self.student = build_student(student_config(described), described["num_classes"]).eval()
        load_saved(self.student.model, Path(folder) / WEIGHTS)
        self.class_names = tuple(described["label_names"])

    @torch.no_grad()
    def __call__(self, pictures_NP: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) features and (N,) classes of square grey pictures from -1 to 1, rounded to 8 bits as in a file."""
        student, found = self.student, []
        side = math.isqrt(pictures_NP.shape[1])
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (student.mean, student.std))
        for part in pictures_NP.float().split(AT_ONCE):
            grey = ((part + 1) * 127.5).clamp(0, 255).round().view(-1, 1, side, side)
            shown = F.interpolate(grey, student.input_size, mode="bilinear", antialias=True)
            seen = student((shown.expand(-1, 3, -1, -1) / 255 - mean) / std)
            found.append((seen.features, seen.logits.argmax(1)))
        features, classes = zip(*found, strict=True)
        return torch.cat(features), torch.cat(classes)


@functools.lru_cache(maxsize=4)
def judge_of(folder: str) -> Judge:
    """The judge of a folder, loaded once."""
    return Judge(folder)


@functools.lru_cache(maxsize=4)
def real_features(folder: str, images: str, side: int) -> Tensor:
    """(N, D) of at most ``MOST_REAL`` real images, see ``grey_pictures``."""
    return judge_of(folder)(grey_pictures(images, side, most=MOST_REAL)[0])[0]


def grey_pictures(images: str, side: int, *, most: int = 0) -> tuple[Tensor, Tensor]:
    """The images of a folder as square grey pictures from -1 to 1, (N, P), and their classes (N,).

    Args:
        most: of them, evenly spaced; 0 takes all.
    """
    samples = join_samples(
        open_source(SourceConfig(**source_of(images))),
        None,
        DataConfig(labelled=[], unlabelled=["*"], test=[]),
    )
    rule = ViewRule(ViewSet(), (side, side), 1.0, "center", "bilinear")
    dataset = ViewDataset(samples, rule, size=(side, side))
    step = -(-len(samples.ids) // most) if most else 1
    rows = np.arange(0, len(samples.ids), step)
    parts = []
    for chosen in np.array_split(rows, -(-len(rows) // AT_ONCE)):
        found = dataset.__getitems__([Request(int(row), CANONICAL, 0, False) for row in chosen])
        if found.problems or found.failure:
            raise ConfigError(f"{images}: {[*found.problems, found.failure][0]}")
        parts.append(found.pixels.float().mean(1).flatten(1) / 127.5 - 1)
    return torch.cat(parts), torch.from_numpy(samples.labels[rows])
