"""The int8 file: quantised after training, and where that loses too much, after a short fine-tuning as well."""

# N test images, K classes

from pathlib import Path
from typing import Any

import numpy as np

from distill.data.joined import JoinedData
from distill.export import card, images, onnx_model, preprocessing, program, qat, timm_folder
from distill.export.images import Pixels
from distill.export.parity import Logits, answers, torch_runner
from distill.export.quantise import quantise
from distill.export.search import Int8Trial, search
from distill.export.work import Work
from distill.student.model import Student
from distill.training.optim import TrainingDiverged
from featstore.errors import ConfigError


def make_int8(work: Work, logits: dict[str, Logits]) -> None:
    """Quantise; where too much is lost, fine-tune and quantise again; keep what held-out images prefer."""
    config, data = work.config, work.data
    drawn = images.draw_images(data.images.samples, data.part, config.calibration)
    work.notes += drawn.notes
    calibration, held_out = work.pixels(drawn.calibration), work.pixels(drawn.held_out)
    path = work.folder / onnx_model.INT8
    taken, trials, failed = search(
        work.folder / onnx_model.NAME,
        path,
        calibration=calibration,
        held_out=held_out,
        spec=work.spec,
        config=config.calibration,
        classes=work.classes,
        say=work.say,
    )
    first = answers(work.pictures(data.part.test), {"int8": onnx_model.runner(path, work.spec)})[
        "int8"
    ]
    before = work.measured(logits["pytorch"])["score"]
    lost = work.lost(before, work.measured(first)["score"])
    work.say(f"int8      {taken.setting}: {card.points(lost, work.measure)}")
    record: dict[str, Any] = {
        "calibration": {
            "images": len(calibration),
            "held_out": len(held_out),
            "seed": config.calibration.seed,
            "percentile": config.calibration.percentile,
            "classes": len(np.unique(data.images.samples.labels[drawn.calibration])),
        },
        "post_training": {
            **taken.describe(), **work.measured(first), "lost_points": lost,
            **work.compare(first, logits["pytorch"]),
        },
        "tried": [trial.describe() for trial in trials],
        "failed": failed,
        "from": "post_training",
    }  # fmt: skip
    logits["int8"], work.files["int8"] = first, [path]
    if config.qat == "always" or (config.qat == "auto" and lost > config.most_lost):
        tuned = finetune_int8(work, taken, calibration, held_out, drawn, record)
        if tuned is not None:
            logits["int8"] = tuned
    found = work.measured(logits["int8"])["score"]
    record["lost_points"] = work.lost(before, found)
    # Fine-tuning trains on, so the run's own float student is no reference for the cost of int8.
    same = record["fine_tuned"]["float_top1"] if record["from"] == "fine_tuned" else before
    record["lost_points_same_weights"] = work.lost(same, found)
    if record["lost_points"] > config.most_lost:
        work.notes.append(
            f"int8: {card.points(record['lost_points'], work.measure)}; {len(trials)} settings were tried, "
            + (
                "and fine-tuning"
                if "fine_tuned" in record
                else "without fine-tuning (--qat auto would fine-tune)"
            )
        )
    work.extra["int8"] = record
    work.runners["int8"] = onnx_model.runner(path, work.spec)


