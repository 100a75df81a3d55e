"""Teach a small network the stored features of a teacher in a plain PyTorch loop: plain_pytorch.py IMAGES STORE."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Resize, ToTensor

import featstore.torch


def main(images: str, store: str) -> None:
    torch.manual_seed(0)
    # The view that the teacher saw: no random crop, no mirroring.
    photos = ImageFolder(images, Compose([Resize((64, 64)), ToTensor()]))
    data = featstore.torch.with_features(photos, store, fields="cls", views=0)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    width = len(data[0][2])
    layers = [nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    student = nn.Sequential(*layers, nn.Linear(16 * 16, width))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for epoch in range(3):
        total = 0.0
        for pixels, _label, target in loader:
            loss = nn.functional.mse_loss(student(pixels), target.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(pixels)
        print(f"epoch {epoch}: loss {total / len(data):.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
