"""Build accelerate's front end for a run."""

import importlib.util
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from distill.config import DistillConfig
from featstore.errors import ConfigError
from featstore.extraction.accelerator import start_accelerator


def make_accelerator(config: DistillConfig, folder: Path | None = None) -> Accelerator:
    """Build accelerate's front end; with a folder, also the trackers of one run.

    Raises:
        ConfigError: a tracker's package is missing (accelerate would continue without it).
    """
    missing = [name for name in config.trackers if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--trackers {' '.join(missing)}: not installed. pip install {' '.join(missing)}, or leave it out; "
            "metrics.jsonl is always written."
        )
    return start_accelerator(
        workers=config.train.workers,
        mixed_precision=config.train.precision,
        gradient_accumulation_steps=config.train.grad_accum,
        log_with=list(config.trackers) or None if folder is not None else None,
        project_config=ProjectConfiguration(
            project_dir=None if folder is None else str(folder),
            logging_dir=None if folder is None else str(folder),
        ),
    )
