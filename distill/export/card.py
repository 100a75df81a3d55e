"""The model card of an export: README.md with the front matter of the Hugging Face hub, written from what was measured.

It reads ``latency.json`` of the folder where there is one (``latency.measure``). Text from outside (class names,
licences, names of teachers) is shown as text.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import yaml

from distill.data.joined import JoinedData
from distill.export import executorch_model, onnx_model, program
from distill.export.finished import FinishedRun, RunData
from distill.export.preprocessing import NAME as PREPROCESSING
from distill.training.run_record import read_record
from featstore import FeatureStore
from featstore.card.escape import code, escape
from featstore.card.statement import Statement, hub_licence, read_card, teacher_licence
from featstore.errors import ConfigError
from featstore.files.atomic import write_bytes
from featstore.text import markdown_table

CARD = "README.md"
LATENCY = "latency.json"
WORST = 10
"""Classes in the list of the worst."""


def write(folder: Path, manifest: dict[str, Any], run: FinishedRun, data: RunData) -> Path:
    """Write the card.

    Args:
        folder: of the export; its ``latency.json`` is read if it is there.
        manifest: of the export.
        run: that was exported.
        data: its images and store.

    Returns:
        The file.
    """
    path = folder / CARD
    parts = [
        front_matter(run, data),
        title(manifest, run),
        load(manifest, run),
        origin(run, data),
        accuracy(manifest, run),
        quantisation(manifest),
        latency(folder),
        failures(manifest, run),
    ]
    write_bytes(path, ("\n\n".join(part for part in parts if part) + "\n").encode())
    return path


def front_matter(run: FinishedRun, data: RunData) -> str:
    """What the hub indexes. The licence is one that the images and all teachers state, or "other"."""
    licences = [_image_licence(data), *(_licence(data, teacher) for teacher in run.teachers)]
    values = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": [
            "image-classification",
            "timm",
            "onnx",
            *(["knowledge-distillation"] if run.teachers else []),
            "edge",
        ],
        **hub_licence(licences),
        "metrics": ["accuracy"],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False).rstrip()}\n---"


def title(manifest: dict[str, Any], run: FinishedRun) -> str:
    """What it is, in two sentences."""
    student, teachers = (
        manifest["student"],
        " and ".join(code(item["name"]) for item in run.teachers),
    )
    height, width = manifest["input"]["size"]
    return (
        f"# {escape(student['architecture'])}{', distilled' if run.teachers else ''}\n\n"
        f"A classifier of {student['num_classes']} classes for pictures of {width} x {height} pixels, "
        f"{student['parameters']:,} parameters. "
        + (
            f"Distilled from {teachers}"
            if run.teachers
            else "Trained on labels alone, without a teacher,"
        )
        + f" with the method {code(run.record['method'])}, seed {run.record['seed']}, by featstore-distill "
        f"{manifest['versions']['featstore-distill']}."
    )


def load(manifest: dict[str, Any], run: FinishedRun) -> str:
    """Three lines for each way to run it."""
    spec, made = manifest["input"], manifest["formats"]
    height, width = spec["size"]
    fed = (
        f"(1, 3, {height}, {width}), RGB, {spec['dtype']}, "
        + ("0..255" if spec["dtype"] == "uint8" else "0..1" if spec["normalisation_in_graph"] else "normalised")
    )  # fmt: skip
    lines = [
        "## Use",
        "",
        f"How a picture becomes the input, with a picture, a tensor and answers to test against: "
        f"[{PREPROCESSING}]({PREPROCESSING}). The graphs take {fed}.",
    ]
    if "safetensors" in made:
        own = run.student.model.__class__.__module__
        needed = (
            "" if own.startswith("timm.") else f"import {own}  # registers the model with timm\n"
        )
        lines += _example(
            "PyTorch, with timm (the model itself is fed normalised pictures)",
            "python",
            f'import timm\n{needed}model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
            "logits = model(images)  # of hub files: hf-hub:OWNER/NAME",
        )
    for name, file in (("onnx", onnx_model.NAME), ("int8", onnx_model.INT8)):
        if name in made:
            lines += _example(
                f"ONNX, {'float' if name == 'onnx' else 'int8'}",
                "python",
                f'import onnxruntime\nsession = onnxruntime.InferenceSession("{file}")\n'
                f'logits = session.run(["{onnx_model.OUTPUT}"], {{"{onnx_model.INPUT}": images}})[0]',
            )
    if "onnx" in made or "int8" in made:
        file = onnx_model.INT8 if "int8" in made else onnx_model.NAME
        kind = spec["dtype"]
        lines += _example(
            "Browser, with onnxruntime-web",
            "javascript",
            f'const session = await ort.InferenceSession.create("{file}");\n'
            f'const image = new ort.Tensor("{kind}", values, [1, 3, {height}, {width}]);\n'
            f"const logits = (await session.run({{ {onnx_model.INPUT}: image }})).{onnx_model.OUTPUT}.data;",
        )
    if "browser" in manifest:
        file = manifest["browser"]["file"]
        lines += [
            "",
            f"Or open [{file}]({file}), which runs it on any picture, from disk and without a network.",
        ]
    if "program" in made:
        lines += _example(
            "torch.export", "python",
            f'import torch\nmodel = torch.export.load("{program.NAME}").module()\nlogits = model(images)',
        )  # fmt: skip
    if "executorch" in made:
        lines += _example(
            "ExecuTorch", "python",
            "from executorch.runtime import Runtime\n"
            f'method = Runtime.get().load_program("{executorch_model.NAME}").load_method("forward")\n'
            f"logits = method.execute([images])[0]  # at most {made['executorch']['most_images']} images at a time",
        )  # fmt: skip
    if manifest["skipped"]:
        lines += ["", *(f"Not made: {name} ({escape(why)})." for name, why in manifest["skipped"].items())]  # fmt: skip
    return "\n".join(lines)


def _example(what: str, language: str, text: str) -> list[str]:
    return ["", f"{what}:", "", f"```{language}", text, "```"]


def origin(run: FinishedRun, data: RunData) -> str:
    """Teachers, store, images, and what is known of their licences."""
    rows = [
        [
            code(item["name"]) + (f" {code(item['tag'])}" if item.get("tag") else ""),
            escape(_licence(data, item) or "not stated"),
            code(item["weights_sha256"][:16]),
            code(item["store_fingerprint"][:16]),
        ]
        for item in run.teachers
    ]
    record, source = run.record, data.images.samples.source
    lines = [
        "## What it was made from",
        "",
        *(
            markdown_table(
                ["teacher", "licence of its weights", "weights, SHA-256", "feature store"], rows
            )
            if rows
            else ["No teacher: the run looked at no stored feature."]
        ),
        "",
        f"Images: {code(source.kind)} source {code(Path(source.uri).name or source.uri)}; "
        f"{record['num_labelled']:,} with labels and {record['num_unlabelled']:,} without were trained on, "
        f"{record['num_test']:,} were measured. Licence of the images: {escape(_image_licence(data) or 'not stated')}.",
        "",
        f"Starting weights: {_start(run)}. A student learns from its images, and from its teacher's answers if it has "
        "one: what their licences ask of derived work is for its owner to check.",
    ]
    return "\n".join(lines)


def _start(run: FinishedRun) -> str:
    student = run.config.student
    if student.weights:
        return code(Path(student.weights).name)
    return "timm's pretrained ones" if student.pretrained else "random"


def _licence(data: RunData, teacher: dict[str, Any]) -> str:
    """As the authors of the store state it, else as its manifest does; "" where nobody does."""
    for stored in data.images.features.teachers if isinstance(data.images, JoinedData) else ():
        manifest = stored.store.manifest
        name = manifest.fields[stored.field].teacher
        if name and manifest.teachers[name].weights_sha256 == teacher["weights_sha256"]:
            return teacher_licence(manifest, _statement(stored.store), name)
    return str(teacher.get("licence", ""))


def _image_licence(data: RunData) -> str:
    """As the store's own card states it; "" where nobody did."""
    return (
        _statement(data.images.store).image_licence if isinstance(data.images, JoinedData) else ""
    )


