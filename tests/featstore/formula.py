"""A teacher that is a formula: everything that ``featstore.extraction.shards`` asks of a teacher, in microseconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from featstore.extraction import shards as extract
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig, ViewsConfig
from featstore.extraction.new_manifest import design_store, forward_dtype
from featstore.extraction.shards import ExtractionSummary
from featstore.extraction.teachers import Teacher
from featstore.format.manifest import Manifest
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from tests.featstore.stores import RULE, TEACHER, Dtype, field

WIDTH = 6


class FormulaTeacher:
    """Random projections of a view. One image's row does not depend on its neighbours.

    Args:
        dtype: of the stored fields.
        spoil: changes the features of a batch, e.g. to put in NaN; gets (images, features).
    """

    def __init__(
        self, dtype: Dtype = "float32", spoil: Callable[[Tensor, Tensor], object] | None = None
    ) -> None:
        self.record = TEACHER
        self.preprocessing = RULE
        self.device = torch.device("cpu")
        self.notes: list[str] = []
        self.heads: dict[str, Any] = {}
        self.fields = {"cls": field(WIDTH, dtype=dtype), "grid2": field(2, 2, 3, dtype=dtype)}
        self._weight = torch.randn(3 * 64, WIDTH, generator=torch.Generator().manual_seed(0))
        self._spoil = spoil

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """See ``Teacher.features``."""
        pixels = images.float() / 255
        cls = torch.stack([(row.flatten() @ self._weight) for row in pixels])
        if self._spoil is not None:
            self._spoil(images, cls)
        grid = torch.nn.functional.avg_pool2d(pixels, 4).permute(0, 2, 3, 1)
        return {"cls": cls, "grid2": grid}


def make_config(images: Path, path: Path, **changes: Any) -> ExtractConfig:
    """Settings of a run over a folder: two views, shards of 4 rows, batches of 2, no loader processes."""
    sections: dict[str, Any] = {
        "source": SourceConfig(kind="folder", path=str(images)),
        "teacher": TeacherConfig(name="formula", precision="fp32"),
        "views": ViewsConfig(seeded=1),
        "store": StoreConfig(path=str(path), fields=["cls", "grid2"], shard_rows=4),
        "batch_size": 2,
        "workers": 0,
    }
    return ExtractConfig(**{**sections, **changes})


def describe(config: ExtractConfig, teacher: FormulaTeacher | None = None) -> Manifest:
    """The manifest of a store that ``run`` makes."""
    stand_in = cast(Teacher, teacher or FormulaTeacher(forward_dtype(config)))
    return design_store(config, source=open_source(config.source), teacher=stand_in).manifest


def run(config: ExtractConfig, teacher: FormulaTeacher | None = None) -> ExtractionSummary:
    """Extract with a formula teacher, as pipelines/extract.py does with a real one."""
    stand_in = cast(Teacher, teacher or FormulaTeacher(forward_dtype(config)))
    source = open_source(config.source)
    made = design_store(config, source=source, teacher=stand_in)
    return extract.run(
        config,
        manifest=made.manifest,
        source=source,
        teacher=stand_in,
        accelerator=Accelerator(),
        artefacts=made.artefacts,
    )
