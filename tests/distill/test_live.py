"""Cached equals live: training from a store gives the losses of training with the teacher beside it."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill import task, train
from distill.config import DistillConfig
from distill.data import Features
from distill.join import Indices
from featstore import FeatureStore
from featstore.config import ExtractConfig, SourceConfig, StoreConfig, TeacherConfig, ViewsConfig
from featstore.decode import decode_image
from featstore.sources import open_source
from featstore.teachers import Teacher, build_teacher
from featstore.views import cut, view_box
from pipelines import extract
from tests.conftest import TINY_ARGS
from tests.distill.conftest import MakeConfig


class LiveFeatures(Features):
    """The teacher itself in place of the store: every vector is computed from the image, view by view."""

    def __init__(self, stored: Features, teacher: Teacher) -> None:
        super().__init__(stored.store, stored.field, stored._samples)
        self.teacher = teacher

    def take(self, indices: Indices, columns: Indices | None = None) -> Tensor:
        """See ``Features.take``."""
        chosen = np.full(len(indices), self.reference) if columns is None else columns
        manifest = self.store.manifest
        rule = manifest.teacher_of(self.field).preprocessing
        assert rule is not None
        pictures = []
        for index, column in zip(indices, chosen, strict=True):
            view = manifest.views.views[column]
            image = decode_image(self._samples.source.read(int(self._samples.positions[index])))
            box = view_box(
                view,
                manifest.views,
                sample_id=self._samples.ids[index],
                width=image.width,
                height=image.height,
                size=rule.size,
                crop_pct=rule.crop_pct,
                crop_mode=rule.crop_mode,
            )
            picture = cut(
                image,
                box,
                size=rule.size,
                interpolation=rule.interpolation,
                mirrored=view.mirrored,
            )
            pictures.append(np.asarray(picture))
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        return self.teacher.features(pixels)[self.field].clone()

    def chunks(
        self, indices: Indices, columns: Sequence[int], *, size: int = 4096
    ) -> Iterator[Tensor]:
        """See ``Features.chunks``."""
        views = [self.take(indices, np.full(len(indices), column)) for column in columns]
        yield torch.stack(views, dim=1).reshape(-1, self.width)


def losses(config: DistillConfig, method: str, *, teacher: Teacher | None) -> dict[str, list[Any]]:
    """Every logged loss term of a run, in order; with a teacher, the store's features are not used."""
    data = task.prepare(
        open_source(config.source), FeatureStore.open(config.store), config.data, config.field
    )
    assert data.features is not None
    if teacher is not None:
        data = dataclasses.replace(data, features=LiveFeatures(data.features, teacher))
    probe = data.fit_probe(data.split(0), most=1000, seed=0)
    train.run(config, data, probe, method=method, seed=0)
    text = (Path(config.out) / method / "seed0" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return {
        name: [line[name] for line in lines if name in line]
        for name in ("loss/ce", "loss/general", "loss/specific", "loss/logits", "stage1/loss")
    }


# float32: how images are grouped into batches changes the last bits of a feature. float16: features of order
# one are rounded to 2^-11 of their size, and eight steps of training carry that on.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float16", 5e-3)])
@pytest.mark.parametrize("method", ["features", "customkd", "probe_kd"])
def test_stored_features_train_like_the_live_teacher(
    images: Path,
    teacher_file: Path,
    make_config: MakeConfig,
    tmp_path: Path,
    method: str,
    dtype: Any,
    tolerance: float,
) -> None:
    """The same views and the same seed give the same losses within the tolerance of the stored dtype."""
    teacher_config = TeacherConfig(
        name="vit_tiny_patch16_224",
        weights=str(teacher_file),
        image_size=32,
        model_args=TINY_ARGS,
        precision="fp32",
    )
    extract.main(
        ExtractConfig(
            source=SourceConfig(kind="folder", path=str(images)),
            teacher=teacher_config,
            views=ViewsConfig(seeded=2),
            store=StoreConfig(path=str(tmp_path / "store"), fields=["cls"], dtype=dtype),
            batch_size=7,
            workers=0,
        )
    )
    teacher = build_teacher(
        teacher_config,
        fields=["cls"],
        dtype=dtype,
        precision="fp32",
        device=torch.device("cpu"),
    )
    config = make_config(
        store=str(tmp_path / "store"), customkd__w_logits=1.0, customkd__norm="standardize"
    )
    cached = losses(config, method, teacher=None)
    live = losses(dataclasses.replace(config, out=str(tmp_path / "live")), method, teacher=teacher)

    assert len(cached["loss/ce"]) >= 6
    for name, values in cached.items():
        assert values == pytest.approx(live[name], rel=tolerance, abs=tolerance), name
