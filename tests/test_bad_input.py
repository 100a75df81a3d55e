"""Faults of samples that are no images, from the command line in a folder with a space: one message, status 2."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill import cli as phase_two
from featstore.cli.main import main as phase_one
from tests import noise, points, rationales, texts

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

WORKERS = ["--workers", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a folder")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command of either phase: it must print its reason on stderr, with all ``shown``, and return 2."""

    def run(words: Sequence[object], *shown: str) -> None:
        given = [str(word) for word in words]
        main = phase_two.main if given[0] in ("run", "prefer") else phase_one
        with pytest.raises(SystemExit) as stopped:
            raise SystemExit(main(given))
        printed = capsys.readouterr().err
        assert stopped.value.code == 2, printed
        assert "Traceback" not in printed
        assert all(part in printed for part in shown), printed

    return run


def extraction_of_texts(folder: Path, table: str) -> list[object]:
    return [
        "extract", "--source.kind", "text", "--source.path", folder / table, "--teacher.library", "onnx",
        "--teacher.name", texts.write_teacher(folder / "teacher.onnx"),
        "--teacher.tokenizer", texts.write_vocabulary(folder / "vocab.txt"), "--store.path", folder / "store",
        "--store.fields", "[pooled]", *WORKERS,
    ]  # fmt: skip


def test_texts(folder: Path, refused: Any) -> None:
    """An empty text, and a language that no text has."""
    rows = texts.rows(4)
    texts.write(folder / "empty.jsonl", [*rows, {**rows[0], "id": "nothing", "text": " "}])
    refused(extraction_of_texts(folder, "empty.jsonl"), "empty.jsonl", "'nothing'")
    texts.write(folder / "texts.jsonl", rows)
    words = [*extraction_of_texts(folder, "texts.jsonl"), "--source.languages", "[fr]"]
    refused(words, "fr", "en, xx")


def test_clouds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without points, or without numbers: named with the reason; too many end with status 3."""
    clouds = points.write_clouds(folder / "clouds", 4)
    np.save(clouds / "train" / "ball" / "001.npy", np.full((4, 3), np.nan))
    np.save(clouds / "train" / "ball" / "002.npy", np.zeros((0, 3)))
    words = [
        "extract", "--source.kind", "points", "--source.path", clouds, "--teacher.library", "python",
        "--teacher.name", "distill.student.pillars:teacher", "--teacher.model_args",
        "{width: 6, depth: 1, grid: [5, 4], most_points: 20, num_classes: 3}", "--store.path", folder / "points",
        "--store.fields", "[pooled]", *WORKERS,
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="3"):
        phase_one([str(word) for word in words])
    printed = capsys.readouterr()
    shown = printed.out + printed.err
    assert all(part in shown for part in ("train/ball/001.npy", "NaN", "002.npy", "no points"))


def test_statistics_of_another_size(folder: Path, refused: Any) -> None:
    """Noise of 8 x 8 pixels for a sampler of 12 x 12."""
    path = folder / "noise.safetensors"
    path.write_bytes(noise.record().to_bytes())
    words = [
        "extract", "--source.kind", "synthetic", "--source.path", path, "--source.samples", "4",
        "--teacher.library", "python", "--teacher.name", f"{noise.TEACHER}:sampler",
        "--teacher.model_args", "{classes: 3, size: 12, width: 4, steps: 3}",
        "--store.path", folder / "sampled", "--store.fields", "[sample]", *WORKERS,
    ]  # fmt: skip
    refused(words, "8", "12")


def test_a_part_of_the_classes_without_samples(folder: Path, refused: Any) -> None:
    """Two students, one of which would see nothing."""
    (folder / "msd").mkdir()
    store = noise.extract(folder / "msd")
    words = [
        "run", "--store", store, "--field", "sample", "--source.kind", "store", "--task", "generate",
        "--data.labelled", "[noise/cat/*, noise/fox/*]", "--data.holdout", "0.25", "--methods", "[labels]",
        "--student.name", "one_step", "--out", folder / "out", "--train.workers", "0",
        "--student.model_args", "{size: 8, classes: 3, width: 4, students: [{where: [0, 2]}, {where: [1]}]}",
    ]  # fmt: skip
    refused(words, "student 1")


def test_one_candidate(folder: Path, refused: Any) -> None:
    """A preference needs two."""
    model = rationales.write_model(folder / "model")
    table = rationales.write_rows(folder / "one.jsonl", rationales.candidates(3)[:-1])
    held_out = rationales.write_rows(folder / "held out.jsonl", rationales.questions(3))
    words = [
        "prefer", "--teacher", model, "--students", f"{{small: '{model}'}}", "--candidates", table,
        "--held_out", held_out, "--out", folder / "prefer", "--prompt", "{question}=",
    ]  # fmt: skip
    refused(words, "one.jsonl", "q002")


def test_heads(folder: Path, refused: Any) -> None:
    """Queries, keys and values that do not divide by the relation heads."""
    from tests.featstore.extraction.test_text_teachers import save_encoder

    texts.write_vocabulary(folder / "vocab.txt")
    texts.write(folder / "heads.jsonl", texts.rows(24, languages=["en"]))
    save_encoder(folder, folder / "encoder")
    words = [
        "extract", "--source.kind", "text", "--source.path", folder / "heads.jsonl", "--teacher.library",
        "transformers", "--teacher.name", folder / "encoder", "--teacher.tokenizer", folder / "vocab.txt",
        "--teacher.max_tokens", "8", "--store.path", folder / "qkv", "--store.fields", "[pooled, q, k, v]", *WORKERS,
    ]  # fmt: skip
    assert phase_one([str(word) for word in words]) == 0
    space = "length: 8, widths: [10], depths: [1], heads: [2], ratios: [2]"
    words = [
        "run", "--store", folder / "qkv", "--field", "pooled", "--source.kind", "text", "--source.path",
        folder / "heads.jsonl", "--task", "none", "--methods", "[autodistil]", "--student.name", "slimmable_text",
        "--student.model_args", f"{{tokenizer: '{folder / 'vocab.txt'}', {space}}}", "--out", folder / "run",
        "--train.workers", "0", "--autodistil.relation_heads",
    ]  # fmt: skip
    refused([*words, "5"], "5", "16")  # the teacher's width
    refused([*words, "4"], "[10]")  # the student's
