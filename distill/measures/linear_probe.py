"""A linear probe on stored features: accuracy of the teacher on the classes, without loading it."""

# N samples, D width of the feature, K classes

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featstore.errors import ConfigError

Array = npt.NDArray[np.float32]

UNSEEN = 20.0
"""How far below the mean bias the logit of a class without a single example lies; it can then never win."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier over raw features."""

    weight_KD: Array  # (K, D) float32
    bias_K: Array  # (K,) float32

    def logits(self, feature_ND: npt.ArrayLike) -> Array:
        """(N, D) -> (N, K) float32. Raises ValueError: the width differs from the one the probe was fitted on."""
        feature = np.asarray(feature_ND, dtype=np.float32)
        if feature.ndim != 2 or feature.shape[1] != self.weight_KD.shape[1]:
            raise ValueError(
                f"probe: features {feature.shape}; expected (N, {self.weight_KD.shape[1]})."
            )
        return feature @ self.weight_KD.T + self.bias_K


def fit_probe(
    feature_ND: npt.ArrayLike,
    labels_N: npt.ArrayLike,
    *,
    num_classes: int,
    strength: float = 1.0,
) -> LinearProbe:
    """Fit a logistic regression on standardised features and fold the standardisation into its weights.

    Args:
        feature_ND: (N, D) of any float dtype.
        labels_N: (N,) classes; rows with a negative one are left out.
        num_classes: K; a class without an example gets zero weights and never wins.
        strength: scikit-learn's C, the inverse of the L2 penalty.
    """
    from sklearn.linear_model import LogisticRegression

    feature = np.asarray(feature_ND, dtype=np.float64)
    labels = np.asarray(labels_N)
    feature, labels = feature[labels >= 0], labels[labels >= 0]
    found = np.unique(labels)
    if len(found) < 2:
        raise ConfigError(
            f"a linear probe needs labelled images of at least two classes; found {len(found)} in {len(labels)} rows. "
            "Widen --data.labelled, or use a source or store with labels."
        )
    mean, std = feature.mean(0), np.maximum(feature.std(0), 1e-6)
    model = LogisticRegression(C=strength, max_iter=1000)
    with warnings.catch_warnings():
        # A few images per class are what few-shot probes are for.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        model.fit((feature - mean) / std, labels)
    coefficients, intercept = model.coef_, model.intercept_
    if len(found) == 2:
        # scikit-learn keeps one row for two classes: the log-odds of the second.
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    raw = coefficients / std
    weight = np.zeros((num_classes, feature.shape[1]))
    raw_intercept = intercept - raw @ mean
    bias = np.full(num_classes, raw_intercept.mean() - UNSEEN)
    weight[model.classes_], bias[model.classes_] = raw, raw_intercept
    return LinearProbe(weight.astype(np.float32), bias.astype(np.float32))
