"""Stop a run inside an epoch, resume it, and compare its files with those of a run that was not stopped."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from distill.commands.train import run
from distill.config import DistillConfig
from distill.data import joined
from distill.tasks import build_task, resolve
from distill.training import loop
from featstore import FeatureStore
from featstore.sources import open_source


class Stop(Exception):
    """Ends a run from inside."""


def elsewhere(config: DistillConfig) -> DistillConfig:
    """The same run in another folder."""
    return dataclasses.replace(config, out=config.out + "-other")


def check_resume(straight: DistillConfig, method: str, *, after: int, files: Sequence[str]) -> None:
    """Compare the files of a finished run with those of one that is stopped ``after`` steps and resumed."""
    stopped = elsewhere(straight)
    source, store = open_source(stopped.source), FeatureStore.open(stopped.store)
    config = resolve(stopped, source, store)
    data = build_task(config, joined.join_data(source, store, config.data, config.field)).data

    def hook(step: int) -> None:
        if step == after:
            raise Stop

    with pytest.raises(Stop):
        loop.run(config, data, None, method=method, seed=0, on_step=hook)  # type: ignore[arg-type]
    run(stopped)
    for name in files:
        one, other = (Path(item.out) / method / "seed0" / name for item in (straight, stopped))
        assert one.read_bytes() == other.read_bytes(), name
