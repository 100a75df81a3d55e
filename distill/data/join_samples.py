"""Find the images that take part, and the row of the store for each: by sample id, then by content.

An image is found by its id. A file whose id the store does not know is looked up by the hash of its bytes, so that a
renamed file finds its row again; what is found neither way is an error that names the ids. Further stores are joined in
the same way, to the same images.
"""

# n samples that take part

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distill.config import DataConfig
from distill.data.samples import NO_ROW, Indices, Samples
from featstore import FeatureStore
from featstore.display.text import count
from featstore.errors import ConfigError, MissingSamples, shorten
from featstore.format.ids import content_sha256, read_ids
from featstore.sources.base import NO_LABEL, Source, matches

NO_HASH = bytes(32)
"""Content hash of a row whose store was made from arrays, without the bytes of the images."""


def join_samples(
    source: Source,
    store: FeatureStore | None,
    config: DataConfig,
    others: Sequence[FeatureStore] = (),
) -> Samples:
    """Select by patterns and find each image's row.

    Args:
        store: Store of the first teacher, which may hold labels; None to find no rows.
        others: Stores of further teachers; an image without a usable feature in any store is left out.

    Raises:
        ConfigError: a part's patterns match nothing, or no label is known.
        MissingSamples: images are not in a store, under no name, or another store was made from other bytes.
    """
    parts = patterns_of(source, config)
    chosen = {name: _select(source, name, patterns) for name, patterns in parts.items()}
    positions = np.unique(np.concatenate(list(chosen.values())))
    notes = list(source.notes)
    rows = np.full(len(positions), NO_ROW, np.int64)
    other_rows: list[Indices] = []
    if store is not None:
        taught_by = _taught_by(source, positions, store, config)
        may_lack = _may_lack_rows(chosen, config)
        rows = find_rows(source, taught_by, store, notes, may_lack=may_lack)
        notes += _unbound(store, rows)
        other_rows = [find_rows(source, positions, other, notes) for other in others]
        if source.content_sha256 is not None:
            _check_same_copies(source, positions, store, rows)
        usable = _usable(store, rows, others, other_rows)
        if not usable.all():
            dropped = [source.sample_ids[position] for position in positions[~usable]]
            where = "every store" if others else "the store"
            notes.append(
                f"left out, without a usable feature in {where}: {count(len(dropped), 'image')}, {shorten(dropped)}"
            )
            positions, rows = positions[usable], rows[usable]
            other_rows = [found[usable] for found in other_rows]
    ids = [source.sample_ids[position] for position in positions]
    labels, class_names = _labels(source, positions, store, rows)
    place = {int(position): index for index, position in enumerate(positions)}
    groups = {
        name: np.array([place[int(p)] for p in members if int(p) in place], dtype=np.int64)
        for name, members in chosen.items()
    }
    return Samples(
        source=source,
        positions=positions,
        rows=rows,
        ids=ids,
        stored_ids=[
            sample_id if store is None or row == NO_ROW else store.sample_ids[row]
            for sample_id, row in zip(ids, rows, strict=True)
        ],
        hashes=None if store is None else _hashes(source, positions, store, rows),
        labels=labels,
        class_names=class_names,
        groups=groups,
        notes=notes,
        other_rows=tuple(other_rows),
    )


def _unbound(store: FeatureStore, rows: Indices) -> list[str]:
    """Note on rows without a content hash, if there are any."""
    without = ~store.content_sha256[rows].any(axis=1) & store.valid[rows] & (rows != NO_ROW)
    if not without.any():
        return []
    return [
        f"{without.sum()} rows of {store.address} have no content hash; images are matched by id alone, so changed "
        "files cannot be detected"
    ]


def _may_lack_rows(chosen: dict[str, Indices], config: DataConfig) -> Indices:
    """Positions of images that need no stored row (``--data.stored``)."""
    if config.stored == "all":
        return np.empty(0, np.int64)
    return np.setdiff1d(np.union1d(chosen["labelled"], chosen["test"]), chosen["unlabelled"])


def _hashes(
    source: Source, positions: Indices, store: FeatureStore, rows: Indices
) -> npt.NDArray[np.uint8]:
    """(n, 32) hashes in the store, of images without a row those of their bytes."""
    hashes = store.content_sha256[rows]
    for index in np.flatnonzero(rows == NO_ROW):
        hashes[index] = np.frombuffer(
            content_sha256(source.read(int(positions[index]))), dtype=np.uint8
        )
    return hashes


