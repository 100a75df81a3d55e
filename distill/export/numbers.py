"""Measure an export: parameters, MACs, sizes, memory and latency of every file, written to latency.json."""

import dataclasses
from typing import Any

from distill.export import executorch_model, onnx_model
from distill.export.config import Format, LatencyConfig, wants
from distill.export.latency import Timing, count_macs, describe_machine, measure_latency, noise
from distill.export.memory import weigh
from distill.export.runtimes import Dtype, ModelFile, Precision, Runtime
from distill.export.work import Work
from distill.student.files import WEIGHTS
from featstore.display.text import columns, count
from featstore.files.atomic import write_json
from featstore.files.limits import cores

LATENCY = "latency.json"
PYTORCH = "PyTorch"
"""Name of the model that the others are compared to: the student as timm makes it, in float32."""


def write_numbers(work: Work) -> dict[str, Any]:
    """Measure every file of an export that has a runtime, and write latency.json.

    Returns:
        What was written: ``columns``, ``rows`` and ``note`` for the card, and all values as ``student``, ``files``,
        ``timings`` and ``machine``.

    Raises:
        ConfigError: a runtime cannot run its file.
    """
    models = candidates(work)
    config = as_machine_allows(work)
    machine = describe_machine()
    work.say(f"measuring {', '.join(model.name for model in models)}")
    timings = measure_latency(
        models, batches=config.batches, threads=config.threads, rounds=config.rounds, reference=PYTORCH
    )  # fmt: skip
    # Read again: what ran beside at the end counts as well.
    machine["load_average_1min_after"] = describe_machine()["load_average_1min"]
    student = work.run.student
    files = {model.name: describe_file(model) for model in models}
    values: dict[str, Any] = {
        "format_version": 1,
        "student": {
            "parameters": student.num_parameters,
            "macs": count_macs(student.plain(), student.input_size),
            "input_size": list(student.input_size),
        },
        "files": files,
        "timings": [dataclasses.asdict(timing) for timing in timings],
        "machine": machine,
    }
    values |= for_people(values, timings, config)
    write_json(work.folder / LATENCY, values)
    return values


def as_machine_allows(work: Work) -> LatencyConfig:
    """The settings without numbers of threads above the cores: threads would wait for each other."""
    config, most = work.config.latency, cores()
    kept = [count for count in config.threads if count <= most] or [most]
    if kept != config.threads:
        work.notes.append(
            f"--latency.threads {config.threads}: measured with {kept}, this machine has {most} cores"
        )
    return dataclasses.replace(config, threads=kept)


def candidates(work: Work) -> list[ModelFile]:
    """The student in PyTorch, and the files of the export that another runtime opens."""
    size = work.spec.size
    dtype: Dtype = "uint8" if work.spec.uint8 else "float32"
    found = [ModelFile(PYTORCH, "PyTorch", "fp32", work.run.folder, size)]
    listed: tuple[tuple[Format, str, Runtime, Precision, str], ...] = (
        ("onnx", "ONNX Runtime", "ONNX Runtime", "fp32", onnx_model.NAME),
        ("int8", "ONNX Runtime, int8", "ONNX Runtime", "int8", onnx_model.INT8),
        ("executorch", "ExecuTorch", "ExecuTorch", "fp32", executorch_model.NAME),
    )
    for key, name, runtime, precision, file in listed:
        if key in work.files and wants(work.config, key):
            most = int(work.extra.get(key, {}).get("most_images", 0))
            found.append(ModelFile(name, runtime, precision, work.folder / file, size, dtype, most))
    return found


def describe_file(model: ModelFile) -> dict[str, Any]:
    """Size of its file in bytes, and its memory."""
    path = model.path / WEIGHTS if model.runtime == "PyTorch" else model.path
    memory = weigh(model)
    return {
        "runtime": model.runtime,
        "precision": model.precision,
        "bytes": path.stat().st_size,
        "memory": None if memory is None else dataclasses.asdict(memory),
    }


def for_people(
    values: dict[str, Any], timings: list[Timing], config: LatencyConfig
) -> dict[str, Any]:
    """A table, and a note on how it was measured."""
    cells = [(batch, threads) for batch in config.batches for threads in config.threads]
    rows = []
    for name, file in values["files"].items():
        own = {(item.batch, item.threads): item for item in timings if item.name == name}
        memory = file["memory"]
        rows.append(
            [
                name,
                file["precision"],
                f"{file['bytes'] / 1e6:.2f}",
                "-" if memory is None else f"{memory['peak_mb']:.0f} ({memory['model_mb']:.0f})",
                *(_cell(own[cell]) if cell in own else "-" for cell in cells),
            ]
        )  # fmt: skip
    heads = [f"batch {batch}, {count(threads, 'thread')}: ms" for batch, threads in cells]
    return {
        "columns": ["runtime", "precision", "file MB", "peak memory MB (of the model)", *heads],
        "rows": rows,
        "note": _note(values, timings),
    }


def _cell(timing: Timing) -> str:
    speed = "" if timing.speed is None or timing.name == PYTORCH else f" ({timing.speed:.1f} x)"
    return f"{milliseconds(timing.median_ms)} / {milliseconds(timing.p95_ms)}{speed}"


def milliseconds(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def _note(values: dict[str, Any], timings: list[Timing]) -> str:
    student, machine = values["student"], values["machine"]
    times, ratios = noise(timings)
    height, width = student["input_size"]
    fewest = min(item.calls for item in timings)
    versions = machine["versions"]
    packages = ", ".join(
        f"{name} {versions[name]}"
        for name in ("torch", "onnxruntime", "executorch")
        if name in versions
    )
    parts = [
        f"{student['parameters']:,} parameters, {student['macs'] / 1e6:,.1f} million multiply-adds for a picture of "
        f"{width} x {height} pixels (half of what PyTorch's flop counter counts).",
        f"Times are median / 95th percentile of at least {fewest} calls, all models in turn in one process over "
        f"{min(item.rounds for item in timings)} rounds in shuffled order; in brackets how many times as fast as "
        "PyTorch in float32, within the same round.",
        f"Noise: the middle 80 % of the rounds' medians span {100 * times:.0f} % of the time, those of the ratios "
        f"{100 * ratios:.0f} %.",
        "Memory: most resident memory of a process that loads one model and runs a batch of one, in brackets what came "
        "on top of the imported runtime.",
        f"Machine: {machine['cpu']}, {machine['architecture']}, {machine['cores']} cores, load average "
        f"{machine['load_average_1min']:.1f} before and {machine['load_average_1min_after']:.1f} after; {packages}.",
    ]
    return " ".join(parts)


def text(values: dict[str, Any]) -> str:
    """The table for a terminal."""
    lines = [[_short(cell) for cell in line] for line in (values["columns"], *values["rows"])]
    return f"{columns(lines)}\n\n{values['note']}"


def _short(cell: str) -> str:
    return cell.replace(" threads", "t").replace(" thread", "t").replace("batch ", "b")
