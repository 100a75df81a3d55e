"""``--methods '[auto]'``: choose a method and its weights on held-out training images, by successive halving.

Round 1 trains every candidate for a short time; the best third is trained again in round 2, for longer; the best of
these is chosen. Each round gets half of the budget. The test part is not looked at.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from distill.config import DistillConfig
from distill.data.joined import JoinedData
from distill.data.schedule import make_epoch_plan
from distill.experiments.auto_record import AutoRecord, Round
from distill.experiments.candidates import WITH_LABELS, WITHOUT_LABELS, AutoMethod
from distill.experiments.tune import Try, rank
from distill.measures.score import score_of
from distill.methods import METHODS, Needs
from distill.register import AUTO, options_of
from distill.tasks import build_task
from distill.training import loop, run_folder
from distill.training.optim import TrainingDiverged
from featstore.errors import ConfigError

SHARE, SHARE_WITHOUT_LABELS = 0.2, 0.05
"""Held-out share of the training images: of every class; of all."""
ENOUGH, MOST_FOLDS = 200, 3  # with fewer held-out images than this, round 2 trains on several folds
KEPT = 3  # one of so many candidates is kept for round 2
SHORTEST = 10  # fewest optimiser steps of a run that is compared
RUNS = 6  # default budget, in runs of full length
TRIAL = 20  # steps of the run that measures the speed, for a budget in time

Say = Callable[[str], None]


def choose_candidate(
    config: DistillConfig,
    data: JoinedData,
    accelerator: Accelerator,
    *,
    until: float = math.inf,
    say: Say = print,
) -> tuple[DistillConfig, dict[str, Any]]:
    """Try the candidates of the task and choose one. Resumes what was begun; every process chooses the same.

    Args:
        until: Time by ``time.monotonic`` at which training ends.

    Returns:
        The settings with the chosen method and its options, and what run.json holds of the choice.

    Raises:
        ConfigError: No image can be held out, the budget is too small, or no candidate can be trained.
        OutOfTime: ``--train.time_limit`` is over.
    """
    folder = Path(config.out) / AUTO
    main = accelerator.is_main_process
    with run_folder.lock(folder / ".lock", str(folder.absolute()), enabled=main):
        search = _Search(config, data, accelerator, until=until, say=say)
        going_on = search.round(0, search.candidates, search.seeds[:1])
        last = search.round(1, going_on[: -(-len(going_on) // KEPT)], search.seeds)
        return last[0].applied(config), search.finish(last[0])


class _Search:
    """Rounds over candidates, with what was measured so far."""

    def __init__(
        self,
        config: DistillConfig,
        data: JoinedData,
        accelerator: Accelerator,
        *,
        until: float,
        say: Say,
    ) -> None:
        self.accelerator, self.until, self.say = accelerator, until, say
        self.config = settings_of_tries(config)
        self.data = dataclasses.replace(data, settings=self.config.data)
        self.task = build_task(self.config, self.data)
        self.candidates = [
            item
            for item in (WITH_LABELS if self.task.supervised else WITHOUT_LABELS)
            if self.task.fits(self._needs(item))
        ]
        if not self.candidates:
            raise ConfigError(
                f"--methods '[auto]': no candidate fits --task {config.task}. Name a method: --methods '[fitnet]'."
            )
        part = self.task.split(config.seeds[0], measured="validation")
        folds = min(MOST_FOLDS, -(-ENOUGH // len(part.test))) if self.task.supervised else 1
        self.seeds = [config.seeds[0] + fold for fold in range(folds)]
        self.per_epoch = make_epoch_plan(
            config.train,
            num_labelled=len(part.labelled),
            num_unlabelled=len(part.unlabelled),
            use_unlabelled=True,
            processes=accelerator.num_processes,
        ).steps_per_epoch
        self.full = self.per_epoch * config.train.epochs
        self.record: AutoRecord = self._same(
            AutoRecord.read(Path(config.out), config.auto.budget, len(part.test), self.task.measures[0])
        )  # fmt: skip
        say(
            f"auto      {len(self.candidates)} candidates, compared on {len(part.test):,} images that are held out of "
            "training"
        )

    def _needs(self, candidate: AutoMethod) -> Needs:
        options = options_of(candidate.applied(self.config), candidate.method)
        return METHODS[candidate.method].needs(options)

    def _same(self, value: Any) -> Any:
        """The value of the main process, on every process."""
        values = [value]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(values)
        return values[0]

    def round(
        self, number: int, candidates: Sequence[AutoMethod], seeds: Sequence[int]
    ) -> list[AutoMethod]:
        """Train the candidates. Returns those that could be trained, the best first."""
        steps = self._steps(number, len(candidates) * len(seeds))
        found = self.record.rounds[number]
        folds = f" on each of {len(seeds)} folds" if len(seeds) > 1 else ""
        self.say(f"  round {number + 1}: {len(candidates)} candidates, {steps:,} steps{folds}")
        for item in candidates:
            config = self._config(item, f"round{number + 1}-{steps}", steps)
            tried = found.known(item.name, [self._key(config, seed) for seed in seeds])
            if tried is None:
                tried = self._try(item, config, seeds)
                found.tries[item.name] = tried
                self._write()
            shown = tried.error or f"{self.record.measure.label} {self.record.text(tried)}"
            self.say(f"    {item.name:<20} {shown}")
        ranked = sorted(
            candidates, key=lambda item: -rank(self.record.measure, found.tries[item.name])
        )
        trained = [item for item in ranked if found.tries[item.name].scores]
        if not trained:
            first = candidates[0].name
            raise ConfigError(
                f"--methods '[auto]': no candidate could be trained; {first}: {found.tries[first].error}"
            )
        return trained

    def _steps(self, number: int, runs: int) -> int:
        """Optimiser steps of every run of a round; decided once, when the round begins."""
        if len(self.record.rounds) > number:
            return self.record.rounds[number].steps
        budget = self.config.auto
        if budget.seconds:
            per_step, rest = self._speed()
            left = (budget.seconds - self.record.seconds) / (2 - number)
            steps = int((left / runs - rest) / per_step)
            if number:  # a time budget that round 1 used up must not end without a choice
                steps = max(steps, self.record.rounds[0].steps)
        else:
            steps = (budget.steps or RUNS * self.full) // 2 // runs
        steps = self._same(min(steps, self.full))
        if steps < min(SHORTEST, self.full):
            raise ConfigError(
                f"--auto.budget {budget.budget}: leaves {max(0, steps)} optimiser steps for each of the {runs} runs of "
                f"round {number + 1}; expected at least {SHORTEST}. Give more: --auto.budget {RUNS * self.full} is "
                f"{RUNS} runs of full length."
            )
        self.record.rounds.append(Round(steps))
        self._write()
        return int(steps)

    def _speed(self) -> tuple[float, float]:
        """Seconds of one step, and of everything else in a run, measured on the candidate with most terms."""
        if self.record.speed is None:
            steps = min(TRIAL, self.full)
            began = time.monotonic()
            trained = self._train(self._config(self.candidates[-1], "speed", steps), self.seeds[0])
            whole = time.monotonic() - began
            self.record.seconds += whole
            seconds = trained["seconds"]
            self.record.speed = self._same((seconds / trained["steps"], max(0.0, whole - seconds)))
        return self.record.speed

    def _config(self, item: AutoMethod, folder: str, steps: int) -> DistillConfig:
        config = item.applied(self.config)
        train = shortened(config, steps, self.per_epoch)
        return dataclasses.replace(
            config, out=str(Path(self.config.out) / AUTO / folder / item.name), train=train
        )

    def _key(self, config: DistillConfig, seed: int) -> str:
        (method,) = config.methods
        contract = run_folder.contract(config, method, seed, self.data.fingerprints)
        return run_folder.contract_hash(contract)

    def _try(self, item: AutoMethod, config: DistillConfig, seeds: Sequence[int]) -> Try:
        """Train and measure one candidate on every fold."""
        keys = [self._key(config, seed) for seed in seeds]
        began = time.monotonic()
        scores: list[float] = []
        error = ""
        try:
            scores = [score_of(self._train(config, seed))[1] for seed in seeds]
        except (TrainingDiverged, ConfigError) as raised:
            if self.accelerator.num_processes > 1 or _begun(config, seeds, raised):
                raise  # another process may not have failed; or the folder holds other settings
            error = f"left out: {raised}"
        self.record.seconds += time.monotonic() - began
        return Try(item.settings, scores, keys, error)

    def _train(self, config: DistillConfig, seed: int) -> dict[str, Any]:
        (method,) = config.methods
        probe = self.task.probe(self.task.split(seed, measured="validation"), seed)
        return loop.run(config, self.data, probe, method=method, seed=seed, until=self.until)

    def _write(self) -> None:
        if self.accelerator.is_main_process:
            self.record.write(Path(self.config.out))

    def finish(self, chosen: AutoMethod) -> dict[str, Any]:
        """Write and print the choice. Returns what run.json holds of it."""
        self.record.chosen = chosen.name
        self._write()
        self.say(self.record.why())
        return self.record.summary()


def _begun(config: DistillConfig, seeds: Sequence[int], error: Exception) -> bool:
    """Whether an error is about files that lie in a run's folder, not about its method."""
    (method,) = config.methods
    folders = [run_folder.run_dir(config, method, seed) for seed in seeds]
    return not isinstance(error, TrainingDiverged) and any(
        (folder / name).exists()
        for folder in folders
        for name in ("run.json", run_folder.CHECKPOINT_NAME)
    )


