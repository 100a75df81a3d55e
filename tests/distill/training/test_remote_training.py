"""A student that is trained from a store at a URL is the one that the local store gives."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from distill.config import DistillConfig
from distill.data import joined
from distill.experiments.cost import store_cost
from distill.training import loop as train
from featstore import FeatureStore
from featstore.format.ledger import mark_complete
from featstore.sources import open_source
from tests.distill.conftest import MakeConfig


def run(config: DistillConfig) -> Path:
    """One run; returns its folder."""
    store = FeatureStore.open(config.store)
    data = joined.join_data(open_source(config.source), store, config.data, config.field)
    probe = data.fit_probe(data.split(0), most=1000, seed=0)
    train.run(config, data, probe, method="customkd", seed=0)
    return Path(config.out) / "customkd" / "seed0"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_the_student_is_the_same(
    make_config: MakeConfig,
    store: FeatureStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    """Losses, evaluation and weights are equal bit by bit, also where loader processes read through the cache."""
    far = Path(shutil.copytree(store.path, tmp_path / "far"))
    mark_complete(far, store.entries())
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))
    local = make_config(store=str(far), train__workers=workers)
    remote = dataclasses.replace(local, store=far.as_uri(), out=f"{local.out}-remote")
    one, other = run(local), run(remote)
    for name in ("metrics.jsonl", "student.safetensors", "evaluation.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert json.loads((one / "metrics.jsonl").read_text().splitlines()[0])
    there = store_cost(FeatureStore.open(far.as_uri()))
    assert dataclasses.replace(there, path=str(far)) == store_cost(FeatureStore.open(far))
    assert there.path == far.as_uri()
