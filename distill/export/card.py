"""Model card of an export: README.md with the front matter of the Hugging Face hub.

Text from outside (class names, licences, names of teachers) is escaped.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from distill.data.joined import JoinedData
from distill.export import executorch_model, onnx_model, program
from distill.export.finished import FinishedRun, RunData
from distill.export.parity import distance, distance_text
from distill.export.preprocessing import NAME as PREPROCESSING
from distill.export.timm_folder import WEIGHTS
from distill.measures.score import TOP1, Measure, measures_of, score_of
from distill.student.model import starts_pretrained
from distill.student.tapped import TappedModel
from distill.training.run_record import read_record
from distill.training.saved_student import factory_snippet
from featstore import FeatureStore
from featstore.card.escape import code, escape
from featstore.card.statement import Statement, hub_licence, read_card, teacher_licence
from featstore.display.text import count, markdown_table
from featstore.errors import ConfigError, shorten
from featstore.files.atomic import write_bytes

CARD = "README.md"
LATENCY = "latency.json"
WORST = 10  # classes in the list with the lowest accuracy


def write_export_card(
    folder: Path, manifest: dict[str, Any], run: FinishedRun, data: RunData
) -> Path:
    """Write the card. Returns its path.

    Args:
        folder: of the export; its ``latency.json`` is included if it exists.
    """
    path = folder / CARD
    parts = [
        export_front_matter(run, data),
        title(manifest, run),
        usage(manifest, run),
        origin(run, data),
        accuracy(manifest, run) if data.task.classes else measures(manifest, run),
        quantisation(manifest),
        latency(folder),
        failures(manifest, run) if data.task.classes else "",
    ]
    write_bytes(path, ("\n\n".join(part for part in parts if part) + "\n").encode())
    return path


def export_front_matter(run: FinishedRun, data: RunData) -> str:
    """Front matter for the hub. The licence covers the images and all teachers."""
    licences = [_image_licence(data), *(_licence(data, teacher) for teacher in run.teachers)]
    distilled = ["knowledge-distillation"] if run.teachers else []
    library = "pytorch" if "factory" in run.described else "timm"
    values = {
        "library_name": library,
        "pipeline_tag": data.task.kind,
        "tags": [data.task.kind, library, "onnx", *distilled, "edge"],
        **hub_licence(licences),
        "metrics": ["accuracy" if data.task.classes else data.task.measures[0].name],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False).rstrip()}\n---"


def title(manifest: dict[str, Any], run: FinishedRun) -> str:
    """Heading and a summary in two sentences."""
    student = manifest["student"]
    height, width = manifest["input"]["size"]
    teachers = " and ".join(code(item["name"]) for item in run.teachers)
    kind = f"Classifier of {count(student['num_classes'], 'class')}"
    if manifest.get("task") == "none":
        kind = f"Backbone with features of {run.student.width} channels"
    elif manifest.get("task", "classify") != "classify":
        names = [escape(name) for name in run.label_names]
        kind = f"Model of task {code(manifest['task'])} ({count(len(names), 'output')}: {shorten(names)})"
    how = f"Distilled from {teachers}" if teachers else "Trained on labels only, without a teacher,"
    return (
        f"# {escape(student['architecture'])}{', distilled' if teachers else ''}\n\n"
        f"{kind} for images of {width} x {height} pixels, "
        f"{student['parameters']:,} parameters. {how} with the method {code(run.record['method'])}, seed "
        f"{run.record['seed']}, by featstore-distill {manifest['versions']['featstore-distill']}."
    )


def usage(manifest: dict[str, Any], run: FinishedRun) -> str:
    """Code examples for every format."""
    spec, made = manifest["input"], manifest["formats"]
    height, width = spec["size"]
    fed = (
        f"(1, 3, {height}, {width}), RGB, {spec['dtype']}, "
        + ("0..255" if spec["dtype"] == "uint8" else "0..1" if spec["normalisation_in_graph"] else "normalised")
    )  # fmt: skip
    lines = [
        "## Usage",
        "",
        f"Preprocessing, with a reference image, tensor and logits: [{PREPROCESSING}]({PREPROCESSING}). Input of the "
        f"graphs: {fed}.",
    ]
    outputs = onnx_model.BACKBONE if run.embedding_head is not None else (onnx_model.OUTPUT,)
    if "safetensors" in made:
        lines += _torch_example(run, outputs[0])
    for name, file in (("onnx", onnx_model.NAME), ("int8", onnx_model.INT8)):
        if name in made:
            lines += _example(
                f"ONNX, {'float' if name == 'onnx' else 'int8'}",
                "python",
                f'import onnxruntime\nsession = onnxruntime.InferenceSession("{file}")\n'
                f'{", ".join(outputs)} = session.run(None, {{"{onnx_model.INPUT}": images}})'
                + ("[0]" if len(outputs) == 1 else ""),
            )
    if "onnx" in made or "int8" in made:
        file = onnx_model.INT8 if "int8" in made else onnx_model.NAME
        kind = spec["dtype"]
        lines += _example(
            "Browser, with onnxruntime-web",
            "javascript",
            f'const session = await ort.InferenceSession.create("{file}");\n'
            f'const image = new ort.Tensor("{kind}", values, [1, 3, {height}, {width}]);\n'
            f"const {outputs[-1]} = (await session.run({{ {onnx_model.INPUT}: image }})).{outputs[-1]}.data;",
        )
    if "browser" in manifest:
        file = manifest["browser"]["file"]
        lines += [
            "",
            f"Or open [{file}]({file}) in a browser: it classifies images without a network.",
        ]
    if "program" in made:
        lines += _example(
            "torch.export", "python",
            f'import torch\nmodel = torch.export.load("{program.NAME}").module()\n{", ".join(outputs)} = model(images)',
        )  # fmt: skip
    if "executorch" in made:
        lines += _example(
            "ExecuTorch", "python",
            "from executorch.runtime import Runtime\n"
            f'method = Runtime.get().load_program("{executorch_model.NAME}").load_method("forward")\n'
            f"{outputs[0]} = method.execute([images])[0]  # at most {made['executorch']['most_images']} images",
        )  # fmt: skip
    if manifest["skipped"]:
        skipped = manifest["skipped"].items()
        lines += ["", *(f"Not exported: {name} ({escape(why)})." for name, why in skipped)]
    return "\n".join(lines)


def _torch_example(run: FinishedRun, output: str) -> list[str]:
    if run.config.student.factory and isinstance(run.student.model, TappedModel):
        text = factory_snippet(Path(WEIGHTS), run.student.model, run.config.student)
        return _example("PyTorch (its input is normalised)", "python", text)
    own = type(run.student.library_model).__module__
    needed = "" if own.startswith("timm.") else f"import {own}  # registers the model with timm\n"
    return _example(
        "PyTorch, with timm (its input is normalised)",
        "python",
        f'import timm\n{needed}model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
        f"{output} = model(images)  # from the hub: hf-hub:OWNER/NAME",
    )


def _example(what: str, language: str, text: str) -> list[str]:
    return ["", f"{what}:", "", f"```{language}", text, "```"]


def origin(run: FinishedRun, data: RunData) -> str:
    """Teachers, stores and images with their licences."""
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
        "## Training data and teachers",
        "",
        *(
            markdown_table(
                ["teacher", "licence of its weights", "SHA-256 of its weights", "feature store"],
                rows,
            )
            if rows
            else ["No teacher: the run used no stored features."]
        ),
        "",
        f"Images: {code(Path(source.uri).name or source.uri)} ({code(source.kind)}); training: "
        f"{record['num_labelled']:,} labelled and {record['num_unlabelled']:,} unlabelled; test: "
        f"{record['num_test']:,}. Licence of the images: {escape(_image_licence(data) or 'not stated')}.",
        "",
        f"Initial weights: {_start(run)}. The licences of images, teachers and initial weights may apply to the "
        "student; check them before you share it.",
    ]
    return "\n".join(lines)


def _start(run: FinishedRun) -> str:
    student = run.config.student
    if student.weights:
        return code(Path(student.weights).name)
    if student.factory:
        return f"as {code(student.factory)} makes them"
    return "timm, pretrained" if starts_pretrained(student) else "random"


def _licence(data: RunData, teacher: dict[str, Any]) -> str:
    """Licence of a teacher as stated in its store's card, else in the manifest; "" if not stated."""
    for stored in data.images.features.teachers if isinstance(data.images, JoinedData) else ():
        manifest = stored.store.manifest
        name = manifest.fields[stored.field].teacher
        if name and manifest.teachers[name].weights_sha256 == teacher["weights_sha256"]:
            return teacher_licence(manifest, _statement(stored.store), name)
    return str(teacher.get("licence", ""))


