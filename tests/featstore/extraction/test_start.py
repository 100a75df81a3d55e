"""The start of phase one: a line at once, cheap checks before expensive steps."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from featstore.errors import TeacherError
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig, ViewsConfig
from featstore.extraction.run import FEW_IMAGES, _next_flags, _view_notes, run
from featstore.sources.config import SourceConfig
from tests.conftest import ROOT

FIRST_LINE = """
import builtins, sys
from featstore.errors import SourceError
from featstore.extraction.config import ExtractConfig
from featstore.extraction.run import run
from featstore.sources.config import SourceConfig
seen = []
builtins.print = lambda *text, **rest: seen.append((text, "torch" in sys.modules))
try:
    run(ExtractConfig(source=SourceConfig(kind="folder", path="no/such/folder")))
except SourceError as error:
    assert "no/such/folder" in str(error)
assert "torch" not in sys.modules
assert len(seen) == 1 and not seen[0][1] and "no/such/folder" in seen[0][0][0], seen
"""


def test_a_line_before_anything_heavy() -> None:
    """The first line, and the error of a missing folder, come before torch is imported."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_LINE], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("teacher", "fields"),
    [
        ({"name": "vit_tinny_patch16_224"}, ["cls"]),
        ({"name": "vit_tiny_patch16_224.augreg_in21k"}, ["grid15"]),
        ({"name": "vit_tiny_patch16_224.augreg_in21k"}, ["block12.cls"]),
        ({"library": "open_clip", "name": "ViT-B-32", "tag": "openai"}, ["logits"]),
    ],
)
def test_teachers_and_fields_are_checked_first(
    teacher: dict[str, Any],
    fields: list[str],
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong name, or a field that the teacher cannot give: refused before images are listed or weights read."""

    def too_early(*_: Any, **__: Any) -> Any:
        raise AssertionError("images were listed, or weights asked for")

    monkeypatch.setattr("featstore.sources.open_source", too_early)
    monkeypatch.setattr("timm.models._builder.load_pretrained", too_early)
    monkeypatch.setattr("open_clip.factory.download_pretrained", too_early)
    config = ExtractConfig(
        source=SourceConfig(kind="folder", path=str(image_folder)),
        teacher=TeacherConfig(**teacher),
        store=StoreConfig(path=str(tmp_path / "s"), fields=fields),
    )
    with pytest.raises(TeacherError):
        run(config, progress=False)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (["grid2", "cls"], []),
        (["confidence", "logits", "pooled"], ["--field", "pooled"]),
        (["sample"], ["--field", "sample"]),
    ],
)
def test_the_next_command_names_a_field_that_is_there(fields: list[str], named: list[str]) -> None:
    """Phase two reads cls unless it is told another."""
    source = SourceConfig(kind="folder", path="the photos")
    teacher = TeacherConfig(library="python", name="mine.py:build")
    config = ExtractConfig(source=source, teacher=teacher, store=StoreConfig(fields=fields))
    source_without_labels: Any = SimpleNamespace(labels=None, artefacts={})
    flags = _next_flags(config, source_without_labels, "s")
    assert flags == [
        "--store",
        "s",
        *named,
        "--source.kind",
        "folder",
        "--source.path",
        "the photos",
    ]


@pytest.mark.parametrize(
    ("kind", "images", "seeded", "told"),
    [
        ("folder", 2020, 0, True),
        ("folder", 2020, 4, False),
        ("tars", FEW_IMAGES + 1, 0, False),
        ("digits", 2020, 0, False),
    ],
)
def test_few_images_with_one_view_each_are_told(
    kind: Any, images: int, seeded: int, told: bool
) -> None:
    """Before the teacher's time is spent, because a store cannot be given crops later."""
    source = SourceConfig(kind=kind, path="" if kind == "digits" else "photos")
    config = ExtractConfig(source=source, views=ViewsConfig(seeded=seeded))
    listed: Any = range(images)
    found = "".join(_view_notes(config, listed))
    assert bool(found) == told
    assert ("2,020 images" in found and "--views.seeded" in found) == told
