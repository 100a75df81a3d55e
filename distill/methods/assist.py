"""``assist``: assistive loss of two teachers of landmarks (Fard and Mahoor, CVIU 2022), from its formulas alone.

The tough teacher aims at the landmarks, the tolerant one at landmarks smoothed by a shape model (PCA). Per coordinate,
with e the student's error and d_u, d_o those of the tough and the tolerant teacher:

    main     3 e                      where e <= d_o, else e^2 + 3 d_o - d_o^2
    A_t      w_t(e) |d_t - e|         w_t = alpha_t where e > d_t, -near_t where 0.15 d_t <= e <= d_t, else 0
    loss     2 main + A_u + A_o

In the paper both teachers are networks of their own. Here they are linear layers on the stored patch grid, fitted to
labelled images when the run begins (our reading); the loss needs their errors alone. ``weight_assist`` 0 leaves the
main term.
"""

# L labelled images of a batch, n that teachers are fitted to, D width of a flat grid, P = 2 K coordinates of K points

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distill.lazy import F, Tensor, torch
from distill.measures.feature_similarity import thin_out
from distill.methods.base import Batch, Method, Needs, Output, Setup, Student
from distill.options import CheckedOptions
from featstore.errors import ConfigError

MOST_FITTED, MOST_SIDE = 2048, 7
"""Labelled images that the teachers are fitted to, and places a side of the grid that they see."""

NEAR = 0.15
"""Share of a teacher's error below which its term is zero."""

CLIP = 3.0
"""Deviations to which the coefficients of the shape model are clipped."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class AssistConfig(
    CheckedOptions, name="assist", positive=("weight", "ridge"), share=("variance",)
):
    """Method ``assist``: for task keypoints; takes the place of its loss. Defaults as in the authors' last version."""

    weight: float = 20.0
    """Weight of the whole loss; its gradient is about five times that of an absolute error."""
    weight_assist: float = 1.0
    """Weight of the terms of the two teachers; 0 trains by the main term alone."""
    alpha_tough: float = 1.9
    """Weight where the student is worse than the tough teacher."""
    alpha_tolerant: float = 1.8
    """Weight where the student is worse than the tolerant teacher."""
    near_tough: float = 0.45
    """Weight, taken negative, where the student is better than the tough teacher."""
    near_tolerant: float = 0.40
    """Weight, taken negative, where the student is better than the tolerant teacher."""
    variance: float = 0.9
    """Share of the variance of the landmarks that the shape model of the tolerant teacher keeps."""
    ridge: float = 0.1
    """Penalty of the linear layers of both teachers, as a share of the mean squared length of an image's features."""


class Assist(Method):
    """See the top of this file. Trained: student. Frozen: both teachers, after they were fitted.

    Raises:
        ConfigError: the task is not keypoints, or too few images have all their points.
    """

    Options = AssistConfig
    options: AssistConfig
    NEEDS = Needs(unlabelled=False, vector=False, grid=True, labels=True, classes=False)

    def __init__(self, setup: Setup, options: AssistConfig) -> None:
        super().__init__(setup, options)
        if setup.config.task != "keypoints":
            raise ConfigError(f"--methods assist is for --task keypoints, not {setup.config.task}.")
        labelled = setup.split.labelled
        rows = labelled[thin_out(len(labelled), MOST_FITTED, seed=0).numpy()]
        points = setup.targets(rows)[:, :-1].double().numpy().reshape(len(rows), -1)
        whole = np.isfinite(points).all(axis=1)
        if whole.sum() < 2:
            raise ConfigError(
                f"--methods assist: {int(whole.sum())} of {len(rows)} labelled images have all their points in the "
                "view; its shape model needs at least two."
            )
        assert setup.grid is not None  # needs
        feature = flat(setup.grid.take(rows[whole])).double().numpy()
        soft = smoothed(points[whole], options.variance)
        self.teachers = [
            tuple(
                torch.from_numpy(part).float().to(setup.device)
                for part in ridge(feature, aim, options.ridge)
            )
            for aim in (points[whole], soft)
        ]

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.terms``; the term takes the place of the task's."""
        assert batch.targets is not None
        assert batch.grid is not None
        count = batch.num_labelled
        points = batch.targets[:, :-1].flatten(1)
        known = torch.isfinite(points)
        truth = points.nan_to_num(nan=0.0)
        feature = flat(batch.grid[:count])
        tough, tolerant = (
            (feature @ weight + bias - truth).abs() for weight, bias in self.teachers
        )
        error = (output.logits[:count].float() - truth).abs()
        value = assistive(error, tough, tolerant, self.options)
        mean = torch.where(known, value, 0.0).sum() / known.sum().clamp(min=1)
        return {"points": self.options.weight * mean}


def assistive(error: Tensor, tough: Tensor, tolerant: Tensor, options: AssistConfig) -> Tensor:
    """The loss of every coordinate, from the errors of student and teachers, all of one shape."""
    outer = error.square() + 3 * tolerant - tolerant.square()
    value = 2 * torch.where(error <= tolerant, 3 * error, outer)
    pairs = (
        (tough, options.alpha_tough, options.near_tough),
        (tolerant, options.alpha_tolerant, options.near_tolerant),
    )
    for teacher, alpha, near in pairs:
        weight = torch.where(error > teacher, alpha, -near) * (error >= NEAR * teacher)
        value = value + options.weight_assist * weight * (teacher - error).abs()
    return value


def smoothed(points_nP: Floats, variance: float) -> Floats:
    """Landmarks as a shape model sees them: principal components up to a share of the variance, clipped."""
    from sklearn.decomposition import PCA

    share = variance if 0 < variance < 1 else None
    model = PCA(n_components=share, svd_solver="full").fit(points_nP)
    most = CLIP * np.sqrt(model.explained_variance_)
    found: Floats = model.inverse_transform(np.clip(model.transform(points_nP), -most, most))
    return found


def flat(grid: Tensor) -> Tensor:
    """(n, g, g, C) patch grid -> (n, D), averaged to ``MOST_SIDE`` places a side where it has more."""
    if grid.shape[1] > MOST_SIDE:
        pooled = F.adaptive_avg_pool2d(grid.permute(0, 3, 1, 2), MOST_SIDE)
        grid = pooled.permute(0, 2, 3, 1)
    return grid.flatten(1)


def ridge(feature_nD: Floats, aim_nP: Floats, penalty: float) -> tuple[Floats, Floats]:
    """Weight (D, P) and bias (P,) of a linear layer, by ridge regression; solved over the images, which are few."""
    middle, mean = feature_nD.mean(axis=0), aim_nP.mean(axis=0)
    centred = feature_nD - middle
    gram = centred @ centred.T
    gram += penalty * np.trace(gram) / len(gram) * np.eye(len(gram))
    weight = centred.T @ np.linalg.solve(gram, aim_nP - mean)
    return weight, mean - middle @ weight
