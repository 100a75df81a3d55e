"""Teachers of texts: pooling, tokenizers, refusals, and stores of texts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featstore
from featstore.errors import ConfigError, ManifestMismatch, TeacherError
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig, ViewsConfig
from featstore.extraction.images import TextInputs, inputs_of, text_notes
from featstore.extraction.run import run
from featstore.extraction.teachers import Teacher, build_teacher
from featstore.format.manifest_records import TextRecord
from featstore.format.views import ViewSet
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from tests import texts
from tests.featstore.extraction.test_teachers import tiny_clip

__all__ = ["tiny_clip"]

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, teacher and vocabulary."""
    folder = tmp_path_factory.mktemp("texts")
    texts.write(folder / "texts.jsonl", texts.rows())
    texts.write_teacher(folder / "teacher.onnx", inputs=("input_ids", "attention_mask"))
    texts.write_vocabulary(folder / "vocab.txt")
    return folder


def onnx_config(place: Path, **settings: Any) -> TeacherConfig:
    values = {
        "name": str(place / "teacher.onnx"),
        "tokenizer": str(place / "vocab.txt"),
        **settings,
    }
    return TeacherConfig(library="onnx", **values)


def build(config: TeacherConfig, *fields: str) -> Teacher:
    return build_teacher(
        config, fields=fields or ("pooled",), dtype="float32", precision="fp32", device=torch.device("cpu"), texts=True
    )  # fmt: skip


def tokens_of(teacher: Teacher, *given: str) -> torch.Tensor:
    record = teacher.preprocessing
    assert isinstance(record, TextRecord)
    dataset = TextInputs(None, teacher.tokenizer, record.max_tokens)  # type: ignore[arg-type]
    out = np.zeros((len(given), 1, record.max_tokens), np.int32)
    for number, text in enumerate(given):
        dataset.fill(out[number], number, text.encode())
    return torch.from_numpy(out)[:, 0]


def extract_config(place: Path, store: Path, **teacher: Any) -> ExtractConfig:
    return ExtractConfig(
        source=SourceConfig(kind="text", path=str(place / "texts.jsonl"), languages=["en"]),
        teacher=onnx_config(place, **teacher),
        store=StoreConfig(path=str(store), fields=["pooled"], dtype="float32", shard_rows=8, shard_s=0),
        batch_size=4,
        workers=0,
    )  # fmt: skip


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling_of_an_onnx_model(place: Path, pooling: Any) -> None:
    """The mean over a text's own tokens, whatever its neighbours' lengths; or its first token."""
    teacher = build(onnx_config(place, pooling=pooling), "pooled", "cls")
    table = teacher.features(torch.arange(64, dtype=torch.int32)[:, None])["cls"]
    found = teacher.features(tokens_of(teacher, "dog", "red dog runs"))
    own = [[2, 5, 3], [2, 9, 5, 7, 3]]  # [CLS] words [SEP]
    expected = {"mean": [table[ids].mean(0) for ids in own], "cls": [table[2], table[2]]}
    torch.testing.assert_close(found["pooled"], torch.stack(expected[pooling]))
    record = teacher.preprocessing
    assert isinstance(record, TextRecord)
    assert (record.tokenizer, record.pooling, record.max_tokens) == ("wordpiece", pooling, 128)


def test_long_texts_are_cut_and_counted(place: Path) -> None:
    """A text never has more tokens than the input; how many fill it is said."""
    teacher = build(onnx_config(place, max_tokens=4))
    source = open_source(SourceConfig(kind="text", path=str(place / "texts.jsonl")))
    inputs = inputs_of(source, ViewSet(), teacher).load(range(len(source))).inputs
    assert inputs.shape == (len(source), 1, 4)
    full = int((inputs[:, 0, -1] >= 0).sum())
    assert full > 0
    assert str(full) in text_notes(source, teacher)[0]
    assert text_notes(source, build(onnx_config(place))) == []


