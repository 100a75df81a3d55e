"""Candidates, scores, preference pairs and DPO: hand values, the same bytes again, refusals, and one small run."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import featstore
from distill.cli import main
from distill.preferences.candidates import LOGP, TEXTS, read_candidates, store_candidates
from distill.preferences.config import DecodingConfig, DpoConfig, PreferConfig, ScoreConfig
from distill.preferences.pairs import PreferencePair, make_pairs
from featstore.errors import ConfigError, ManifestMismatch, SourceError
from tests import rationales
from tests.conftest import ROOT

pytest.importorskip("transformers")

from distill.preferences import language_models as lms
from distill.preferences import scores
from distill.preferences.prefer import run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a student."""
    folder = tmp_path_factory.mktemp("models")
    rationales.write_model(folder / "teacher", seed=1, hidden_size=32)
    rationales.write_model(folder / "student", seed=2)
    return folder


def make_config(models: Path, folder: Path, **settings: Any) -> PreferConfig:
    """A run over a file of candidates, or over questions where these are given."""
    given = rationales.write_rows(folder / "given.jsonl", rationales.candidates(6))
    held_out = rationales.write_rows(folder / "held_out.jsonl", rationales.questions(6, first=50))
    values: dict[str, Any] = {
        "teacher": str(models / "teacher"),
        "prompt": "{question}=",
        "answer_after": ">",
        "students": {"small": str(models / "student")},
        "held_out": str(held_out),
        "out": str(folder / "out"),
        "score": ScoreConfig(steps=2, batch=4, lr=1e-2, max_tokens=8),
        "decoding": DecodingConfig(max_tokens=8, batch=4),
        "dpo": DpoConfig(lr=1e-2, batch=3, epochs=4),
    }
    if "questions" not in settings:
        values["candidates"] = str(given)
    return PreferConfig(**{**values, **settings})


def scored(
    folder: Path, scores: list[float], questions: list[str], **options: Any
) -> featstore.FeatureStore:
    """A store with one column of scores."""
    count = len(scores)
    texts = {name: ["x"] * count for name in TEXTS} | {"question_id": questions}
    fields = {"score_s": np.array(scores, np.float32), LOGP: np.zeros(count, np.float32)}
    ids = [str(row) for row in range(count)]
    return featstore.from_arrays(
        folder,
        {**{k: np.array(v) for k, v in texts.items()}, **fields},
        ids,
        teacher=None,
        **options,
    )


# ---------------------------------------------------------------- hand values


def test_pairs_by_hand(tmp_path: Path) -> None:
    """Best against worst; of equal scores the first is chosen and the last rejected; all alike gives no pair."""
    scores = [0.1, 0.9, 0.4, 0.5, 0.5, 0.7, 0.2, 0.7, 0.2]
    questions = ["a", "a", "a", "b", "b", "c", "c", "c", "c"]
    store = scored(tmp_path / "store", scores, questions)
    assert make_pairs(store, "s") == [PreferencePair(1, 0), PreferencePair(5, 8)]


