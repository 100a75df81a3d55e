"""A store whose rows are candidates: question, strategy, rationale, and the teacher's log-probability of each."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import featstore
from distill.preferences.config import QUESTION, PreferConfig
from distill.preferences.language_models import (
    Item,
    LanguageModel,
    generate,
    log_probabilities,
)
from featstore.errors import ConfigError, SourceError, shorten
from featstore.format.manifest_records import FieldRecord, TeacherRecord
from featstore.sources.text import read_table

if TYPE_CHECKING:
    from featstore.importing.create import NewStore

SHARD_ROWS = 256
"""Rows that a killed run loses at most."""

TEXTS = {
    "question_id": "id of the question",
    "question": "question",
    "answer": "known answer, or empty",
    "strategy": "name of the prompt that led to the rationale",
    "prompt_sha256": "SHA-256 of the prompt that the teacher was given, or empty",
    "decoding": "decoding settings and seed as JSON, or empty",
    "rationale": "text of the teacher",
}
LOGP = "logp"
"""Field with the teacher's log-probabilities, the reference of DPO."""

Candidate = dict[str, str]
"""A text by every name of ``TEXTS``."""


def read_questions(path: str, *needed: str) -> list[dict[str, str]]:
    """Rows of a table of questions as text; an absent answer is ""."""
    rows = [{name: _text(value) for name, value in row.items()} for row in read_table(Path(path))]
    for number, row in enumerate(rows, 1):
        missing = [name for name in needed if not row.get(name, "").strip()]
        if missing:
            raise SourceError(
                f"{path}: row {number} has no {missing[0]}; expected columns {', '.join(needed)}."
            )
    return rows


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, sort_keys=True)


def held_out_items(config: PreferConfig) -> list[Item]:
    """Prompts and answers that students are measured on."""
    rows = read_questions(config.held_out, "id", "question", "answer")
    return [Item(fill(config.prompt, row["question"]), row["answer"].strip()) for row in rows]


def fill(template: str, question: str) -> str:
    """A prompt."""
    return template.replace(QUESTION, question)


def planned(config: PreferConfig) -> list[Candidate]:
    """All candidates in row order, without rationales where these are still to be generated.

    Raises:
        SourceError: a row lacks a column, or ids repeat.
        ConfigError: a question has a single candidate.
    """
    if config.candidates:
        rows = read_questions(config.candidates, "question_id", "question", "strategy", "rationale")
        found = [_given(row) for row in rows]
    else:
        decoding = json.dumps(dataclasses.asdict(config.decoding), sort_keys=True)
        found = [
            {
                "question_id": row["id"],
                "question": row["question"],
                "answer": row.get("answer", ""),
                "strategy": strategy,
                "prompt_sha256": _sha256(fill(template, row["question"])),
                "decoding": decoding,
                "rationale": "",
            }
            for row in read_questions(config.questions, "id", "question")
            for strategy, template in config.strategies.items()
        ]
    check_choice([row["question_id"] for row in found], config.candidates or config.questions)
    return found


def check_choice(questions: Sequence[str], where: str) -> None:
    """Refuse questions with a single candidate: there is nothing to prefer it to."""
    counts: dict[str, int] = {}
    for question in questions:
        counts[question] = counts.get(question, 0) + 1
    single = [name for name, number in counts.items() if number < 2]
    if single:
        raise ConfigError(
            f"{where}: {len(single):,} of {len(counts):,} questions have one candidate, e.g. {shorten(single)}; a "
            "preference needs two or more. Add candidates, or leave these questions out."
        )


def _given(row: dict[str, str]) -> Candidate:
    """A candidate that was generated elsewhere."""
    prompt = row.get("prompt", "")
    found = {name: row.get(name, "") for name in TEXTS}
    return {**found, "prompt_sha256": _sha256(prompt) if prompt else ""}


def ids_of(rows: Sequence[Candidate]) -> list[str]:
    """Sample ids: QUESTION/STRATEGY/NUMBER."""
    seen: dict[str, int] = {}
    ids = []
    for row in rows:
        name = f"{row['question_id']}/{row['strategy']}"
        seen[name] = seen.get(name, -1) + 1
        ids.append(f"{name}/{seen[name]}")
    return ids


