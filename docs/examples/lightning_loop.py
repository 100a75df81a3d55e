"""Teach a small network the stored features of a teacher with Lightning: lightning_loop.py IMAGES STORE."""

import sys

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Resize, ToTensor

import featstore.torch


class Student(lightning.LightningModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
        self.net = nn.Sequential(*layers, nn.Linear(16 * 16, width))

    def training_step(self, batch, _number):
        pixels, _label, target = batch
        return nn.functional.mse_loss(self.net(pixels), target.float())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(images: str, store: str, **options) -> None:
    photos = ImageFolder(images, Compose([Resize((64, 64)), ToTensor()]))
    data = featstore.torch.with_features(photos, store, fields="cls", views=0)
    trainer = lightning.Trainer(max_epochs=3, **options)
    trainer.fit(Student(len(data[0][2])), DataLoader(data, batch_size=32, shuffle=True))
    print(f"steps: {trainer.global_step}")


if __name__ == "__main__":
    main(*sys.argv[1:])
