"""The number of processes, and of jobs, changes no byte: work is cut by shard, and batches inside shards."""

import json
import math
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from featstore import FeatureStore
from featstore.cli.recipe import parse
from featstore.errors import StoreError, StoreNotFound
from featstore.extraction import shards as extract
from featstore.extraction.config import ExtractConfig
from featstore.extraction.new_manifest import design_store
from featstore.sources import open_source
from featstore.writing import commit as writer
from pipelines import extract as script
from tests.conftest import TINY_ARGS, RunTwo
from tests.featstore.formula import FormulaTeacher, make_config, run
from tests.featstore.processes import die_at, fork, wait
from tests.featstore.stores import leftovers, snapshot


def write_recipe(path: Path, images: Path, store: Path, teacher: Path) -> Path:
    """A recipe of the tiny ViT: 26 images in shards of 4, batches of 3."""
    recipe = {
        "source": {"kind": "folder", "path": str(images)},
        "teacher": {
            "name": "vit_tiny_patch16_224",
            "weights": str(teacher),
            "image_size": 32,
            "model_args": TINY_ARGS,
            "precision": "fp32",
        },
        "views": {"seeded": 1},
        "store": {"path": str(store), "fields": ["cls", "grid2"], "shard_rows": 4},
        "batch_size": 3,
        "workers": 0,
    }
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


THREADS = """
from pathlib import Path
from featstore.extraction.accelerator import start_accelerator
accelerator = start_accelerator()
accelerator.wait_for_everyone()
import torchmetrics
accelerator.end_training()
print([path.read_text() for path in Path("/proc/self/task").glob("*/comm")])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are read from /proc")
def test_no_thread_of_the_process_group_outlives_it(tmp_path: Path, run_two: RunTwo) -> None:
    """Also where a library is imported meanwhile: a thread that is left may abort the process at its end."""
    (tmp_path / "threads.py").write_text(THREADS)
    done = run_two([str(tmp_path / "threads.py")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("python") >= 2
    assert "gloo" not in done.stdout


@pytest.mark.slow
def test_two_processes_make_the_same_store(
    image_folder: Path, teacher_file: Path, tmp_path: Path, run_two: RunTwo
) -> None:
    """torchrun with two processes, on nothing and on a store that one process began: equal to one process alone.

    With one thread each: the order of sums in a matrix product may depend on the number of threads.
    """

    def recipe(name: str) -> Path:
        return write_recipe(tmp_path / f"{name}.yaml", image_folder, tmp_path / name, teacher_file)

    def alone(name: str, shards: int | None = None) -> None:
        """One process, killed before it commits shard number ``shards``."""
        config = parse(
            ExtractConfig,
            default_recipe=script.DEFAULT_RECIPE,
            argv=["--config", str(recipe(name))],
        )

        def work() -> None:
            if shards is not None:
                die_at(writer, "publish_shard", shards)
            script.run(config)

        assert wait(fork(work)) == (0 if shards is None else -9)

    alone("straight")
    alone("begun", shards=3)
    assert len(FeatureStore.open(tmp_path / "begun", allow_incomplete=True).shards) == 3
    expected = snapshot(tmp_path / "straight")
    done = run_two(["pipelines/extract.py", "--config", str(recipe("begun"))])
    assert done.returncode == 0, done.stderr
    # The main process alone speaks.
    assert done.stdout.count("26 rows in") == 1
    assert "14 of them from this run" in done.stdout
    assert snapshot(tmp_path / "begun") == expected
    assert not leftovers(tmp_path / "begun")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [2, 4])
def test_jobs_at_once_make_the_same_store(image_folder: Path, tmp_path: Path, jobs: int) -> None:
    """Independent jobs that start together on nothing share the work, whoever creates the store: the bytes of one job,
    and together they report every image once.
    """
    run(make_config(image_folder, tmp_path / "straight"))
    config = make_config(image_folder, tmp_path / "s")

    def work() -> None:
        os._exit(run(config).written)

    written = [wait(child) for child in [fork(work) for _ in range(jobs)]]
    assert sum(written) == 26, written
    assert snapshot(tmp_path / "s") == snapshot(tmp_path / "straight")
    assert not leftovers(tmp_path / "s")
    assert run(config).written == 0


@pytest.mark.slow
def test_a_job_joins_one_that_is_at_work(image_folder: Path, tmp_path: Path) -> None:
    """The second one takes what the first one has not begun; both end with the store complete."""
    run(make_config(image_folder, tmp_path / "straight"))
    config = make_config(image_folder, tmp_path / "s")

    def slowly() -> None:
        teacher = FormulaTeacher("float16", lambda *_: time.sleep(0.1))
        os._exit(run(config, teacher).written)

    first = fork(slowly)
    while not (tmp_path / "s/leases/00000000.json").exists():
        time.sleep(0.01)
    joined = run(config)
    assert joined.rows == 26
    assert FeatureStore.open(tmp_path / "s").complete
    assert joined.written + wait(first) == 26
    assert 0 < joined.written < 26
    assert snapshot(tmp_path / "s") == snapshot(tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_claims_are_made_when_they_are_needed(
    image_folder: Path, tmp_path: Path, workers: int
) -> None:
    """A process holds the shard at work, the one being written, and what its loader processes need to be kept busy:
    a slow one keeps little from others.
    """
    held: list[int] = []

    def look(*_: object) -> None:
        held.append(len(list((tmp_path / "s/leases").glob("*.json"))))

    run(make_config(image_folder, tmp_path / "s", workers=workers), FormulaTeacher("float16", look))
    # Shards are of two batches; a loader process has one batch ahead.
    assert max(held) <= 2 + math.ceil(workers / 2)


class _Accelerator:
    """One of two processes."""

    num_processes = 2
    device = torch.device("cpu")

    def __init__(self, main: bool) -> None:
        self.is_main_process = main
        self.process_index = 0 if main else 1

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The other one is gone."""
        raise RuntimeError("Connection closed by peer")


def test_a_main_process_that_fails_tells_the_others(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the main process cannot do at the start ends all with the same error; nobody waits for it for ever."""
    place = tmp_path / "s"
    place.write_bytes(b"mine")
    config = make_config(image_folder, place)
    teacher: Any = FormulaTeacher(config.store.dtype)  # type: ignore[arg-type]
    source = open_source(config.source)
    manifest = design_store(config, source=source, teacher=teacher).manifest
    sent: list[Any] = []

    def broadcast(values: list[Any]) -> None:
        if values[0] is None:
            values[0] = pickle.loads(sent[0])
        else:
            sent.append(pickle.dumps(values[0]))

    monkeypatch.setattr(extract, "broadcast_object_list", broadcast)
    for main in (True, False):
        accelerator: Any = _Accelerator(main)
        with pytest.raises(StoreNotFound):
            extract.run(
                config, manifest=manifest, source=source, teacher=teacher, accelerator=accelerator
            )


def test_a_process_that_fails_at_the_end_is_reported(tmp_path: Path) -> None:
    """The store is complete; the summary cannot be, and says why."""
    accelerator: Any = _Accelerator(True)
    with pytest.raises(StoreError):
        extract._sum_of_processes(3, tmp_path, accelerator)
