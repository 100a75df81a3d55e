"""Are two sets of images of one domain? Asked of their stored features, without a picture and without a label."""

import numpy as np
import numpy.typing as npt

MOST = 2000
"""Rows of each set that are enough."""
LEAST = 8
"""Fewer rows than these cannot be told apart from chance."""


def separability(first_ND: npt.ArrayLike, second_MD: npt.ArrayLike) -> float:
    """How well a linear classifier tells two sets of features apart, on rows that it was not fitted on.

    Sets drawn from one domain come out near .5, photographs and sketches near 1. The proxy A-distance of Ben-David et
    al. (Machine Learning 79, 2010) is 2 (2 s - 1).

    Args:
        first_ND: (N, D) of any float dtype.
        second_MD: (M, D), likewise.

    Returns:
        Mean over both sets of the share of rows that are put into their own one, in two-fold cross-validation; .5 where
        a set has fewer than eight rows.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parts = [np.asarray(part, dtype=np.float64) for part in (first_ND, second_MD)]
    if min(map(len, parts)) < LEAST:
        return 0.5
    side = np.repeat([0, 1], [len(part) for part in parts])
    # Sets of one domain often differ much in size, e.g. 400 labelled and 14,600 unlabelled images.
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=200)
    )
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    found = cross_val_predict(model, np.concatenate(parts), side, cv=folds)
    return float(np.mean([(found[side == name] == name).mean() for name in (0, 1)]))
