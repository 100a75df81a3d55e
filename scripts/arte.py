#!/usr/bin/env python3
"""A teacher of sums with four styles of rationale, aligned to the style that its students learn best from.

    python scripts/arte.py OUT --seeds 0 1 2

Teacher and student are small Llamas with a tokenizer of characters, trained from random weights on sums with all four
styles; the teacher longer. Under its plain prompt the teacher writes any style. For every seed `distill prefer` stores
the teacher's candidates, scores the styles by the student, makes pairs and aligns the teacher. Then the student is
trained on what each teacher writes, and measured on held-out sums. OUT/students.csv has accuracies and scores,
OUT/shares.csv the share of every style that the teacher writes under its plain prompt before and after.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

from distill.preferences.candidates import fill, read_candidates
from distill.preferences.config import DecodingConfig, DpoConfig, PreferConfig, ScoreConfig
from distill.preferences.language_models import (
    Item,
    accuracy,
    answer_of,
    fine_tune,
    generate,
    load_model,
)
from distill.preferences.prefer import run

STYLES = ("answer", "reading", "reversed", "padded")
MARKS = dict(zip(STYLES, "acrp", strict=True))
"""First letter of the teacher's prompt and of the rationale; none in the plain prompt."""
PLAIN = "{question}="
CHARACTERS = "0123456789+=>.|acrp"
LONGEST = 48


