"""Check what this machine can do for a store; each check is ok, a warning, or a failure with advice.

Uses the standard library only, so that it can report missing packages.
"""

import fcntl
import mmap
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from featstore.display.text import format_bytes
from featstore.errors import StoreWriteError, command
from featstore.files.disk import existing_parent, free_bytes, measure_disk
from featstore.files.limits import SHARED_MEMORY, cores, free_memory, free_shared_memory

State = Literal["ok", "warn", "fail"]

NEEDED = (
    "numpy",
    "zarr",
    "numcodecs",
    "pydantic",
    "safetensors",
    "google-crc32c",
    "ml_dtypes",
    "pillow",
)
"""Packages without which no store is read."""
FOR_TEACHERS = ("torch", "torchvision", "timm", "open_clip_torch", "accelerate")
"""Packages without which no store is made, and no student trained."""
OPTIONAL = ("webdataset", "datasets", "huggingface_hub", "onnx", "onnxruntime", "wandb", "mlflow")

HUB_TIMEOUT_S = 4.0
PROBE_BYTES = 64 * 2**20
LEAST_FREE_BYTES = 10**9
LEAST_MEMORY_BYTES = 4 * 10**9
LEAST_FILES = 1024
LEAST_SHARED_BYTES = 2**30
"""Two loading processes with batches of 64 images and nine views of 224 px need half of it."""
USUAL_MAPPINGS = 65_530


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    state: State  # fail where extraction is impossible
    found: str
    advice: str = ""  # what to do; "" where there is nothing to do


def examine(path: Path) -> Iterator[Check]:
    """Run all checks, quick ones first.

    Args:
        path: where stores will lie; it need not exist.
    """
    checks: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _packages,
        _processor,
        _memory,
        _limits,
        lambda: _disk(path),
        _hub,
        _accelerator,
    )
    for check in checks:
        yield from check()


def _judged(name: str, enough: bool, found: str, advice: str, *, state: State = "warn") -> Check:
    """A check of something that is either enough, or has some state and an advice."""
    return Check(name, "ok", found) if enough else Check(name, state, found, advice)


def _python() -> Iterator[Check]:
    enough = sys.version_info >= (3, 11)
    yield _judged(
        "python",
        enough,
        f"{platform.python_version()} ({platform.python_implementation()})",
        "Use Python 3.11 or newer.",
        state="fail",
    )
    linux = sys.platform == "linux"
    yield _judged("platform", linux, platform.platform(), "Linux is what is tested.")


