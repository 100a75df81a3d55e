"""``distill prefer``: candidates of a teacher, scores by students, pairs, and the teacher aligned to them."""

import csv
import dataclasses
import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import featstore
from distill.preferences.align import align, check_trl, read_record
from distill.preferences.candidates import (
    held_out_items,
    planned,
    read_candidates,
    store_candidates,
)
from distill.preferences.config import PreferConfig
from distill.preferences.language_models import check_model, load_model
from distill.preferences.pairs import PreferencePair, make_pairs
from distill.preferences.scores import PREFIX, store_scores
from distill.training.run_folder import lock
from featstore.display.text import columns
from featstore.errors import ConfigError
from featstore.files.atomic import write_json

INPUTS = "inputs.json"
"""SHA-256 of the inputs that a store does not record."""


class Preferred(NamedTuple):
    """What a run of ``distill prefer`` wrote; None and empty for steps that were not asked for."""

    store: featstore.FeatureStore
    pairs: list[PreferencePair]
    aligned: Path | None


def run(config: PreferConfig) -> Preferred:
    """Store candidates, score them, make pairs and align the teacher, as far as the settings ask for.

    Raises:
        FeatstoreError: Something the user can mend; the same command resumes what was stopped.
    """
    rows = planned(config)
    items = held_out_items(config) if config.students else []
    if config.align_to:
        check_trl()
    check_model(config.teacher, "--teacher")
    for name, path in config.students.items():
        check_model(path, f"--students.{name}")
    from featstore.extraction.accelerator import use_cores

    use_cores(0)
    out = Path(config.out)
    with lock(out / ".prefer.lock", f"--out {out.absolute()}"):
        _check_inputs(out / INPUTS, {"candidates": rows})
        teacher = load_model(config.teacher, "--teacher")
        store = store_candidates(config, teacher, out / "candidates")
        if not config.students:
            return Preferred(store, [], None)
        students = {
            name: load_model(path, f"--students.{name}") for name, path in config.students.items()
        }
        measured = {
            "held_out": items,
            "answer_after": config.answer_after,
            "score": dataclasses.asdict(config.score),
        }
        weights = {f"students.{name}": lm.weights_sha256 for name, lm in students.items()}
        _check_inputs(out / INPUTS, measured | weights)
        store = store_scores(config, store, students, items, out)
        print(columns(table(store)))
        if not config.align_to:
            return Preferred(store, [], None)
        pairs = make_pairs(store, config.align_to)
        _write_pairs(store, pairs, out / "pairs.csv")
        aligned = out / "aligned"
        record = align(store, pairs, teacher, aligned, prompt=config.prompt, settings=config.dpo)
    print(
        f"{aligned}: {len(pairs):,} pairs, DPO loss {record['first']['loss']:.3f} -> {record['last']['loss']:.3f}"
    )
    return Preferred(store, pairs, aligned)


def _check_inputs(path: Path, asked: dict[str, Any]) -> None:
    """Compare what decides the results with the inputs of an earlier run in the same folder, and record it."""
    found = read_record(path) if path.exists() else {}
    hashes = {
        key: hashlib.sha256(json.dumps(value).encode()).hexdigest() for key, value in asked.items()
    }
    differing = [f"--{key}" for key, value in hashes.items() if found.get(key, value) != value]
    if differing:
        raise ConfigError(
            f"{path}: {', '.join(differing)} is not what the results in this folder were made with. Choose another "
            f"--out, give the same files and settings, or delete {path.parent}."
        )
    write_json(path, found | hashes)


def table(store: featstore.FeatureStore) -> list[list[str]]:
    """Mean score of each strategy by each student, with a head."""
    names = [name for name in store.manifest.fields if name.startswith(PREFIX)]
    strategies = [row["strategy"] for row in read_candidates(store)]
    scores = {
        name: store.gather(name, range(store.num_rows)).reshape(-1).tolist() for name in names
    }
    head = ["strategy", "candidates", *(name.removeprefix(PREFIX) for name in names)]
    lines = []
    for strategy in dict.fromkeys(strategies):
        mine = [row for row, found in enumerate(strategies) if found == strategy]
        means = [statistics.mean(scores[name][row] for row in mine) for name in names]
        lines.append([strategy, str(len(mine)), *(f"{value:.3f}" for value in means)])
    return [head, *lines]


def _write_pairs(
    store: featstore.FeatureStore, pairs: Sequence[PreferencePair], path: Path
) -> None:
    """One line per question that prefers a candidate."""
    lines: list[Any] = [[store.sample_ids[row] for row in pair] for pair in pairs]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["chosen", "rejected"], *lines])
