#!/usr/bin/env python3
"""How much of a classifier can be distilled from pseudo-samples: noise, moments, covariance, and images beside them.

    python scripts/datafree.py IMAGES TEACHER OUT --seeds 0 1 2

IMAGES holds train/CLASS/* and test/CLASS/*; TEACHER is the folder of a finished run of phase two. Statistics are those
of the training images. Every row has the same number of pictures, steps and settings (pipelines/recipes/datafree), and
no row sees a label: the class of a picture is the teacher's. OUT/accuracy.csv has the accuracy of every row and seed on
all test images, and how often the student agrees with the teacher on held-out pictures of the row itself. The ordinary
commands do the work, so that the same command resumes what was stopped.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

import distill
import featstore
from featstore.cli.main import main as featstore_command
from featstore.sources.synthetic import read_record

RECIPE = Path(__file__).resolve().parents[1] / "pipelines" / "recipes" / "datafree" / "distill.yaml"

ROWS: dict[str, dict[str, Any]] = {
    "noise": {"record": "noise"},
    "noise, batch statistics": {"record": "noise", "bn_mode": "batch"},
    "moments of all": {"record": "moments_all", "measure": ["--overall"]},
    "moments per class": {"record": "moments"},
    "covariance per class": {"record": "covariance", "measure": ["--rank", "50"]},
    "images": {},
}


def record(given: argparse.Namespace, row: dict[str, Any]) -> Path:
    """Write the record of a row, if it is not there."""
    file: Path = given.out / f"{row['record']}.safetensors"
    if not file.exists():
        of = ["noise"] if row["record"] == "noise" else [given.images, "--include", "train/*"]
        words = ["statistics", of[0], str(file), "--size", str(given.size), *of[1:]]
        assert featstore_command([*words, *row.get("measure", ())]) == 0
    return file


def extract(given: argparse.Namespace, name: str, row: dict[str, Any]) -> Path:
    """The teacher's logits of the pictures of a row."""
    store: Path = given.out / "stores" / name.replace(",", "").replace(" ", "_")
    images: Any = given.images
    source: dict[str, Any] = {"include": ["train/*"]}
    if "record" in row:
        images = record(given, row)
        classes = read_record(images)[0].classes
        source = {"samples": given.samples if classes else 10 * given.samples}
    mode = row.get("bn_mode", "eval")
    featstore.extract(
        images,
        source=source,
        teacher={"library": "run", "name": given.teacher, "bn_mode": mode, "precision": "fp32"},
        out=store,
        fields=["logits"],
        dtype="float32",
        workers=0,
        progress=False,
    )
    return store


def main(arguments: list[str] | None = None) -> None:
    """Run all rows for all seeds, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", help="folder with train/CLASS/* and test/CLASS/*")
    parser.add_argument("teacher", help="folder of a finished run of phase two")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=1000, help="pictures of a class")
    parser.add_argument("--size", type=int, default=28, help="side of a picture, pixels")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for name in given.rows:
        row = ROWS[name]
        store = extract(given, name, row)
        images = None if "record" in row else given.images
        runs = distill.run(
            store,
            images,
            recipe=RECIPE,
            out=given.out / "students" / store.name,
            seeds=given.seeds,
            source={} if images is None else {"include": ["train/*"]},
            report=False,
            progress=False,
        )
        for run in runs:
            measured = distill.evaluate(
                run,
                given.images,
                store="none",
                source={"kind": "folder", "labels_from": "parent", "include": ["*"]},
                data={"labelled": ["train/*/*0.*"], "test": ["test/*"]},
                workers=0,
                progress=False,
            )
            seed = int(run.folder.name.removeprefix("seed"))
            agreement, accuracy = round(run.score, 4), round(measured["top1"], 4)
            lines.append({"row": name, "seed": seed, "accuracy": accuracy, "agreement": agreement})
            print(f"{name:<24} seed {seed}  {100 * accuracy:.1f} %", flush=True)
        with (given.out / "accuracy.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
