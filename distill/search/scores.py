"""Scores of untrained students on the probe batch, by name; the larger, the better.

A new one is a function of a ``Trial``, and a line in ``SCORES``. ``relation``, ``semantic`` and ``diswot`` are those of
DisWOT (Dong et al., CVPR 2023), read from the authors' code.
"""

# B images of the batch, K classes, C student width, D teacher width

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional as F

from distill.losses.features import unit
from distill.search.probe import Trial, products
from featstore.errors import ConfigError

Score = Callable[[Trial], float]


def relation(trial: Trial) -> float:
    """-||G_T - G_S||_F^2 / B^2, G the products of all pairs of images with rows of length 1 (the paper's S_rel)."""
    return -float(F.mse_loss(trial.relations, trial.probe.relations_BB))


def semantic(trial: Trial) -> float:
    """-sum_k ||E_k^T - E_k^S||_F^2 / (C K), E_k the C x C products of the gradient of class k, with rows of length 1.

    The paper's S_sem. E_k has rank one: its rows are +- g_k / ||g_k||, so that it is never built.
    """
    teacher, student = _teacher_gradient(trial), trial.gradient
    if student.shape != teacher.shape:
        raise ConfigError(
            f"--score semantic compares equal widths, but the student has {student.shape[1]} channels and the teacher "
            f"{teacher.shape[1]}. Take semantic_ours or relation."
        )
    signs = (unit(student).sign(), unit(teacher).sign())
    sizes = sum(sign.square().sum(1) for sign in signs)
    product = (signs[0] * signs[1]).sum(1) * (unit(student) * unit(teacher)).sum(1)
    return -float((sizes - 2 * product).sum() / student.numel())


def semantic_ours(trial: Trial) -> float:
    """-||E_T - E_S||_F^2 / K^2, E the K x K products of the gradients of all classes, with rows of length 1.

    Ours, for students of any width; not in the paper.
    """
    teacher, student = _teacher_gradient(trial), trial.gradient
    return -float(F.mse_loss(products(student), products(teacher)))


def diswot(trial: Trial) -> float:
    """Sum of ``relation`` and ``semantic``, as in the paper, not normalised."""
    return relation(trial) + semantic(trial)


def diswot_ours(trial: Trial) -> float:
    """Sum of ``relation`` and ``semantic_ours``."""
    return relation(trial) + semantic_ours(trial)


def parameters(trial: Trial) -> float:
    """Number of parameters: the baseline, the largest student that fits."""
    return float(trial.student.num_parameters)


def macs(trial: Trial) -> float:
    """Multiply-adds of one image: a baseline likewise."""
    return float(trial.macs)


SCORES: Mapping[str, Score] = {
    "relation": relation,
    "semantic": semantic,
    "semantic_ours": semantic_ours,
    "diswot": diswot,
    "diswot_ours": diswot_ours,
    "parameters": parameters,
    "macs": macs,
}


def _teacher_gradient(trial: Trial) -> Tensor:
    gradient = trial.probe.gradient_KD
    if gradient is None:
        raise ConfigError(
            "this score needs labelled images (--data.labelled, or labels in the store); --score relation needs none."
        )
    return gradient
