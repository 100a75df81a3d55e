"""What tests of both phases share: small images, a small teacher, and runs with two processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.images import picture

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers use all cores already; threads beside them only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Examples share the machine with other tests: how long one takes says nothing.
settings.register_profile("featstore", deadline=None)
settings.load_profile("featstore")

pytest_plugins = ["tests.servers.fixtures"]

ROOT = Path(__file__).resolve().parents[1]

TINY_ARGS: dict[str, Any] = {
    "patch_size": 16,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 1,
    "num_classes": 0,
}
"""What makes timm's vit_tiny_patch16_224 a model of 20 kB; with image_size 32 it sees 2 x 2 patches."""

RunTwo = Callable[[Sequence[str]], subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of the whole product first: a few long tests each, which would be the last to end."""
    items.sort(key=lambda item: item.path.parent != ROOT / "tests")


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """accelerate keeps one state per process, and refuses another precision until it is reset."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session", autouse=True)
def _autograd_runs_before_compilers() -> None:
    """A backward pass that first runs after torch's compiler was used starts threads, which forked children refuse."""
    import torch

    torch.zeros(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session", autouse=True)
def _own_listings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No listing is kept in, or taken from, the cache folder of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featstore.sources.listing.cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 small pictures in two classes, of two formats and several shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(26):
        name = f"{('cat', 'dog')[number % 2]}/{number:02d}"
        (folder / name).parent.mkdir(exist_ok=True)
        kind, suffix = (("PNG", "png"), ("JPEG", "jpg"))[number % 3 == 0]
        (folder / f"{name}.{suffix}").write_bytes(picture(37 * number, kind))
    return folder


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the tiny ViT that ``TINY_ARGS`` describes, as safetensors."""
    return save_teacher(tmp_path_factory.mktemp("teacher") / "tiny.safetensors", seed=0)


def save_teacher(path: Path, *, seed: int) -> Path:
    """Write random weights of the tiny ViT that ``TINY_ARGS`` describes, as safetensors."""
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, **TINY_ARGS)
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def run_two() -> RunTwo:
    """``run_two(argv)`` runs a script in two processes that find each other.

    torchrun, because ``accelerate launch --cpu --num_processes 2`` starts one process (accelerate 1.15).
    """

    def run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return subprocess.run(
            [sys.executable, *launcher, *argv],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