def _statement(store: FeatureStore) -> Statement:
    """What the authors of a store say in its card; nothing where the card is not theirs."""
    try:
        return read_card(store.path / CARD).statement
    except ConfigError:
        return Statement()


def accuracy(manifest: dict[str, Any], run: FinishedRun) -> str:
    """Accuracy over the run's seeds, calibration, and every file on the same images."""
    measured = run.evaluation
    values = [sibling["top1"] for sibling in siblings(run)]
    lines = [
        "## Accuracy",
        "",
        f"On {manifest['num_test_images']:,} test images: top-1 {100 * manifest['pytorch']['top1']:.1f} %, balanced "
        f"over the classes {100 * measured['balanced_accuracy']:.1f} %.",
    ]
    if len(values) > 1:
        lines.append(
            f"Over {len(values)} seeds of the same run: {100 * statistics.mean(values):.1f} +- "
            f"{100 * statistics.stdev(values):.1f} % (mean and standard deviation)."
        )
    else:
        lines.append("One seed; its spread is not known.")
    lines.append(
        f"Calibration error {100 * measured['calibration_error']:.1f} % "
        f"({100 * measured['calibration_error_scaled']:.1f} % after dividing the logits by "
        f"{measured['temperature']:.2f})."
    )
    probe = measured.get("teacher", {}).get("probe_top1")
    if probe is not None:
        lines.append(f"A linear probe on the teacher's features reaches {100 * probe:.1f} %.")
    rows = [
        [
            name,
            code(values["files"][0]["name"]),
            f"{values['files'][0]['bytes'] / 1e6:.2f}",
            f"{100 * values['top1']:.1f}",
            f"{100 * values['parity']['top1_agreement']:.2f}",
            f"{values['parity']['max_abs_difference']:.1e}",
        ]
        for name, values in manifest["formats"].items()
    ]
    head = [
        "format",
        "file",
        "MB",
        "top-1 %",
        "same answer as PyTorch %",
        "largest difference of a logit",
    ]
    return "\n".join([*lines, "", *markdown_table(head, rows)])