def store_candidates(
    config: PreferConfig, teacher: LanguageModel, out: Path
) -> featstore.FeatureStore:
    """Generate candidates, or take those of a file, and store them with the teacher's log-probabilities.

    Resumes by whole shards; the store is the same as that of a run that was never stopped.

    Raises:
        ManifestMismatch: ``out`` was made with other settings, questions or weights.
    """
    rows = planned(config)
    ids = ids_of(rows)
    texts = {
        name: FieldRecord(shape=(), dtype="text", dims=(), meaning=TEXTS[name], per_view=False)
        for name in TEXTS
    }
    meaning = f"log-probability of the rationale and its end, given the prompt {config.prompt!r}"
    logp = FieldRecord(
        shape=(), dtype="float32", dims=(), meaning=meaning, teacher="teacher", per_view=False
    )
    contents: dict[str, bytes] = {}
    with (
        featstore.create(
            out, fields={**texts, LOGP: logp}, ids=ids, teacher=_record(config, teacher), shard_rows=SHARD_ROWS,
            content_sha256=contents.__getitem__, source=("candidates", config.candidates or config.questions),
        ) as store,
        progress("candidates", store) as bar,
    ):  # fmt: skip
        for start in range(store.rows_done, len(rows), SHARD_ROWS):
            part = _with_rationales(config, teacher, rows[start : start + SHARD_ROWS], start)
            contents.update(zip(ids[start:], map(content_sha256, part), strict=False))
            pairs = [(fill(config.prompt, row["question"]), row["rationale"]) for row in part]
            columns = {name: [row[name] for row in part] for name in TEXTS}
            store.add({**columns, LOGP: log_probabilities(teacher, pairs)}, start=start)
            bar.update(len(part))
    return featstore.open(out)


def progress(name: str, store: "NewStore") -> "tqdm[Any]":
    """A bar over the rows that a store still lacks."""
    return tqdm(
        desc=name, total=store.num_rows, initial=store.rows_done, unit="candidate", disable=None, leave=False
    )  # fmt: skip


def _with_rationales(
    config: PreferConfig, teacher: LanguageModel, rows: Sequence[Candidate], start: int
) -> list[Candidate]:
    if config.candidates:
        return list(rows)
    settings = config.decoding
    prompts = [fill(config.strategies[row["strategy"]], row["question"]) for row in rows]
    texts = generate(
        teacher, prompts, max_tokens=settings.max_tokens, temperature=settings.temperature,
        seed=(settings.seed, start), batch=settings.batch,
    )  # fmt: skip
    return [{**row, "rationale": text} for row, text in zip(rows, texts, strict=True)]


def _record(config: PreferConfig, teacher: LanguageModel) -> TeacherRecord:
    """What decides the rows."""
    settings: dict[str, Any] = {"prompt": config.prompt}
    if not config.candidates:
        settings |= {
            "strategies": config.strategies,
            "decoding": dataclasses.asdict(config.decoding),
        }
    return TeacherRecord(
        library="transformers", name=teacher.name, model_args=settings, weights_sha256=teacher.weights_sha256,
        precision="fp32",
    )  # fmt: skip


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def content_sha256(row: Candidate) -> bytes:
    """SHA-256 of what a candidate says: question and rationale."""
    return hashlib.sha256(json.dumps([row["question"], row["rationale"]]).encode()).digest()


def read_candidates(store: featstore.FeatureStore) -> Iterator[Candidate]:
    """The texts of all rows."""
    missing = [name for name in TEXTS if name not in store.manifest.fields]
    if missing:
        raise ConfigError(
            f"{store.path}: no field {missing[0]}; expected a store of candidates, as distill prefer writes it, with "
            f"{', '.join(TEXTS)}."
        )
    columns = {
        name: store.gather(name, range(store.num_rows)).reshape(-1).tolist() for name in TEXTS
    }
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
