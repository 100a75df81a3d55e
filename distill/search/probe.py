"""The probe batch: a few images, the teacher's side of them from the store, and an untrained student shown them."""

# B images of the batch, K classes, D teacher width, C student width

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import google_crc32c
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load
from torch import Tensor, nn
from torch.nn import functional as F

from distill.data.joined import JoinedData, few
from distill.data.stored_features import Grid
from distill.losses.features import unit
from distill.measures.linear_probe import fit_probe
from distill.search.config import SearchConfig, Weights
from distill.student.model import Student, StudentOutput
from distill.tasks import Task
from featstore.errors import ConfigError
from featstore.files.array_types import Array
from featstore.files.atomic import write_bytes
from featstore.format.artefacts import pack, pack_texts, unpack_texts

PROBE_ROWS = 5000
"""Most labelled images that the teacher's classifier is fitted on."""


CHECKSUM = "crc32c"
"""Tensor of the probe's file: CRC-32C of the file without it."""


@dataclass(frozen=True)
class Probe:
    """What scores need of the teacher; with it and the images no store is needed.

    Attributes:
        ids: (B,) sample ids.
        labels_B: (B,) int64 classes.
        relations_BB: Products of the teacher's features of all pairs of images, with rows of length 1.
        gradient_KD: Gradient of the cross entropy by the weight of the teacher's classifier; None without labels.
    """

    ids: list[str]
    labels_B: Tensor
    relations_BB: Tensor
    gradient_KD: Tensor | None

    def write(self, path: Path) -> None:
        """Write a safetensors file."""
        tensors = {"labels": self.labels_B, "relations": self.relations_BB}
        if self.gradient_KD is not None:
            tensors["gradient"] = self.gradient_KD
        arrays = {name: value.numpy() for name, value in tensors.items()}
        arrays |= pack_texts(self.ids)
        write_bytes(path, pack({**arrays, CHECKSUM: _checksum(arrays)}))

    @classmethod
    def read(cls, path: Path) -> "Probe":
        """Read what ``write`` wrote."""
        try:
            arrays = load(path.read_bytes())
            if arrays.pop(CHECKSUM) != _checksum(arrays):
                raise ConfigError("its checksum differs")
            tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
            return cls(
                unpack_texts(arrays), tensors["labels"], tensors["relations"], tensors.get("gradient")
            )  # fmt: skip
        except (OSError, SafetensorError, KeyError, ConfigError) as error:
            raise ConfigError(
                f"{path.absolute()}: cannot be read ({error}). Delete it; it is made anew from the store."
            ) from None


def _checksum(arrays: Mapping[str, Array]) -> Array:
    return np.array([google_crc32c.value(pack(arrays))], dtype=np.uint32)


def make_probe(task: Task, config: SearchConfig) -> Probe:
    """Draw the images and compute the teacher's side from stored features.

    The teacher's classifier is a linear probe that is fitted on labelled images outside the batch.

    Args:
        task: With the joined data.
    """
    data = task.data
    assert isinstance(data, JoinedData)
    part = task.split(config.seed)
    members = part.labelled if task.classes else np.union1d(part.labelled, part.unlabelled)
    chosen = np.sort(few(members, config.probe.images, config.seed))
    if len(chosen) < config.probe.images:
        raise ConfigError(
            f"--probe.images {config.probe.images}: only {len(chosen)} images may be used for training."
        )
    feature = data.features.take(chosen)
    labels = torch.from_numpy(data.samples.labels[chosen])
    seen = (
        Grid(data.store, config.grid_field, data.samples).take(chosen)
        if config.grid_field
        else feature
    )
    gradient = None
    if task.classes:
        rest = few(np.setdiff1d(part.labelled, chosen), PROBE_ROWS, config.seed)
        known, classes = data.features.take(rest).numpy(), data.samples.labels[rest]
        classifier = fit_probe(known, classes, num_classes=data.samples.num_classes)
        logits = torch.from_numpy(classifier.logits(feature.numpy()))
        gradient = classifier_gradient(logits, feature, labels)
    ids = [data.samples.ids[index] for index in chosen]
    return Probe(ids, labels, products(seen), gradient)


def classifier_gradient(logits_BK: Tensor, feature_BD: Tensor, labels_B: Tensor) -> Tensor:
    """(K, D): gradient of the mean cross entropy by the weight of a linear classifier."""
    error = logits_BK.softmax(1) - F.one_hot(labels_B, logits_BK.shape[1])
    return error.T @ feature_BD / len(labels_B)


class Trial:
    """An untrained student in front of the probe batch; what no score asks for is not computed.

    Attributes:
        student: With initial weights, in training mode: normalisation uses the statistics of the batch.
        images: (B, 3, H, W), normalised.
        probe: Of the teacher.
        macs: Multiply-adds of one image.
    """

    def __init__(self, student: Student, images: Tensor, probe: Probe, macs: int) -> None:
        self.student = student.train()
        self.images = images
        self.probe = probe
        self.macs = macs

    @cached_property
    def output(self) -> StudentOutput:
        """What the student makes of the images."""
        output: StudentOutput = self.student(self.images)
        return output

    @cached_property
    def relations(self) -> Tensor:
        """(B, B) of the last feature map before pooling, as ``Probe.relations_BB``."""
        return products(self.output.map).cpu()

    @cached_property
    def gradient(self) -> Tensor:
        """(K, C) by the weight of the last Linear."""
        loss = F.cross_entropy(self.output.logits, self.probe.labels_B.to(self.images.device))
        (gradient,) = torch.autograd.grad(loss, [self.student.classifier.weight])
        return gradient.cpu()


def products(rows: Tensor) -> Tensor:
    """(N, M) -> (N, N): products of all pairs of rows, with rows of length 1. A common factor changes nothing."""
    rows = rows.detach().float().flatten(1)
    rows = rows / rows.abs().max().clamp(min=torch.finfo(rows.dtype).tiny)
    return unit(rows @ rows.T)


def initialise(model: nn.Module, weights: Weights) -> None:
    """Draw the weights of convolutions and linear layers; norms start as the identity, all else stays as it is."""
    for part in model.modules():
        weight, bias = getattr(part, "weight", None), getattr(part, "bias", None)
        if not isinstance(weight, nn.Parameter):
            continue
        if weight.dim() > 1 and weights == "gaussian":
            nn.init.normal_(weight)
        elif weight.dim() > 1:
            nn.init.kaiming_normal_(weight, mode="fan_out")
        else:
            nn.init.ones_(weight)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)
