"""The linear probe."""

import numpy as np

from distill.measures.linear_probe import fit_probe


def test_one_label_per_class_is_no_warning() -> None:
    """scikit-learn takes 30 classes in 30 rows for a regression; warnings are errors here."""
    feature = np.random.default_rng(0).normal(size=(30, 40))
    probe = fit_probe(feature, np.arange(30), num_classes=30)
    assert (probe.logits(feature).argmax(1) == np.arange(30)).all()
