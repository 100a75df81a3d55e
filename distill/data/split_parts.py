"""Cut the labelled, unlabelled, validation and test parts of one run.

Images with the same bytes, words or group (``--data.group``) stay on one side of a cut.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distill.config import DataConfig
from distill.data.samples import Indices, Samples, Split
from featstore.errors import ConfigError, shorten
from featstore.format.ids import content_sha256
from featstore.sources.base import NO_LABEL

WORDS = b"words "  # first bytes of a key of the words of a text


def split_parts(samples: Samples, config: DataConfig, seed: int) -> Split:
    """Cut the parts of one run: drop copies of test images, then draw the labelled ones.

    Args:
        seed: Seed of the run; decides the draw unless ``config.label_seed`` does.
    """
    notes: list[str] = []
    keys = keys_that_stay_together(samples, config)
    labelled = samples.groups["labelled"]
    unlabelled = samples.groups["unlabelled"]
    chosen = samples.groups["test"]
    if config.holdout:
        _with_labels(samples, labelled, "labelled", notes)  # refuses a part without any
        chosen = held_out_part(samples, config, keys, seed)
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


def held_out_part(
    samples: Samples, config: DataConfig, keys: Sequence[frozenset[bytes]], seed: int
) -> Indices:
    """The test part of ``--data.holdout``, the same for every task: of the images with labels, or of all."""
    members = samples.groups["labelled"]
    known = members[samples.labels[members] != NO_LABEL]
    fold = config.fold if config.fold >= 0 else seed % round(1 / config.holdout)
    return _hold_out(
        samples, known if len(known) else members, keys, share=config.holdout, fold=fold
    )


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


def content(samples: Samples, index: int) -> bytes:
    """SHA-256 of the bytes of a sample."""
    return content_sha256(samples.source.read(int(samples.positions[index])))


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
        key = names[0] if names else content(samples, index)
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
