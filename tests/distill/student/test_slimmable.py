"""Slimmable students: a slice is an ordinary model with the same outputs, and what cannot be sliced is refused."""

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from distill.config import StudentConfig
from distill.student.model import build_student
from distill.student.slimmable import Size, SlimmableViT, spread
from featstore.errors import ConfigError

SPACE: dict[str, Any] = {
    "widths": [12, 24], "depths": [1, 2, 3], "heads": [2, 3], "ratios": [2, 2.5], "img_size": 16, "patch_size": 8,
}  # fmt: skip


def model(**changes: Any) -> SlimmableViT:
    torch.manual_seed(0)
    found = SlimmableViT(**{**SPACE, **changes}).eval()
    for (
        parameter
    ) in found.parameters():  # norms and biases start equal, which would hide a wrong slice
        torch.nn.init.normal_(parameter, std=0.2)
    return found


@pytest.mark.parametrize(
    "changes", [{}, {"class_token": False, "global_pool": "avg", "num_classes": 3}]
)
def test_a_slice_is_an_ordinary_model(changes: dict[str, Any]) -> None:
    """Of every size: its slices have timm's keys, and timm's model with them gives the super model's output there."""
    big = model(**changes)
    pictures = torch.randn(2, 3, 16, 16)
    assert len(big.sizes) == 24
    with torch.no_grad():
        for size in big.sizes:
            plain = timm.create_model(
                big.plain_name, num_classes=big.num_outputs, **big.plain_args(size)
            ).eval()
            plain.load_state_dict(big.slices(size))
            own = functional_call(big.plain(size), big.slices(size), (pictures,))
            torch.testing.assert_close(plain(pictures), own)
            kept: list[torch.Tensor] = []
            plain.blocks[-1].attn.qkv.register_forward_hook(
                lambda *seen, kept=kept: kept.append(seen[2])
            )
            plain(pictures)
            torch.testing.assert_close(big.qkv(size, pictures), kept[0])
        torch.testing.assert_close(
            functional_call(big.plain(big.largest), big.slices(big.largest), (pictures,)),
            big(pictures),
        )


def test_the_largest_slice_is_the_model() -> None:
    """Key for key and value for value."""
    big = model()
    found = big.slices(big.largest)
    assert found.keys() == big.state_dict().keys()
    assert all(torch.equal(value, found[key]) for key, value in big.state_dict().items())


def test_rows_and_columns_by_hand() -> None:
    """The first rows and columns; of queries, keys and values each; of blocks 0, 1, 2 the last of each half."""
    big = model()
    found = big.slices(Size(12, 2, 3, 2.5))
    source = big.blocks[0].attn.qkv.weight  # blocks 0 and 2 are kept
    expected = torch.cat([source[start : start + 12, :12] for start in (0, 24, 48)])
    assert torch.equal(found["blocks.0.attn.qkv.weight"], expected)
    assert torch.equal(found["blocks.1.mlp.fc1.weight"], big.blocks[2].mlp.fc1.weight[:30, :12])
    assert torch.equal(found["pos_embed"], big.pos_embed[..., :12])


@given(count=st.integers(1, 40), data=st.data())
@settings(deadline=None)
def test_kept_blocks(count: int, data: st.DataObject) -> None:
    """As many as asked for, in order, each once, the last among them."""
    kept = data.draw(st.integers(1, count))
    found = spread(count, kept)
    assert len(found) == kept
    assert found == sorted(set(found))
    assert (found[0] >= 0, found[-1]) == (True, count - 1)


def test_gradients_reach_the_slices_alone() -> None:
    """Weights outside a size get a gradient of zero."""
    big = model()
    big.qkv(big.smallest, torch.randn(2, 3, 16, 16)).sum().backward()
    gradient = big.blocks[2].attn.qkv.weight.grad
    assert gradient is not None
    assert gradient[:12, :12].abs().sum() > 0
    assert gradient[12:24].abs().sum() == gradient[:, 12:].abs().sum() == 0


@pytest.mark.parametrize(
    ("changes", "words"), [({"heads": [2, 5]}, "12 .* 5"), ({"widths": []}, "widths")]
)
def test_what_is_refused(changes: dict[str, Any], words: str) -> None:
    """Widths that do not divide by the heads, an empty list: before anything is trained."""
    config = StudentConfig(name="slimmable_vit", image_size=16, model_args={**SPACE, **changes})
    with pytest.raises(ConfigError, match=words):
        build_student(config, 0)
