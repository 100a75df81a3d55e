"""Pseudo-samples: pictures that are drawn from a record when they are read; nothing but their ids is kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from featstore.errors import ConfigError, SourceError
from featstore.format.pseudo_samples import ALL, NAME, PseudoSamples
from featstore.sources.base import NO_LABEL, Source
from featstore.sources.config import SourceConfig

MOST_BYTES = 2**31  # largest record that is read


class SyntheticSource(Source):
    """Pictures of a record, by id.

    Args:
        record: that they are drawn from.
        sample_ids: of the record, see ``PseudoSamples.id_of``.
        uri: where the record is.

    Raises:
        ConfigError: an id is not one of the record's.
    """

    kind = "synthetic"

    def __init__(self, record: PseudoSamples, sample_ids: Sequence[str], uri: str) -> None:
        self.uri = uri
        # Noise with classes is the start of a diffusion process, which no other size can be made of.
        self.fixed_size = record.size if record.kind == "noise" and record.classes else None
        self.sample_ids = sample_ids
        self._record = record
        number = {name: index for index, name in enumerate(record.classes)}
        labels = [number.get(record.parse(name)[0], NO_LABEL) for name in sample_ids]
        if number:
            self.class_names, self.labels = record.classes, np.array(labels, np.int64)

    def read(self, row: int) -> bytes:
        """Draw one picture."""
        return self._record.draw(self.sample_ids[row])


def open_record(config: SourceConfig) -> SyntheticSource:
    """The pseudo-samples that the settings ask for: of every class, a range of seeds.

    Raises:
        SourceError: the file cannot be read, or is no record.
    """
    record, data = read_record(Path(config.path))
    seeds = range(config.first_seed, config.first_seed + config.samples)
    ids = [record.id_of(name, seed) for name in record.classes or (ALL,) for seed in seeds]
    source = SyntheticSource(record, ids, config.path)
    source.artefacts = {NAME: (record.meaning, data)}
    return source


def read_record(path: Path) -> tuple[PseudoSamples, bytes]:
    """A record and the bytes of its file. Raises SourceError: the file cannot be read, or is no record."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SourceError(f"{path}: larger than the {MOST_BYTES:,} bytes that are read.")
        data = path.read_bytes()
        return PseudoSamples.from_tensors(load(data)), data
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except (ConfigError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{path}: {error} Write one with: featstore statistics IMAGES FILE"
        ) from None
