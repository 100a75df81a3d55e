"""Transformers over tokens: masks, slices, and a student that keeps its tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.func import functional_call

from distill.config import StudentConfig
from distill.student.files import with_own_tokenizer
from distill.student.model import build_student
from distill.student.slimmable import Size
from distill.student.text_transformer import SlimmableText, TextTransformer
from distill.training.saved_student import own_tokenizer_name
from featstore.errors import ConfigError
from tests import texts

pytest.importorskip("tokenizers")

SPACE: dict[str, Any] = {
    "widths": [8, 16], "depths": [1, 2], "heads": [2, 4], "ratios": [2], "length": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(texts.write_vocabulary(tmp_path_factory.mktemp("words") / "vocab.txt"))


def model(vocabulary: str, **changes: Any) -> SlimmableText:
    torch.manual_seed(0)
    found = SlimmableText(tokenizer=vocabulary, **{**SPACE, **changes}).eval()
    for parameter in found.parameters():  # equal values would hide a wrong slice
        torch.nn.init.normal_(parameter, std=0.2)
    return found


def batch(big: TextTransformer) -> torch.Tensor:
    return torch.stack([torch.from_numpy(big.encode(text)) for text in ("dog", "red dog runs")])


def test_padding_changes_nothing(vocabulary: str) -> None:
    """A text alone, without room behind its end, has the same feature; it is the mean of its own tokens."""
    big = model(vocabulary)
    rows = batch(big)
    assert rows.tolist() == [[2, 5, 3, -1, -1, -1], [2, 9, 5, 7, 3, -1]]
    short = TextTransformer(tokenizer=vocabulary, length=3, **sizes_of(big.largest)).eval()
    state = {**big.state_dict(), "pos_embed": big.pos_embed[:, :3]}
    short.load_state_dict(state)
    torch.testing.assert_close(big(rows)[:1], short(rows[:1, :3]))


def sizes_of(size: Size) -> dict[str, Any]:
    return {
        "embed_dim": size.width,
        "depth": size.depth,
        "num_heads": size.heads,
        "mlp_ratio": size.ratio,
    }


@pytest.mark.parametrize("classes", [0, 3])
def test_a_slice_is_an_ordinary_model(vocabulary: str, classes: int) -> None:
    """Of every size: its slices have the plain model's keys, and that model gives the super student's output there."""
    big = model(vocabulary, num_classes=classes)
    rows = batch(big)
    assert len(big.sizes) == 8
    with torch.no_grad():
        for size in big.sizes:
            plain = timm.create_model(
                "text_transformer", num_classes=classes, **big.plain_args(size)
            )
            plain.eval().load_state_dict(big.slices(size))
            own = functional_call(big.plain(size), big.slices(size), (rows,))
            torch.testing.assert_close(plain(rows), own)
            kept: list[torch.Tensor] = []
            plain.blocks[-1].attn.qkv.register_forward_hook(
                lambda *seen, kept=kept: kept.append(seen[2])
            )
            plain(rows)
            torch.testing.assert_close(big.qkv(size, rows), kept[0])
        torch.testing.assert_close(
            functional_call(big.plain(big.largest), big.slices(big.largest), (rows,)), big(rows)
        )


def test_a_slice_by_hand(vocabulary: str) -> None:
    """First columns of the embeddings, first rows and columns of queries, keys and values each, of the last block."""
    big = model(vocabulary)
    found = big.slices(Size(8, 1, 2, 2))
    assert torch.equal(found["token_embed.weight"], big.token_embed.weight[:, :8])
    assert torch.equal(found["pos_embed"], big.pos_embed[..., :8])
    source = big.blocks[1].attn.qkv.weight
    expected = torch.cat([source[start : start + 8, :8] for start in (0, 16, 32)])
    assert torch.equal(found["blocks.0.attn.qkv.weight"], expected)
    assert big.slices(big.largest).keys() == big.state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": "nowhere.txt"}, "nowhere.txt"),
        ({"heads": [3]}, "8 .* 3"),
        ({"widths": []}, "widths"),
    ],
)
def test_what_is_refused(vocabulary: str, changes: dict[str, Any], words: str) -> None:
    """A missing tokenizer, heads that do not divide: before anything is trained."""
    args = {**SPACE, "tokenizer": vocabulary, **changes}
    with pytest.raises(ConfigError, match=words):
        build_student(StudentConfig(name="slimmable_text", model_args=args), 0)


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    """Named with its path."""
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        build_student(
            StudentConfig(name="text_transformer", model_args={"tokenizer": str(path)}), 0
        )


def test_a_text_without_tokens(vocabulary: str) -> None:
    """Its feature is 0, not NaN, and other texts of the batch do not see it."""
    big = model(vocabulary)
    rows = batch(big)
    features = big(torch.cat([rows, torch.full((1, 6), -1, dtype=torch.int32)]))
    assert features[2].tolist() == [0.0] * features.shape[1]
    torch.testing.assert_close(features[:2], big(rows))


@pytest.mark.parametrize("place", ["../vocab.txt", "/etc/hostname", None])
def test_a_tokenizer_elsewhere_is_not_read(tmp_path: Path, place: str | None) -> None:
    """A config.json of others names no file outside its folder."""
    values = {"model_args": {"tokenizer": place}, "tokenizer_sha256": "0" * 64}
    with pytest.raises(ConfigError, match=r"tokenizer\.json, tokenizer\.txt"):
        with_own_tokenizer(tmp_path, values)
    assert (
        own_tokenizer_name(StudentConfig(name="x", model_args={"tokenizer": "words"}))
        == "tokenizer.txt"
    )