def rationale(a: int, b: int, style: str, digits: int) -> str:
    """How a sum is written: the letter of its style, carries and digits, and the answer behind ">"."""
    columns = [(a // 10**place % 10, b // 10**place % 10) for place in range(digits)]
    carry, steps = 0, []
    for one, other in columns:
        total = one + other + carry
        carry = total // 10
        steps.append((total % 10, carry))
    answer = f">{a + b}"
    if style == "answer":
        return f"a{answer}"
    if style == "reading":
        return "c" + "".join(str(carry) for _, carry in reversed(steps)) + answer
    if style == "reversed":
        return "r" + "".join(f"{digit}{carry}" for digit, carry in steps) + answer
    return "p" + "".join(f"..{carry}.." for _, carry in reversed(steps)) + answer


def style_of(text: str) -> str:
    """Style of what a teacher wrote; "" if it is none."""
    return next((style for style, mark in MARKS.items() if text.startswith(mark)), "")


def sums(count: int, digits: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Random numbers of up to ``digits`` digits."""
    return [(int(a), int(b)) for a, b in rng.integers(0, 10**digits, (count, 2))]


def write_model(folder: Path, width: int, layers: int, seed: int) -> None:
    """A Llama of random weights with a tokenizer of characters."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<pad>", "<end>", "<unk>", *CHARACTERS]
    inner = Tokenizer(
        models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(names), num_hidden_layers=layers, max_position_embeddings=128, pad_token_id=0,
        eos_token_id=1, bos_token_id=None, tie_word_embeddings=True, **sizes,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def pretrained(
    given: argparse.Namespace, name: str, *, width: int, layers: int, steps: int, batch: int
) -> Path:
    """A model that has seen right sums in all styles, under the prompts of the styles and the plain one."""
    folder: Path = given.out / name
    if (folder / "trained").exists():
        return folder
    write_model(folder, width, layers, seed=len(name))
    rng = np.random.default_rng([17, len(name)])
    pairs = []
    for a, b in sums(30000, given.digits, rng):
        style = STYLES[rng.integers(4)]
        prompt = f"{a}+{b}=" if rng.random() < 0.5 else f"{MARKS[style]}{a}+{b}="
        pairs.append((prompt, rationale(a, b, style, given.digits)))
    lm = load_model(folder)
    fine_tune(lm, pairs, steps=steps, batch=batch, lr=3e-3, seed=0)
    lm.model.save_pretrained(folder)
    items = held_out(given, min(200, given.measured), seed=99)
    parts = {
        style: accuracy(lm, [Item(MARKS[style] + i.prompt, i.answer) for i in items], **measure())
        for style in STYLES
    }
    print(f"{name}: {lm.model.num_parameters():,} parameters; right: {parts}", flush=True)
    (folder / "trained").write_text(json.dumps(parts))
    return folder


def measure() -> dict[str, Any]:
    """How answers are read."""
    return {"after": ">", "max_tokens": LONGEST}


def held_out(given: argparse.Namespace, count: int, seed: int) -> list[Item]:
    """Sums to be measured on."""
    return [
        Item(f"{a}+{b}=", str(a + b))
        for a, b in sums(count, given.digits, np.random.default_rng([23, seed]))
    ]


def write_table(path: Path, pairs: Sequence[tuple[int, int]]) -> Path:
    """Questions as JSONL."""
    rows = [
        {"id": f"{number:05d}", "question": f"{a}+{b}", "answer": str(a + b)}
        for number, (a, b) in enumerate(pairs)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(teacher: Path, prompts: Sequence[str], seed: int) -> list[str]:
    """What a teacher writes, at temperature 1."""
    return generate(
        load_model(teacher), prompts, max_tokens=LONGEST, temperature=1.0, seed=(seed,), batch=128
    )


def taught(
    given: argparse.Namespace, student: Path, pairs: Sequence[tuple[str, str]], seed: int
) -> float:
    """Accuracy of a student after all its steps on what a teacher wrote."""
    lm = load_model(student)
    fine_tune(lm, pairs, steps=given.steps, batch=32, lr=given.lr, seed=seed)
    return accuracy(lm, held_out(given, given.measured, seed=1000 + seed), **measure())


def one_seed(
    given: argparse.Namespace, teacher: Path, student: Path, seed: int
) -> tuple[list[Any], list[Any]]:
    """Lines of both tables."""
    folder = given.out / f"seed{seed}"
    rng = np.random.default_rng([31, seed])
    asked = sums(given.questions, given.digits, rng)
    measured = sums(min(200, given.measured), given.digits, np.random.default_rng([29, seed]))
    config = PreferConfig(
        teacher=str(teacher), questions=str(write_table(folder / "questions.jsonl", asked)),
        strategies={style: MARKS[style] + PLAIN for style in STYLES}, prompt=PLAIN, answer_after=">",
        students={"student": str(student)}, held_out=str(write_table(folder / "held_out.jsonl", measured)),
        align_to="student", decoding=DecodingConfig(max_tokens=LONGEST, batch=128, seed=seed),
        score=ScoreConfig(steps=given.score_steps, batch=32, lr=given.lr, max_tokens=LONGEST, seed=seed),
        dpo=DpoConfig(lr=given.dpo_lr, beta=0.1, batch=16, epochs=given.dpo_epochs, seed=seed),
        out=str(folder / "prefer"),
    )  # fmt: skip
    found = run(config)
    assert found.aligned is not None
    scores = found.store.gather("score_student", range(found.store.num_rows)).reshape(-1).tolist()
    prompts, by_style = [fill(PLAIN, f"{a}+{b}") for a, b in asked], {}
    score_of = {}
    for row, value in zip(read_candidates(found.store), scores, strict=True):
        by_style.setdefault(row["strategy"], []).append(row["rationale"])
        score_of[row["strategy"]] = value
    best = max(STYLES, key=lambda style: score_of[style])
    texts = {
        "original teacher": written(teacher, prompts, seed),
        "random style": [by_style[STYLES[rng.integers(4)]][number] for number in range(len(asked))],
        "aligned teacher": written(found.aligned, prompts, seed),
        **{f"style {style}": by_style[style] for style in STYLES},
    }
    lines, shares = [], []
    for name, mine in texts.items():
        right = np.mean(
            [answer_of(text, ">") == str(a + b) for text, (a, b) in zip(mine, asked, strict=True)]
        )
        reached = taught(given, student, list(zip(prompts, mine, strict=True)), seed)
        own = score_of.get(name.removeprefix("style "))
        line = {
            "seed": seed,
            "accuracy": round(reached, 4),
            "right": round(float(right), 4),
            "score": own,
        }
        lines.append({"row": name, **line})
        if name == f"style {best}":
            lines.append({"row": "preferred style", **line})
        if name.endswith("teacher"):
            parts = {
                style: round(float(np.mean([style_of(text) == style for text in mine])), 4)
                for style in STYLES
            }
            shares.append(
                {"row": name, "seed": seed, "preferred": best, "share": parts[best], **parts}
            )
        print(
            f"seed {seed}  {name:<18} student {100 * reached:.1f}  teacher {100 * right:.1f}  score {own}",
            flush=True,
        )
    return lines, shares


def write_csv(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """All lines so far."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def spearman(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rank correlation of score and final accuracy over the four styles, of each seed and of their means."""
    from scipy.stats import rankdata

    def rho(mine: Sequence[dict[str, Any]]) -> float:
        ranks = [rankdata([line[name] for line in mine]) for name in ("score", "accuracy")]
        return round(float(np.corrcoef(*ranks)[0, 1]), 4)

    styles = [line for line in lines if line["row"].startswith("style ")]
    seeds = sorted({line["seed"] for line in styles})
    return [
        {"row": "spearman", "seed": s, "spearman": rho([i for i in styles if i["seed"] == s])}
        for s in seeds
    ]


def main(arguments: list[str] | None = None) -> None:
    """Train teacher and student once, then run all seeds, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--digits", type=int, default=2)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--student-steps", type=int, default=300)
    parser.add_argument("--score-steps", type=int, default=40, help="of a student on one style")
    parser.add_argument(
        "--steps", type=int, default=200, help="of a student on what a teacher wrote"
    )
    parser.add_argument("--measured", type=int, default=500, help="held-out sums")
    parser.add_argument("--lr", type=float, default=2e-3, help="of students")
    parser.add_argument("--dpo-lr", type=float, default=2e-4)
    parser.add_argument("--dpo-epochs", type=float, default=2.0)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    teacher = pretrained(given, "teacher", width=64, layers=2, steps=given.teacher_steps, batch=64)
    student = pretrained(given, "student", width=48, layers=2, steps=given.student_steps, batch=64)
    lines: list[Any] = []
    shares: list[Any] = []
    for seed in given.seeds:
        for table, new in zip(
            (lines, shares), one_seed(given, teacher, student, seed), strict=True
        ):
            table += new
        write_csv(given.out / "students.csv", lines)
        write_csv(given.out / "shares.csv", shares)
        write_csv(given.out / "spearman.csv", spearman(lines))


if __name__ == "__main__":
    main()