def test_log_probability_by_hand(models: Path) -> None:
    """The sum over the completion and its end alone, whatever else is in the batch."""
    lm = lms.load_model(models / "teacher")
    end = lm.tokenizer.eos_token
    ids = lm.tokenizer(f"1+2=>3{end}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logps = lm.model(input_ids=ids).logits.log_softmax(-1)
    expected = sum(float(logps[0, place - 1, ids[0, place]]) for place in (4, 5, 6))
    found = lms.log_probabilities(lm, [("1+2=", ">3"), ("12+30=", "12+30.>42")])
    assert found[0] == pytest.approx(expected, abs=1e-4)  # float32 sums


@pytest.mark.parametrize(
    ("text", "after", "answer"),
    [("1.2.>3\nmore", ">", "3"), ("12", ">", ""), (" 12 ", "", "12"), (">1>2", ">", "2")],
)
def test_answers(text: str, after: str, answer: str) -> None:
    """Behind the last marker, to the end of the line."""
    assert lms.answer_of(text, after) == answer


def test_fine_tuning_learns_a_style(models: Path) -> None:
    """After some steps the completions are likelier, and the answers of the examples right."""
    lm = lms.load_model(models / "student")
    pairs = [("1+2=", ">3"), ("2+2=", ">4")]
    before = lms.log_probabilities(lm, pairs)
    lms.fine_tune(lm, pairs, steps=60, batch=2, lr=2e-2, seed=0)
    assert (lms.log_probabilities(lm, pairs) > before).all()
    assert (
        lms.accuracy(lm, [lms.Item("1+2=", "3"), lms.Item("2+2=", "4")], after=">", max_tokens=4)
        == 1
    )


# ---------------------------------------------------------------- the same again


def test_generated_candidates_resume(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped and resumed writes the bytes of one that was not; other settings are refused."""
    monkeypatch.setattr("distill.preferences.candidates.SHARD_ROWS", 4)
    table = rationales.write_rows(tmp_path / "questions.jsonl", rationales.questions(6))
    config = make_config(
        models,
        tmp_path,
        questions=str(table),
        strategies={"a": "a: {question}=", "b": "b: {question}="},
    )
    teacher = lms.load_model(config.teacher)
    whole = store_candidates(config, teacher, tmp_path / "whole")
    calls = 0

    def stop(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return lms.generate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("distill.preferences.candidates.generate", stop)
        with pytest.raises(KeyboardInterrupt):
            store_candidates(config, teacher, tmp_path / "resumed")
    resumed = store_candidates(config, teacher, tmp_path / "resumed")
    assert list(read_candidates(resumed)) == list(read_candidates(whole))
    assert [entry.objects for entry in resumed.entries()] == [
        entry.objects for entry in whole.entries()
    ]
    other = dataclasses.replace(config, decoding=DecodingConfig(max_tokens=8, batch=4, seed=1))
    with pytest.raises(ManifestMismatch, match="seed"):
        store_candidates(other, teacher, tmp_path / "whole")


@pytest.mark.slow
def test_a_small_run(models: Path, tmp_path: Path) -> None:
    """All steps; the aligned teacher prefers what the student preferred; again gives the same without training."""
    pytest.importorskip("trl")
    table = rationales.write_rows(tmp_path / "same.jsonl", rationales.questions(6))
    steps = ScoreConfig(steps=60, batch=6, lr=2e-2, max_tokens=8)
    config = make_config(models, tmp_path, align_to="small", held_out=str(table), score=steps)
    found = run(config)
    assert found.aligned is not None
    assert len(found.pairs) == 6
    rows = list(read_candidates(found.store))
    logps = found.store.gather(LOGP, range(12)).reshape(-1)
    aligned = lms.load_model(found.aligned)
    texts = [(f"{row['question']}=", row["rationale"]) for row in rows]
    gain = lms.log_probabilities(aligned, texts) - logps
    assert all(gain[pair.chosen] > gain[pair.rejected] for pair in found.pairs)
    record = json.loads((found.aligned / "prefer.json").read_text())
    assert record["first"]["loss"] == pytest.approx(np.log(2), abs=1e-3)  # nothing is preferred yet
    assert record["last"]["loss"] < record["first"]["loss"]
    weights = (found.aligned / "model.safetensors").read_bytes()
    again = run(config)
    assert again.pairs == found.pairs
    assert (found.aligned / "model.safetensors").read_bytes() == weights
    with pytest.raises(ConfigError, match="beta"):
        run(dataclasses.replace(config, dpo=dataclasses.replace(config.dpo, beta=0.5)))


def test_dpo_uses_the_stored_reference(models: Path, tmp_path: Path) -> None:
    """The stored values are TRL's own, and TRL's reference pass is not run."""
    pytest.importorskip("trl")
    from distill.preferences.align import _dataset, _trainer

    config = make_config(models, tmp_path)
    teacher = lms.load_model(config.teacher)
    store = store_candidates(config, teacher, tmp_path / "store")
    trainer = _trainer(
        _dataset(store, [PreferencePair(1, 0), PreferencePair(2, 3)], config.prompt),
        teacher,
        config.dpo,
    )
    trainer.accelerator.wait_for_everyone()
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
    np.testing.assert_allclose(chosen, batch["ref_chosen_logps"], atol=1e-4)  # float32 sums
    np.testing.assert_allclose(rejected, batch["ref_rejected_logps"], atol=1e-4)
    assert trainer.ref_model is None


def test_scores_in_context(models: Path, tmp_path: Path) -> None:
    """One score per candidate, and the same pairs from the same seed."""
    config = make_config(models, tmp_path)
    config = dataclasses.replace(config, score=ScoreConfig(how="in_context", max_tokens=3))
    store = run(config).store
    scores = store.gather("score_small", range(12)).reshape(-1)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert np.array_equal(run(config).store.gather("score_small", range(12)).reshape(-1), scores)
    rationales.write_rows(Path(config.held_out), rationales.questions(5, first=50))
    with pytest.raises(ConfigError, match="held_out"):
        run(config)


def test_scores_resume(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of whole shards are not computed again after a stop, and the column is that of one run."""
    monkeypatch.setattr("distill.preferences.scores.SHARD_ROWS", 4)
    settings: dict[str, Any] = {"score": ScoreConfig(how="in_context", max_tokens=3)}
    config = dataclasses.replace(make_config(models, tmp_path), **settings)
    measured: list[str] = []
    stopped: list[str] = []

    def accuracy(*args: Any, example: str = "", **kwargs: Any) -> float:
        if len(measured) == 6 and not stopped:
            raise KeyboardInterrupt
        measured.append(example)
        return 0.5

    monkeypatch.setattr("distill.preferences.scores.accuracy", accuracy)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    stopped[:], measured[:] = measured, []
    resumed = run(config).store
    assert len(stopped) == 6
    assert len(measured) == 8  # of twelve; the first shard was there
    assert measured[:2] == stopped[4:]
    assert resumed.gather("score_small", range(12)).reshape(-1).tolist() == [0.5] * 12


# ---------------------------------------------------------------- refusals


def test_one_candidate(models: Path, tmp_path: Path) -> None:
    """A question with one candidate is named, before a model is loaded."""
    table = rationales.write_rows(tmp_path / "one.jsonl", rationales.candidates(3)[:-1])
    with pytest.raises(ConfigError, match=r"one\.jsonl.*q002"):
        run(make_config(models / "none", tmp_path, candidates=str(table)))


def test_scores_that_are_not_finite(tmp_path: Path) -> None:
    """NaN is refused where it is written, and rows that were stored as invalid are refused in pairs."""
    scores, questions = [0.1, float("nan")], ["a", "a"]
    with pytest.raises(ConfigError, match="score_s"):
        scored(tmp_path / "refused", scores, questions)
    store = scored(tmp_path / "invalid", scores, questions, non_finite="invalid")
    with pytest.raises(featstore.MissingSamples, match="1"):
        make_pairs(store, "s")


def test_unknown_student_and_scores_alike(tmp_path: Path) -> None:
    """The students that the store knows are named; no preference at all is an error."""
    store = scored(tmp_path / "store", [0.1, 0.1], ["a", "a"])
    with pytest.raises(ConfigError, match=r"score_other.*\bs\b"):
        make_pairs(store, "other")
    with pytest.raises(ConfigError, match="alike"):
        make_pairs(store, "s")


def test_models_that_are_none(models: Path, tmp_path: Path) -> None:
    """Not there, another kind of model, no tokenizer."""
    with pytest.raises(ConfigError, match="--teacher"):
        run(make_config(models / "none", tmp_path))
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]})
    )
    with pytest.raises(ConfigError, match=r"--students\.small.*BertForMaskedLM"):
        run(make_config(models, tmp_path, students={"small": str(other)}))