def save_encoder(place: Path, folder: Path, *, layers: int = 1) -> Any:
    """A small BERT with random weights and its own tokenizer; pools by its first token."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.BertModel(settings).eval()
    model.save_pretrained(folder)
    transformers.BertTokenizerFast(str(place / "vocab.txt")).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    return model


def test_queries_keys_and_values_of_a_text(place: Path, tmp_path: Path) -> None:
    """Of the last block, by its own layers; zeros behind the end of each text, whatever its neighbours' lengths."""
    model = save_encoder(place, tmp_path / "encoder", layers=2)
    config = TeacherConfig(library="transformers", name=str(tmp_path / "encoder"), max_tokens=8)
    teacher = build(config, "q", "k", "v", "block0.tokens")
    ids = tokens_of(teacher, "dog", "red dog runs")
    found = teacher.features(ids)
    for row, length in enumerate((3, 5)):
        with torch.inference_mode():
            hidden = model(
                input_ids=ids[row, :length][None].long(), output_hidden_states=True
            ).hidden_states
            attention = model.encoder.layer[1].attention.self
            layers = {"q": attention.query, "k": attention.key, "v": attention.value}
            expected = {name: layer(hidden[1])[0] for name, layer in layers.items()}
        for name, value in {**expected, "block0.tokens": hidden[1][0]}.items():
            torch.testing.assert_close(found[name][row, :length], value, atol=1e-5, rtol=0)
            assert not found[name][row, length:].any()
    assert {teacher.fields[name].shape for name in "qkv"} == {(8, 16)}
    assert "end of a text" in str(teacher.fields["q"].meaning)
    with pytest.raises(TeacherError, match="block2"):
        build(config, "block2.tokens")


def test_a_transformers_encoder(place: Path, tmp_path: Path) -> None:
    """A local folder: its own tokenizer, the pooling that it states; features are the model's."""
    folder = tmp_path / "encoder"
    model = save_encoder(place, folder)
    config = TeacherConfig(library="transformers", name=str(folder))
    teacher = build(config, "pooled")
    assert isinstance(teacher.preprocessing, TextRecord)
    assert (teacher.preprocessing.max_tokens, teacher.preprocessing.pooling) == (32, "cls")
    ids = tokens_of(teacher, "dog", "red dog runs")
    with torch.inference_mode():
        alone = [model(input_ids=row[row >= 0][None].long()).last_hidden_state[0, 0] for row in ids]
    torch.testing.assert_close(
        teacher.features(ids)["pooled"], torch.stack(alone), atol=1e-5, rtol=0
    )
    with pytest.raises(TeacherError, match="33"):
        build(dataclasses.replace(config, max_tokens=33))
    with pytest.raises(TeacherError, match="pooled"):
        build(config, "projected")
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text(
        "\n".join([*texts.VOCABULARY[:5], *(f"w{number}" for number in range(99))])
    )
    with pytest.raises(TeacherError, match="104 tokens"):
        build(dataclasses.replace(config, tokenizer=str(vocabulary)))