def _image_licence(data: RunData) -> str:
    """Licence of the images as stated in the store's card; "" if not stated."""
    return (
        _statement(data.images.store).image_licence if isinstance(data.images, JoinedData) else ""
    )


def _statement(store: FeatureStore) -> Statement:
    """The authors' statement in a store's card; empty if the card was not written by this package."""
    try:
        return read_card(store.path / CARD).statement
    except ConfigError:
        return Statement()


def accuracy(manifest: dict[str, Any], run: FinishedRun) -> str:
    """Accuracy of the run, of its other seeds and of every exported file, and calibration."""
    measured = run.evaluation
    values = [sibling["top1"] for sibling in siblings(run)]
    lines = [
        "## Accuracy",
        "",
        f"On {count(manifest['num_test_images'], 'test image', 'test images')}: top-1 "
        f"{TOP1.text(manifest['pytorch']['top1'])}, mean over classes {TOP1.text(measured['balanced_accuracy'])}.",
    ]
    if len(values) > 1:
        lines.append(f"{len(values)} seeds: {TOP1.spread(values)}% (mean and standard deviation).")
    else:
        lines.append("One seed; the variation over seeds is unknown.")
    lines.append(
        f"Calibration error {TOP1.text(measured['calibration_error'])} "
        f"({TOP1.text(measured['calibration_error_scaled'])} after dividing the logits by "
        f"{measured['temperature']:.2f})."
    )
    probe = measured.get("teacher", {}).get("probe_top1")
    if probe is not None:
        lines.append(f"A linear probe on the teacher's features reaches {TOP1.text(probe)}.")
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
        "agreement with PyTorch %",
        "largest logit difference",
    ]
    return "\n".join([*lines, "", *markdown_table(head, rows)])


