"""Parameters, multiply-adds, latency and scores of one untrained student."""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.config import StudentConfig
from distill.data.joined import JoinedData
from distill.data.pictures import load_batches
from distill.data.schedule import Indices, Request
from distill.export import onnx_model, preprocessing, program
from distill.export.latency import count_macs, measure_latency
from distill.export.runtimes import ModelFile
from distill.search.config import SearchConfig
from distill.search.found import Cost
from distill.search.probe import Probe, Trial, initialise, make_probe
from distill.search.scores import SCORES
from distill.student.model import Student, build_student
from distill.tasks import Task
from featstore.errors import ConfigError

ROUNDS = 5
"""Of the latency."""


class Bench:
    """Where students are built, timed and scored.

    Args:
        task: With the joined data.
    """

    def __init__(self, config: SearchConfig, task: Task, device: torch.device) -> None:
        assert isinstance(task.data, JoinedData)
        self.config = config
        self.device = device
        self.data = task.data
        self._task = task
        self._outputs = self.data.samples.num_classes if task.classes else 0
        self._pictures: dict[tuple[int, int], Tensor] = {}

    @cached_property
    def probe(self) -> Probe:
        """The probe batch, kept in the folder of the results."""
        if self.probe_path.exists():
            return Probe.read(self.probe_path)
        probe = make_probe(self._task, self.config)
        probe.write(self.probe_path)
        return probe

    @property
    def probe_path(self) -> Path:
        """File of the probe batch."""
        return Path(self.config.out) / f"probe-{self.key[:12]}.safetensors"

    @cached_property
    def key(self) -> str:
        """Hash of all that decides the probe batch."""
        config = self.config
        values = [
            self.data.fingerprints, config.field, config.grid_field, config.probe.images, config.seed,
            self.data.samples.ids, self._task.name,
            {**dataclasses.asdict(config.data), "cache_mb": 0},
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def build(self, config: StudentConfig, draw: int = 0) -> Student:
        """Build a student with initial weights.

        Raises:
            ConfigError: it cannot be built.
        """
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed * 1000 + draw)
            student = build_student(config, self._outputs)
            initialise(student.model, self.config.probe.init)
        return student

    def cost(self, config: StudentConfig) -> Cost:
        """Parameters and multiply-adds.

        Raises:
            ConfigError: the student cannot be built.
        """
        student = self.build(config)
        macs = count_macs(student.plain().eval(), student.input_size)
        return Cost(student.num_parameters, macs)

    def latency_ms(self, config: StudentConfig) -> float:
        """Median time of one image as ONNX.

        Raises:
            ConfigError: no ONNX form.
        """
        student = self.build(config)
        spec = preprocessing.input_spec(student, baked=False, uint8=False)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / onnx_model.NAME
            path.write_bytes(
                onnx_model.translate(program.trace(student.plain().eval(), spec), spec)
            )
            file = ModelFile("student", "ONNX Runtime", "fp32", path, student.input_size)
            threads = [self.config.limit.threads]
            (timing,) = measure_latency([file], batches=[1], threads=threads, rounds=ROUNDS)
        return timing.median_ms

    def scores(self, config: StudentConfig, macs: int, names: Sequence[str]) -> dict[str, Any]:
        """Scores of a student by name: one for every draw of initial weights, or why there is none.

        Raises:
            ConfigError: the student cannot be built.
        """
        found: dict[str, Any] = {name: [] for name in names}
        for draw in range(self.config.probe.draws):
            student = self.build(config, draw).to(self.device)
            with torch.random.fork_rng():
                torch.manual_seed(draw)  # of dropout
                trial = Trial(student, self._images(student), self.probe, macs)
                for name in names:
                    if isinstance(found[name], list):
                        found[name] = _add(found[name], name, trial)
        return found

    def _images(self, student: Student) -> Tensor:
        """(B, 3, H, W) of the probe batch, normalised as the student has it."""
        size = student.input_size
        if size not in self._pictures:
            places = {sample_id: place for place, sample_id in enumerate(self.data.samples.ids)}
            chosen = np.array([places[item] for item in self.probe.ids])
            self._pictures[size] = self.pictures(student, chosen)
        return self.data.maker(student, self.device).normalise(self._pictures[size])

    def pictures(self, student: Student, chosen: Indices) -> Tensor:
        """The reference views of some samples, as the student's input before normalisation."""
        column = self.data.features.reference
        requests = [Request(int(index), column, 0, False) for index in chosen]
        (pictures,) = load_batches(self.data.dataset(student), [requests], workers=0)
        return pictures.pixels


def _add(before: list[float], name: str, trial: Trial) -> list[float] | str:
    try:
        value = SCORES[name](trial)
    except ConfigError as error:
        return str(error)
    if value != value:
        return f"--score {name}: the score of this student is no number; its activations overflow."
    return [*before, value]
