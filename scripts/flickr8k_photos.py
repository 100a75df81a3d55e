#!/usr/bin/env python3
"""Photographs of Flickr8k with captions in two languages, and a store of targets in the space of a text teacher.

    python scripts/flickr8k_photos.py table PHOTOS FLICKR8K_CN data/flickr8k_photos
    python scripts/flickr8k_photos.py targets data/flickr8k_photos TEXT_STORE IMAGE_STORE

`table` copies the photographs (NAME.jpg) into OUT/photos/train and OUT/photos/test and writes OUT/texts.jsonl: English
captions, and their translations with the same value in column pair; column image is the id of the photograph. Those of
Flickr8k's test list are the part test, all others train. Chinese is by machine, of the test part by people.
FLICKR8K_CN is as for flickr8k_cn.py.

`targets` gives every photograph of OUT the mean of the stored vectors of its captions, each of length 1. A text
describes any part of a photograph alike, so that seeded crops and mirrored views have the same target.
"""

import argparse
import gzip
import hashlib
import json
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
from flickr8k_cn import read_captions

import featstore
from featstore.format.views import make_views

CROPS = 7  # seeded views beside the canonical one, each also mirrored
INPUT = 224  # pixels; the whole photograph but for the ends of its longer side


def write_table(photos: Path, captions: Path, out: Path) -> None:
    """Copy the photographs and write their captions."""
    english, machine, people = (
        read_captions(captions / f"flickr8k{name}.txt.gz")
        for name in ("enc.caption", "zhb.caption", "zhmtest.captions")
    )
    listed = gzip.decompress((captions / "flickr8ktest.txt.gz").read_bytes()).decode().split()
    test = {name.removesuffix(".jpg") for name in listed}
    for part in ("train", "test"):
        (out / "photos" / part).mkdir(parents=True, exist_ok=True)
    with (out / "texts.jsonl").open("w", encoding="utf-8") as file:
        for photo in sorted(photos.glob("*.jpg")):
            part = "test" if photo.stem in test else "train"
            image = f"{part}/{photo.name}"
            shutil.copyfile(photo, out / "photos" / image)
            for number in range(5):
                key = photo.stem, number
                chinese = people if part == "test" else machine
                for language, texts in (("en", english), ("zh", chinese)):
                    row = {
                        "id": f"{part}/{photo.stem}#{number}.{language}",
                        "language": language,
                        "text": texts[key],
                        "pair": f"{photo.stem}#{number}",
                        "image": image,
                    }
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_targets(folder: Path, texts: Path, out: Path) -> None:
    """Write one row per photograph: the mean direction of its captions in the store of the texts."""
    store = featstore.open(texts)
    row_of = {sample_id: row for row, sample_id in enumerate(store.sample_ids)}
    members = defaultdict(list)
    for line in (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["id"] in row_of:
            members[row["image"]].append(row_of[row["id"]])
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
        content_sha256=lambda name: hashlib.sha256(
            (folder / "photos" / name).read_bytes()
        ).digest(),
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
        "targets": ("folder", "texts", "out"),
    }.items():
        command = steps.add_parser(step)
        for name in names:
            command.add_argument(name, type=Path)
    given = vars(parser.parse_args())
    {"table": write_table, "targets": write_targets}[given.pop("step")](**given)


if __name__ == "__main__":
    main()
