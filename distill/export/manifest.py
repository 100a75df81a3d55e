"""export.json: what was made of which run, with sizes, hashes, accuracy and parity of every file."""

# K classes

import dataclasses
import hashlib
import importlib.metadata
from typing import Any

from distill.export.config import ALL_FORMATS, wants
from distill.export.parity import Logits, distance_text
from distill.export.work import Work
from distill.measures.score import Measure
from featstore.display.text import columns
from featstore.format.version import __version__

MANIFEST = "export.json"
FORMAT_VERSION = 1


def describe_export(work: Work, logits: dict[str, Logits]) -> dict[str, Any]:
    """Return the values of export.json."""
    run = work.run
    formats = {
        name: {
            "files": [
                {
                    "name": str(path.relative_to(work.folder)),
                    "bytes": path.stat().st_size,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                }
                for path in work.files[name]
            ],
            "parity": work.compare(logits[name], logits["pytorch"]),
            **work.measured(logits[name]),
            **work.extra.get(name, {}),
        }
        for name in ALL_FORMATS
        if name in work.files and wants(work.config, name)
    }
    return {
        "format_version": FORMAT_VERSION,
        "run": {
            "folder": run.folder.name,
            "method": run.record["method"],
            "seed": run.record["seed"],
            "contract_sha256": run.record["contract_sha256"],
        },
        "student": {
            "architecture": run.described["architecture"],
            "num_classes": run.described["num_classes"],
            "parameters": run.student.num_parameters,
        },
        "input": {
            "size": list(work.spec.size),
            "normalisation_in_graph": work.spec.baked,
            "dtype": "uint8" if work.spec.uint8 else "float32",
        },
        "task": work.data.task.name,
        "measure": dataclasses.asdict(work.measure),
        "num_test_images": len(work.labels),
        "pytorch": work.measured(logits["pytorch"]),
        "formats": formats,
        "skipped": work.skipped,
        "notes": work.notes,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of the packages that took part, as far as they are installed."""
    found = {"featstore-distill": __version__}
    for name in ("torch", "timm", "onnx", "onnxruntime", "onnxscript", "executorch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def formats_table(manifest: dict[str, Any]) -> str:
    """One line per format, for people."""
    measure = Measure(**manifest["measure"])
    rows = [("format", "MB", f"test {measure.label}", "beside PyTorch", "max |difference|")]
    rows.append(("pytorch", "-", measure.text(manifest["pytorch"]["score"]), "-", "-"))
    for name, values in manifest["formats"].items():
        parity = values["parity"]
        rows.append(
            (
                name,
                f"{values['files'][0]['bytes'] / 1e6:.2f}",
                measure.text(values["score"]),
                distance_text(parity),
                f"{parity['max_abs_difference']:.2g}",
            )
        )
    return columns(rows)
