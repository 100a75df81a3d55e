"""Latency of several models, in turn in one process, so that other load on the machine affects all of them alike.

A round visits every model with every batch size and number of threads once, in shuffled order. A visit is one untimed
call, which starts threads and fills caches, and then timed calls. Models are compared within a round: a ratio of two
times under the same load varies less than either time. The processor time of a call excludes waiting for others.
"""

# B batch

import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from distill.export.manifest import versions
from distill.export.runtimes import Call, ModelFile, open_model
from featstore.files.limits import cores

VISIT_S = 0.05  # a visit calls until so much time has passed,
FEWEST, MOST = 3, 30  # ... but at least and at most so often
FEWEST_ROUNDS, MOST_S = 3, 180.0
"""On a busy machine several threads wait for each other, and a call can take a thousand times as long."""
WARM_UP = 2  # untimed calls after opening; ONNX Runtime plans its memory in the first


@dataclass(frozen=True)
class Timing:
    """One model with one batch size and one number of threads."""

    name: str  # of the model
    runtime: str  # that ran it
    precision: str  # of the model
    batch: int  # images per call, B
    threads: int  # of one call
    rounds: int  # in which it was visited
    calls: int  # that were timed, over all rounds
    median_ms: float  # of a call, in milliseconds
    p95_ms: float  # 95th percentile of the calls
    # 10th percentile of the rounds' medians; with ``high_ms`` the noise of the machine
    low_ms: float
    high_ms: float  # 90th percentile of the rounds' medians
    # median of the processor's time of a call, over all threads of the process. With one thread it is about what the
    # call takes on a machine with nothing else to do; with more it counts waiting threads that spin.
    cpu_ms: float
    # median over rounds of (reference's median / own median); None without a reference
    speed: float | None = None
    speed_low: float | None = None  # 10th percentile of these ratios
    speed_high: float | None = None  # 90th percentile of these ratios


@dataclass
class _Cell:
    """One model, batch size and number of threads while it is measured."""

    candidate: ModelFile
    batch: int
    threads: int
    call: Call
    rounds: list[list[float]]  # seconds of the calls, by round
    cpu: list[float]  # seconds of the processor of all calls


def measure_latency(
    models: Sequence[ModelFile],
    *,
    batches: Sequence[int] = (1, 8),
    threads: Sequence[int] = (1, 2),
    rounds: int = 20,
    reference: str = "",
    seed: int = 0,
    visit_s: float = VISIT_S,
    most_s: float = MOST_S,
) -> list[Timing]:
    """Time models against each other.

    Args:
        models: with different names.
        batches: images per call.
        threads: numbers of threads of one call. More than the machine has cores measures the scheduler.
        rounds: visits of each; 20 give at least 60 calls.
        reference: name of the model that the others are compared to; "" for none.
        seed: of the order within the rounds.
        visit_s: length of a visit, seconds; it may be exceeded by three calls.
        most_s: seconds after which no further round begins, once there are three.

    Returns:
        One timing for each model, batch size and number of threads, in this order; none where a model takes no batch of
        that size.

    Raises:
        ValueError: two models of one name, no round, or a reference that is not there.
        ConfigError: see ``open_model``.
    """
    names = [model.name for model in models]
    if len(set(names)) < len(names) or rounds < 1 or (reference and reference not in names):
        raise ValueError(f"names {names}, {rounds} rounds, reference {reference!r}")
    found = []
    for model in models:
        taken = [batch for batch in batches if not 0 < model.most_images < batch]
        for count in threads:
            feed = open_model(model, count)
            found += [
                _Cell(model, batch, count, feed(model.batch(batch)), [], []) for batch in taken
            ]
    with _torch_threads_kept():
        for cell in found:
            for _ in range(WARM_UP):
                cell.call()
        order = np.random.default_rng(seed)
        begun = time.perf_counter()
        for number in tqdm(range(rounds), desc="latency", unit="round", disable=None, leave=False):
            if number >= FEWEST_ROUNDS and time.perf_counter() - begun > most_s:
                break
            for place in order.permutation(len(found)):
                _visit(found[place], visit_s)
    base = {(cell.batch, cell.threads): cell for cell in found if cell.candidate.name == reference}
    timings = [_summary(cell, base.get((cell.batch, cell.threads))) for cell in found]
    return sorted(timings, key=lambda item: (names.index(item.name), item.batch, item.threads))


def _visit(cell: _Cell, visit_s: float) -> None:
    cell.call()
    seconds: list[float] = []
    while len(seconds) < FEWEST or (sum(seconds) < visit_s and len(seconds) < MOST):
        start, cpu = time.perf_counter(), time.process_time()
        cell.call()
        seconds.append(time.perf_counter() - start)
        cell.cpu.append(time.process_time() - cpu)
    cell.rounds.append(seconds)


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """PyTorch's threads belong to the process; afterwards they are as before."""
    kept = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(kept)


def _summary(cell: _Cell, base: _Cell | None) -> Timing:
    calls = [1e3 * second for visit in cell.rounds for second in visit]
    medians = [1e3 * statistics.median(visit) for visit in cell.rounds]
    low, high = (float(np.percentile(medians, share)) for share in (10, 90))
    speeds: list[float | None] = [None, None, None]
    if base is not None:
        ratios = [
            1e3 * statistics.median(visit) / own
            for visit, own in zip(base.rounds, medians, strict=True)
        ]
        speeds = [float(np.percentile(ratios, share)) for share in (50, 10, 90)]
    return Timing(
        cell.candidate.name, cell.candidate.runtime, cell.candidate.precision, cell.batch, cell.threads,
        len(cell.rounds), len(calls), statistics.median(calls), float(np.percentile(calls, 95)), low, high,
        1e3 * statistics.median(cell.cpu), *speeds,
    )  # fmt: skip


def noise(timings: Sequence[Timing]) -> tuple[float, float]:
    """How far rounds are apart, as a share: the median width from low to high, of times and of ratios."""
    times = [(item.high_ms - item.low_ms) / item.median_ms for item in timings]
    ratios = [
        ((item.speed_high or 0) - (item.speed_low or 0)) / item.speed
        for item in timings
        if item.speed and item.speed_low != item.speed_high
    ]
    return statistics.median(times), statistics.median(ratios) if ratios else 0.0


def count_macs(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiplications with an addition in one forward pass of one image: half of what PyTorch counts as operations.

    Convolutions, linear layers and attention are counted; normalisations, activations and additions are not.

    Args:
        model: in eval mode.
        size: (H, W) of the input, pixels.
    """
    example = getattr(model, "example_input", None)  # of texts or point clouds
    # PyTorch counts no fused attention on a CPU.
    unfused = sdpa_kernel(SDPBackend.MATH)
    with torch.inference_mode(), unfused, FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *size) if example is None else example())
    return int(counter.get_total_flops()) // 2


def describe_machine() -> dict[str, Any]:
    """Where it was measured: processor, its instructions that matter for int8, cores, load, system, versions."""
    lines = _cpuinfo()
    flags = set(lines.get("flags", lines.get("Features", "")).split())
    return {
        "cpu": lines.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": cores(),
        "int8_instructions": sorted(
            flags & {"avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
        ),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(),
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines; nothing where the system has no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = [line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, value in pairs}
