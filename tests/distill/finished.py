"""Folders of finished runs, made up: the files that a run leaves behind, without a run."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from distill.evaluation import predictions
from distill.measures.metrics import accuracy, agreement, calibration
from distill.reports import page_data
from distill.reports.run_files import REPORT, Row
from distill.reports.tables import write_csv
from featstore.files.atomic import write_bytes, write_json

HOSTILE = "<script>document.title='owned'</script>"  # a name that runs if it is not escaped
HOSTILE_IMAGE = '"><img src=x onerror="document.title=`owned`">'
"""A name that leaves an attribute if it is not escaped."""


def finished_run(
    out: Path,
    method: str = "customkd",
    seed: int = 0,
    *,
    skill: float = 2.0,
    classes: Sequence[str] = ("cat", "dog", "<b>bold</b> & co", HOSTILE),
    per_class: int = 6,
    ids: Sequence[str] = (),
    corrupted: bool = True,
    extras: bool = True,
    labels_per_class: int = 2,
) -> Path:
    """Write OUT/METHOD/seedK; the same arguments write the same bytes.

    Args:
        out: where.
        method: name.
        seed: of the run, and of what is made up.
        skill: how far the right logit stands out.
        classes: names.
        per_class: test images.
        ids: of the first test images; the rest are numbered.
        corrupted: with accuracies under corruption.
        extras: with what a run keeps for its page.
        labels_per_class: of its settings.

    Returns:
        The folder.
    """
    folder = out / method / f"seed{seed}"
    count, width = per_class * len(classes), len(classes)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % width
    truth = torch.eye(width)[labels]
    teacher = torch.randn(count, width, generator=generator) + 3 * truth
    student = torch.randn(count, width, generator=generator) + skill * truth
    names = tuple(classes)
    evaluation: dict[str, Any] = {
        "num_images": count,
        **accuracy(student, labels, names),
        **calibration(student, labels, bins=15),
        "knn_top1": 0.5,
        "linear_probe_top1": 0.6,
        "feature_norm": 3.0,
        "teacher": {**agreement(student, teacher, labels), "cka": 0.7},
    }
    if corrupted:
        values = {"jpeg": [0.5, 0.4, 0.3, 0.2, 0.1], "contrast": [0.6, 0.5, 0.4, 0.3, 0.2]}
        evaluation["corruptions"] = {
            "top1": values, "mean": {"jpeg": 0.3, "contrast": 0.4}, "mean_top1": 0.35,
        }  # fmt: skip
    contract = {
        "method": method, "seed": seed, "source": {"kind": "folder"}, "data": {"labels_per_class": labels_per_class},
        "student": {"name": "tiny"}, "eval": {"part": "test"}, "train": {"epochs": 3},
    }  # fmt: skip
    record = {
        "method": method, "seed": seed, "top1": evaluation["top1"], "seconds": 10.0 + seed, "steps": 30,
        "teacher_probe_top1": evaluation["teacher"]["probe_top1"], "num_labelled": 8, "num_unlabelled": 50,
        "num_test": count, "num_processes": 1, "notes": [f"a note with {HOSTILE}"], "versions": {"python": "3"},
        "device": "cpu", "peak_memory_mb": 900.0, "peak_device_memory_mb": 0.0, "contract": contract,
    }  # fmt: skip
    write_json(folder / "evaluation.json", evaluation)
    write_json(folder / "run.json", record)
    write_json(folder / "config.json", {"architecture": "tiny", "teacher": {"name": "vit"}})
    lines: list[dict[str, Any]] = [
        {"step": 10 * (i + 1), "epoch": i, "loss/ce": 1 / (i + 1), "lr": 0.1, "cka/f_s,f_t": 0.1 * i, "empty": None}
        for i in range(3)
    ]  # fmt: skip
    lines.append({"step": 30, "epoch": 2, "warning": "the target inflates"})
    write_bytes(
        folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode()
    )
    names_of_images = [*ids, *(f"test/{number}.png" for number in range(len(ids), count))]
    answers = predictions.predictions(
        names_of_images, names, labels.numpy(), student.numpy(), teacher.numpy()
    )
    predictions.write_predictions(folder, answers)
    if extras:
        write_extras(folder, answers)
    return folder


def write_extras(folder: Path, answers: predictions.Predictions) -> None:
    """Thumbnails of noise, points of noise, and the time of a store."""
    loss = page_data.hardness(answers)
    rows: list[Row] = []
    for rank, place in enumerate(np.argsort(-loss)[:5], start=1):
        buffer = io.BytesIO()
        Image.fromarray(np.full((16, 16, 3), 40 * rank, np.uint8)).save(buffer, "JPEG")
        write_bytes(folder / REPORT / f"images/{rank:02d}.jpg", buffer.getvalue())
        row: Row = {"rank": rank, "place": int(place), "loss": float(loss[place])}
        rows.append({**row, "id": str(answers.ids[place]), "image": f"images/{rank:02d}.jpg"})
    write_csv(folder / REPORT / "hardest.csv", rows)
    generator = np.random.default_rng(0)
    places = list(range(len(answers.ids)))
    features = {
        name: generator.standard_normal((len(places), 6)).astype(np.float32)[:4]
        for name in ("teacher", "customised", "student")
    }
    # Four points: principal components, which need no time.
    page_data.write_feature_map(
        folder,
        [
            {
                "id": str(answers.ids[place]),
                "class": str(answers.class_names[answers.labels[place]]),
                "answer": str(answers.class_names[answers.student_class[place]]),
            }
            for place in places[:4]
        ],
        features,
    )
    store = {"fingerprint": "f", "teachers": ["vit"], "rows": 9, "views": 1, "bytes": 10}
    write_json(
        folder / REPORT / "extraction.json",
        {"stores": [{**store, "seconds": {"teacher": 6.0, "load": 2.0}}]},
    )