def _packages() -> Iterator[Check]:
    found = {name: _version(name) for name in (*NEEDED, *FOR_TEACHERS, *OPTIONAL)}
    lacking = [name for name in NEEDED if not found[name]]
    listed = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    yield Check("packages", "ok", listed)
    if lacking:
        yield Check(
            "packages", "fail", f"missing: {', '.join(lacking)}", "pip install featstore-distill"
        )
    without = [name for name in FOR_TEACHERS if not found[name]]
    if without:
        yield Check(
            "packages",
            "warn",
            f"stores are read, checked and passed on; nothing is extracted or trained without {', '.join(without)}",
            "pip install 'featstore-distill[distill]'",
        )
    absent = [name for name in OPTIONAL if not found[name]]
    if absent:
        yield Check("packages", "ok", f"not installed, and not always needed: {', '.join(absent)}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _processor() -> Iterator[Check]:
    flags = set(_read("/proc/cpuinfo").split())
    native = flags & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
    arithmetic = f"native ({', '.join(sorted(native))})" if native else "emulated, slower than fp32"
    yield Check("processor", "ok", f"{cores()} usable cores, bf16 arithmetic {arithmetic}")


def _memory() -> Iterator[Check]:
    free = free_memory()
    enough = free >= LEAST_MEMORY_BYTES
    yield _judged(
        "memory",
        enough,
        f"{format_bytes(free)} available",
        "Three shards are in memory at a time: use a smaller --store.shard_mb.",
    )


def _limits() -> Iterator[Check]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    enough = files >= LEAST_FILES
    yield _judged("open files", enough, f"{files:,} at most", f"Raise it: ulimit -n {LEAST_FILES}.")
    memory = free_shared_memory()
    if memory < 2**62:
        enough = memory >= LEAST_SHARED_BYTES
        yield _judged(
            "shared memory",
            enough,
            f"{format_bytes(memory)} free in {SHARED_MEMORY}; loading processes hand over batches in it",
            "Give the container more (docker run --shm-size 8g), or use --workers 0.",
        )
    text = _read("/proc/sys/vm/max_map_count").strip()
    if text.isdecimal():
        enough = int(text) >= USUAL_MAPPINGS
        yield _judged(
            "mappings",
            enough,
            f"{int(text):,} at most; a reader needs one for each shard and column",
            f"Raise it: sysctl vm.max_map_count={USUAL_MAPPINGS}.",
        )


def _disk(path: Path) -> Iterator[Check]:
    folder = existing_parent(path)
    free = free_bytes(folder)
    enough = free >= LEAST_FREE_BYTES
    yield _judged(
        "disk space",
        enough,
        f"{format_bytes(free)} free at {folder}",
        "Free some space, or choose another --store.path.",
    )
    try:
        written = measure_disk(folder, size=min(PROBE_BYTES, max(2**20, free // 4)))
        with tempfile.TemporaryDirectory(prefix=".featstore-doctor-", dir=folder) as probe:
            read = _read_speed(Path(probe), min(PROBE_BYTES, max(2**20, free // 4)))
            problems = list(_file_system(Path(probe)))
    except (OSError, StoreWriteError) as error:
        yield Check("disk", "fail", str(error), "Choose another --path, where you may write.")
        return
    yield Check(
        "disk speed",
        "ok",
        f"{format_bytes(written)}/s written and synced, {format_bytes(read)}/s read",
    )
    yield from problems
    if not problems:
        yield Check("file system", "ok", "renames over files and folders, locks, maps")


def _read_speed(folder: Path, size: int) -> float:
    file = folder / "probe"
    file.write_bytes(os.urandom(2**20) * max(1, size // 2**20))
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
        if hasattr(os, "posix_fadvise"):  # else what was just written is read from memory
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        start, done = time.perf_counter(), 0
        while data := os.read(handle, 2**20):
            done += len(data)
        return done / (time.perf_counter() - start)
    finally:
        os.close(handle)


def _file_system(folder: Path) -> Iterator[Check]:
    """Check operations that stores need and some network file systems lack."""
    elsewhere = "Put the store on a local disk, or on NFS 4, or on Lustre mounted with -o flock."
    old, new = folder / "old", folder / "new"
    try:
        old.write_bytes(b"old")
        new.write_bytes(b"new")
        new.replace(old)
        (folder / "a").mkdir()
        (folder / "b").mkdir()
        (folder / "a").replace(folder / "b")
        renamed = old.read_bytes() == b"new" and not new.exists()
    except OSError as error:
        renamed = False
        elsewhere = f"({error.strerror}) {elsewhere}"
    if not renamed:
        yield Check("file system", "fail", "a file or folder does not replace another", elsewhere)
    if not _locks(folder / "lock"):
        yield Check("file system", "fail", "flock does not lock", elsewhere)
    mapped = folder / "mapped"
    mapped.write_bytes(b"x" * mmap.PAGESIZE)
    try:
        with mapped.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            maps = view[:1] == b"x"
    except OSError:
        maps = False
    if not maps:
        yield Check("file system", "fail", "files cannot be mapped into memory", elsewhere)


def _locks(path: Path) -> bool:
    """Return whether a lock on a file excludes a second open file of the same path."""
    with path.open("w") as first, path.open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def _hub() -> Iterator[Check]:
    if find_spec("huggingface_hub") is None:
        yield Check("hub", "warn", "huggingface_hub is not installed", "Give --teacher.weights.")
        return
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    models = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    yield Check("hub cache", "ok", f"{cache}, {models} models")
    if constants.HF_HUB_OFFLINE:
        yield Check("hub", "ok", "HF_HUB_OFFLINE is set: it is not asked")
        return
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    start = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S):
            pass
    except urllib.error.HTTPError:  # it answered
        pass
    except OSError as error:
        reason = getattr(error, "reason", error)
        yield Check(
            "hub",
            "warn",
            f"{constants.ENDPOINT} is not reachable ({reason})",
            "Local weights need no hub: --teacher.weights FILE.",
        )
        return
    yield Check("hub", "ok", f"{constants.ENDPOINT} answers in {time.perf_counter() - start:.1f} s")


def _accelerator() -> Iterator[Check]:
    driver = _nvidia_smi()
    if driver:
        yield Check("driver", "ok", driver)
    if find_spec("torch") is None:
        return  # said among the packages
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        yield Check("torch", "fail", f"cannot be imported: {error}", "Install torch again.")
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Check(
            "accelerator",
            "ok",
            f"{properties.name}, {format_bytes(properties.total_memory)}, bf16 {'native' if bf16 else 'emulated'}, "
            f"CUDA {torch.version.cuda}",
        )
    if torch.cuda.device_count():
        return
    if driver:
        yield Check(
            "accelerator",
            "warn",
            f"torch {torch.__version__} sees none, though there is a driver",
            "Install a torch build for this driver's CUDA.",
        )
    else:
        yield Check(
            "accelerator",
            "warn",
            "none: the teacher runs on the processor",
            f"{command('extract')} --dry_run says how long it takes.",
        )


def _nvidia_smi() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(line.strip() for line in done.stdout.splitlines())


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
