"""Align a teacher to a student's preferences: DPO by TRL, with the stored log-probabilities as reference."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import featstore
from distill.preferences.candidates import LOGP, fill, read_candidates
from distill.preferences.config import DpoConfig
from distill.preferences.language_models import INSTALL, LanguageModel
from distill.preferences.pairs import PreferencePair
from featstore.errors import ConfigError, ManifestMismatch
from featstore.files.atomic import write_json

RECORD = "prefer.json"


def check_trl() -> None:
    """Refuse to start where TRL is missing."""
    from importlib.util import find_spec

    if find_spec("trl") is None:
        raise ConfigError(f"--align_to needs TRL, which is not installed. {INSTALL}")


def align(
    store: featstore.FeatureStore, pairs: Sequence[PreferencePair], teacher: LanguageModel, out: Path, *, prompt: str,
    settings: DpoConfig,
) -> dict[str, Any]:  # fmt: skip
    """Train the teacher on preference pairs and write it to ``out``; a finished one is not trained again.

    The model is trained in memory and written whole: a run that was stopped starts the training again.

    Args:
        store: Candidates with ``logp`` of this teacher.
        teacher: Trained in place.
        prompt: Plain prompt that the log-probabilities were computed with.

    Returns:
        The record: settings, number of pairs, and the last values of TRL's log.

    Raises:
        ManifestMismatch: The stored log-probabilities are those of other weights.
        ConfigError: ``out`` was written with other settings.
    """
    contract = {
        "candidates": store.fingerprint,
        "pairs": [list(pair) for pair in pairs],
        "prompt": prompt,
    }
    contract |= dataclasses.asdict(settings)
    if (out / RECORD).exists():
        return _finished(out, contract)
    if out.exists():
        raise ConfigError(
            f"{out}: exists, and holds no {RECORD} of an aligned teacher. Choose another --out, or delete it."
        )
    _check_weights(store, teacher)
    trainer = _trainer(_dataset(store, pairs, prompt), teacher, settings)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    record = {"contract": contract, "num_pairs": len(pairs), "first": log[0], "last": log[-1]}
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    trainer.model.save_pretrained(partial)
    teacher.tokenizer.save_pretrained(partial)
    write_json(partial / RECORD, record)
    partial.rename(out)
    return record


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object that an earlier run wrote."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path}: is damaged, expected a JSON object. Restore it, or delete {path.parent} and run again."
        )
    return found


def _finished(out: Path, contract: dict[str, Any]) -> dict[str, Any]:
    record = read_record(out / RECORD)
    found = record.get("contract", {})
    differing = [key for key, value in contract.items() if found.get(key) != value]
    if differing:
        raise ConfigError(
            f"{out}: was aligned with other settings ({', '.join(differing)}). Choose another --out, or delete it."
        )
    return record


def _check_weights(store: featstore.FeatureStore, teacher: LanguageModel) -> None:
    manifest = store.manifest
    stored = manifest.teachers[manifest.fields[LOGP].teacher].weights_sha256
    if stored != teacher.weights_sha256:
        raise ManifestMismatch(
            f"{store.path}: {LOGP} is of weights {stored[:12]}.., --teacher {teacher.name} has "
            f"{teacher.weights_sha256[:12]}..; the reference of DPO must be the teacher itself. Give the teacher that "
            "the store was made with, or store its candidates anew (another --out)."
        )


def _dataset(store: featstore.FeatureStore, pairs: Sequence[PreferencePair], prompt: str) -> Any:
    from datasets import Dataset

    rows = list(read_candidates(store))
    logps = store.gather(LOGP, range(store.num_rows)).reshape(-1).tolist()
    return Dataset.from_list(
        [
            {
                "prompt": fill(prompt, rows[pair.chosen]["question"]),
                "chosen": rows[pair.chosen]["rationale"],
                "rejected": rows[pair.rejected]["rationale"],
                "ref_chosen_logps": logps[pair.chosen],
                "ref_rejected_logps": logps[pair.rejected],
            }
            for pair in pairs
        ]
    )


def _trainer(data: Any, teacher: LanguageModel, settings: DpoConfig) -> Any:
    import tempfile

    import torch
    from trl import DPOConfig, DPOTrainer

    class StoredReference(DPOTrainer):
        """The reference log-probabilities are columns of the data already, so no reference model is run."""

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            return dataset

    steps = -(-len(data) // settings.batch) * settings.epochs
    arguments = DPOConfig(
        output_dir=tempfile.gettempdir(),
        beta=settings.beta,
        learning_rate=settings.lr,
        per_device_train_batch_size=settings.batch,
        num_train_epochs=settings.epochs,
        warmup_steps=round(settings.warmup * steps),
        lr_scheduler_type="cosine",
        seed=settings.seed,
        precompute_ref_log_probs=True,
        max_length=None,
        bf16=False,
        gradient_checkpointing=None,  # type: ignore[arg-type]  # TRL switches it on by a name that transformers warns of
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
    )
    return StoredReference(
        model=teacher.model, args=arguments, train_dataset=data, processing_class=teacher.tokenizer
    )
