"""Score columns: how well a student answers held-out questions after learning from a candidate."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import featstore
from distill.preferences.candidates import Candidate, fill, read_candidates
from distill.preferences.config import PreferConfig
from distill.preferences.language_models import Item, LanguageModel, accuracy, fine_tune
from featstore.files.array_types import Array
from featstore.format.manifest_records import FieldRecord

PREFIX = "score_"
"""Name of a score column without the student's name."""


def score_strategies(
    config: PreferConfig, student: LanguageModel, rows: Sequence[Candidate], items: Sequence[Item]
) -> dict[str, float]:
    """Accuracy of copies of a student after a few steps on each strategy's candidates."""
    settings, scores = config.score, {}
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
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


def score(
    config: PreferConfig, student: LanguageModel, rows: Sequence[Candidate], items: Sequence[Item]
) -> Array:
    """Score of every candidate: (n,) float32 from 0 to 1."""
    if config.score.how == "steps":
        found = score_strategies(config, student, rows, items)
        return np.array([found[row["strategy"]] for row in rows], np.float32)
    examples = [f"{fill(config.prompt, row['question'])}{row['rationale']}\n" for row in rows]
    return np.array(
        [
            accuracy(
                student,
                items,
                after=config.answer_after,
                max_tokens=config.score.max_tokens,
                example=example,
            )
            for example in examples
        ],
        np.float32,
    )


def store_scores(
    config: PreferConfig,
    store: featstore.FeatureStore,
    students: dict[str, LanguageModel],
    items: Sequence[Item],
    out: Path,
) -> featstore.FeatureStore:
    """Write a store with the candidates and one score column per student. Scores of a student are computed once.

    Raises:
        ManifestMismatch: ``out`` holds scores of other students or candidates.
    """
    parts = [store.path]
    for name, student in students.items():
        part = out / "scores" / name
        field = FieldRecord(
            shape=(), dtype="float32", dims=(), per_view=False,
            meaning=f"accuracy of student {name} on {len(items)} held-out questions ({config.score.how})",
        )  # fmt: skip
        with featstore.create(
            part, fields={PREFIX + name: field}, ids=store.sample_ids, teacher=None,
            content_sha256=store.content_sha256, source=("candidates", str(store.path)),
        ) as written:  # fmt: skip
            if written.rows_done < written.num_rows:
                rows = list(read_candidates(store))
                written.add({PREFIX + name: score(config, student, rows, items)}, start=0)
        parts.append(part)
    return featstore.merge(parts, out / "scored", kind="teachers", progress=False)
