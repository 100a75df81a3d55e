"""Score columns: how well a student answers held-out questions after learning from a candidate."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

import featstore
from distill.preferences.candidates import (
    SHARD_ROWS,
    Candidate,
    fill,
    progress,
    read_candidates,
)
from distill.preferences.config import PreferConfig
from distill.preferences.language_models import Item, LanguageModel, accuracy, fine_tune
from featstore.format.manifest_records import FieldRecord

if TYPE_CHECKING:
    from featstore.importing.create import NewStore

PREFIX = "score_"
"""Name of a score column without the student's name."""


def score_strategies(
    config: PreferConfig, student: LanguageModel, rows: Sequence[Candidate], items: Sequence[Item]
) -> dict[str, float]:
    """Accuracy of copies of a student after a few steps on each strategy's candidates."""
    settings, scores = config.score, {}
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    for strategy in tqdm(strategies, desc="learn", unit="strategy", disable=None, leave=False):
        pairs = [
            (fill(config.prompt, row["question"]), row["rationale"])
            for row in rows
            if row["strategy"] == strategy
        ]
        copied = student._replace(model=copy.deepcopy(student.model))
        fine_tune(
            copied,
            pairs,
            steps=settings.steps,
            batch=settings.batch,
            lr=settings.lr,
            seed=settings.seed,
        )
        scores[strategy] = accuracy(
            copied, items, after=config.answer_after, max_tokens=settings.max_tokens
        )
    return scores


def scorer(
    config: PreferConfig, student: LanguageModel, rows: Sequence[Candidate], items: Sequence[Item]
) -> Callable[[Candidate], float]:
    """What gives the score of a candidate, from 0 to 1; by steps, the student learns from all ``rows`` first."""
    if config.score.how == "steps":
        found = score_strategies(config, student, rows, items)
        return lambda row: found[row["strategy"]]
    return lambda row: accuracy(
        student,
        items,
        after=config.answer_after,
        max_tokens=config.score.max_tokens,
        example=f"{fill(config.prompt, row['question'])}{row['rationale']}\n",
    )


def store_scores(
    config: PreferConfig,
    store: featstore.FeatureStore,
    students: dict[str, LanguageModel],
    items: Sequence[Item],
    out: Path,
) -> featstore.FeatureStore:
    """Write a store with the candidates and one score column per student. Resumes by whole shards.

    Raises:
        ManifestMismatch: ``out`` holds scores of other students or candidates.
    """
    parts = [store.path]
    for name, student in students.items():
        folder = out / "scores" / name
        field = FieldRecord(
            shape=(), dtype="float32", dims=(), per_view=False,
            meaning=f"accuracy of student {name} on {len(items)} held-out questions ({config.score.how})",
        )  # fmt: skip
        with featstore.create(
            folder, fields={PREFIX + name: field}, ids=store.sample_ids, teacher=None, shard_rows=SHARD_ROWS,
            content_sha256=store.content_sha256, source=("candidates", str(store.path)),
        ) as written:  # fmt: skip
            if written.rows_done < written.num_rows:
                rows = list(read_candidates(store))
                _add_scores(written, PREFIX + name, rows, scorer(config, student, rows, items))
        parts.append(folder)
    return featstore.merge(parts, out / "scored", kind="teachers", progress=False)


def _add_scores(
    store: "NewStore", field: str, rows: Sequence[Candidate], score: Callable[[Candidate], float]
) -> None:
    with progress(field, store) as bar:
        for start in range(store.rows_done, len(rows), SHARD_ROWS):
            found = []
            for row in rows[start : start + SHARD_ROWS]:
                found.append(score(row))
                bar.update()
            store.add({field: np.array(found, np.float32)}, start=start)
