"""Sources of images, texts and point clouds, as ids and undecoded bytes. ``open_source`` opens one by its kind."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from featstore.errors import ConfigError, SourceError, shorten
from featstore.format.ids import check_sample_ids
from featstore.format.manifest_records import WorkRecord
from featstore.sources.base import NO_LABEL, Source, matches
from featstore.sources.config import SourceConfig, is_parquet
from featstore.sources.digits import DigitsSource
from featstore.sources.folder import FolderSource, PointsSource
from featstore.sources.hf import HFSource
from featstore.sources.label_file import apply_labels
from featstore.sources.parquet import ParquetSource
from featstore.sources.synthetic import open_record
from featstore.sources.tars import TarSource
from featstore.sources.text import TextSource

__all__ = ["NO_LABEL", "Source", "SourcePart", "mirror_work", "open_source", "select"]

KINDS: dict[str, Callable[[SourceConfig], Source]] = {
    "digits": lambda config: DigitsSource(),
    "folder": lambda config: FolderSource(config.path, labels_from=config.labels_from),
    "hf": lambda config: _hf_source(config),
    "synthetic": open_record,
    "tars": lambda config: TarSource(
        config.path, allow_cut_tars=config.allow_cut_tars, image_member=config.image_member
    ),
    "text": TextSource,
    "points": lambda config: PointsSource(config.path, labels_from=config.labels_from),
}


def open_source(config: SourceConfig) -> Source:
    """List the samples of a source and take those that match ``config.include``, in order.

    Raises:
        SourceError: nothing there, nothing matches, or the ids are not unique text.
    """
    if config.kind not in KINDS:
        raise ConfigError(
            f"--source.kind {config.kind}: the copies in a store are for phase two (distill). Name original images."
        )
    return select_samples(KINDS[config.kind](config), config)


def _hf_source(config: SourceConfig) -> Source:
    columns = {"image_column": config.image_column, "label_column": config.label_column}
    if is_parquet(config.path):
        return ParquetSource(config.path, cache_gb=config.cache_gb, **columns)
    return HFSource(config.path, **columns)


def select_samples(source: Source, config: SourceConfig) -> Source:
    """Check the ids of a source, apply a label file, and take the samples that match ``config.include``.

    Raises:
        SourceError: nothing matches, or the ids are not unique text.
        ConfigError: the classes that are named are none of those that were found.
    """
    check_sample_ids(source.sample_ids, where=source.uri)
    if config.labels:
        apply_labels(source, Path(config.labels))
    if config.classes:
        _number_classes(source, config.classes)
    if "*" in config.include:
        return source
    rows = [
        row for row, sample_id in enumerate(source.sample_ids) if matches(sample_id, config.include)
    ]
    if not rows:
        patterns = " ".join(repr(pattern) for pattern in config.include)
        raise SourceError(
            f"{source.uri}: none of {len(source):,} samples matches --source.include {patterns}. "
            f"Ids look like: {shorten(_spread(source.sample_ids))}. "
            "A pattern must match the whole id; '*' also spans slashes."
        )
    return source if len(rows) == len(source) else SourcePart(source, rows)


def _number_classes(source: Source, classes: Sequence[str]) -> None:
    """Number the labels of a source by the names that the user gave."""
    found, number = source.class_names, {name: index for index, name in enumerate(classes)}
    if source.labels is None or not number.keys() & set(found):
        raise ConfigError(
            f"--source.classes {shorten(list(classes))}: {source.uri} has no image with one of these labels; its "
            f"classes: {shorten(list(found)) or 'none'}."
        )
    # The last place is that of NO_LABEL.
    table = np.array([*(number.get(name, NO_LABEL) for name in found), NO_LABEL], dtype=np.int64)
    labels = table[source.labels]
    lost = int(((labels == NO_LABEL) & (source.labels != NO_LABEL)).sum())
    if lost:
        others = [name for name in found if name not in number]
        source.notes = [
            *source.notes,
            f"{lost} images of classes that --source.classes does not name have no label: {shorten(others)}",
        ]
    source.labels, source.class_names = labels, tuple(classes)


def mirror_work(source: Source, *, batch_size: int) -> WorkRecord:
    """Cut the work as the images are cut: one shard per tar, of the same name and with the same keys.

    For stores with ``container="webdataset"``, which can then be streamed in step with the image tars.
    """
    if not source.tars:
        raise ConfigError(
            f"{source.uri}: shards can mirror tars of images only; this source is {source.kind!r}. "
            "Give the images with --source.kind tars, or do not mirror shards."
        )
    sizes = tuple(count for _, count in source.tars)
    return WorkRecord(
        shard_rows=max(sizes),
        batch_size=batch_size,
        shard_sizes=sizes,
        shard_names=tuple(name for name, _ in source.tars),
    )


class SourcePart(Source):
    """Some rows of another source. Classes are not renumbered.

    Args:
        rows: of it. Where those of a tar do not follow each other, there are no tars any more.
    """

    def __init__(self, whole: Source, rows: Sequence[int]) -> None:
        self.kind = whole.kind
        self.uri = whole.uri
        self.class_names = whole.class_names
        self.labels_refused = whole.labels_refused
        self.notes = list(whole.notes)
        self.sample_ids = [whole.sample_ids[row] for row in rows]
        self._whole = whole
        self._rows = np.asarray(rows, dtype=np.int64)
        self.artefacts = whole.artefacts
        self.languages = [whole.languages[row] for row in rows] if whole.languages else ()
        self.pairs = [whole.pairs[row] for row in rows] if whole.pairs else ()
        self.images = [whole.images[row] for row in rows] if whole.images else ()
        if whole.tars:
            ends = np.cumsum([count for _, count in whole.tars])
            of = np.searchsorted(ends, self._rows, side="right")
            starts = np.flatnonzero(np.diff(of, prepend=-1))
            if len(np.unique(of[starts])) == len(starts):
                counts = np.diff(starts, append=len(of)).tolist()
                names = [whole.tars[tar][0] for tar in of[starts].tolist()]
                self.tars = list(zip(names, counts, strict=True))
        if whole.labels is not None and (whole.labels[self._rows] != NO_LABEL).any():
            self.labels = whole.labels[self._rows]
        if whole.label_sets is not None:
            self.label_sets = whole.label_sets[self._rows]
        if whole.content_sha256 is not None:
            self.content_sha256 = whole.content_sha256[self._rows]

    def read(self, row: int) -> bytes:
        return self._whole.read(int(self._rows[row]))


def _spread(sample_ids: Sequence[str], count: int = 5) -> list[str]:
    """Return ids spread over the list, because the first few often share one folder."""
    step = max(1, len(sample_ids) // count)
    return [repr(sample_id) for sample_id in sample_ids[::step][:count]]
