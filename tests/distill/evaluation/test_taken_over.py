"""Which settings of a run its evaluation takes over, and which flags stand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill.commands import evaluate
from distill.commands.config import EvaluateConfig
from distill.commands.evaluate import _taken_over
from distill.config import RECIPES, DistillConfig
from featstore.cli.recipe import parse
from featstore.sources.config import SourceConfig


def taken_over(own: DistillConfig, *flags: str) -> SourceConfig | None:
    """The source that is measured; None for that of the flags."""
    config = parse(EvaluateConfig, default_recipe=RECIPES / "evaluate.yaml", argv=flags)
    found: SourceConfig | None = _taken_over(config, own).get("source")
    return found


@pytest.mark.parametrize("kind", ["folder", "tars"])
def test_flags_that_equal_their_defaults_stand(tmp_path: Path, kind: str) -> None:
    """A path alone names another place of the run's kind, with all that lies there; with any other flag of the source,
    the flags are all.
    """
    source = SourceConfig(kind=kind, path="/old", labels_from="top", include=["train/*"])  # type: ignore[arg-type]
    own = DistillConfig(source=source)
    assert taken_over(own) == source
    place = taken_over(own, "--source.path", str(tmp_path))
    assert place == SourceConfig(kind=kind, path=str(tmp_path), labels_from="top")  # type: ignore[arg-type]
    for flags in (["labels_from", "parent"], ["kind", "folder"], ["include", "[*]"]):
        named = [f"--source.{flags[0]}", flags[1], "--source.path", str(tmp_path)]
        assert taken_over(own, *named) is None
    made = EvaluateConfig(source=SourceConfig(path=str(tmp_path)))
    assert _taken_over(made, own)["source"] == place


@pytest.mark.parametrize(("store", "grid", "weight"), [("s", "patches", 0.5), ("other", "", 1.0)])
def test_settings_of_the_features(
    monkeypatch: pytest.MonkeyPatch, store: str, grid: str, weight: float
) -> None:
    """Grid and weight are those of the run where its own store is read."""
    seen: dict[str, Any] = {}

    def join_data(*parts: object, **settings: Any) -> object:
        seen.update(settings)
        return SimpleNamespace(fingerprints=[])

    monkeypatch.setattr("distill.data.joined.join_data", join_data)
    monkeypatch.setattr("distill.data.images.open_images", lambda *_: _Images())
    monkeypatch.setattr(evaluate, "open_store", lambda *_, **__: SimpleNamespace(address="s"))
    monkeypatch.setattr("distill.training.saved_student.store_fingerprints", lambda _: [])
    monkeypatch.setattr("distill.data.rules.rule_from_description", lambda _: None)
    own = DistillConfig(store="s", grid_field="patches", teacher_weight=0.5)
    config = EvaluateConfig(store=store, source=SourceConfig())
    described: dict[str, Any] = {"input": {"region": {}}}
    evaluate._viewer(config, own, described, SimpleNamespace(print=print), False, True)  # type: ignore[arg-type]
    assert (seen["grid_field"], seen["weight"]) == (grid, weight)


class _Images(list[str]):
    uri = "images"
