"""Quantisation-aware fine-tuning: the run's own method over its own stored features, once more and briefly, with fake
quantisation in the student. What comes out is a plain timm student whose weights bear the steps of int8.
"""

import dataclasses
from pathlib import Path
from typing import Any

from distill.config import DistillConfig
from distill.data.joined import JoinedData
from distill.data.samples import Split
from distill.export.config import FinetuneConfig
from distill.export.fake_quant import attach, plain_weights
from distill.export.finished import FinishedRun
from distill.export.quantise import Setting
from distill.student.files import WEIGHTS
from distill.student.model import Student, build_student
from distill.training import checkpoint, run_folder
from distill.training.launch import make_accelerator
from distill.training.loop import Loop

FOLDER = "qat"


class QuantisedLoop(Loop):
    """The one loop, with a student that computes as if it were quantised."""

    levels = 64

    def _build_student(self) -> Student:
        student = super()._build_student()
        attach(student, levels=self.levels)
        return student

    def _exported(self) -> Student:
        """The plain student with the trained weights; nothing in it is rounded."""
        trained = super()._exported()
        plain = build_student(self.config.student, self.task.num_outputs, seed=self.seed)
        plain.model.load_state_dict(plain_weights(trained.model))
        return plain.to(self.accelerator.device)


class FullRangeLoop(QuantisedLoop):
    """For weights of 8 bits."""

    levels = 127


def finetune_config(
    run: FinishedRun, settings: FinetuneConfig, out: Path, workers: int
) -> DistillConfig:
    """The run's settings, shortened: fewer epochs, a lower learning rate, from the finished student on."""
    config = run.config
    return dataclasses.replace(
        config,
        out=str(out),
        student=dataclasses.replace(
            config.student, pretrained=False, weights=str(run.folder / WEIGHTS)
        ),
        train=dataclasses.replace(
            config.train,
            epochs=settings.epochs,
            lr=config.train.lr * settings.lr_scale,
            warmup_epochs=min(1, settings.epochs - 1),
            finetune_epochs=0,
            ema=0.0,
            keep_best=False,
            patience=0,
            workers=workers,
        ),
        # A partner has phases of its own that a few epochs would not reach.
        partner="none",
        trackers=[],
        report=False,
    )


def finetune(
    run: FinishedRun,
    data: JoinedData,
    part: Split,
    settings: FinetuneConfig,
    *,
    setting: Setting,
    out: Path,
    workers: int,
) -> tuple[Student, dict[str, Any]]:
    """Fine-tune a run's student for int8; resume from a checkpoint if there is one.

    Args:
        data: images of the run, joined to its store.
        setting: of int8; decides the steps of the weights.

    Returns:
        The plain student in eval mode on the CPU, and the record of the short run.

    Raises:
        TrainingDiverged: a term of the loss is not finite.
    """
    config = finetune_config(run, settings, out, workers)
    method, seed = config.methods[0], config.seeds[0]
    folder = run_folder.run_dir(config, method, seed)
    asked = run_folder.contract(config, method, seed, data.fingerprints)
    record = run_folder.read_finished(folder, asked)
    if record is None:
        kind = QuantisedLoop if setting.weights == "int7" else FullRangeLoop
        loop = kind(
            config,
            data,
            data.fit_probe(part, most=config.eval.probe_rows, seed=seed),
            method=method,
            seed=seed,
            accelerator=make_accelerator(config, folder),
            folder=folder,
            asked=asked,
        )
        loop.start(checkpoint.load_checkpoint(folder, asked))
        loop.train()
        record = loop.finish()
    student = build_student(
        dataclasses.replace(config.student, weights=str(folder / WEIGHTS)),
        data.samples.num_classes,
    )
    return student.eval(), record
