"""Method ``autodistil`` on texts: from a BERT's store to a slice that carries its tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import distill
from distill.losses.token_relations import token_relation_mse
from distill.methods.autodistil import AutoDistilConfig, relation_loss
from distill.search import search
from distill.search.config import ProbeConfig, SearchConfig
from featstore.errors import ConfigError
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig
from featstore.extraction.run import run as extract
from featstore.sources.config import SourceConfig
from tests import texts
from tests.featstore.extraction.test_text_teachers import save_encoder

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

SPACE: dict[str, Any] = {
    "length": 8, "widths": [8, 16], "depths": [1, 2], "heads": [2], "ratios": [2],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 texts with labels, and a store of a BERT's queries, keys and values of them."""
    folder = tmp_path_factory.mktemp("a folder")
    texts.write_vocabulary(folder / "vocab.txt")
    rows = [{**row, "label": "dog" if "dog" in row["text"] else "none"} for row in texts.rows(72)]
    texts.write(folder / "texts.jsonl", [row for row in rows if row["language"] == "en"])
    save_encoder(folder, folder / "teacher")
    extract(
        ExtractConfig(
            source=SourceConfig(kind="text", path=str(folder / "texts.jsonl")),
            teacher=TeacherConfig(
                library="transformers",
                name=str(folder / "teacher"),
                tokenizer=str(folder / "vocab.txt"),
                max_tokens=8,
            ),
            store=StoreConfig(
                path=str(folder / "store"), fields=["pooled", "q", "k", "v"], shard_s=0
            ),
            workers=0,
        ),
        progress=False,
    )
    return folder


def settings(place: Path, out: Path, **args: Any) -> dict[str, Any]:
    return {
        "store": place / "store",
        "images": place / "texts.jsonl",
        "student": {
            "name": "slimmable_text",
            "model_args": {"tokenizer": str(place / "vocab.txt"), **SPACE, **args},
        },
        "methods": ["autodistil"],
        "autodistil": {"relation_heads": 2},
        "task": "none",
        "field": "pooled",
        "out": out,
        "data": {"unlabelled": ["train/*"], "test": ["test/*"]},
        "train": {"epochs": 2, "min_epoch_steps": 0, "workers": 0, "unlabelled_batch": 16},
    }


def test_padding_takes_no_part() -> None:
    """The loss of padded texts is that of their own tokens, whatever stands behind their end."""
    options = AutoDistilConfig(relation_heads=2)
    qkv, stored = torch.randn(2, 5, 24), [torch.randn(2, 5, 16) for _ in range(3)]
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    expected = sum(
        token_relation_mse(own[:, :3], field[:, :3], heads=2)
        for own, field in zip(qkv.chunk(3, dim=-1), stored, strict=True)
    )
    torch.testing.assert_close(relation_loss(qkv, stored, options, mask), expected)


@pytest.mark.slow
def test_from_a_store_of_texts_to_a_slice(place: Path, tmp_path: Path) -> None:
    """Trained, searched and measured; the slice loads where neither the table nor the teacher's files are."""
    own = shutil.copy(place / "vocab.txt", tmp_path / "vocab.txt")
    run = distill.run(**settings(place, tmp_path / "out", tokenizer=str(own)))[0]
    found = search.run(
        SearchConfig(
            slices=[str(run.folder)],
            out=str(tmp_path / "search"),
            measure=2,
            probe=ProbeConfig(images=16),
        )
    )
    assert len(found) == 4
    assert "linear_probe_top1" in found[0].row()
    best = tmp_path / "search" / "student"
    again = distill.evaluate(best, workers=0, progress=False)
    assert again["neighbour_agreement"] == pytest.approx(found[0].row()["neighbour_agreement"])
    with pytest.raises(ConfigError, match="load_student"):
        distill.export_student(run)
    moved = shutil.move(best, tmp_path / "moved")
    Path(own).unlink()
    model: Any = distill.load_student(moved)
    rows = torch.from_numpy(model.encode("red dog"))[None]
    described = json.loads((moved / "config.json").read_text())
    plain = timm.create_model(
        "text_transformer",
        num_classes=0,
        **{**described["model_args"], "tokenizer": str(moved / "tokenizer.txt")},
    ).eval()
    plain.load_state_dict(load_file(moved / "student.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(rows), plain(rows))
    assert model(rows).shape == (1, found[0].student.model_args["embed_dim"])
    (moved / "tokenizer.txt").write_text("dog")
    with pytest.raises(ConfigError, match=r"tokenizer\.txt"):
        distill.load_student(moved)


def test_texts_that_do_not_fit(place: Path, tmp_path: Path) -> None:
    """Another tokenizer than the teacher's, another longest input, heads: refused before a step."""
    (tmp_path / "other.txt").write_text("\n".join([*texts.VOCABULARY, "more"]))
    for changes, words in (
        ({"tokenizer": str(tmp_path / "other.txt")}, "tokenizer"),
        ({"length": 6}, "8 tokens .* student 6"),
        ({"widths": [7, 14], "heads": [7]}, r"\[7\]"),
    ):
        with pytest.raises(ConfigError, match=words):
            distill.run(**settings(place, tmp_path / "out", **changes))
