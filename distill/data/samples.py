"""Which images take part, and which row of the store belongs to each: by sample id, then by content.

An image is found by its id. A file whose id the store does not know is looked up by the hash of its bytes, so that a
renamed file finds its row again; what is found neither way is an error that names the ids. Further stores are joined in
the same way, to the same images.
"""

# n samples that take part

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distill.config import DataConfig
from featstore import FeatureStore
from featstore.errors import ConfigError, MissingSamples, ViewMismatch, shorten
from featstore.format.ids import content_sha256, read_ids
from featstore.format.views import describe_views
from featstore.sources.base import NO_LABEL, Source, matches

Indices = npt.NDArray[np.int64]

NO_ROW = -1  # row of a sample when there is no store

NO_HASH = bytes(32)
"""Content hash of a row whose store was made from arrays, without the bytes of the images."""

WORDS = b"words "  # first bytes of a key of the words of a text


@dataclass(frozen=True)
class Samples:
    """The images that take part, with their rows, ids, hashes and labels."""

    source: Source  # source of the bytes
    positions: Indices  # (n,) index in the source
    rows: Indices  # (n,) row in the store; ``NO_ROW`` without a store, and of images that need none
    ids: list[str]  # (n,) sample ids in the source
    stored_ids: list[str]  # (n,) ids in the store; a seeded view depends on this one
    # (n, 32) SHA-256 that the bytes must have; None without a store
    hashes: npt.NDArray[np.uint8] | None
    labels: Indices  # (n,) class, or ``NO_LABEL``
    class_names: tuple[str, ...]  # names by class; decimal numbers if there are none
    groups: dict[str, Indices]  # by part, indices of the samples that match its patterns
    notes: list[str]  # notes for the user, e.g. how many rows were dropped
    other_rows: tuple[Indices, ...] = ()  # (n,) rows in each further store

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Split:
    """The parts of one run, as indices into ``Samples``."""

    labelled: Indices  # D_L, images with a label that may be used
    unlabelled: Indices  # D_U, further images; none of them is in ``labelled``
    test: Indices  # held-out images with a label
    notes: list[str] = field(default_factory=list)  # notes for the user
    # further images with a label, in no other part, to choose settings by
    validation: Indices = field(default_factory=lambda: np.empty(0, np.int64))


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
    ids = [source.sample_ids[position] for position in positions]
    notes = list(source.notes)
    rows = np.full(len(ids), NO_ROW, np.int64)
    other_rows: list[Indices] = []
    if store is not None:
        rows = find_rows(
            source,
            _taught_by(source, positions, store, config),
            store,
            notes,
            may_lack=_may_lack_rows(chosen, config),
        )
        lacking = rows == NO_ROW
        unbound = int(
            (~store.content_sha256[rows].any(axis=1) & store.valid[rows] & ~lacking).sum()
        )
        if unbound:
            notes.append(
                f"{unbound} rows of {store.address} have no content hash; images are matched by id alone, so changed "
                "files cannot be detected"
            )
        other_rows = [find_rows(source, positions, other, notes) for other in others]
        if source.content_sha256 is not None:
            _check_same_copies(source, positions, store, rows)
        usable = _usable(store, rows, others, other_rows)
        if not usable.all():
            dropped = [ids[index] for index in np.flatnonzero(~usable)]
            where = "every store" if others else "the store"
            notes.append(
                f"{len(dropped)} images have no usable feature in {where} and are left out: {shorten(dropped)}"
            )
            positions, rows = positions[usable], rows[usable]
            other_rows = [found[usable] for found in other_rows]
            ids = [ids[index] for index in np.flatnonzero(usable)]
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
    """Positions of the samples whose stored rows teach: of texts, their translation where ``config`` asks for it.

    Raises:
        ConfigError: the table names no languages or pairs.
        MissingSamples: texts without a translation in that language, or whose stored row is of another text.
    """
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