def settings_of_tries(config: DistillConfig) -> DistillConfig:
    """Settings of a command whose runs are measured on held-out training images; only their labels are used."""
    draw = config.seeds[0] if config.data.label_seed < 0 else config.data.label_seed
    data = dataclasses.replace(config.data, label_seed=draw)
    if not data.validation:
        share = SHARE_WITHOUT_LABELS if config.task == "none" else SHARE
        data = dataclasses.replace(data, validation_share=share)
    evaluation = dataclasses.replace(
        config.eval, part="validation", every=config.train.epochs, corruptions=[]
    )
    return dataclasses.replace(config, data=data, eval=evaluation, trackers=[], report=False)


def shortened(config: DistillConfig, steps: int, per_epoch: int) -> Any:
    """Settings of training for so many steps: fewer epochs, and below two of them shorter ones.

    Args:
        config: Settings of a run of full length.
        steps: At most those of the full length; rounded down to whole epochs.
    """
    train = config.train
    epochs = min(train.epochs, max(2, steps // per_epoch))
    return dataclasses.replace(
        train,
        epochs=epochs,
        epoch_steps=0 if steps >= epochs * per_epoch else max(1, steps // epochs),
        warmup_epochs=min(train.warmup_epochs, epochs // 3),
        finetune_epochs=train.finetune_epochs * epochs // train.epochs,
        keep_best=False,
        patience=0,
    )
