"""The number of processes changes no byte: work is cut by shard, and batches inside shards."""

import json
from pathlib import Path
from typing import Any

import pytest

from featstore import FeatureStore, extract, writer
from featstore.config import ExtractConfig
from featstore.sources import open_source
from featstore.writer import open_or_create
from pipelines import extract as script
from pipelines._cli import parse
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
                die_at(writer, "write_entry", shards)
            script.main(config)

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


@pytest.mark.parametrize("first", [0, 1])
def test_shards_in_any_order_make_the_same_store(
    image_folder: Path, tmp_path: Path, first: int
) -> None:
    """Every other shard by one process and the rest by another, in either order: the bytes of one process."""
    run(make_config(image_folder, tmp_path / "straight"))
    config = make_config(image_folder, tmp_path / "s")
    teacher: Any = FormulaTeacher(config.store.dtype)
    source = open_source(config.source)
    manifest = extract.describe_store(config, source=source, teacher=teacher)
    open_or_create(tmp_path / "s", manifest)
    for rank in (first, 1 - first):
        extract._fill(
            config,
            manifest,
            source,
            teacher,
            shards=range(rank, manifest.num_shards, 2),
            show=False,
        )
    assert snapshot(tmp_path / "s") == snapshot(tmp_path / "straight")
