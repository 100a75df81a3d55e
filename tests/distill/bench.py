"""A method with a student and a batch of random pictures and features, without loop, loader and accelerator."""

import copy

import torch
from torch import Tensor, nn

from distill.config import DistillConfig
from distill.data import joined
from distill.data.pictures import Batch
from distill.data.schedule import Indices, ViewPicker
from distill.losses import IGNORE, cross_entropy
from distill.methods import METHODS, Method, Output, Setup
from distill.methods.trainee import Trainee
from distill.register import options_of
from distill.student.model import Student, build_student, evaluating
from featstore import FeatureStore
from featstore.sources import open_source


def make_setup(config: DistillConfig, seed: int = 0, *, grid: bool = False) -> Setup:
    """What the loop would hand to a method; pictures are random, but the same for the same image."""
    data = joined.join_data(
        open_source(config.source), FeatureStore.open(config.store), config.data, config.field
    )
    part = data.split(seed)
    student = build_student(config.student, data.samples.num_classes)
    return Setup(
        config=config,
        seed=seed,
        samples=data.samples,
        split=part,
        features=data.features,
        grid=data.grid if grid else None,
        picker=ViewPicker(data.columns, data.samples.stored_ids, seed=seed),
        probe=data.fit_probe(part, most=1000, seed=seed),
        student=student,
        device=torch.device("cpu"),
        processes=1,
        epochs=config.train.epochs,
        steps_per_epoch=3,
        gather=lambda tensor: tensor,
        predict=lambda indices: predict(student, indices),
        targets=lambda indices: torch.zeros(len(indices), 0),
    )


@torch.no_grad()
def predict(student: Student, indices: Indices) -> tuple[Tensor, Tensor]:
    """Features and logits of a random picture per index, in eval mode."""
    pictures = [
        torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(int(index)))
        for index in indices
    ]
    with evaluating(student):
        seen = student(torch.stack(pictures))
    return seen.features, seen.logits


class Bench:
    """Five images, three of them labelled."""

    def __init__(self, config: DistillConfig, method: str, *, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.setup = make_setup(config, grid=METHODS[method].needs(options_of(config, method)).grid)
        grid = self.setup.grid
        self.student = self.setup.student
        self.method: Method = METHODS[method](self.setup, options_of(config, method))
        self.trainee = Trainee(self.student, self.method.student_sides())
        self.batch = Batch(
            images=torch.randn(5, 3, 32, 32),
            labels=torch.tensor([0, 1, 2, IGNORE, IGNORE]),
            teacher=torch.randn(5, self.setup.features.width),
            grid=None if grid is None else torch.randn(5, grid.side, grid.side, grid.width),
            indices=torch.arange(5),
            num_labelled=3,
            num_unlabelled=2,
            num_strong=0,
        )

    @property
    def teacher(self) -> Tensor:
        """(B, D), the stored features of the batch."""
        assert self.batch.teacher is not None
        return self.batch.teacher

    def output(self) -> Output:
        """One forward pass of the trainee."""
        output: Output = self.trainee(self.batch.images, self.method.inputs(self.batch))
        return output

    def terms(self) -> dict[str, Tensor]:
        """The loss of one batch, with that of task classify."""
        output = self.output()
        own = self.method.loss(output, self.batch, self.student)
        return {"ce": cross_entropy(output.logits, self.batch.labels)} | own

    def backward(self) -> dict[str, Tensor]:
        """The loss of one batch, and its gradients."""
        terms = self.terms()
        torch.stack(list(terms.values())).sum().backward()
        return terms


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors."""
    return copy.deepcopy(module.state_dict())


def same(module: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether every tensor is bit-identical to the copy."""
    return all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
