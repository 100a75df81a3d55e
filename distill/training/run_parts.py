"""What one run trains and measures with: task, images, student, method, partner, optimiser."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import timm.utils
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from distill.config import DistillConfig
from distill.data.joined import JoinedData
from distill.data.pictures import Changes, Pictures, load_batches
from distill.data.samples import Split
from distill.data.schedule import EpochPlan, Indices, JointSampler, Stream, make_epoch_plan
from distill.evaluation.evaluate import Viewer
from distill.measures.linear_probe import LinearProbe
from distill.methods import METHODS, Method, Setup
from distill.methods.base import Component, Needs, Side
from distill.methods.trainee import Trainee
from distill.partners import PARTNERS, Partner
from distill.register import options_of
from distill.student.model import Student
from distill.tasks import build_task
from distill.training.optim import make_optimiser
from distill.training.run_folder import run_name
from featstore.errors import ConfigError


def check_stored(config: DistillConfig, methods: Sequence[str]) -> None:
    """Refuse methods that read what is stored of labelled images, where these need no row (``--data.stored``).

    Args:
        config: Of the command, resolved (``tasks.resolve``).

    Raises:
        ConfigError: Names the methods.
    """
    if config.data.stored == "all":
        return
    unfit = [
        name
        for name in methods
        if name not in METHODS or METHODS[name].needs(options_of(config, name)).labelled_rows
    ]
    others = config.task != "classify" or config.partner != "none" or config.teachers
    if unfit or others:
        raise ConfigError(
            "--data.stored unlabelled is for task classify, methods labels and kd (--kd.target field), one teacher "
            f"and no partner; this is task {config.task}, methods {', '.join(methods)}, partner {config.partner}, "
            f"{1 + len(config.teachers)} teachers. Give every image a row (--data.stored all)."
        )


class RunParts:
    """Objects of one run, built in the order that its random numbers need."""

    def __init__(
        self,
        config: DistillConfig,
        data: JoinedData,
        probe: LinearProbe | None,
        *,
        method: str,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.probe, self.seed = config, probe, seed
        self.method_name, self.name = method, run_name(config, method)
        self.accelerator = accelerator
        self.task = build_task(config, data)
        data = self.task.data  # type: ignore[assignment]  # joined, with the task's targets
        self.data = data
        self.part: Split = self.task.split(seed, measured=config.eval.part)
        self.picker = data.picker(seed)
        partner = PARTNERS.get(config.partner)
        self.strong = 0
        self.needs: Needs = METHODS[method].needs(options_of(config, method))
        if partner is not None:
            partner_options = options_of(config, config.partner)
            self.needs |= partner.needs(partner_options)
            self.strong = partner.strong_views(partner_options)
        check_stored(config, [method])
        METHODS[method].check(options_of(config, method), config, data)
        self.plan = self._plan()
        self.viewer = Viewer(
            data=data,
            settings=config.eval,
            workers=config.train.workers,
            accelerator=accelerator,
            cache=data.cache(config.data.cache_mb),
        )
        # The student comes first after seeding, so that all methods start from the same weights.
        set_seed(seed)
        self.student: Student = self._build_student()
        self.task.begin(self.student, self.part, self._targets)
        setup = self._setup()
        known = len(self.student.notes)
        self.method: Method = METHODS[method](setup, options_of(config, method))
        for note in self.student.notes[known:]:
            accelerator.print(f"note: {note}")
        self.partner: Partner | None = None
        if partner is not None:
            self.partner = partner(setup, partner_options)
        self.trainee = Trainee(self.student, self._sides())
        self.trainee.to(memory_format=torch.channels_last)  # as the pictures are
        if config.train.compile:
            self.trainee.compile()  # the names of the weights stay, and measuring is not compiled
        self.optimiser, self.scheduler = make_optimiser(
            self.trainee, config.train, steps_per_epoch=self.plan.steps_per_epoch
        )
        self.parameters = list(self.trainee.parameters())
        self.model, self.prepared = accelerator.prepare(self.trainee, self.optimiser)
        self.ema = self._average() if config.train.ema else None

    def _average(self) -> timm.utils.ModelEmaV3:
        """The moving average of the weights.

        Statistics of batch norm are copied, not averaged: an average of statistics fits no weights. The decay rises
        with the steps, so that the first weights do not stay in the average of a short run.
        """
        return timm.utils.ModelEmaV3(
            self.trainee, decay=self.config.train.ema, use_warmup=True, exclude_buffers=True
        )

    def _build_student(self) -> Student:
        return self.task.student(self.seed)

    def _plan(self) -> EpochPlan:
        return make_epoch_plan(
            self.config.train,
            num_labelled=len(self.part.labelled),
            num_unlabelled=len(self.part.unlabelled),
            use_unlabelled=self.needs.unlabelled,
            processes=self.accelerator.num_processes,
        )

    def _setup(self) -> Setup:
        return Setup(
            config=self.config,
            seed=self.seed,
            samples=self.data.samples,
            split=self.part,
            features=self.data.features,
            grid=self.data.grid if self.needs.grid else None,
            picker=self.picker,
            probe=self.probe,
            student=self.student,
            device=self.accelerator.device,
            processes=self.accelerator.num_processes,
            epochs=self.config.train.epochs,
            steps_per_epoch=self.plan.steps_per_epoch,
            gather=self.accelerator.gather,
            predict=self._predict,
            targets=self._targets,
        )

    @property
    def parts(self) -> list[Component]:
        """The method, and the partner if there is one."""
        return [self.method] if self.partner is None else [self.method, self.partner]

    def _sides(self) -> dict[str, Side]:
        sides: dict[str, Side] = {}
        for part in self.parts:
            own = part.student_sides()
            assert not own.keys() & sides.keys(), f"two parts name a side {own.keys() & sides}"
            sides |= own
        return sides

    def _predict(self, indices: Indices) -> tuple[Tensor, Tensor]:
        return self.viewer.run(self._folded(self.trainee), indices)

    def _targets(self, indices: Indices) -> Tensor:
        return self.viewer.targets(self.student, indices)

    def _exported(self) -> Student:
        """The student that counts: the moving average if there is one, with what the method folds into it."""
        trainee: Trainee = self.trainee if self.ema is None else self.ema.module
        return self._folded(trainee)

    def _folded(self, trainee: Trainee) -> Student:
        if type(self.method).fold is Method.fold:
            return trainee.student
        student = copy.deepcopy(trainee.student)
        self.method.fold(student, dict(trainee.sides.items()))
        return student

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.train.epochs * self.plan.steps_per_epoch

    def pictures(self, start: int) -> Iterator[Pictures]:
        """Batches from a step to the end of the run, of one loader, so that its processes start once."""
        sizes = {"labelled": self.plan.labelled, "unlabelled": self.plan.unlabelled}
        streams = {
            name: Stream(getattr(self.part, name), seed=self.seed, name=name) if size else None
            for name, size in sizes.items()
        }
        sampler = JointSampler(
            labelled=streams["labelled"],
            unlabelled=streams["unlabelled"],
            picker=self.picker,
            plan=self.plan,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            start=start,
            stop=self.total_steps,
            strong=self.strong,
        )
        dataset = self.data.dataset(
            self.student, changes=Changes(self.config.data), cache=self.viewer.cache
        )
        return load_batches(dataset, sampler, workers=self.config.train.workers)

    def state(self) -> dict[str, Any]:
        """All that training changes, for a checkpoint."""
        scaler = self.accelerator.scaler
        return {
            "trainee": self.trainee.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "parts": [part.state() for part in self.parts],
        }

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """Restore what ``state`` returned."""
        self.trainee.load_state_dict(saved["trainee"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.scheduler.load_state_dict(saved["scheduler"])
        if self.accelerator.scaler is not None and saved["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(saved["ema"])
        for part, state in zip(self.parts, saved["parts"], strict=True):
            part.load_state(state)
