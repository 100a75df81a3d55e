"""Losses that compare features, vectors or maps, one image at a time. What compares images is in ``relations``."""

# B batch, D width of a feature, M channels and h w sides of a map, N copies of a feature, P components of a basis

from distill.lazy import F, Tensor, torch
from distill.losses.common import check_axes

TINY = 1e-6  # length up to which a vector counts as zero: it has no direction


def feature_mse(student_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Mean squared error over batch and width, in float32.

    Args:
        target_BD: (B, D); no gradient flows into it.
    """
    check_axes("feature_mse", "BD BD", student_BD, target_BD)
    return F.mse_loss(student_BD.float(), target_BD.detach().float())


def smooth_l1(student_BD: Tensor, target_BD: Tensor, *, beta: float) -> Tensor:
    """Mean of d^2 / (2 beta) for differences below beta, else |d| - beta / 2, in float32; see ``feature_mse``."""
    check_axes("smooth_l1", "BD BD", student_BD, target_BD)
    return F.smooth_l1_loss(student_BD.float(), target_BD.detach().float(), beta=beta)


def layernorm_mse(student_BD: Tensor, target_BD: Tensor) -> Tensor:
    """``feature_mse`` after both sides were brought to mean 0 and variance 1 over their width, row by row."""
    check_axes("layernorm_mse", "BD BD", student_BD, target_BD)
    width = student_BD.shape[1:]
    return feature_mse(
        F.layer_norm(student_BD.float(), width), F.layer_norm(target_BD.float(), width)
    )


def unit(feature_BD: Tensor) -> Tensor:
    """(B, D) -> rows of length 1, in float32. A row of length up to ``TINY`` becomes zero and gets no gradient.

    A division by a tiny length instead would send it a gradient that is larger than all others by its inverse.
    """
    feature = feature_BD.float()
    length = feature.norm(dim=1, keepdim=True)
    return torch.where(length > TINY, feature / length.clamp(min=TINY), torch.zeros_like(feature))


def resize_map(map_BMhw: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a map to another size: averages over areas where it shrinks, bilinear where it grows.

    Args:
        size: (height, width) of the result.
    """
    height, width = map_BMhw.shape[2:]
    smaller = (min(height, size[0]), min(width, size[1]))
    if smaller != (height, width):
        map_BMhw = F.adaptive_avg_pool2d(map_BMhw, smaller)
    if smaller != tuple(size):
        map_BMhw = F.interpolate(map_BMhw, size, mode="bilinear", align_corners=False)
    return map_BMhw


def map_mse(student_BDhw: Tensor, target_BDhw: Tensor) -> Tensor:
    """Mean squared error over batch, channels and positions, in float32; no gradient flows into the target."""
    check_axes("map_mse", "BDhw BDhw", student_BDhw, target_BDhw)
    return F.mse_loss(student_BDhw.float(), target_BDhw.detach().float())


def attention(map_BMhw: Tensor) -> Tensor:
    """(B, M, h, w) -> (B, 1, h, w): energy of every position, the mean of squares over the channels, in float32."""
    return map_BMhw.float().square().mean(1, keepdim=True)


def attention_transfer(student_BMhw: Tensor, target_BDgg: Tensor) -> Tensor:
    """mean((A_s - A_t)^2), where A are the energies of all positions, flattened, of length 1 (AT, p = 2).

    Energies are averaged over areas to the smaller of both sizes before they are flattened; the pooling is of energies,
    not of features, so that a store that holds only energies would do (our choice).

    Args:
        target_BDgg: (B, D, g, g) with any D and g; no gradient flows into it.
    """
    check_axes("attention_transfer", "BMhw BDgG", student_BMhw, target_BDgg)
    student, target = attention(student_BMhw), attention(target_BDgg.detach())
    height, width = (min(a, b) for a, b in zip(student.shape[2:], target.shape[2:], strict=True))
    student = unit(resize_map(student, (height, width)).flatten(1))
    target = unit(resize_map(target, (height, width)).flatten(1))
    return feature_mse(student, target)


def many_to_one_mse(expanded_BND: Tensor, target_BD: Tensor) -> Tensor:
    """N * MSE(expanded, the target N times), in float32 (NORM, Liu et al., ICLR 2023): every copy counts fully.

    Args:
        expanded_BND: (B, N * D), the N representations of the student side by side.
        target_BD: (B, D); no gradient flows into it.
    """
    copies, rest = divmod(expanded_BND.shape[1], target_BD.shape[1])
    if rest or len(expanded_BND) != len(target_BD):
        raise ValueError(
            f"many_to_one_mse: expanded {tuple(expanded_BND.shape)} and target {tuple(target_BD.shape)}; expected "
            "(B, N * D) and (B, D)."
        )
    return copies * feature_mse(expanded_BND, target_BD.repeat(1, copies))


def spectral_match(student_BP: Tensor, target_BP: Tensor, *, beta: float, eps: float) -> Tensor:
    """sum_k (e_k + eps)^beta with e_k = mean_b (student_bk - target_bk)^2, in float32 (SpecMatch, 2026).

    With beta below 1 the components of small variance count for more than in a plain squared error. The mean over the
    batch is taken before the power: the loss of a batch is not the mean of the losses of its parts.

    Args:
        student_BP: (B, P) coefficients as predicted.
        target_BP: (B, P) coefficients in the teacher's basis; no gradient flows into them.
        beta: positive; 1 and eps 0 give P times the mean squared error.
        eps: positive, which keeps the gradient finite where a component is met exactly.
    """
    check_axes("spectral_match", "BD BD", student_BP, target_BP)
    error = (student_BP.float() - target_BP.detach().float()).square().mean(0)
    return (error + eps).pow(beta).sum()


def within_stage(map_BMhw: Tensor) -> Tensor:
    """MSE between the weaker and the stronger half of a map's channels, in float32 (TfFD, intra-layer).

    The channels of each image are sorted by their mean absolute activation; the weakest is compared to the first of the
    stronger half, and so on; of an odd number the middle one is left out. No gradient flows into the stronger half.
    How strength is measured, the order of pairs and who learns from whom are our choice.
    """
    check_axes("within_stage", "BMhw", map_BMhw)
    maps = map_BMhw.float()
    half = maps.shape[1] // 2
    if half == 0:
        return maps.sum() * 0
    order = maps.detach().abs().mean((2, 3)).argsort(dim=1, stable=True)
    ordered = maps.take_along_dim(order[:, :, None, None], dim=1)
    return map_mse(ordered[:, :half], ordered[:, -half:])


def between_stages(shallow_BMhw: Tensor, deep_BMhw: Tensor) -> Tensor:
    """MSE between two stages on the channels that both have, in float32 (TfFD, inter-layer).

    The larger map is averaged over areas to the size of the smaller; the first min(M, M') channels are compared. The
    deeper stage is the target and gets no gradient. Which channels are shared and the direction are our choice.
    """
    check_axes("between_stages", "BMhw BNij", shallow_BMhw, deep_BMhw)
    shared = min(shallow_BMhw.shape[1], deep_BMhw.shape[1])
    height, width = (
        min(a, b) for a, b in zip(shallow_BMhw.shape[2:], deep_BMhw.shape[2:], strict=True)
    )
    shallow = resize_map(shallow_BMhw[:, :shared].float(), (height, width))
    deep = resize_map(deep_BMhw[:, :shared].float(), (height, width))
    return map_mse(shallow, deep)
