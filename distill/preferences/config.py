"""Settings of ``distill prefer``."""

import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from distill.options import CheckedOptions
from featstore.sources.config import require

QUESTION = "{question}"
"""What a template replaces by the question."""


@dataclass(frozen=True, kw_only=True)
class DecodingConfig(CheckedOptions, name="decoding", positive=("max_tokens", "batch")):
    """How the teacher generates rationales."""

    temperature: float = 1.0
    """0 takes the likeliest token."""
    max_tokens: int = 256
    """Longest rationale, in tokens."""
    batch: int = 32
    """Prompts that are generated together; part of the record, because it decides the random numbers."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(CheckedOptions, name="score", positive=("steps", "batch", "max_tokens")):
    """How a student scores candidates: by its accuracy on held-out questions."""

    how: Literal["steps", "in_context"] = "steps"
    """steps: accuracy of a copy of the student after a few steps on all candidates of a strategy; one score per
    strategy. in_context: accuracy with the candidate as the one example before each held-out question, as in the paper;
    one score per candidate, which costs candidates x held-out questions generations."""
    steps: int = 50
    """Optimiser steps of AdamW."""
    batch: int = 16
    """Candidates per step."""
    lr: float = 2e-5
    max_tokens: int = 256
    """Longest answer of the student, in tokens."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DpoConfig(
    CheckedOptions, name="dpo", positive=("beta", "batch", "epochs"), share=("warmup",)
):
    """Direct preference optimisation of the teacher, by TRL."""

    beta: float = 0.1
    lr: float = 1e-7
    batch: int = 16
    epochs: float = 1.0
    warmup: float = 0.1
    """Share of the steps in which the rate rises; it then falls as a cosine."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PreferConfig:
    """Align a teacher that writes text to the students that will learn from it."""

    COMMON: ClassVar[tuple[str, ...]] = (
        "teacher", "questions", "candidates", "strategies", "students", "held_out", "align_to", "out",
    )  # fmt: skip
    """What ``--help`` shows first."""

    teacher: str = ""
    """Causal language model: folder, or name on the Hugging Face hub."""
    questions: str = ""
    """JSONL or Parquet with columns id and question, and answer where known: what candidates are generated for."""
    candidates: str = ""
    """In place of questions and strategies: JSONL or Parquet with candidates that were generated elsewhere; columns
    question_id, question, strategy and rationale, and answer, prompt and decoding where known."""
    strategies: dict[str, str] = field(default_factory=dict)
    """By name, the prompt of the teacher; {question} stands for the question. Each gives one candidate per question."""
    prompt: str = QUESTION
    """Plain prompt: of students, and of the teacher when it is aligned."""
    answer_after: str = ""
    """The answer is the text behind the last of these in a rationale, to the end of the line; empty: the whole text."""
    students: dict[str, str] = field(default_factory=dict)
    """By name of the score column, the student: a causal language model, folder or name. Empty: candidates are stored,
    and nothing is scored."""
    held_out: str = ""
    """JSONL or Parquet with columns id, question and answer, on which students are measured."""
    align_to: str = ""
    """Student whose scores decide the preference pairs; empty: nothing is aligned."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    out: str = "outputs/prefer"
    """Folder of the results."""

    def __post_init__(self) -> None:
        require(bool(self.teacher), "--teacher is empty: name a causal language model.")
        require(bool(self.out), "--out is empty.")
        require(
            bool(self.questions) != bool(self.candidates),
            f"--questions {self.questions!r} and --candidates {self.candidates!r}: give one of both files.",
        )
        require(
            not self.questions or len(self.strategies) > 1,
            f"--strategies {self.strategies}: a preference needs two or more of them.",
        )
        for name, template in {**self.strategies, "": self.prompt}.items():
            setting = f"--strategies.{name}" if name else "--prompt"
            require(QUESTION in template, f"{setting} {template!r} lacks {QUESTION}.")
        for name in [*self.strategies, *self.students]:
            require(
                bool(re.fullmatch(r"[A-Za-z0-9_]+", name)),
                f"{name!r}: names of strategies and students are letters, digits and _.",
            )
        require(
            not self.students or bool(self.held_out),
            "--held_out is empty: students are measured on held-out questions with answers.",
        )
        require(
            not self.align_to or self.align_to in self.students,
            f"--align_to {self.align_to}: there is no such student; --students names {sorted(self.students)}.",
        )