@pytest.mark.parametrize(("damage", "found"), [("cut", "cannot be read"), ("missing", "q_proj")])
def test_weights_that_are_not_whole(models: Path, tmp_path: Path, damage: str, found: str) -> None:
    """Cut off, or without a tensor, which transformers would fill with random numbers."""
    folder = tmp_path / "damaged"
    shutil.copytree(models / "student", folder)
    file = folder / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        state = {name: value for name, value in load_file(file).items() if "q_proj" not in name}
        save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=found):
        lms.load_model(folder, "--teacher")


def test_weights_of_half_precision_compute_in_float32(models: Path, tmp_path: Path) -> None:
    """As the manifest records it."""
    half = lms.load_model(models / "student")
    half.model.bfloat16().save_pretrained(tmp_path / "half")
    half.tokenizer.save_pretrained(tmp_path / "half")
    assert lms.load_model(tmp_path / "half").model.dtype == torch.float32


@pytest.mark.slow
def test_from_the_command_line(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Flags and paths with a space; again changes nothing; a damaged record is named."""
    monkeypatch.chdir(tmp_path)
    questions = rationales.write_rows(tmp_path / "the questions.jsonl", rationales.questions(7))
    words = [
        "prefer", "--teacher", str(models / "teacher"), "--students", f"{{small: {models / 'student'}}}",
        "--questions", questions.name, "--held_out", questions.name, "--out", "an out",
        "--strategies", "{a: 'a {question}=', b: '{question}>'}", "--prompt", "{question}=",
        "--decoding.max_tokens", "6", "--score.steps", "2", "--score.max_tokens", "6",
    ]  # fmt: skip
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["b", "7"]
    files = {path: path.read_bytes() for path in Path("an out").rglob("*") if path.is_file()}
    assert main(words) == 0
    assert {path: path.read_bytes() for path in files} == files
    record = Path("an out/inputs.json")
    record.write_bytes(record.read_bytes()[:20])
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "inputs.json" in capsys.readouterr().err


@pytest.mark.slow
def test_the_recipe(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """prefer.yaml with a teacher and a student: candidates of its four prompts, a score of each, an aligned teacher."""
    monkeypatch.chdir(tmp_path)
    # Untrained models answer nothing right, so that all scores would be alike.
    monkeypatch.setattr(
        scores, "accuracy", lambda *_, example, **kw: crc32(example.encode()) / 2**32
    )
    for name, first in (("questions", 0), ("held_out", 50)):
        path = tmp_path / "data" / "arte" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rationales.write_rows(path, rationales.questions(3, first=first))
    words = [
        "prefer", "--config", str(ROOT / "pipelines" / "recipes" / "arte" / "prefer.yaml"),
        "--teacher", str(models / "teacher"), "--students", f"{{small: {models / 'student'}}}",
        "--decoding.max_tokens", "4", "--score.max_tokens", "4",
    ]  # fmt: skip
    assert main(words) == 0
    found = list(read_candidates(featstore.open("outputs/arte/scored")))
    assert sorted({row["strategy"] for row in found}) == ["short", "simple", "steps", "symbols"]
    assert len(found) == 12
    assert list(Path("outputs/arte").rglob("model.safetensors"))


@pytest.mark.slow
def test_the_script(tmp_path: Path) -> None:
    """scripts/arte.py, a few steps of everything: every row of its tables, and the same teacher again."""
    out = tmp_path / "an out"
    small = {
        "seeds": 0, "digits": 1, "questions": 8, "teacher-steps": 60, "student-steps": 60, "score-steps": 8,
        "steps": 2, "measured": 60, "dpo-epochs": 1,
    }  # fmt: skip
    flags = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "scripts" / "arte.py"), str(out), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = list(csv.DictReader((out / "students.csv").read_text().splitlines()))
    assert [row["row"] for row in table if not row["row"].startswith("style ")] in (
        ["original teacher", "random style", "aligned teacher", "preferred style"],
    )
    assert len(table) == 8
    assert (out / "shares.csv").read_text().count("teacher,0,") == 2
    assert (out / "spearman.csv").is_file()


def test_settings_and_tables(models: Path, tmp_path: Path) -> None:
    """Wrong settings and rows are named."""
    for settings, named in (
        ({"align_to": "big"}, "big"),
        ({"prompt": "no place"}, "--prompt"),
        ({"held_out": ""}, "--held_out"),
        ({"questions": "q.jsonl"}, "--strategies"),
        ({"students": {"a b": "x"}}, "a b"),
    ):
        with pytest.raises(ConfigError, match=named):
            make_config(models, tmp_path, **settings)
    table = rationales.write_rows(
        tmp_path / "bad.jsonl", [{"question_id": "a", "question": "1+1", "strategy": "s"}]
    )
    with pytest.raises(SourceError, match=r"bad\.jsonl: row 1.*rationale"):
        run(make_config(models, tmp_path, candidates=str(table)))


def test_log_probabilities_of_another_teacher(models: Path, tmp_path: Path) -> None:
    """The reference of DPO must be the teacher that is aligned."""
    from distill.preferences.align import align

    config = make_config(models, tmp_path)
    store = store_candidates(config, lms.load_model(models / "student"), tmp_path / "store")
    with pytest.raises(ManifestMismatch, match=LOGP):
        align(
            store, [PreferencePair(0, 1)], lms.load_model(config.teacher), tmp_path / "aligned",
            prompt=config.prompt, settings=config.dpo,
        )  # fmt: skip
