"""Losses that compare logits, row by row unless stated otherwise; computed in float32.

Formulas were read in public code. No gradient flows into a target. The class of a row is its label where that is
known; ``IGNORE`` leaves the row out, and ``target_classes`` fills in the teacher's prediction.
"""

# B batch, K classes, T temperature

from distill.lazy import F, Tensor, torch
from distill.losses.common import IGNORE, check_axes

CONSTANT = 1e-6
"""Share of a row's length below which its deviation from the mean is rounding: the row counts as constant."""


def _prepare(
    name: str, student_BK: Tensor, target_BK: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Both sides in float32, divided by T, the target detached."""
    check_axes(name, "BK BK", student_BK, target_BK)
    if temperature <= 0:
        raise ValueError(f"{name}: temperature {temperature} must be positive.")
    return student_BK.float() / temperature, target_BK.detach().float() / temperature


def _mean_over_known(values_B: Tensor, classes_B: Tensor) -> Tensor:
    """Mean over the rows that have a class; zero, with a gradient of zero, if there are none."""
    known = classes_B != IGNORE
    return torch.where(known, values_B, 0.0).sum() / known.sum().clamp(min=1)


def target_classes(labels_B: Tensor, target_BK: Tensor) -> Tensor:
    """The label where it is known, else the class with the largest logit of the teacher.

    Args:
        labels_B: (B,) int64, ``IGNORE`` where there is no label.
        target_BK: (B, K) logits of the teacher.

    Returns:
        (B,) int64.
    """
    check_axes("target_classes", "BK B", target_BK, labels_B)
    return torch.where(labels_B == IGNORE, target_BK.argmax(1), labels_B)


def kd_kl(student_BK: Tensor, target_BK: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL(softmax(target / T) || softmax(student / T)), summed over classes, mean over the batch.

    Hinton et al. 2015, "Distilling the knowledge in a neural network".

    Args:
        temperature: T, positive.
    """
    student, target = _prepare("kd_kl", student_BK, target_BK, temperature)
    return _kl(student.log_softmax(1), target.log_softmax(1)).mean() * temperature**2


def logit_mse(student_BK: Tensor, target_BK: Tensor) -> Tensor:
    """Mean squared error of the logits over batch and classes (Ba & Caruana 2014, "Do deep nets really need to be
    deep?").
    """
    return F.mse_loss(*_prepare("logit_mse", student_BK, target_BK))


def dkd(
    student_BK: Tensor,
    target_BK: Tensor,
    classes_B: Tensor,
    *,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    """alpha TCKD + beta NCKD (Zhao et al., CVPR 2022, arXiv:2203.08679), mean over the rows that have a class.

    TCKD is T^2 KL between the binary distributions (class, all others), NCKD is T^2 KL between the softmaxes over the
    other classes. All in log space, where nothing underflows: probabilities of 0 and 1 are as good as any.

    Args:
        student_BK: (B, K) logits, K at least 2.
        classes_B: (B,) int64; ``IGNORE`` leaves the row out.
        alpha: weight of TCKD.
        beta: weight of NCKD.
        temperature: T, positive.
    """
    student, target = _prepare("dkd", student_BK, target_BK, temperature)
    check_axes("dkd", "BK B", student, classes_B)
    classes = student.shape[1]
    if classes < 2:
        raise ValueError(f"dkd: logits {tuple(student.shape)}; expected at least two classes.")
    own = torch.where(classes_B == IGNORE, 0, classes_B)[:, None]
    others = torch.arange(classes - 1, device=own.device).expand(len(own), -1)
    others = others + (others >= own)  # every column but the row's own
    student_log, target_log = student.log_softmax(1), target.log_softmax(1)
    tckd = _kl(_binary(student_log, own, others), _binary(target_log, own, others))
    nckd = _kl(student.gather(1, others).log_softmax(1), target.gather(1, others).log_softmax(1))
    return _mean_over_known(alpha * tckd + beta * nckd, classes_B) * temperature**2


def _binary(log_p_BK: Tensor, own_B1: Tensor, others_BJ: Tensor) -> Tensor:
    """(B, 2): log of the probability of the own class, and of all others together."""
    rest = log_p_BK.gather(1, others_BJ).logsumexp(1, keepdim=True)
    return torch.cat([log_p_BK.gather(1, own_B1), rest], dim=1)


def _kl(student_log: Tensor, target_log: Tensor) -> Tensor:
    """(B,) KL(target || student) of two (B, n) log-probabilities."""
    return F.kl_div(student_log, target_log, reduction="none", log_target=True).sum(1)


def dist(
    student_BK: Tensor, target_BK: Tensor, *, beta: float, gamma: float, temperature: float
) -> Tensor:
    """T^2 (beta (1 - mean_i r(row i)) + gamma (1 - mean_c r(column c))), r Pearson's correlation of softmax(z / T).

    DIST (Huang et al., NeurIPS 2022, arXiv:2205.10536). The column term is over the whole batch: with several
    processes each takes its own share, so the value depends on how a batch is cut. A row or column that is constant on
    either side has correlation 0 and no gradient; a batch of one row therefore has a constant column term.

    Args:
        beta: weight of the rows: relations between classes within one image.
        gamma: weight of the columns: relations between images within one class.
        temperature: T, positive.
    """
    student, target = _prepare("dist", student_BK, target_BK, temperature)
    student, target = student.softmax(1), target.softmax(1)
    between_classes = 1 - _pearson(student, target).mean()
    within_classes = 1 - _pearson(student.T, target.T).mean()
    return (beta * between_classes + gamma * within_classes) * temperature**2


def _pearson(x_MN: Tensor, y_MN: Tensor) -> Tensor:
    """(M,) correlations of the rows."""
    return (_standard(x_MN) * _standard(y_MN)).sum(1)


def _standard(x_MN: Tensor) -> Tensor:
    """Rows with mean 0 and length 1; rows of zeros where they are constant up to rounding."""
    centred = x_MN - x_MN.mean(1, keepdim=True)
    varies = centred.norm(dim=1, keepdim=True) > CONSTANT * x_MN.norm(dim=1, keepdim=True)
    # The division must be safe where its result is not used as well, or its gradient is NaN there.
    safe = torch.where(varies, centred, 1.0)
    return torch.where(varies, safe / safe.norm(dim=1, keepdim=True), 0.0)


def ofa(
    student_BK: Tensor,
    target_BK: Tensor,
    classes_B: Tensor,
    *,
    eps: float,
    temperature: float = 1.0,
) -> Tensor:
    """-sum_c ((p_t + 1[c = y])^eps - 1[c = y]) log p_s, mean over the rows that have a class.

    One exit of OFA-KD (Hao et al., NeurIPS 2023, arXiv:2310.19444). With eps 1 it is the cross entropy to the
    teacher's softmax p_t; a larger eps adds to the class y and takes from the others.

    Args:
        classes_B: (B,) int64, y; ``IGNORE`` leaves the row out.
        eps: exponent, positive.
        temperature: T of both softmaxes, positive; the loss is not multiplied by T^2.
    """
    student, target = _prepare("ofa", student_BK, target_BK, temperature)
    check_axes("ofa", "BK B", student, classes_B)
    if eps <= 0:
        raise ValueError(f"ofa: eps {eps} must be positive.")
    own = F.one_hot(torch.where(classes_B == IGNORE, 0, classes_B), student.shape[1]).float()
    weight = (target.softmax(1) + own) ** eps - own
    return _mean_over_known(-(weight * student.log_softmax(1)).sum(1), classes_B)
