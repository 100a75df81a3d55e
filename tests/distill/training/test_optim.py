"""Shorter ways through the optimiser and the norm of gradients give the bits of the long ones."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from distill.config import TrainConfig
from distill.training.optim import FOREACH, gradient_norm, make_optimiser


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5 * 36, 7)
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("name", [*FOREACH, "lamb"])
def test_lists_of_tensors_change_no_bit(name: str) -> None:
    """With weight decay and momentum, over many scales of gradients; other optimisers are left as they are."""
    found = []
    for foreach in (True, None):
        model = net()
        settings = TrainConfig(opt=name, weight_decay=0.05)
        optimiser, _ = make_optimiser(model, settings, steps_per_epoch=5)
        assert all(
            (group["foreach"] or None) is (True if name in FOREACH else None)
            for group in optimiser.param_groups
            if "foreach" in group
        )
        for group in optimiser.param_groups:
            group["foreach"] = foreach if name in FOREACH else None
        draw = torch.Generator().manual_seed(1)
        for _ in range(20):
            for parameter in model.parameters():
                scale = 10 ** torch.randn((), generator=draw)
                parameter.grad = torch.randn(parameter.shape, generator=draw) * scale
            optimiser.step()
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_norm_is_that_of_torch() -> None:
    """To the last bit, without the parameters that have no gradient."""
    model = net()
    parameters = list(model.parameters())
    for number, parameter in enumerate(parameters[1:]):
        parameter.grad = torch.randn_like(parameter) * 10**number
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    expected = torch.nn.utils.get_total_norm(gradients)
    assert torch.equal(gradient_norm(Accelerator(cpu=True), parameters, 0), expected)
