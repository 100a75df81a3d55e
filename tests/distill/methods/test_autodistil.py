"""Method ``autodistil`` and the search among slices, from a small ViT's store to an ordinary model."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from distill import cli
from distill.commands.config import EvaluateConfig
from distill.commands.evaluate import run as evaluate
from distill.commands.train import run
from distill.config import DistillConfig, StudentConfig, TrainConfig
from distill.losses.token_relations import token_relation_mse
from distill.methods.autodistil import AutoDistilConfig, relation_loss
from distill.search import search
from distill.search.bench import Bench
from distill.search.config import LimitConfig, ProbeConfig, SearchConfig
from distill.training.loop import Loop
from featstore.errors import ConfigError
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig, ViewsConfig
from featstore.extraction.run import run as extract
from featstore.sources.config import SourceConfig
from tests.conftest import TINY_ARGS
from tests.distill.resume import check_resume

SPACE: dict[str, Any] = {
    "img_size": 16, "patch_size": 8, "class_token": False, "global_pool": "avg", "widths": [12, 24], "depths": [1, 2],
    "heads": [2], "ratios": [2],
}  # fmt: skip
GRIDS = ["q.grid2", "k.grid2", "v.grid2"]


@pytest.fixture(scope="module")
def stored(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries, keys and values of a ViT with random weights: of all tokens, and averaged to a grid."""
    folder = tmp_path_factory.mktemp("autodistil")
    name = "vit_small_patch16_224"
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, img_size=32, **TINY_ARGS)
    save_file(model.state_dict(), folder / "teacher.safetensors")
    config = ExtractConfig(
        source=SourceConfig(kind="folder", path=str(images), labels_from="parent"),
        teacher=TeacherConfig(
            name=f"{name}.augreg_in1k", weights=str(folder / "teacher.safetensors"), image_size=32, model_args=TINY_ARGS
        ),
        views=ViewsConfig(canonical=True, seeded=0),
        store=StoreConfig(path=str(folder / "store"), fields=["cls", "q", "k", "v", *GRIDS]),
        workers=0,
    )  # fmt: skip
    extract(config)
    return folder / "store"


@pytest.fixture
def config(make_config: Any, stored: Path, images: Path) -> DistillConfig:
    base: DistillConfig = make_config(
        store=str(stored),
        source=SourceConfig(kind="folder", path=str(images), labels_from="parent"),
        task="none",
        methods=["autodistil"],
        student=StudentConfig(name="slimmable_vit", image_size=16, model_args=SPACE),
        options={"autodistil": AutoDistilConfig(fields=GRIDS, relation_heads=2)},
    )
    data = dataclasses.replace(base.data, labelled=[], labels_per_class=0, test=["test/**"])
    train = TrainConfig(epochs=4, warmup_epochs=0, unlabelled_batch=12, workers=0, lr=5e-3, log_every=1)  # fmt: skip
    return dataclasses.replace(base, data=data, train=train)


def changed(config: DistillConfig, **options: Any) -> DistillConfig:
    return dataclasses.replace(
        config, options={"autodistil": AutoDistilConfig(**{"fields": GRIDS, "relation_heads": 2, **options})}
    )  # fmt: skip


def student(config: DistillConfig, **args: Any) -> DistillConfig:
    return dataclasses.replace(
        config, student=StudentConfig(name="slimmable_vit", image_size=16, model_args={**SPACE, **args})
    )  # fmt: skip


def ordinary(config: DistillConfig) -> DistillConfig:
    args = {"img_size": 16}
    return dataclasses.replace(
        config, student=StudentConfig(name="test_vit", image_size=16, model_args=args)
    )


