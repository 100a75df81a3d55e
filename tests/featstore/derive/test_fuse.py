"""Fused soft labels of teams: weights and targets by hand, and teams that cannot be fused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featstore
from featstore.cli.main import main
from featstore.derive.fuse import fuse, fusion_weights, softmax
from featstore.errors import ConfigError
from featstore.files.array_types import Array
from featstore.format.manifest_records import TeacherRecord

ROWS, CLASSES = 40, 3
LIKE = {"a": (3, 0, 0), "b": (2.5, 0.2, 0), "c": (0, 0, 3)}
"""Mean logits of three teams: the first two are alike."""


def logits(team: str) -> Array:
    noise = np.random.default_rng(ord(team)).normal(size=(ROWS, CLASSES))
    return (noise + LIKE[team]).astype(np.float32)


def write(
    folder: Path,
    team: str,
    *,
    width: int = CLASSES,
    classes: list[str] | None = None,
    probabilities: bool = False,
) -> Path:
    """A store of one team's logits."""
    teacher = TeacherRecord(
        library="external",
        name=team,
        weights_sha256="0" * 64,
        precision="fp32",
        model_args={} if classes is None else {"class_names": classes},
    )
    values = logits(team)[:, :1].repeat(width, axis=1) if width != CLASSES else logits(team)
    if probabilities:
        values = softmax(values).astype(np.float32)
    featstore.from_arrays(
        folder / team,
        {"logits": values},
        [f"{number:02d}" for number in range(ROWS)],
        teacher=teacher,  # type: ignore[arg-type]
        content_sha256=np.arange(ROWS * 32, dtype=np.uint8).reshape(ROWS, 32),
        shard_rows=16,
    )
    return folder / team


def merged(folder: Path, **options: Any) -> Path:
    """The three teams side by side."""
    out = folder / "teams"
    stores = [write(folder, team, **options.get(team, {})) for team in LIKE]
    featstore.merge(stores, out, kind="teachers", names=list(LIKE), progress=False)
    return out


def test_weights_by_hand() -> None:
    """exp(-beta KL(p_k || p_j)), rows summing to 1; beta 0 and rule uniform give equal weights."""
    means = np.array([[0.5, 0.5], [0.9, 0.1]])
    divergence = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    other = np.exp(-2 * divergence)
    found = fusion_weights(means, rule="knfu", beta=2)
    np.testing.assert_allclose(found[0], [1 / (1 + other), other / (1 + other)])
    np.testing.assert_allclose(found.sum(axis=1), 1)
    for equal in (
        fusion_weights(means, rule="knfu", beta=0),
        fusion_weights(means, rule="uniform", beta=9),
    ):
        np.testing.assert_allclose(equal, 0.5)


@pytest.mark.parametrize(("rule", "beta"), [("knfu", 10.0), ("uniform", 10.0)])
def test_fused_targets(tmp_path: Path, rule: Any, beta: float) -> None:
    """Softmax of a stored target is the weighted mean of the soft labels; the weights are in the manifest."""
    teams = merged(tmp_path)
    manifest, weights = fuse(teams, tmp_path / "fused", rule=rule, beta=beta)
    soft = np.stack([softmax(logits(team)) for team in LIKE])
    np.testing.assert_allclose(weights, fusion_weights(soft.mean(axis=1), rule=rule, beta=beta))
    store = featstore.open(tmp_path / "fused")
    assert list(manifest.fields) == ["fused.a_logits", "fused.b_logits", "fused.c_logits"]
    rows = np.arange(ROWS)
    for number, name in enumerate(manifest.fields):
        found = softmax(store.gather(name, rows)[:, 0])
        np.testing.assert_allclose(found, np.tensordot(weights[number], soft, 1), atol=1e-6)
        assert f"c_logits {weights[number][2]:.4g}" in manifest.fields[name].meaning
    assert rule in manifest.created_by["fused_by"]
    np.testing.assert_array_equal(store.artefact("fusion")["weights"], weights)
    np.testing.assert_array_equal(store.content_sha256, featstore.open(teams).content_sha256)
    if rule == "knfu":
        assert weights[0, 1] > 0.4
        assert weights[0, 2] < 0.01


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the weights, resumes, and its store is sound."""
    teams = merged(tmp_path)
    for _ in range(2):
        assert main(["fuse", str(teams), str(tmp_path / "fused"), "--beta", "1", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert sum(found["weights"]["a_logits"].values()) == pytest.approx(1)
    assert main(["fuse", str(teams), str(tmp_path / "fused"), "--beta", "1"]) == 0
    assert "b_logits" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "fused")]) == 0
    assert main(["fuse", str(teams), str(tmp_path / "fused"), "--beta", "2"]) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"c": {"width": 4}}, ["c_logits 4", "a_logits 3"]),
        (
            {"a": {"classes": ["x", "y", "z"]}, "b": {"classes": ["y", "x", "z"]}},
            ["b_logits", "a_logits"],
        ),
        ({"b": {"probabilities": True}}, ["b_logits", "probabilities"]),
    ],
)
def test_other_classes(tmp_path: Path, options: dict[str, Any], words: list[str]) -> None:
    """Other numbers or orders of classes, and probabilities in place of logits, are named by field."""
    teams = merged(tmp_path, **options)
    with pytest.raises(ConfigError) as caught:
        fuse(teams, tmp_path / "fused")
    assert all(word in str(caught.value) for word in words)


def test_what_cannot_be_fused(tmp_path: Path) -> None:
    """One team, an unknown field, a negative beta."""
    teams, alone = merged(tmp_path), tmp_path / "a"
    with pytest.raises(ConfigError, match="merge"):
        fuse(alone, tmp_path / "out")
    with pytest.raises(ConfigError, match="d_logits"):
        fuse(teams, tmp_path / "out", fields=["a_logits", "d_logits"])
    with pytest.raises(ConfigError, match="-1"):
        fuse(teams, tmp_path / "out", beta=-1)


def test_other_transfer_sets_do_not_merge(tmp_path: Path) -> None:
    """Teams over other images are refused when they are put side by side."""
    stores = [write(tmp_path, "a"), tmp_path / "other"]
    featstore.from_arrays(
        tmp_path / "other",
        {"logits": logits("b")},
        [f"{number:02d}" for number in range(ROWS)],
        teacher="b",
        content_sha256=np.full((ROWS, 32), 7, np.uint8),
    )
    with pytest.raises(featstore.errors.FeatstoreError, match="other"):
        featstore.merge(stores, tmp_path / "out", kind="teachers", names=["a", "b"])