def measures(manifest: dict[str, Any], run: FinishedRun) -> str:
    """All numbers of the run, the score over its seeds, and the score of every exported file."""
    measure = Measure(**manifest["measure"])
    values = [score_of(sibling)[1] for sibling in siblings(run)]
    shown = ", ".join(
        f"{escape(item.label)} {item.text(value)}" for item, value in measures_of(run.record)
    )
    lines = [
        "## Measures",
        "",
        f"On {count(manifest['num_test_images'], 'test image', 'test images')}: {shown}.",
    ]
    if len(values) > 1:
        lines.append(
            f"{escape(measure.label)} of {len(values)} seeds: {measure.spread(values)} (mean and deviation)."
        )
    else:
        lines.append("One seed; the variation over seeds is unknown.")
    rows = [
        [
            name,
            code(values["files"][0]["name"]),
            f"{values['files'][0]['bytes'] / 1e6:.2f}",
            measure.text(values["score"]),
            distance_text(values["parity"]),
        ]
        for name, values in manifest["formats"].items()
    ]
    head = ["format", "file", "MB", escape(measure.label), "compared with PyTorch"]
    return "\n".join([*lines, "", *markdown_table(head, rows)])


def siblings(run: FinishedRun) -> list[dict[str, Any]]:
    """Records of the finished runs that differ in the seed only, including the run's own."""
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
    """Accuracy of int8 and the settings that were tried."""
    values = manifest["formats"].get("int8")
    if values is None:
        return ""
    calibrated, plain = values["calibration"], values["post_training"]
    measure = Measure(**manifest["measure"])
    lines = [
        "## int8",
        "",
        f"{points(values['lost_points_same_weights'], measure)} compared with the same weights in float. Ranges were "
        f"calibrated on {calibrated['images']} training images{_of_classes(manifest, calibrated)}; the "
        f"settings were chosen on {calibrated['held_out']} other training images by their agreement with the float "
        "model.",
        "",
        *_tried(values["tried"]),
        "",
        f"Chosen: {plain['name'] if 'name' in plain else _setting(plain)}: {points(plain['lost_points'], measure)}.",
    ]
    tuned = values.get("fine_tuned")
    if tuned is not None and "skipped" in tuned:
        lines += ["", f"Quantisation-aware fine-tuning: {escape(tuned['skipped'])}"]
    elif tuned is not None:
        shares = tuned["held_out_agreement_with_teacher"]
        verdict = "is used" if values["from"] == "fine_tuned" else "is not used"
        lines += [
            "",
            f"Quantisation-aware fine-tuning ({count(tuned['epochs'], 'epoch')}, {tuned['seconds']:.0f} s): top-1 "
            f"{TOP1.text(tuned['top1'])} in int8, {TOP1.text(tuned['float_top1'])} in float. Agreement with the "
            f"teacher on held-out images: {TOP1.text(shares['tuned'])} (before: {TOP1.text(shares['plain'])}); the "
            f"fine-tuned model {verdict}. Compared with the run's float student, the exported file has "
            f"{points(values['lost_points'], measure)}.",
        ]
    lines += [
        "",
        "Weights of 7 bits (int7) give the same results on every processor. Weights of 8 bits do not on x86 without "
        "VNNI, where sums of products saturate.",
    ]
    return "\n".join(lines)