@pytest.mark.slow
def test_from_a_store_to_a_slice(
    config: DistillConfig,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training, search under limits, an ordinary model with the super student's features, and its numbers."""
    run(config)
    trained = Path(config.out) / "autodistil" / "seed0"
    settings: dict[str, Any] = {
        "slices": [str(trained)],
        "out": str(tmp_path / "search"),
        "measure": 2,
    }
    every = search.run(SearchConfig(**settings, probe=ProbeConfig(images=12)))
    assert len(every) == 4
    assert [item.score for item in every] == sorted((item.score for item in every), reverse=True)
    sizes = sorted(item.cost.parameters for item in every)
    limit = LimitConfig(parameters=sizes[1])
    found = search.run(SearchConfig(**settings, probe=ProbeConfig(images=12), limit=limit))
    assert sorted(item.cost.parameters for item in found) == sizes[:2]
    text = capsys.readouterr().out
    assert f"{sizes[0]:,}" in text
    assert "by the number of parameters" in text
    rows = list(csv.DictReader((tmp_path / "search" / "search.csv").read_text().splitlines()))
    assert all(row["neighbour_agreement"] for row in rows)
    best = tmp_path / "search" / "student"
    assert found[0].student.name == "vit_tiny_patch16_224"
    plain = timm.create_model(found[0].student.name, num_classes=0, **found[0].student.model_args)
    state = load_file(best / "student.safetensors")
    plain.load_state_dict(state)
    width = found[0].student.model_args["embed_dim"]
    whole = load_file(trained / "student.safetensors")
    assert torch.equal(state["fc_norm.weight"], whole["fc_norm.weight"][:width])
    result = evaluate(EvaluateConfig(model=str(best), workers=0))
    assert result["neighbour_agreement"] == pytest.approx(float(rows[0]["neighbour_agreement"]))
    monkeypatch.setattr(Bench, "latency_ms", lambda _, student: student.model_args["depth"])
    shallow = search.run(SearchConfig(**settings, limit=LimitConfig(latency_ms=1)))
    assert {item.student.model_args["depth"] for item in shallow} == {1}
    with pytest.raises(ConfigError, match=f"{sizes[0]:,} parameters"):
        search.run(SearchConfig(**settings, limit=LimitConfig(parameters=10)))
    with pytest.raises(ConfigError, match="--slices nowhere"):
        search.run(SearchConfig(slices=["nowhere"]))


@pytest.mark.slow
def test_resume(config: DistillConfig) -> None:
    """A run that is stopped inside an epoch gives the same weights, though sizes are drawn at random."""
    run(config)
    check_resume(config, "autodistil", after=4, files=["student.safetensors"])


def test_the_loss_is_the_sum_over_queries_keys_and_values() -> None:
    """Each against its own field; of a grid, the student's class token is left out."""
    options = AutoDistilConfig(fields=GRIDS, relation_heads=2)
    qkv, stored = torch.randn(2, 5, 36), [torch.randn(2, 2, 2, 8) for _ in range(3)]
    parts = [qkv[:, 1:, 12 * n : 12 * n + 12] for n in range(3)]
    expected = sum(
        token_relation_mse(own, field.flatten(1, 2), heads=2) for own, field in zip(parts, stored, strict=True)
    )  # fmt: skip
    torch.testing.assert_close(relation_loss(qkv, stored, options, None), expected)


def test_a_step_compares_the_sizes_of_the_sandwich(config: DistillConfig, monkeypatch: Any) -> None:
    """Largest, smallest and two at random, from the very rows of the store; every weight gets a gradient."""
    from distill.methods import autodistil

    seen: list[Any] = []
    loss = autodistil.relation_loss

    def kept(qkv: torch.Tensor, stored: Any, *rest: Any) -> torch.Tensor:
        seen.append((qkv.shape[-1] // 3, stored))
        return loss(qkv, stored, *rest)

    monkeypatch.setattr(autodistil, "relation_loss", kept)
    run(dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1)))
    assert [width for width, _ in seen[:2]] == [24, 12]
    assert len(seen) % 4 == 0
    assert seen[0][1][0].shape == (12, 2, 2, 16)
    assert seen[0][1][2].isfinite().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: changed(c, relation_heads=5), "16, does not divide"),
        (lambda c: changed(c, relation_heads=8), r"\[12\] do not divide"),
        (lambda c: changed(c, fields=["q", "k", "v"]), "5 tokens .* student 4"),
        (lambda c: changed(c, fields=["q", "k", "nothing"]), "nothing"),
        (lambda c: changed(c, fields=["q", "k", "v.grid2"]), "one shape"),
        (lambda c: student(c, img_size=16, patch_size=4), "4 tokens .* student 16"),
        (ordinary, "slimmable_vit"),
    ],
)  # fmt: skip
def test_what_does_not_fit(
    config: DistillConfig, change: Any, words: str, monkeypatch: Any
) -> None:
    """Heads, tokens, fields and students: refused before a step."""
    monkeypatch.setattr(Loop, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(ConfigError, match=words):
        run(change(config))


def test_two_fields_are_refused() -> None:
    """Queries, keys and values are three."""
    with pytest.raises(ConfigError, match="'q', 'k'"):
        AutoDistilConfig(fields=["q", "k"])
    with pytest.raises(ConfigError, match="'q', 'q', 'v'"):
        AutoDistilConfig(fields=["q", "q", "v"])


def test_slices_read_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """The default recipe of a search, with its limit and its space, does not apply; a folder without a run is named."""
    with pytest.raises(SystemExit):
        cli.main(["search", "--slices", "[nowhere]"])
    assert "--slices nowhere" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="space"):
        SearchConfig()