def _taught_by(
    source: Source, positions: Indices, store: FeatureStore, config: DataConfig
) -> Indices:
    """Positions of the samples whose stored rows teach: of texts, their translation where ``config`` asks for it."""
    if source.kind != "text":
        return positions
    found = positions
    if language := config.taught_by:
        if not source.languages or not source.pairs or language not in source.languages:
            raise ConfigError(
                f"--data.taught_by {language}: {source.uri} needs the columns language and pair, and texts in this "
                f"language. Its languages: {shorten(sorted(set(source.languages)), 12) or 'none'} "
                "(--source.languages chooses some)."
            )
        place = {
            pair: row
            for row, (pair, own) in enumerate(zip(source.pairs, source.languages, strict=True))
            if pair and own == language
        }
        rows = [
            row if source.languages[row] == language else place.get(source.pairs[row], NO_ROW)
            for row in positions.tolist()
        ]
        found = np.array(rows, np.int64)
        lacking = [source.sample_ids[row] for row in positions[found == NO_ROW]]
        if lacking:
            raise MissingSamples(
                f"--data.taught_by {language}: {len(lacking)} texts have no text in this language with the same pair: "
                f"{shorten(lacking)}. Narrow --data.unlabelled and --data.test, or complete the table."
            )
    known = {sample_id: row for row, sample_id in enumerate(store.sample_ids)}
    changed = [
        name
        for name, text in {
            source.sample_ids[row]: source.read(row) for row in found.tolist()
        }.items()
        if (row := known.get(name)) is not None
        and (stored := store.content_sha256[row]).any()
        and content_sha256(text) != stored.tobytes()
    ]
    if changed:
        raise MissingSamples(
            f"{source.uri}: {len(changed)} texts are not those the teacher read: {shorten(changed)}. Restore them, or "
            "extract a store of the new ones."
        )
    return found


def _usable(
    store: FeatureStore,
    rows: Indices,
    others: Sequence[FeatureStore],
    other_rows: Sequence[Indices],
) -> npt.NDArray[np.bool_]:
    """Which images have a usable feature in every store."""
    usable: npt.NDArray[np.bool_] = store.valid[rows] | (rows == NO_ROW)
    for other, found in zip(others, other_rows, strict=True):
        usable = usable & other.valid[found]
        _check_same_bytes(store, rows, other, found, usable)
    return usable


def _check_same_bytes(
    store: FeatureStore,
    rows: Indices,
    other: FeatureStore,
    other_rows: Indices,
    usable: npt.NDArray[np.bool_],
) -> None:
    """Refuse images that share an id and nothing else: two teachers must have seen the same picture."""
    here, there = store.content_sha256[rows], other.content_sha256[other_rows]
    same = (here == there).all(axis=1) | ~here.any(axis=1) | ~there.any(axis=1)
    changed = [store.sample_ids[row] for row in rows[usable & ~same]]
    if changed:
        raise MissingSamples(
            f"{other.address}: {len(changed)} images have other bytes there than in {store.address}: "
            f"{shorten(changed)}. "
            "Teachers that saw different pictures cannot be put side by side. Extract one of the stores again."
        )


def _check_same_copies(
    source: Source, positions: Indices, store: FeatureStore, rows: Indices
) -> None:
    """Refuse stored copies of other images than the teacher saw."""
    assert source.content_sha256 is not None
    here, there = source.content_sha256[positions], store.content_sha256[rows]
    other = (here != there).any(axis=1) & here.any(axis=1) & there.any(axis=1) & (rows != NO_ROW)
    if other.any():
        raise MissingSamples(
            f"{source.uri}: holds copies of other images than {store.address} was made from: "
            f"{shorten([store.sample_ids[row] for row in rows[other]])}. Use the copies in that store "
            "(--source.kind store), or the original files."
        )


def patterns_of(source: Source, config: DataConfig) -> dict[str, list[str]]:
    """Patterns of the parts; with ``--data.holdout``, ``split_parts`` cuts the test part from the labelled one."""
    labelled, test = config.labelled, config.test
    if config.holdout:
        test = []
        found = any(matches(sample_id, labelled) for sample_id in source.sample_ids)
        if labelled == DataConfig().labelled and not found:
            labelled = ["*"]
    return {"labelled": labelled, "unlabelled": config.unlabelled, "test": test}