def match_views(
    store: FeatureStore, other: FeatureStore, columns: Sequence[int], samples: Samples, number: int
) -> Indices:
    """Find the view columns of a further store that hold the very same regions.

    Args:
        store: Store of the first teacher, to whose view axis ``columns`` refer.
        number: Number of the further store, from 0.

    Returns:
        (V,) column in ``other`` for each of ``store``; -1 where it has none.

    Raises:
        ViewMismatch: the other store lacks a view that is read, cut its seeded views with other settings, or knows
            images under another id, on which a seeded view depends.
    """
    first, second = store.manifest.views, other.manifest.views
    held = {view: column for column, view in enumerate(second.views)}
    read = [first.views[column] for column in columns]
    lacking = [view for view in read if view not in held]
    if lacking:
        raise ViewMismatch(
            f"{other.address} lacks views of {store.address} that training reads: {describe_views(lacking)}. It "
            f"holds {describe_views(second.views)}. Extract it with the same --views, or read fewer (--data.views, "
            "--data.seeded)."
        )
    if any(view.kind == "seeded" for view in read):
        ours, theirs = (
            f"seed {views.seed}, scale {views.scale}, ratio {views.ratio}"
            for views in (first, second)
        )
        if ours != theirs:
            raise ViewMismatch(
                f"the seeded views of {store.address} ({ours}) and {other.address} ({theirs}) are different crops; one "
                "student cannot be shown both. Extract with the same --views, or use --data.views canonical."
            )
        renamed = [
            f"{there} = {here}"
            for here, row in zip(samples.stored_ids, samples.other_rows[number], strict=True)
            if (there := other.sample_ids[row]) != here
        ]
        if renamed:
            raise ViewMismatch(
                f"{other.address} knows {len(renamed)} images under another id than {store.address}: "
                f"{shorten(renamed, 3)}. Seeded views depend on the id, so they are different crops; use "
                "--data.views canonical, or extract both from one source."
            )
    return np.array([held.get(view, -1) for view in first.views], dtype=np.int64)


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
    for row in np.flatnonzero(store.valid)[
        ::-1
    ]:  # backwards, so that the first row of equal contents stays
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


def split_parts(samples: Samples, config: DataConfig, seed: int) -> Split:
    """Cut the parts of one run: drop copies of test images, then draw the labelled ones.

    Args:
        seed: Seed of the run; decides the draw unless ``config.label_seed`` does.

    Raises:
        ConfigError: no label in a part that needs one, or a class with fewer images than are to be drawn.
    """
    notes: list[str] = []
    keys = keys_that_stay_together(samples, config)
    labelled = samples.groups["labelled"]
    unlabelled = samples.groups["unlabelled"]
    chosen = samples.groups["test"]
    if config.holdout:
        known = _with_labels(samples, labelled, "labelled", notes)
        chosen = _hold_out(samples, known, keys, share=config.holdout, fold=_fold(config, seed))
    test = _with_labels(samples, chosen, "test", notes)
    held_out = share_a_key(keys, chosen)
    both = np.union1d(labelled, unlabelled)
    dropped = both[held_out[both] & ~np.isin(both, chosen if config.holdout else [])]
    if len(dropped):
        reason = (
            "share a group (--data.group) or their bytes with one"
            if config.group
            else "are exact copies of one"
        )
        notes.append(
            f"{len(dropped)} training images are test images or {reason}, and are left out: "
            f"{shorten([samples.ids[index] for index in dropped])}"
        )
    if not (~held_out[labelled]).any() and len(labelled):
        raise ConfigError(_all_are_test_images(config, len(labelled), len(chosen)))
    labelled = _with_labels(samples, labelled[~held_out[labelled]], "labelled", notes)
    unlabelled = unlabelled[~held_out[unlabelled]]
    draw = seed if config.label_seed < 0 else config.label_seed
    validation = np.empty(0, np.int64)
    if config.validation:
        validation = _draw(samples, labelled, config.validation, [draw, 1], "validation")
        held_back = np.union1d(validation, np.flatnonzero(share_a_key(keys, validation)))
        labelled = np.setdiff1d(labelled, held_back)
        unlabelled = np.setdiff1d(unlabelled, held_back)
    if config.labels_per_class:
        labelled = _draw(samples, labelled, config.labels_per_class, [draw], "labels_per_class")
    if config.validation_share:
        validation = _validation_share(samples, labelled, keys, config.validation_share, seed)
        held_back = np.flatnonzero(share_a_key(keys, validation))
        labelled, unlabelled = (
            np.setdiff1d(labelled, held_back),
            np.setdiff1d(unlabelled, held_back),
        )
    return Split(labelled, np.setdiff1d(unlabelled, labelled), test, notes, validation)


def _validation_share(
    samples: Samples,
    labelled: Indices,
    keys: Sequence[frozenset[bytes]],
    share: float,
    seed: int,
) -> Indices:
    """A share of the labelled images to choose settings by."""
    fold = seed % round(1 / share)
    # Another salt than that of the test part, whose hashes are all in one part of the range.
    validation = _hold_out(samples, labelled, keys, share=share, fold=fold, salt=b"validation")
    if not len(validation) or share_a_key(keys, validation)[labelled].all():
        raise ConfigError(
            f"--data.validation_share {share:g}: none of the {len(labelled)} labelled images can be held out of "
            "training to choose settings by; at least one class needs two. Give more labels, or name a method: "
            "--methods '[customkd]'."
        )
    return validation