def _of_classes(manifest: dict[str, Any], calibrated: dict[str, Any]) -> str:
    if manifest.get("task", "classify") != "classify":
        return ""
    return f" of {count(calibrated['classes'], 'class')}"


def points(lost: float, measure: Measure = TOP1) -> str:
    """A loss of the score on the test images as text; see ``Work.lost``."""
    unit = "points" if measure.percent else "%"
    what = "test accuracy" if measure.name == "top1" else f"test {measure.label}"
    return f"{abs(lost):.1f} {unit} of {what} {'lost' if lost >= 0 else 'gained'}"


def _setting(values: dict[str, Any]) -> str:
    kept = f", {' and '.join(values['keep_float'])} in float" if values["keep_float"] else ""
    return f"{values['method']}, {values['weights']} weights{kept}"


def _tried(trials: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            trial["name"],
            distance_text(trial["held_out"]),
            f"{distance(trial['held_out_exact']):.4f}",
            f"{trial['bytes'] / 1e6:.2f}",
        ]
        for trial in trials
    ]
    return markdown_table(
        ["setting", "compared with float", "KL or difference without saturation", "MB"], rows
    )


def latency(folder: Path) -> str:
    """Table and note of ``latency.json``; "" if there is none."""
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
    """The classes with the lowest accuracy and their most frequent wrong answers."""
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
    head = ["class", "top-1 %", *(["int8 %"] if int8 else []), "most frequent wrong answer"]
    notes = [f"- {escape(note)}" for note in manifest["notes"]]
    return "\n".join(
        [
            "## Limitations",
            "",
            f"Lowest accuracies of {count(len(known), 'class')}:",
            "",
            *markdown_table(head, rows),
            "",
            "The model was trained on images like its training images only; it assigns every image to one of its "
            "classes.",
            *(["", "Notes of the export:", "", *notes] if notes else []),
        ]
    )
