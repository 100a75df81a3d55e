"""Teachers whose batch normalisation uses the statistics of the batch: the batches are part of the contract."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featstore.errors import ConfigError, ManifestMismatch, TeacherError
from featstore.format.manifest_records import PreprocessingRecord
from featstore.format.views import View
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from featstore.sources.decode import decode_image
from featstore.sources.load import ViewRule
from tests import pseudo

BATCH: dict[str, Any] = {"teacher": {"bn_mode": "batch"}}


def all_logits(store: Any) -> Any:
    return store.gather("logits", np.arange(store.num_rows))[:, 0]


def test_rows_by_hand(tmp_path: Path) -> None:
    """Rows 8 to 15 are what the model in train mode gives for these eight pictures; eval mode gives others."""
    path = pseudo.write_record(tmp_path)
    store = pseudo.extract(tmp_path, "batch", **BATCH)
    record = store.manifest.teachers["teacher"]
    assert (record.mode, record.batch_seed, record.model_args["batch_rows"]) == ("batch", 0, 8)
    assert isinstance(record.preprocessing, PreprocessingRecord)
    source = open_source(SourceConfig(kind="synthetic", path=str(path), samples=12))
    rule = ViewRule.of_teacher(store.manifest.views, record.preprocessing)
    pictures = [
        rule.cut(decode_image(source.read(row)), View(kind="canonical"), sample_id="")
        for row in range(8, 16)
    ]
    inputs = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255 * 2 - 1
    scope: dict[str, Any] = {}
    exec(pseudo.CLASSIFIER, scope)
    with torch.no_grad():
        expected = scope["make"]().train()(inputs)["logits"]
    np.testing.assert_allclose(all_logits(store)[8:16], expected.numpy(), rtol=1e-4)
    own = all_logits(pseudo.extract(tmp_path, "eval"))
    assert not np.allclose(all_logits(store), own, rtol=1e-2)


def test_the_cut_into_shards_does_not_matter(tmp_path: Path) -> None:
    """Shards hold whole batches, so that rows are the same bytes for every size; also resumed."""
    small = pseudo.extract(tmp_path, "small", **BATCH, store={"shard_rows": 9})
    large = pseudo.extract(tmp_path, "large", **BATCH)
    assert (small.manifest.work.shard_rows, large.num_rows) == (8, 24)
    assert all_logits(small).tobytes() == all_logits(large).tobytes()
    assert small.fingerprint == large.fingerprint
    again = pseudo.extract(tmp_path, "small", **BATCH, store={"shard_rows": 9})
    assert all_logits(again).tobytes() == all_logits(large).tobytes()


def test_another_batch_size_is_another_store(tmp_path: Path) -> None:
    """Refused with both sizes where a store is there; elsewhere another fingerprint, whatever the bytes."""
    store = pseudo.extract(tmp_path, **BATCH)
    with pytest.raises(ManifestMismatch, match=r"batch_rows.*8.*12"):
        pseudo.extract(tmp_path, **BATCH, batch_size=12)
    other = pseudo.extract(tmp_path, "other", **BATCH, batch_size=12)
    assert other.fingerprint != store.fingerprint
    with pytest.raises(ManifestMismatch, match="mode"):
        pseudo.extract(tmp_path)


def test_what_does_not_go_with_it(tmp_path: Path) -> None:
    """No such layer, a last batch of one row, and whatever would put rows into other batches."""
    with pytest.raises(TeacherError, match=r"bn_mode"):
        pseudo.extract(tmp_path, teacher={"bn_mode": "batch", "model_args": {"norm": False}})
    with pytest.raises(ConfigError, match="23"):
        pseudo.extract(tmp_path, **BATCH, batch_size=23)
    for settings in (
        {"append": True},
        {"dtype": "int8"},
        {"store": {"container": "webdataset"}},
        {"batch_size": 1},
    ):
        with pytest.raises(ConfigError, match="bn_mode"):
            pseudo.extract(tmp_path, **BATCH, **settings)
