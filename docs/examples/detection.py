"""Start a torchvision detector from a distilled MobileNetV3-Large: detection.py RUN [ssdlite | fasterrcnn]."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import detection, mobilenet_v3_large

DETECTORS = {
    "ssdlite": detection.ssdlite320_mobilenet_v3_large,
    "fasterrcnn": detection.fasterrcnn_mobilenet_v3_large_320_fpn,
}


def start(kind: str, run: str, num_classes: int) -> nn.Module:
    """A detector whose backbone has the weights of a run; num_classes counts the background."""
    student = mobilenet_v3_large(reduced_tail=kind == "ssdlite")
    student.load_state_dict(load_file(Path(run) / "student.safetensors"))
    model = DETECTORS[kind](weights=None, weights_backbone=None, num_classes=num_classes)
    body = model.backbone.features if kind == "ssdlite" else model.backbone.body
    # The detector cuts the same layers into other groups: names differ, the order does not.
    given = student.features.state_dict().values()
    body.load_state_dict(dict(zip(body.state_dict(), given, strict=True)))
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3  # as torchvision's classifier has it
    return model


def batches(steps: int):
    """Photos with boxes; here noise with one bright square each. Put your own data set in its place."""
    for _ in range(steps):
        images, targets = torch.rand(2, 3, 320, 320) / 2, []
        for image, (x, y) in zip(images, torch.randint(0, 200, (2, 2)).tolist(), strict=True):
            image[:, y : y + 100, x : x + 100] += 0.5
            targets.append(
                {"boxes": torch.tensor([[x, y, x + 100.0, y + 100]]), "labels": torch.tensor([1])}
            )
        yield list(images), targets


def main(run: str, kind: str = "ssdlite", steps: int = 20) -> list[float]:
    torch.manual_seed(0)
    model = start(kind, run, num_classes=2).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for images, targets in batches(steps):
        loss = sum(model(images, targets).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    print(f"loss of the first step {losses[0]:.3f}, of the last {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