def keys_that_stay_together(samples: Samples, config: DataConfig) -> list[frozenset[bytes]]:
    """For every sample, what it must not share with a sample on another side: its bytes or words, and its group."""
    keys: list[set[bytes]] = [set() for _ in samples.ids]
    if samples.source.kind == "text":
        for own, position in zip(keys, samples.positions.tolist(), strict=True):
            own.add(_words(samples.source.read(position)))
    if samples.hashes is not None:
        for own, row in zip(keys, samples.hashes, strict=True):
            if row.any():  # zeros: the store knows no content hash
                own.add(row.tobytes())
    if config.group:
        found = [re.search(config.group, sample_id) for sample_id in samples.ids]
        if not any(found):
            raise ConfigError(
                f"--data.group {config.group}: matches none of {len(samples.ids)} sample ids such as "
                f"{shorten(samples.ids, 3)}."
            )
        for own, match in zip(keys, found, strict=True):
            if match is not None:
                own.add(b"group " + ((match.re.groups and match[1]) or match[0]).encode())
    return [frozenset(own) for own in keys]


def _words(text: bytes) -> bytes:
    """Key of a text that is the same for copies which differ in white space and capitals alone."""
    return WORDS + content_sha256(" ".join(text.decode().casefold().split()).encode())


def share_a_key(keys: Sequence[frozenset[bytes]], members: Indices) -> npt.NDArray[np.bool_]:
    """Which samples are one of the members, or must stay on their side."""
    taken = frozenset().union(*(keys[index] for index in members))
    shared = np.array([not taken.isdisjoint(own) for own in keys], dtype=np.bool_)
    shared[members] = True
    return shared


def _content(samples: Samples, index: int) -> bytes:
    return content_sha256(samples.source.read(int(samples.positions[index])))


def _fold(config: DataConfig, seed: int) -> int:
    return config.fold if config.fold >= 0 else seed % round(1 / config.holdout)


def _hold_out(
    samples: Samples,
    members: Indices,
    keys: Sequence[frozenset[bytes]],
    *,
    share: float,
    fold: int,
    salt: bytes = b"holdout",
) -> Indices:
    """The share of the members whose content (or group) hashes into one part of all; at least one per class.

    An image's number depends on nothing but its content or group, so that adding images moves no other image.
    """
    numbers = {}
    for index in members:
        names = sorted(key for key in keys[index] if not key.startswith(WORDS))
        names.sort(key=lambda key: not key.startswith(b"group "))
        key = names[0] if names else _content(samples, index)
        digest = hashlib.sha256(salt + key).digest()
        numbers[int(index)] = int.from_bytes(digest[:8]) / 2**64
    chosen = {
        index for index, number in numbers.items() if fold * share <= number < (fold + 1) * share
    }
    for label in np.unique(samples.labels[members]):
        of_class = [int(index) for index in members if samples.labels[index] == label]
        if len(of_class) > 1 and chosen.isdisjoint(of_class):
            # The nearest above the part's start, so that folds choose different ones.
            nearest = min(of_class, key=lambda index: (numbers[index] - fold * share) % 1)
            chosen.add(nearest)
    together = share_a_key(keys, np.array(sorted(chosen), np.int64))
    return members[together[members]]


def _all_are_test_images(config: DataConfig, labelled: int, test: int) -> str:
    if config.holdout:
        return (
            f"--data.holdout {config.holdout}: takes all {labelled} labelled images, no image is left to train on. "
            "Give more images, or a --data.group that matches smaller groups."
        )
    return (
        f"--data.test {' '.join(map(repr, config.test))}: takes all {labelled} images of --data.labelled "
        f"{' '.join(map(repr, config.labelled))}: no image is left to train on. Hold out a part of every class with "
        "--data.holdout 0.2 in place of --data.test, or give patterns that do not overlap."
    )


def _with_labels(samples: Samples, members: Indices, name: str, notes: list[str]) -> Indices:
    known = members[samples.labels[members] != NO_LABEL]
    if not len(known):
        raise ConfigError(
            f"--data.{name}: none of its {len(members)} images has a label, neither in the "
            f"source ({samples.source.uri}) "
            "nor in the store. Every method here trains and measures a classifier; give a source with labels "
            "(for folders: --source.labels_from parent)."
        )
    if len(known) < len(members):
        notes.append(
            f"{len(members) - len(known)} of {len(members)} {name} images have no label and are left out of that part"
        )
    return known  # type: ignore[no-any-return]


def _draw(
    samples: Samples, members: Indices, per_class: int, seed: list[int], setting: str
) -> Indices:
    """Draw per class, as a pure function of the seed and the ids' order."""
    counts = Counter(samples.labels[members].tolist())
    short = [
        f"{samples.class_names[label]} ({count})"
        for label, count in sorted(counts.items())
        if count < per_class
    ]
    if short:
        raise ConfigError(
            f"--data.{setting} {per_class}: fewer labelled images in {len(short)} classes: {shorten(short)}. "
            "Lower the number, or widen --data.labelled."
        )
    chosen = []
    for label in sorted(counts):
        of_class = members[samples.labels[members] == label]
        order = np.random.default_rng([*seed, label]).permutation(len(of_class))
        chosen.append(of_class[order[:per_class]])
    return np.sort(np.concatenate(chosen))
