"""The one loop for all methods, from joined data and the name of a method to an exported, measured student."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object, set_seed

from distill.config import DistillConfig
from distill.data.joined import JoinedData
from distill.data.pictures import Batch, BatchMaker, Pictures
from distill.measures.linear_probe import LinearProbe
from distill.register import resolved
from distill.training import checkpoint, run_folder
from distill.training.best import Best
from distill.training.launch import make_accelerator
from distill.training.optim import (
    OutOfTime,
    TermSums,
    clean_errors,
    ema_warning,
    gradient_norm,
    read_terms,
)
from distill.training.progress import RunProgress
from distill.training.results import FinishHook, TrainedRun, write_results
from distill.training.run_parts import RunParts
from distill.training.run_settings import write_settings
from distill.training.saved_student import load_whole_state, whole_state
from distill.training.step_loss import loss_terms

Callback = Callable[[dict[str, Any]], None]
"""Called in the main process with every line of metrics.jsonl (step, epoch, losses, score) and with the final record;
both also name method and seed."""

CHECKPOINT_S = 5.0
"""At the end of an epoch a checkpoint is written if the one before is older than this, and at the end of the run."""

CHECKPOINT_SHARE = 0.01
"""Largest share of the time that these checkpoints may take: where writing one takes long, fewer are written."""

StepHook = Callable[[int], None]
"""Called with the number of finished optimiser steps, after a checkpoint that is due."""


def run(
    config: DistillConfig,
    data: JoinedData,
    probe: LinearProbe | None,
    *,
    method: str,
    seed: int,
    on_step: StepHook | None = None,
    on_finish: FinishHook | None = None,
    until: float = math.inf,
    chosen_by: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train, export and measure one student; resume from a checkpoint, and skip a finished run.

    Args:
        config: of the whole command, resolved (``tasks.resolve``).
        probe: linear probe on the teacher's features of this seed's labelled part; None without labels.
        method: a key of ``METHODS``.
        on_finish: called once, after the record was written.
        until: time by ``time.monotonic`` at which training writes a checkpoint and ends.
        chosen_by: how the method was chosen (``--methods '[auto]'``), for the record.
        callbacks: functions to call while it trains; what one raises ends the run, which can be resumed.

    Returns:
        The record that is also written to run.json.

    Raises:
        ConfigError: the folder belongs to a run with other settings, or settings that do not fit the data.
        TrainingDiverged: a loss term is not finite; names epoch, step and term.
        MissingSamples: an image changed since the store was written.
    """
    folder = run_folder.run_dir(config, method, seed)
    asked = run_folder.contract(config, method, seed, data.fingerprints)
    finished = run_folder.read_finished(folder, asked)
    if finished is not None:
        return {**finished, "skipped": True}
    accelerator = make_accelerator(config, folder)
    # Locked before the checkpoint is read: another process may be about to replace it.
    with run_folder.lock(
        folder / ".lock", str(folder.absolute()), enabled=accelerator.is_main_process
    ):
        saved = checkpoint.load_checkpoint(folder, asked)
        if (
            saved is not None
            and run_folder.LISTS in asked
            and run_folder.LISTS not in saved["contract"]
        ):
            accelerator.print(
                f"note: {folder}: begun by an older version, which did not record the lists of ids that --data names; "
                "whether they changed since is not known"
            )
        loop = Loop(
            config,
            data,
            probe,
            method=method,
            seed=seed,
            accelerator=accelerator,
            folder=folder,
            asked=asked,
            callbacks=callbacks,
        )
        loop.start(saved)
        try:
            loop.train(on_step, until=until)
            return loop.finish(on_finish, chosen_by)
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
            accelerator.free_memory()


