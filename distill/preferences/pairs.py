"""Preference pairs: of each question the candidates with the best and the worst score."""

from typing import NamedTuple

import numpy as np

import featstore
from distill.preferences.candidates import LOGP, check_choice
from distill.preferences.scores import PREFIX
from featstore.errors import ConfigError, shorten
from featstore.files.array_types import Array


class PreferencePair(NamedTuple):
    """Rows of one question in the store."""

    chosen: int
    rejected: int


def make_pairs(store: featstore.FeatureStore, student: str) -> list[PreferencePair]:
    """Choose best and worst candidate of every question, in the order of the questions.

    Equal scores are decided by the row: the first is chosen, the last rejected. A question whose candidates
    all have one score gives no pair.

    Args:
        store: Candidates with score columns.
        student: Name of the student whose scores decide.
    """
    scores = _scores(store, student)
    questions = store.gather("question_id", range(store.num_rows)).reshape(-1).tolist()
    check_choice(questions, str(store.path))
    rows: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        rows.setdefault(question, []).append(row)
    pairs = [
        PreferencePair(
            max(mine, key=lambda row: (scores[row], -row)),
            min(mine, key=lambda row: (scores[row], -row)),
        )
        for mine in rows.values()
    ]
    found = [pair for pair in pairs if scores[pair.chosen] > scores[pair.rejected]]
    if not found:
        raise ConfigError(
            f"{store.path}: student {student} scores all candidates of a question alike ({len(rows):,} questions). "
            "Measure on more held-out questions, or train for more steps (--score.steps)."
        )
    return found


def _scores(store: featstore.FeatureStore, student: str) -> Array:
    fields = store.manifest.fields
    for name in (PREFIX + student, LOGP):
        if name not in fields:
            known = [key.removeprefix(PREFIX) for key in fields if key.startswith(PREFIX)]
            raise ConfigError(
                f"{store.path}: no field {name}. It has scores of {shorten(known) if known else 'no student'}; score "
                "the candidates by this student first (--students)."
            )
    values = store.gather(PREFIX + student, range(store.num_rows)).reshape(-1)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        ids = [store.sample_ids[row] for row in bad]
        raise ConfigError(
            f"{store.path}: {PREFIX}{student} of {len(bad)} rows is not finite: {shorten(ids)}. Score these candidates "
            "again, or leave them out (featstore subset)."
        )
    return values
