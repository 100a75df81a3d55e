"""Every command that looks at a store, on a store of each kind of sample."""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import featstore
from featstore.cli.main import main
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig
from featstore.extraction.run import run
from featstore.format.manifest_records import FieldRecord
from featstore.sources.config import SourceConfig
from tests import noise, points, pseudo, rationales, texts
from tests.featstore.extraction.test_text_teachers import save_encoder

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

Make = Callable[[Path, int], Path]
"""Makes two stores of the same kind in a folder, of other samples for 0 and 1."""

Stores = tuple[Path, Path, str, str, int]


def text_store(folder: Path, number: int) -> Path:
    """A store of 24 texts."""
    folder.mkdir()
    texts.write(folder / "texts.jsonl", texts.rows(24, languages=["en"], first=24 * number))
    run(
        ExtractConfig(
            source=SourceConfig(kind="text", path=str(folder / "texts.jsonl")),
            teacher=TeacherConfig(
                library="onnx",
                name=str(texts.write_teacher(folder / "teacher.onnx")),
                tokenizer=str(texts.write_vocabulary(folder / "vocab.txt")),
            ),
            store=StoreConfig(path=str(folder / "store"), fields=["pooled"], shard_s=0),
            workers=0,
        ),
        progress=False,
    )
    return folder / "store"


def token_store(folder: Path, number: int) -> Path:
    """A store of queries, keys and values of 24 texts, each as many as the longest input has."""
    pytest.importorskip("transformers")
    folder.mkdir()
    texts.write(folder / "texts.jsonl", texts.rows(24, languages=["en"], first=24 * number))
    texts.write_vocabulary(folder / "vocab.txt")
    save_encoder(folder, folder / "encoder")
    run(
        ExtractConfig(
            source=SourceConfig(kind="text", path=str(folder / "texts.jsonl")),
            teacher=TeacherConfig(
                library="transformers",
                name=str(folder / "encoder"),
                tokenizer=str(folder / "vocab.txt"),
                max_tokens=8,
            ),
            store=StoreConfig(path=str(folder / "store"), fields=["q", "k", "v"], shard_s=0),
            workers=0,
        ),
        progress=False,
    )
    return folder / "store"


def pseudo_samples(folder: Path, number: int) -> Path:
    """A store of 24 pseudo-samples; both are of one record, and differ in the seeds."""
    folder.mkdir()
    return pseudo.extract(folder, source={"first_seed": 12 * number}).path


def point_store(folder: Path, number: int) -> Path:
    """A store of 24 point clouds, with ragged records of their cells and nothing else."""
    folder.mkdir()
    clouds = points.write_clouds(folder / "clouds", first=8 * number)
    return points.extract(clouds, folder / "store", fields=points.FIELDS[2:])


def sampled_pictures(folder: Path, number: int) -> Path:
    """A store of 24 pictures that a diffusion model draws from noise; both differ in the seeds."""
    folder.mkdir()
    return noise.extract(folder, first_seed=8 * number)


def candidate_store(folder: Path, number: int) -> Path:
    """A store of 24 rationales of two strategies, with texts and log-probabilities in place of features."""
    pytest.importorskip("transformers")
    from distill.preferences.candidates import store_candidates
    from distill.preferences.config import PreferConfig
    from distill.preferences.language_models import load_model

    folder.mkdir()
    table = rationales.candidates(12, first=12 * number)
    config = PreferConfig(
        teacher=str(rationales.write_model(folder / "teacher")),
        candidates=str(rationales.write_rows(folder / "candidates.jsonl", table)),
    )
    teacher = load_model(config.teacher)._replace(name="tiny")
    store_candidates(config, teacher, folder / "store")
    return folder / "store"


def scored_store(folder: Path, number: int) -> Path:
    """The same candidates with a column of numbers that belong to no teacher."""
    store = featstore.open(candidate_store(folder, number))
    field = FieldRecord(
        shape=(), dtype="float32", dims=(), per_view=False, meaning="accuracy of student small"
    )
    with featstore.create(
        folder / "scores", fields={"score_small": field}, ids=store.sample_ids, teacher=None,
        content_sha256=store.content_sha256,
    ) as written:  # fmt: skip
        written.add({"score_small": np.linspace(0, 1, 24, dtype=np.float32)})
    featstore.merge(
        [store.path, folder / "scores"], folder / "scored", kind="teachers", progress=False
    )
    return folder / "scored"


KINDS: dict[str, tuple[Make, str, str, int]] = {
    "candidates": (candidate_store, "rationale", "*/short/*", 24),
    "scored candidates": (scored_store, "score_small", "*/short/*", 24),
    "text": (text_store, "wordpiece tokenizer", "train/*", 40),
    "text tokens": (token_store, "at most 8 tokens", "train/*", 40),
    "points": (point_store, "5 x 4 cells", "train/*", 36),
    "sampled pictures": (sampled_pictures, "noise for 3 classes", "*/dog/*", 16),
    "pseudo-samples": (pseudo_samples, "may reveal", "*/dog/*", 24),
}
"""By kind: how its stores are made, what ``inspect`` and the card must show, and a pattern with the number of rows of
both stores that it matches."""


@pytest.fixture(scope="module", params=sorted(KINDS))
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stores:
    make, shown, pattern, count = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return make(folder / "a", 0), make(folder / "b", 1), shown, pattern, count


def command(*words: object) -> str:
    """What a command prints; it must succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = main([str(word) for word in words])
    assert status == 0, (words, out.getvalue())
    return out.getvalue()


def test_inspect_and_verify(stores: Stores) -> None:
    """The teacher's input is shown, and every byte checked."""
    store, _, shown, *_ = stores
    printed = command("inspect", store, "--duplicates")
    assert shown in printed
    assert "24" in printed
    assert "sound" in command("verify", store)


def test_merge_subset_convert(stores: Stores, tmp_path: Path) -> None:
    """Rows of two stores, a part of them, and another container: all sound, all with the first store's record."""
    first, second, shown, pattern, count = stores
    command("merge", first, second, tmp_path / "both")
    command("subset", tmp_path / "both", tmp_path / "part", "--where", pattern)
    command("convert", tmp_path / "part", tmp_path / "tars", "--container", "webdataset")
    for name, rows in (("both", 48), ("part", count), ("tars", count)):
        assert featstore.open(tmp_path / name).num_rows == rows
        assert shown in command("inspect", tmp_path / name)
        assert "sound" in command("verify", tmp_path / name)


def test_push_and_pull(stores: Stores, tmp_path: Path) -> None:
    """The store comes back with the same fingerprint."""
    store = stores[0]
    command("push", store, tmp_path / "there")
    command("pull", tmp_path / "there", tmp_path / "back")
    assert featstore.open(tmp_path / "back").fingerprint == featstore.open(store).fingerprint


def test_card_and_page(stores: Stores, tmp_path: Path) -> None:
    """Both name what the teacher was given."""
    pytest.importorskip("plotly")
    store = shutil.copytree(stores[0], tmp_path / "store")
    command("card", store)
    command("card", store, "--html", tmp_path / "page.html")
    assert stores[2] in (store / "README.md").read_text()
    assert (tmp_path / "page.html").stat().st_size > 10_000
