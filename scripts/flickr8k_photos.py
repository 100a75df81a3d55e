#!/usr/bin/env python3
"""Photographs of Flickr8k with captions in two languages, and a store of targets in the space of a text teacher.

    python scripts/flickr8k_photos.py table PHOTOS FLICKR8K_CN data/flickr8k_photos [--pacs PACS/photo]
    python scripts/flickr8k_photos.py targets data/flickr8k_photos/texts.jsonl TEXT_STORE IMAGE_STORE

`table` copies the photographs (NAME.jpg) into OUT/photos/train and OUT/photos/test and writes OUT/texts.jsonl: English
captions, and their translations with the same value in column pair; column image is the id of the photograph. Those of
Flickr8k's test list are the part test, all others train. Chinese is by machine, of the test part by people.
FLICKR8K_CN is as for flickr8k_cn.py.

With --pacs, also the photographs of PACS (all in folders named by their class), as OUT/photos/classes, and
OUT/classes.jsonl: all captions of Flickr8k but those of its test list as the part train, and four descriptions of every
class in each language as the part classes with column label: for zero-shot classification.

`targets` gives every photograph beside the table the mean of the stored vectors of its captions, or of its class's
descriptions, each of length 1. A text describes any part of a photograph alike, so that seeded crops and mirrored
views have the same target.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import TextIO

import numpy as np
from flickr8k_cn import read_captions, read_gzip, write_pairs

import featstore
from featstore.format.views import make_views

CROPS = 7  # seeded views beside the canonical one, each also mirrored
INPUT = 224  # pixels; the whole photograph but for the ends of its longer side
CHINESE = {
    "dog": "狗",
    "elephant": "大象",
    "giraffe": "长颈鹿",
    "guitar": "吉他",
    "horse": "马",
    "house": "房子",
    "person": "人",
}
DESCRIPTIONS = (
    ("a photo of a {}", "一张{}的照片"),
    ("a picture of a {}", "一幅{}的图片"),
    ("there is a {} in the picture", "图片里有{}"),
    ("a {}", "{}"),
)


def write_table(photos: Path, captions: Path, out: Path, pacs: Path | None) -> None:
    """Copy the photographs and write their captions."""
    english, machine, people = (
        read_captions(captions / f"flickr8k{name}.txt.gz")
        for name in ("enc.caption", "zhb.caption", "zhmtest.captions")
    )
    listed = read_gzip(captions / "flickr8ktest.txt.gz").split()
    test = {name.removesuffix(".jpg") for name in listed}
    found = sorted(photos.glob("*.jpg"))
    if not found:
        sys.exit(f"{photos.absolute()} has no file *.jpg; expected photographs of Flickr8k")
    for part in ("train", "test"):
        (out / "photos" / part).mkdir(parents=True, exist_ok=True)
    with (out / "texts.jsonl").open("w", encoding="utf-8") as file:
        for photo in found:
            part = "test" if photo.stem in test else "train"
            image = f"{part}/{photo.name}"
            shutil.copyfile(photo, out / "photos" / image)
            for number in range(5):
                key = photo.stem, number
                pair = f"{photo.stem}#{number}"
                chinese = people if part == "test" else machine
                texts = {"en": english[key], "zh": chinese[key]}
                write_pairs(file, f"{part}/{pair}", texts, pair=pair, image=image)
    if pacs:
        with (out / "classes.jsonl").open("w", encoding="utf-8") as file:
            for image, number in sorted(english):
                if image not in test and (image, number) in machine:
                    pair = f"{image}#{number}"
                    texts = {"en": english[image, number], "zh": machine[image, number]}
                    write_pairs(file, f"train/{pair}", texts, pair=pair, label="")
            write_classes(pacs, out / "photos/classes", file)


def write_classes(pacs: Path, out: Path, file: TextIO) -> None:
    """Copy photographs into a folder for each class and describe the classes."""
    for name, chinese in CHINESE.items():
        pictures = sorted(pacs.glob(f"**/{name}/*.jpg"))
        if not pictures:
            sys.exit(
                f"{pacs.absolute()} has no file {name}/*.jpg; expected the photographs of PACS"
            )
        (out / name).mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            shutil.copyfile(picture, out / name / picture.name)
        for number, (here, there) in enumerate(DESCRIPTIONS):
            texts = {"en": here.format(name), "zh": there.format(chinese)}
            pair = f"{name}#{number}"
            write_pairs(file, f"classes/{pair}", texts, pair=pair, label=name)


def write_targets(table: Path, texts: Path, out: Path) -> None:
    """Write one row per photograph: the mean direction of its texts in their store."""
    photos = table.parent / "photos"
    store = featstore.open(texts)
    row_of = {sample_id: row for row, sample_id in enumerate(store.sample_ids)}
    members = defaultdict(list)
    for line in table.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["id"] not in row_of:
            continue
        part, name = row["id"].split("/")[0], row["pair"].split("#")[0]
        pattern = f"{part}/{name}/*.jpg" if row.get("label") else f"{part}/{name}.jpg"
        for image in photos.glob(pattern):
            members[str(image.relative_to(photos))].append(row_of[row["id"]])
    vectors = np.asarray(store.gather("pooled", np.arange(store.num_rows))[:, 0], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = sorted(members)
    targets = np.stack([vectors[members[image]].mean(0) for image in ids])
    views = make_views(canonical=True, seeded=CROPS, mirrored=True)
    featstore.from_arrays(
        out,
        {"captions": np.repeat(targets[:, None], len(views), axis=1)},
        ids,
        teacher=f"captions of {store.manifest.teacher_of('pooled').name}",
        content_sha256=lambda name: hashlib.sha256((photos / name).read_bytes()).digest(),
        preprocessing=INPUT,
        views=views,
    )


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    for step, names in {
        "table": ("photos", "captions", "out"),
        "targets": ("table", "texts", "out"),
    }.items():
        command = steps.add_parser(step)
        for name in names:
            command.add_argument(name, type=Path)
        if step == "table":
            command.add_argument("--pacs", type=Path, help="folder of the photographs of PACS")
    given = vars(parser.parse_args())
    {"table": write_table, "targets": write_targets}[given.pop("step")](**given)


if __name__ == "__main__":
    main()