def _select(source: Source, name: str, patterns: Sequence[str]) -> Indices:
    """Positions of the samples that a pattern matches; ``@FILE`` stands for the ids in a file, one per line."""
    lists = [read_ids(Path(item[1:]).expanduser()) for item in patterns if item.startswith("@")]
    listed = {sample_id for ids in lists for sample_id in ids}
    shells = [item for item in patterns if not item.startswith("@")]
    ids = source.sample_ids
    found = [
        row
        for row, sample_id in enumerate(ids)
        if sample_id in listed or matches(sample_id, shells)
    ]
    missing = listed.difference(ids) if listed else ()
    if missing:
        raise MissingSamples(
            f"--data.{name} {' '.join(patterns)}: {len(missing)} of {len(listed)} ids are not in {source.uri}: "
            f"{shorten(sorted(missing))}. Its ids look like {shorten(ids[:2])}."
        )
    if patterns and not found:
        raise ConfigError(
            f"--data.{name} {' '.join(map(repr, patterns))}: matches none of the {len(source):,} samples of "
            f"{source.uri}; ids look like {shorten(ids[:: max(1, len(source) // 3)], 3)}. A pattern must match the "
            "whole id."
        )
    return np.array(found, dtype=np.int64)


def find_rows(
    source: Source,
    positions: Indices,
    store: FeatureStore,
    notes: list[str],
    *,
    may_lack: Indices | None = None,
) -> Indices:
    """Rows of images, by id, and by content for ids that the store does not know.

    Args:
        positions: (n,) indices in the source.
        notes: A line is appended if files were found under another name, or have no row.
        may_lack: Indices in the source that need no row.

    Returns:
        (n,) rows; ``NO_ROW`` where there is none and none is needed.

    Raises:
        MissingSamples: names the ids that were found neither way.
    """
    ids = [source.sample_ids[position] for position in positions]
    try:
        return store.rows_of(ids)
    except MissingSamples:
        row_of = {sample_id: row for row, sample_id in enumerate(store.sample_ids)}
    rows = np.array([row_of.get(sample_id, NO_ROW) for sample_id in ids], dtype=np.int64)
    unknown = np.flatnonzero(rows == NO_ROW)
    by_content: dict[bytes, int] = {}
    # Backwards, so that the first row of equal contents stays.
    for row in np.flatnonzero(store.valid)[::-1]:
        by_content[store.content_sha256[row].tobytes()] = int(row)
    by_content.pop(NO_HASH, None)
    for index in unknown:
        rows[index] = by_content.get(content_sha256(source.read(int(positions[index]))), NO_ROW)
    lacking = np.flatnonzero(rows == NO_ROW)
    needed = lacking if may_lack is None else lacking[~np.isin(positions[lacking], may_lack)]
    missing = [ids[index] for index in needed]
    if missing:
        raise MissingSamples(
            f"{store.address}: {len(missing)} of {len(ids)} images are not in the store, neither by id nor by content: "
            f"{shorten(missing)}. It holds {store.num_rows} samples such as "
            f"{shorten(store.sample_ids[:2])}. Extract them "
            "into a store, or narrow --data.labelled, --data.unlabelled and --data.test."
        )
    if len(lacking):
        notes.append(
            f"{len(lacking)} labelled and test images are not in {store.address} (--data.stored unlabelled); only "
            "their labels are used"
        )
    renamed = [
        f"{ids[index]} = {store.sample_ids[rows[index]]}"
        for index in unknown
        if rows[index] != NO_ROW
    ]
    if renamed:
        notes.append(
            f"{len(renamed)} images have another name than in {store.address} and were found by content: "
            f"{shorten(renamed, 3)}"
        )
    return rows


def _labels(
    source: Source, positions: Indices, store: FeatureStore | None, rows: Indices
) -> tuple[Indices, tuple[str, ...]]:
    """The source's labels if it has any, otherwise the store's unless the user refused labels, and their names."""
    if source.labels is not None:
        labels, names = source.labels[positions], tuple(source.class_names)
        known = source.labels
    elif store is not None and not source.labels_refused:
        labels = np.where(rows == NO_ROW, NO_LABEL, store.labels[rows])
        names = tuple(store.manifest.source.class_names)
        known = store.labels
    else:
        labels, names, known = (
            np.full(len(positions), NO_LABEL, np.int64),
            (),
            np.empty(0, np.int64),
        )
    count = max(int(known.max(initial=NO_LABEL)) + 1, len(names))
    return labels, names if len(names) == count else tuple(str(number) for number in range(count))
