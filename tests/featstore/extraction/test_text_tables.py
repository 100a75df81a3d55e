"""Text tables by the text side of a teacher: in phase one and afterwards, pinned to the store's own weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from featstore import FeatureStore, extract, text_table
from featstore.errors import ConfigError, ManifestMismatch, TeacherError
from featstore.format.text_table import TextTable
from tests.distill.stores import draw_images

CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture
def clip(tmp_path: Path) -> Any:
    """A small CLIP with its own tokenizer, saved as weights."""
    (tmp_path / "small-clip.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(tmp_path / "small-clip.json")
    model: Any = open_clip.create_model("small-clip").eval()
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    return model


def settings(tmp_path: Path, *templates: str, **changes: Any) -> dict[str, Any]:
    table = {"name": "en", "templates": list(templates)}
    return {
        "images": draw_images(tmp_path / "photos", per_class=3, test_per_class=1),
        "out": tmp_path / "store",
        "teacher": {
            "library": "open_clip",
            "name": "small-clip",
            "weights": str(tmp_path / "clip.pt"),
        },
        "fields": ["projected"],
        "texts": [table],
        "batch_size": 4,
        "workers": 0,
        "progress": False,
        **changes,
    }


def by_hand(model: Any, texts: list[str]) -> np.ndarray:  # type: ignore[type-arg]
    """Mean direction of some texts."""
    with torch.inference_mode():
        found = model.encode_text(open_clip.get_tokenizer("small-clip")(texts)).numpy()
    mean = (found / np.linalg.norm(found, axis=1, keepdims=True)).mean(0)
    return mean / np.linalg.norm(mean)  # type: ignore[no-any-return]


def test_phase_one_writes_the_table(clip: Any, tmp_path: Path) -> None:
    """Mean direction of all prompts of each class; resuming makes nothing twice; other templates are refused."""
    templates = ["a photo of a {}.", "{}"]
    store = extract(**settings(tmp_path, *templates))
    table = TextTable.from_tensors(store.artefact("texts.en"))
    assert table.names == ("left", "right", "top")
    np.testing.assert_allclose(
        table.embedding[1], by_hand(clip, ["a photo of a right.", "right"]), atol=1e-6
    )
    assert json.dumps(templates) in store.manifest.artefacts["texts.en"].meaning
    assert extract(**settings(tmp_path, *templates)).fingerprint == store.fingerprint
    with pytest.raises(ManifestMismatch, match="another"):
        extract(**settings(tmp_path, "another {}"))
    # The same table from the finished store, in a second language's name.
    again = text_table(
        tmp_path / "store",
        tmp_path / "more",
        name="again",
        templates=templates,
        weights=tmp_path / "clip.pt",
        progress=False,
    )
    np.testing.assert_allclose(
        again.artefact("texts.again")["embedding"], table.embedding, atol=1e-6
    )


def test_the_text_side_of_other_weights(clip: Any, tmp_path: Path) -> None:
    """A text side whose image side is not the store's is refused; both hashes are named."""
    store = extract(**settings(tmp_path, "{}", texts=[]))
    torch.save(open_clip.create_model("small-clip").state_dict(), tmp_path / "other.pt")
    sha = store.manifest.teachers["teacher"].weights_sha256[:12]
    with pytest.raises(TeacherError, match=sha):
        text_table(
            tmp_path / "store",
            tmp_path / "more",
            templates=["{}"],
            weights=tmp_path / "other.pt",
            progress=False,
        )


def test_settings_of_tables(tmp_path: Path) -> None:
    """Texts need the projected field; names differ; a file of names must be there."""
    with pytest.raises(ConfigError, match="projected"):
        extract(**settings(tmp_path, "{}", fields=["cls"]))
    with pytest.raises(ConfigError, match="en"):
        extract(**settings(tmp_path, "{}", texts=[{"name": "en"}, {"name": "en"}]))


def test_a_teacher_without_a_text_side(tmp_path: Path, teacher_file: Path) -> None:
    """The message says which way is left: an array."""
    teacher = {"name": "vit_tiny_patch16_224", "weights": str(teacher_file)}
    with pytest.raises((TeacherError, ConfigError), match="projected"):
        extract(**settings(tmp_path, "{}", teacher=teacher))


def test_class_means_are_said_to_be_a_stand_in(clip: Any, tmp_path: Path) -> None:
    """What is no language is recorded as such."""
    extract(**settings(tmp_path, "{}", texts=[]))
    made = text_table(tmp_path / "store", tmp_path / "more", progress=False)
    assert "no language" in made.manifest.artefacts["texts.classes"].meaning
    assert isinstance(made, FeatureStore)