def test_an_open_clip_text_side(tiny_clip: str, tmp_path: Path) -> None:
    """``projected`` is model.encode_text; the record has the tokenizer's hash and the context's length."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    model: Any = open_clip.create_model(tiny_clip).eval()
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    config = TeacherConfig(library="open_clip", name=tiny_clip, weights=str(tmp_path / "clip.pt"))
    teacher = build(config, "projected")
    ids = torch.randint(
        0, 64, (3, 8), generator=torch.Generator().manual_seed(1), dtype=torch.int32
    )
    with torch.inference_mode():
        expected = model.encode_text(ids.long())
    torch.testing.assert_close(teacher.features(ids)["projected"], expected)
    record = teacher.preprocessing
    assert isinstance(record, TextRecord)
    assert (record.tokenizer, record.max_tokens, record.pooling) == ("SimpleTokenizer", 8, "model")
    assert teacher.tokenizer is not None
    assert len(teacher.tokenizer("a dog")) == 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokenizer": ""}, ["--teacher.tokenizer", "vocab.txt"]),
        ({"tokenizer": "gone.txt"}, ["gone.txt"]),
        ({"tokenizer": "teacher.onnx"}, ["--teacher.tokenizer"]),
        ({"name": "gone.onnx"}, ["gone.onnx"]),
        ({"model_args": {"prefix_tokens": 1}}, ["model_args"]),
    ],
)
def test_teachers_that_are_refused(place: Path, settings: dict[str, Any], words: list[str]) -> None:
    """No tokenizer, one that is none, no model."""
    if settings.get("tokenizer"):
        settings = {"tokenizer": str(place / settings["tokenizer"])}
    with pytest.raises(TeacherError) as caught:
        build(onnx_config(place, **settings))
    assert all(word in str(caught.value) for word in words)


def test_a_model_of_images_is_no_text_teacher(place: Path, tmp_path: Path) -> None:
    """Its inputs are named."""
    texts.write_teacher(tmp_path / "odd.onnx", inputs=("input_ids", "pixels"))
    with pytest.raises(TeacherError, match="pixels"):
        build(onnx_config(place, name=str(tmp_path / "odd.onnx")))


def test_a_tokenizer_with_more_tokens_than_the_model(place: Path, tmp_path: Path) -> None:
    """Said in one sentence with the setting to look at."""
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*texts.VOCABULARY[:5], *(f"w{n}" for n in range(99)), "dog"]))
    teacher = build(onnx_config(place, tokenizer=str(vocabulary)))
    with pytest.raises(TeacherError, match="tokenizer"):
        teacher.features(tokens_of(teacher, "dog"))


@pytest.mark.parametrize(
    ("kind", "teacher", "views", "word"),
    [
        ("text", {"library": "timm"}, {}, "timm"),
        ("text", {"library": "onnx", "image_size": 32}, {}, "image_size"),
        ("text", {"library": "onnx"}, {"seeded": 2}, "views.seeded"),
        ("text", {"library": "onnx"}, {"mirrored": True}, "views.mirrored"),
        ("folder", {"library": "onnx", "tokenizer": "vocab.txt"}, {}, "teacher.tokenizer"),
    ],
)
def test_settings_that_do_not_fit(
    kind: Any, teacher: dict[str, Any], views: dict[str, Any], word: str
) -> None:
    """Settings of images for texts, and the other way round, fail at once."""
    with pytest.raises(ConfigError, match=word):
        ExtractConfig(
            source=SourceConfig(kind=kind, path="x.jsonl"),
            teacher=TeacherConfig(name="model.onnx", **teacher),
            views=ViewsConfig(**views),
        )


def test_a_store_of_texts(place: Path, tmp_path: Path) -> None:
    """Rows are bound to the UTF-8 of the texts; equal to the live teacher's; another tokenizer is refused."""
    config = extract_config(place, tmp_path / "store")
    run(config, progress=False)
    store = featstore.open(tmp_path / "store")
    source = open_source(config.source)
    assert list(store.sample_ids) == list(source.sample_ids)
    assert store.valid.all()
    teacher = build(config.teacher)
    live = teacher.features(inputs_of(source, ViewSet(), teacher).load(range(24)).inputs[:, 0])
    np.testing.assert_allclose(
        store.gather("pooled", np.arange(24))[:, 0], live["pooled"].numpy(), atol=1e-6
    )
    shifted = tmp_path / "vocab.txt"
    shifted.write_text((place / "vocab.txt").read_text().replace("dog\ncat", "cat\ndog"))
    with pytest.raises(ManifestMismatch, match="tokenizer_sha256"):
        run(extract_config(place, tmp_path / "store", tokenizer=str(shifted)), progress=False)
    with pytest.raises(ManifestMismatch, match="max_tokens"):
        run(extract_config(place, tmp_path / "store", max_tokens=9), progress=False)


def test_int8_and_growth(place: Path, tmp_path: Path) -> None:
    """Quantised fields are calibrated on texts; new texts are appended, changed ones refused."""
    config = extract_config(place, tmp_path / "store")
    table = tmp_path / "grown.jsonl"
    config = dataclasses.replace(
        config,
        source=dataclasses.replace(config.source, path=str(table)),
        store=dataclasses.replace(config.store, dtype="int8"),
    )
    texts.write(table, texts.rows(12))
    run(config, progress=False)
    texts.write(table, texts.rows(16))
    run(dataclasses.replace(config, append=True), progress=False)
    assert featstore.open(tmp_path / "store").num_rows == 16
    changed = texts.rows(17)
    changed[0]["text"] = "another"
    texts.write(table, changed)
    with pytest.raises(featstore.errors.MissingSamples, match=r"test/000\.en"):
        run(dataclasses.replace(config, append=True), progress=False)