def finetune_int8(
    work: Work,
    taken: Int8Trial,
    calibration: Pixels,
    held_out: Pixels,
    drawn: images.Draw,
    record: dict[str, Any],
) -> Logits | None:
    """Fine-tune, quantise what comes out, and take it if it agrees with the teacher more often than the plain int8.

    Returns:
        (N, K) of the test images; None if the plain int8 file is kept.
    """
    config, data = work.config, work.data
    tuned = _finetune(work, taken, record)
    if tuned is None:
        return None
    student, short = tuned
    assert isinstance(data.images, JoinedData)
    plain, scratch = work.folder / onnx_model.INT8, work.folder / ".partial-tuned.onnx"
    _quantise_student(work, student, scratch, taken, calibration)
    after = answers(
        work.pictures(data.part.test),
        {"int8": onnx_model.runner(scratch, work.spec), "float": torch_runner(student)},
    )
    shares = agreement_with_teacher(
        work, data.images, held_out, drawn, {"plain": plain, "tuned": scratch}
    )
    better = shares["tuned"] > shares["plain"]
    record["fine_tuned"] = {
        **taken.setting.describe(),
        **work.measured(after["int8"]),
        "float_top1": work.measured(after["float"])["top1"],
        "epochs": config.finetune.epochs,
        "seconds": short["seconds"],
        "steps": short["steps"],
        "held_out_agreement_with_teacher": shares,
    }
    work.say(
        f"int8      fine-tuned: top-1 {100 * record['fine_tuned']['top1']:.1f} %, in float "
        f"{100 * record['fine_tuned']['float_top1']:.1f} %; held-out agreement with the teacher "
        f"{100 * shares['tuned']:.1f} %, before {100 * shares['plain']:.1f} %: "
        + ("taken" if better else "not taken")
    )
    if not better:
        scratch.unlink()
        return None
    scratch.replace(plain)
    record["from"] = "fine_tuned"
    # The float weights behind the int8 file, so that it can be quantised again for another runtime.
    work.files["int8"] += timm_folder.write_timm_folder(
        work.folder / "int8_float",
        student,
        work.run.rule,
        described=work.run.described,
        teachers=work.run.teachers,
    )
    return after["int8"]


def _finetune(
    work: Work, taken: Int8Trial, record: dict[str, Any]
) -> tuple[Student, dict[str, Any]] | None:
    """The fine-tuned student and the record of its run; None, with a note, if that cannot be done or diverges."""
    config, data = work.config, work.data
    if why := _not_tunable(work):
        if config.qat == "always":
            raise ConfigError(f"--qat always: {why}")
        work.notes.append(why)
        record["fine_tuned"] = {"skipped": why}
        return None
    assert isinstance(data.images, JoinedData)
    work.say(
        f"int8      fine-tuning: {config.finetune.epochs} epochs of {work.run.record['method']}"
    )
    try:
        return qat.finetune(
            work.run,
            data.images,
            data.part,
            config.finetune,
            setting=taken.setting,
            out=work.folder / qat.FOLDER,
            workers=config.workers,
        )
    except TrainingDiverged as error:
        work.notes.append(f"fine-tuning diverged, the plain int8 file is kept: {error}")
        record["fine_tuned"] = {"skipped": str(error)}
        return None


def _not_tunable(work: Work) -> str:
    """Why the student cannot be fine-tuned; "" if it can."""
    data = work.data
    if not data.task.classes:
        return f"not fine-tuned: that is for classifiers, the task of this run is {data.task.name}"
    if not isinstance(data.images, JoinedData):
        return f"not fine-tuned: it needs the store that the student was distilled from ({data.missing})"
    return ""


def _quantise_student(
    work: Work, student: Student, out: Path, taken: Int8Trial, calibration: Pixels
) -> None:
    """Write a student as an int8 file, with the steps that it was fine-tuned for."""
    floating = work.folder / ".partial-tuned-float.onnx"
    module = preprocessing.graph_module(student, work.spec)
    floating.write_bytes(onnx_model.translate(program.trace(module, work.spec), work.spec))
    percentile = work.config.calibration.percentile
    quantise(floating, out, taken.setting, calibration, work.spec, percentile=percentile)
    floating.unlink()


def agreement_with_teacher(
    work: Work, joined: JoinedData, held_out: Pixels, drawn: images.Draw, files: dict[str, Path]
) -> dict[str, float]:
    """How often int8 files give the answer of the teacher's probe on held-out images: their labels are not used."""
    settings = work.run.config
    probe = joined.fit_probe(work.data.part, most=settings.eval.probe_rows, seed=settings.seeds[0])
    teacher = probe.logits(joined.features.take(drawn.held_out).numpy()).argmax(1)
    batches = (
        held_out[start : start + images.BATCH] for start in range(0, len(held_out), images.BATCH)
    )
    runners = {name: onnx_model.runner(path, work.spec) for name, path in files.items()}
    found = answers(batches, runners)
    return {name: float((logits.argmax(1) == teacher).mean()) for name, logits in found.items()}