class Loop(RunParts):
    """One run in memory. ``start``, ``train`` and ``finish`` are called once, in this order."""

    def __init__(
        self,
        config: DistillConfig,
        data: JoinedData,
        probe: LinearProbe | None,
        *,
        method: str,
        seed: int,
        accelerator: Accelerator,
        folder: Path,
        asked: run_folder.Contract,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        super().__init__(config, data, probe, method=method, seed=seed, accelerator=accelerator)
        self.folder, self.contract = folder, asked
        self.callbacks = callbacks if accelerator.is_main_process else ()
        self.meter = TermSums()
        self.measure = self.task.measures[0]
        self.best = Best(self.measure, config.train.patience)
        self._warned: set[str] = set()
        self.step = 0
        self.seconds = 0.0
        self.log = run_folder.MetricsLog(folder / "metrics.jsonl", enabled=False)

    def start(self, saved: dict[str, Any] | None) -> None:
        """Write the resolved settings, open the logs, and take back a checkpoint if there is one."""
        device = self.accelerator.device
        set_seed(self.seed, device_specific=True)
        if saved is not None:
            self._restore(saved)
        main = self.accelerator.is_main_process
        if main:
            write_settings(
                self.folder,
                resolved(
                    dataclasses.replace(self.config, methods=[self.method_name], seeds=[self.seed])
                ),
            )
        self.log = run_folder.MetricsLog(
            self.folder / "metrics.jsonl",
            keep=saved["lines"] if saved else 0,
            sha256=saved.get("lines_sha256", "") if saved else "",
            enabled=main,
        )
        for note in self.log.notes:
            self.accelerator.print(f"warning: {note}")
        name = f"{self.name}-seed{self.seed}"
        self.accelerator.init_trackers(
            "distill",
            init_kwargs={
                "wandb": {"name": name, "dir": str(self.folder)},
                "mlflow": {"run_name": name},
            },
        )
        self.scheduler.step_update(self.step)
        if warning := ema_warning(self.config.train.ema, self.total_steps):
            self.student.notes.append(warning)
            self.accelerator.print(f"warning: {self.name} seed {self.seed}: {warning}")
        if saved is not None:
            states = saved["rng"]
            rank = self.accelerator.process_index
            if rank < len(
                states
            ):  # with more processes than before, the new ones keep their fresh state
                checkpoint.set_rng_state(states[rank], device)

    def train(self, on_step: StepHook | None = None, *, until: float = math.inf) -> None:
        """Train to the end. Trained here: the trainee (student and its projections). Methods train the rest.

        Raises:
            OutOfTime: ``--train.time_limit`` is over; the same command resumes.
        """
        began = time.monotonic() - self.seconds
        self._due = time.monotonic() + CHECKPOINT_S
        pictures = self.pictures(self.step)
        maker = self.data.stored_maker(
            self.student,
            self.accelerator.device,
            vector=self.needs.vector,
            grid=self.needs.grid,
            fields=self.needs.fields,
        )
        images = (self.plan.labelled + self.plan.unlabelled) * self.plan.pieces
        per_epoch = self.plan.steps_per_epoch
        self.model.train()
        self.progress = RunProgress(
            f"{self.name} seed {self.seed}",
            step=self.step,
            steps=self.total_steps,
            images=images,
            enabled=self.accelerator.is_main_process,
        )
        with self.progress:
            while self.step < self.total_steps and not self.best.over:
                epoch = self.step // per_epoch
                if self.step % per_epoch == 0:
                    self._begin_epoch(epoch)
                loss = self._one_step(pictures, maker, epoch)
                self.progress.update(self.step, loss)
                ends = self.step % per_epoch == 0
                if ends or self.step % self.config.train.log_every == 0:
                    self._log(self.meter.means(self.accelerator), epoch)
                if ends:
                    self._end_epoch(epoch)
                every = self.config.train.checkpoint_every
                self.seconds = time.monotonic() - began
                over = until < math.inf and self.step < self.total_steps and self._is_over(until)
                if over or (every and self.step % every == 0) or (ends and self._is_due()):
                    self._save()
                if on_step is not None:
                    on_step(self.step)
                if over:
                    raise OutOfTime(
                        f"{self.name} seed {self.seed}: --train.time_limit {self.config.train.time_limit:g} minutes "
                        f"are over at step {self.step} of {self.total_steps}; the checkpoint is written. Run the same "
                        "command again to resume."
                    )

    def _is_over(self, until: float) -> bool:
        """Whether a time has come by the clock of the main process, which all processes follow."""
        over = torch.tensor(float(time.monotonic() >= until), device=self.accelerator.device)
        return bool(broadcast(over))

    def _is_due(self) -> bool:
        """Whether the end of an epoch is worth a checkpoint: the last one, or some seconds after the one before."""
        return self.step == self.total_steps or self.best.over or self._is_over(self._due)

    def _one_step(self, pictures: Iterator[Pictures], maker: BatchMaker, epoch: int) -> float:
        """One optimiser step over all its pieces. Returns the loss of this process's last piece."""
        loss = 0.0
        for _ in range(self.config.train.grad_accum):
            batch: Batch = maker(next(pictures))
            with self.accelerator.accumulate(self.model), clean_errors():
                terms = loss_terms(self, batch, epoch)
                total = torch.stack(list(terms.values())).sum()
                self.accelerator.backward(total)
                norm = None
                if self.accelerator.sync_gradients:
                    norm = gradient_norm(
                        self.accelerator, self.parameters, self.config.train.clip_grad
                    )
                where = f"{self.name} seed {self.seed}, epoch {epoch}, step {self.step}"
                values = read_terms(terms, norm, where=where)
                # The mean over the pieces of a step then gives the norm of the step.
                norm_sum = values.pop("grad_norm", 0.0) * self.config.train.grad_accum
                loss = sum(values.values())
                values["grad_norm"] = norm_sum
                if self.partner is not None:
                    # Without a gradient, an optimiser neither moves nor decays a parameter.
                    for parameter in self.partner.frozen(epoch, self.student):
                        parameter.grad = None
                if self.accelerator.sync_gradients:
                    # accelerate's wrapper looks for a package on disk at every step: 1 ms.
                    optimiser = self.optimiser if self.accelerator.scaler is None else self.prepared
                    optimiser.step()
                    optimiser.zero_grad()
            self.meter.add(values)
        self.step += 1
        self.scheduler.step_update(self.step)
        if self.ema is not None:
            self.ema.update(self.trainee, step=self.step)
        return loss

    def _begin_epoch(self, epoch: int) -> None:
        numbers: dict[str, float] = {}
        for part in self.parts:
            numbers |= part.begin_epoch(epoch, self.student)
            for module in part.owned():
                # All processes did the same work; this removes what different hardware may have made of it.
                for tensor in module.state_dict().values():
                    broadcast(tensor)
        if numbers:
            self._log(numbers, epoch)

    def _end_epoch(self, epoch: int) -> None:
        numbers: dict[str, float] = {}
        warnings: dict[str, str] = {}
        for part in self.parts:
            numbers |= part.end_epoch(epoch)
            warnings |= part.warnings()
        keep_best = self.config.train.keep_best
        every = self.config.eval.every or self.task.every or int(keep_best)
        due = bool(every) and (epoch + 1) % every == 0
        # After the last epoch everything is measured anyway.
        if due and (keep_best or self.step < self.total_steps):
            numbers[f"test_{self.measure.name}"] = self._measure(keep_best=keep_best)
        if numbers:
            self._log(numbers, epoch)
        for kind, text in warnings.items():
            self.log.write({"step": self.step, "epoch": epoch, "warning": text})
            if kind not in self._warned:
                self._warned.add(kind)
                self.accelerator.print(
                    f"warning: {self.name} seed {self.seed}, epoch {epoch}: {text}"
                )

    def _measure(self, *, keep_best: bool) -> float:
        student = self._exported()
        value = self.task.score(self.viewer, student, self.part)
        if keep_best:
            better = self.best.is_better(value)
            weights = whole_state(student) if better else None
            self.best.update(value, self.step, weights)
        self.progress.score = f"{self.measure.label} {self.measure.text(value)}"
        if self.task.every:
            epoch = self.step // self.plan.steps_per_epoch
            self.accelerator.print(
                f"  {self.name} seed {self.seed}, epoch {epoch} of {self.config.train.epochs}: {self.progress.score}"
            )
        return value

    def _log(self, numbers: dict[str, float], epoch: int) -> None:
        if any(name.startswith("loss/") for name in numbers):
            numbers = {**numbers, "lr": self.optimiser.param_groups[0]["lr"]}
        line = {"step": self.step, "epoch": epoch, **numbers}
        self.log.write(line)
        self.accelerator.log(numbers, step=self.step)
        self._call({"method": self.name, "seed": self.seed, **line})

    def _call(self, values: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback(dict(values))

    def _save(self) -> None:
        began = time.monotonic()
        self._write_checkpoint()
        now = time.monotonic()
        self._due = now + max(CHECKPOINT_S, (now - began) / CHECKPOINT_SHARE)

    def _write_checkpoint(self) -> None:
        states = gather_object([checkpoint.rng_state(self.accelerator.device)])
        if not self.accelerator.is_main_process:
            return
        per_epoch = self.plan.steps_per_epoch
        checkpoint.save(
            self.folder,
            self.contract,
            {
                "epoch": self.step // per_epoch,
                "stage": 1 if self.step % per_epoch == 0 else 2,
                "step": self.step,
                "lines": self.log.lines,
                "lines_sha256": self.log.sha256,
                "seconds": self.seconds,
                **self.state(),
                "meter": dataclasses.asdict(self.meter),
                "best": self.best.state(),
                "rng": states,
            },
        )

    def _restore(self, saved: dict[str, Any]) -> None:
        self.load_state(saved)
        self.meter = TermSums(**saved["meter"])
        self.best.load_state(saved.get("best", {}))
        self.step, self.seconds = saved["step"], saved["seconds"]
        if saved[checkpoint.UNCHECKED]:
            self.accelerator.print(
                f"note: {self.name} seed {self.seed}: the checkpoint was written by an older version, without a "
                "checksum: damage cannot be detected"
            )
        self.accelerator.print(
            f"{self.name} seed {self.seed}: resumes at step {self.step} of "
            f"{self.total_steps} (epoch {saved['epoch']})"
        )

    def _teacher_images(self) -> int:
        """How often a step looked at what is stored of an image; a live teacher would have run as often."""
        looks = bool(self.needs.vector or self.needs.grid or self.needs.fields)
        return self.step * (self.plan.labelled + self.plan.unlabelled) * self.plan.pieces * looks

    def _record(
        self, result: dict[str, Any], chosen_by: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """The content of run.json."""
        return {
            "method": self.name,
            "seed": self.seed,
            **self.task.record(result),
            "seconds": round(self.seconds, 2),
            "steps": self.step,
            **({"best_step": self.best.step} if self.best.weights is not None else {}),
            "num_labelled": len(self.part.labelled),
            "num_unlabelled": len(self.part.unlabelled),
            "num_test": len(self.part.test),
            "num_processes": self.accelerator.num_processes,
            "teacher_images": self._teacher_images(),
            "notes": self.student.notes
            + self.part.notes
            + ([chosen_by["why"]] if chosen_by else []),
            **({"auto": dict(chosen_by)} if chosen_by else {}),
            **run_folder.environment(),
            "contract_sha256": run_folder.contract_hash(self.contract),
            "contract": self.contract,
        }

    def finish(
        self, on_finish: FinishHook | None = None, chosen_by: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Export the student, measure it, and write the record that marks the run as finished."""
        student = self._exported()
        if self.best.weights is not None:
            load_whole_state(student, self.best.weights)
        student, head = self.task.finished(student)
        measured = self.task.measure(
            self.viewer, student, self.part, seed=self.seed, probe=self.probe
        )
        if head is not None:
            measured = dataclasses.replace(measured, head=head)
        record = self._record(measured.result, chosen_by)
        if self.accelerator.is_main_process:
            record = write_results(
                self.folder,
                student,
                measured,
                task=self.task,
                config=self.config.student,
                record=record,
            )
            if on_finish is not None:
                on_finish(
                    TrainedRun(
                        self.folder,
                        self.data,
                        self.part.test,
                        measured,
                        self.method.customiser(),
                        self.accelerator.device,
                    )
                )
        self.accelerator.wait_for_everyone()
        self._call(record)
        return record