def siblings(run: FinishedRun) -> list[dict[str, Any]]:
    """Records of the finished runs that differ in nothing but the seed; the run's own is one of them."""
    own = _but_seed(run.record)
    found = []
    for path in sorted(run.folder.parent.glob("seed*/run.json")):
        try:
            record = read_record(path.parent)
        except ConfigError:
            continue  # damaged: its accuracy is not counted
        if record is not None and _but_seed(record) == own:
            found.append(record)
    return found or [run.record]


def _but_seed(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record["contract"].items() if key != "seed"}


def quantisation(manifest: dict[str, Any]) -> str:
    """What int8 costs and what was tried."""
    values = manifest["formats"].get("int8")
    if values is None:
        return ""
    calibrated, plain = values["calibration"], values["post_training"]
    lines = [
        "## int8",
        "",
        f"{points(values['lost_points_same_weights'])} against the same weights in float. Ranges were measured on "
        f"{calibrated['images']} training images of {calibrated['classes']} classes; the settings were chosen on "
        f"{calibrated['held_out']} other training images, by how little the answers move.",
        "",
        *_tried(values["tried"]),
        "",
        f"Taken: {plain['name'] if 'name' in plain else _setting(plain)}: {points(plain['lost_points'])}.",
    ]
    tuned = values.get("fine_tuned")
    if tuned is not None and "skipped" in tuned:
        lines += ["", f"Quantisation-aware fine-tuning: {escape(tuned['skipped'])}"]
    elif tuned is not None:
        shares = tuned["held_out_agreement_with_teacher"]
        verdict = "is the file here" if values["from"] == "fine_tuned" else "was not taken"
        lines += [
            "",
            f"Quantisation-aware fine-tuning ({tuned['epochs']} epochs, {tuned['seconds']:.0f} s): int8 top-1 "
            f"{100 * tuned['top1']:.1f} %, in float {100 * tuned['float_top1']:.1f} %. On held-out images it gives "
            f"the teacher's answer for {100 * shares['tuned']:.1f} % (before: {100 * shares['plain']:.1f} %); it "
            f"{verdict}. It trains on as well: against the run's float student the file here has "
            f"{points(values['lost_points'])}.",
        ]
    lines += [
        "",
        "Weights of 7 bits (int7) give the same answers on every processor. Full int8 weights do not on x86 without "
        "VNNI, where sums of products saturate.",
    ]
    return "\n".join(lines)


def points(lost: float) -> str:
    """A difference of test accuracy in words."""
    return f"{abs(lost):.1f} points of test accuracy {'lost' if lost >= 0 else 'gained'}"


def _setting(values: dict[str, Any]) -> str:
    kept = f", {' and '.join(values['keep_float'])} in float" if values["keep_float"] else ""
    return f"{values['method']}, {values['weights']} weights{kept}"


def _tried(trials: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            trial["name"],
            f"{100 * trial['held_out']['top1_agreement']:.1f}",
            f"{trial['held_out']['kl']:.4f}",
            f"{trial['held_out_exact']['kl']:.4f}",
            f"{trial['bytes'] / 1e6:.2f}",
        ]
        for trial in trials
    ]
    return markdown_table(
        ["setting", "same answer as float %", "KL", "KL without saturation", "MB"], rows
    )


def latency(folder: Path) -> str:
    """The table of ``latency.json``: what it calls ``columns`` and ``rows``, and its ``note``."""
    path = folder / LATENCY
    if not path.is_file():
        return ""
    values = json.loads(path.read_bytes())
    rows = [[escape(str(cell)) for cell in row] for row in values["rows"]]
    return "\n".join(
        [
            "## Latency",
            "",
            *markdown_table(values["columns"], rows),
            "",
            escape(values.get("note", "")),
        ]
    ).rstrip()


def failures(manifest: dict[str, Any], run: FinishedRun) -> str:
    """The classes that it gets wrong most, and what it takes them for."""
    per_class = manifest["pytorch"]["per_class"]
    int8 = manifest["formats"].get("int8", {}).get("per_class", {})
    known = {name: share for name, share in per_class.items() if share is not None}
    worst = sorted(known, key=lambda name: known[name])[:WORST]
    confusion = run.evaluation.get("confusion", {})
    rows = []
    for name in worst:
        others = {key: n for key, n in confusion.get(name, {}).items() if key != name}
        mistaken = max(others, key=lambda key: others[key]) if others else ""
        rows.append(
            [
                escape(name),
                f"{100 * known[name]:.0f}",
                *([f"{100 * int8[name]:.0f}"] if int8 else []),
                escape(mistaken) if mistaken else "-",
            ]
        )
    head = ["class", "top-1 %", *(["int8 %"] if int8 else []), "most often taken for"]
    notes = [f"- {escape(note)}" for note in manifest["notes"]]
    return "\n".join(
        [
            "## Known failures",
            "",
            f"The worst of {len(known)} classes:",
            "",
            *markdown_table(head, rows),
            "",
            "It has seen pictures like its training images only; whatever it is shown, it answers with one of its "
            "classes.",
            *(["", "Notes of the export:", "", *notes] if notes else []),
        ]
    )
