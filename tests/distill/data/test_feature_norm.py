"""Normalisation, diagnostics and the linear probe."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from distill.data.feature_norm import FeatureNorm, measure_channels
from distill.measures.feature_similarity import linear_cka, mean_norm, mean_variance, thin_out, top1
from distill.measures.linear_probe import fit_probe
from featstore.errors import ConfigError


def test_standardize_gives_mean_zero_and_deviation_one() -> None:
    """The statistics are taken over all chunks, as if they were one."""
    feature = torch.randn(100, 6) * 5 + 3
    norm = FeatureNorm("standardize", measure_channels([feature[:30], feature[30:]]))
    out = norm(feature)
    torch.testing.assert_close(out.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0, unbiased=False), torch.ones(6), atol=1e-5, rtol=0)


def test_standardize_keeps_a_constant_channel_finite() -> None:
    """A dead channel of the teacher becomes zeros, not infinities."""
    feature = torch.tensor([[2.0, 1.0], [2.0, 3.0]])
    out = FeatureNorm("standardize", measure_channels([feature]))(feature)
    assert torch.isfinite(out).all()
    assert out[:, 0].abs().max() == 0


@pytest.mark.parametrize(
    ("kind", "expected"), [("none", [3.0, 4.0]), ("l2", [0.6, 0.8]), ("layernorm", [-1.0, 1.0])]
)
def test_row_norms(kind: str, expected: list[float]) -> None:
    """By hand on (3, 4); layernorm has torch's epsilon of 1e-5."""
    out = FeatureNorm(kind)(torch.tensor([[3.0, 4.0]], dtype=torch.float16))  # type: ignore[arg-type]
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.tensor([expected]), atol=1e-4, rtol=0)


def test_statistics_of_nothing_are_refused() -> None:
    """Both ways to ask for standardize without rows."""
    with pytest.raises(ConfigError):
        measure_channels([])
    with pytest.raises(ConfigError, match="statistics"):
        FeatureNorm("standardize")


def test_cka_is_one_for_itself_and_blind_to_rotation_and_scale() -> None:
    """Spec: CKA(X, X) = 1, invariant to rotation, scale and shift."""
    x = torch.randn(50, 8, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    assert linear_cka(x, torch.randn(50, 8)) < 0.6
    assert linear_cka(x, torch.ones(50, 2)) == 0
    wide = torch.randn(8, 60, dtype=torch.float64)
    left, scale, _ = torch.linalg.svd(wide, full_matrices=False)
    # Of the same feature turned into 60 columns (products of rows) and into 8 (products of columns).
    assert linear_cka(x, x @ wide) == pytest.approx(linear_cka(x, x @ left * scale))
    with pytest.raises(ValueError, match="linear_cka"):
        linear_cka(x, x[:3])


def test_small_diagnostics() -> None:
    """Norm, variance and accuracy by hand."""
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert mean_norm(x) == 2.5
    assert mean_variance(x) == pytest.approx((2.25 + 4) / 2)
    assert top1(torch.tensor([[1.0, 0], [1, 0], [0, 1]]), torch.tensor([0, 1, -1])) == 0.5
    assert thin_out(3, 5, seed=0).tolist() == [0, 1, 2]
    assert torch.equal(thin_out(100, 5, seed=1), thin_out(100, 5, seed=1))


@pytest.mark.parametrize("classes", [2, 3])
def test_probe_folded_into_raw_features_equals_sklearn(classes: int) -> None:
    """Same probabilities as the model on standardised features, for two classes and for more."""
    generator = np.random.default_rng(0)
    labels = np.arange(60) % classes
    feature = generator.standard_normal((60, 5)) * 4 + labels[:, None] + 10
    mean, std = feature.mean(0), feature.std(0)
    reference = LogisticRegression(max_iter=1000).fit((feature - mean) / std, labels)
    logits = torch.from_numpy(fit_probe(feature, labels, num_classes=classes).logits(feature))
    # float32 weights against sklearn's float64.
    np.testing.assert_allclose(
        logits.softmax(1).numpy(), reference.predict_proba((feature - mean) / std), atol=1e-4
    )


def test_probe_never_chooses_a_class_without_an_example() -> None:
    """Class 1 of 4 is absent, and rows without a label are left out."""
    generator = np.random.default_rng(0)
    labels = np.array([0, 2, 3, -1] * 10)
    feature = generator.standard_normal((40, 5))
    probe = fit_probe(feature, labels, num_classes=4)
    assert 1 not in probe.logits(generator.standard_normal((1000, 5)) * 3).argmax(1)
    with pytest.raises(ValueError, match="expected"):
        probe.logits(np.zeros((2, 4)))


def test_probe_needs_two_classes() -> None:
    """The message says what to widen."""
    with pytest.raises(ConfigError, match=r"--data.labelled"):
        fit_probe(np.zeros((3, 2)), np.array([1, 1, -1]), num_classes=3)
