#!/usr/bin/env python3
"""Rounds of KnFu between teams that are simulated on one machine: local training, logits, fuse, distil.

    python scripts/knfu.py IMAGES STORE OUT --dirichlet 0.1 --seeds 0 1 2

IMAGES holds train/CLASS/* and test/CLASS/*; STORE is a feature store of the training images by any teacher, whose views
the students of the first round are shown. Every team gets training images of its own, with a distribution of classes
drawn from a Dirichlet distribution, and is measured on test images of the same distribution; the transfer set is in no
team. The ordinary functions do the work, so that the same command resumes what was stopped. OUT/alma.csv has the
accuracy of every rule and seed: the mean over the teams, and each team's.
"""

import argparse
import csv
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

import distill
import featstore

LOCAL = "local"


def draw(
    by_class: Sequence[list[Path]], shares: Any, count: int, rng: np.random.Generator
) -> list[Path]:
    """Take ``count`` files out of the lists of the classes, with given shares of the classes."""
    taken: list[Path] = []
    for _ in range(count):
        left = np.array([len(files) > 0 for files in by_class]) * shares
        if not left.sum():
            left = np.array([float(len(files)) for files in by_class])
        files = by_class[rng.choice(len(by_class), p=left / left.sum())]
        taken.append(files.pop(rng.integers(len(files))))
    return taken


def classes_of(images: Path) -> list[str]:
    """Names of all classes, in their order."""
    return sorted(path.name for path in (images / "train").iterdir() if path.is_dir())


def divide(given: argparse.Namespace, seed: int, folder: Path) -> None:
    """Copy the images of one seed into ``folder/images``, and write the lists of ids of every team."""
    rng = np.random.default_rng(seed)
    images = Path(given.images)
    classes = classes_of(images)

    def files(part: str) -> list[list[Path]]:
        return [sorted((images / part / name).iterdir()) for name in classes]

    train = files("train")
    lists = {"transfer": draw(train, np.ones(len(classes)), given.transfer, rng)}
    for team in range(given.teams):
        shares = rng.dirichlet(np.full(len(classes), given.dirichlet))
        lists[f"team{team}.train"] = draw(train, shares, given.team_images, rng)
        lists[f"team{team}.test"] = draw(files("test"), shares, given.test_images, rng)
    for name, members in lists.items():
        ids = [path.relative_to(images) for path in members]
        for path, sample_id in zip(members, ids, strict=True):
            (folder / "images" / sample_id).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / "images" / sample_id)
        (folder / f"{name}.txt").write_text("".join(f"{item.as_posix()}\n" for item in ids))


def train(
    given: argparse.Namespace, seed: int, folder: Path, team: int, *, out: Path, **settings: Any
) -> distill.Run:
    """Train the student of one team on its own images, and on the targets of the transfer set if there are some."""
    weights = settings.pop("weights", "")
    (run,) = distill.run(
        images=folder / "images",
        out=out,
        student={
            "name": given.student,
            "pretrained": False,
            "image_size": given.size,
            "weights": str(weights),
        },
        seeds=[seed],
        source={"classes": classes_of(Path(given.images))},
        data={
            "labelled": [f"@{folder / f'team{team}.train.txt'}"],
            "unlabelled": [f"@{folder / 'transfer.txt'}"],
            "test": [f"@{folder / f'team{team}.test.txt'}"],
            "stored": "unlabelled",
        },
        train={
            "epochs": 2,
            "epoch_steps": given.steps // 2,
            "lr": given.lr,
            "workers": 0,
            "labelled_batch": given.batch,
            "unlabelled_batch": 2 * given.batch,
        },
        trackers=[],
        report=False,
        progress=False,
        **settings,
    )
    return run


def logits(folder: Path, runs: Sequence[distill.Run], out: Path) -> Path:
    """What the teams send: the class logits of their students on the transfer set, side by side in one store."""
    ids = (folder / "transfer.txt").read_text().splitlines()
    stores = []
    for team, run in enumerate(runs):
        featstore.extract(
            folder / "images",
            teacher={"library": "run", "name": str(run.folder)},
            out=out / f"team{team}",
            fields=["logits"],
            dtype="float32",
            source={"include": ids},
            workers=0,
            progress=False,
        )
        stores.append(out / f"team{team}")
    names = [f"team{team}" for team in range(len(runs))]
    if not (out / "teams").exists():
        featstore.merge(stores, out / "teams", kind="teachers", names=names, progress=False)
    return out / "teams"


def one_rule(
    given: argparse.Namespace, seed: int, folder: Path, rule: str, runs: list[distill.Run]
) -> list[distill.Run]:
    """All rounds of one rule, from the students of local training."""
    name, _, beta = rule.partition(":")
    for number in range(given.rounds):
        here = folder / rule.replace(":", "_") / f"round{number}"
        before, settings = runs, [{"store": given.store, "methods": ["labels"]}] * len(runs)
        if name != LOCAL:
            first = folder / "first" / "stores"
            teams = logits(folder, before, here / "stores" if number else first)
            fused = featstore.fuse(
                teams, here / "fused", rule=name, beta=float(beta or 10), progress=False
            )
            settings = [
                {
                    "store": fused,
                    "field": f"fused.team{team}_logits",
                    "methods": ["kd"],
                    "kd": {"target": "field", "temperature": 1.0, "weight": given.weight},
                }
                for team in range(len(runs))
            ]
        runs = [
            train(given, seed, folder, team, out=here / f"team{team}", weights=run.folder, **chosen)
            for team, (run, chosen) in enumerate(zip(before, settings, strict=True))
        ]
    return runs


def main(arguments: list[str] | None = None) -> None:
    """Run all rules for all seeds, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", help="folder with train/CLASS/* and test/CLASS/*")
    parser.add_argument("store", help="feature store of the training images")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dirichlet", type=float, default=0.1, help="small: teams differ much")
    parser.add_argument("--rules", nargs="+", default=[LOCAL, "uniform", "knfu:1", "knfu:10"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--teams", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--team-images", type=int, default=50, help="labelled images of a team")
    parser.add_argument("--test-images", type=int, default=200, help="test images of a team")
    parser.add_argument("--transfer", type=int, default=500, help="unlabelled shared images")
    parser.add_argument("--student", default="test_resnet")
    parser.add_argument("--size", type=int, default=32, help="side of the student's input")
    parser.add_argument("--steps", type=int, default=40, help="optimiser steps of a round")
    parser.add_argument("--batch", type=int, default=16, help="labelled images per step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight", type=float, default=1.0, help="of the KL term")
    given = parser.parse_args(arguments)
    lines: list[dict[str, Any]] = []
    for seed in given.seeds:
        folder = given.out / f"seed{seed}"
        if not (folder / "divided").exists():
            divide(given, seed, folder)
            (folder / "divided").touch()
        first = [
            train(
                given,
                seed,
                folder,
                team,
                out=folder / "first" / f"team{team}",
                store=given.store,
                methods=["labels"],
            )
            for team in range(given.teams)
        ]
        found = {"first": first} | {
            rule: one_rule(given, seed, folder, rule, first) for rule in given.rules
        }
        for rule, runs in found.items():
            scores = {f"team{number}": round(run.score, 4) for number, run in enumerate(runs)}
            alma = round(float(np.mean([run.score for run in runs])), 4)
            lines.append({"row": rule, "seed": seed, "alma": alma, **scores})
            print(f"seed {seed}  {rule:<10} {100 * alma:.1f} %", flush=True)
        with (given.out / "alma.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
