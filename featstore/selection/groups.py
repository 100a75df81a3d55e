"""Find equal files in a store, join duplicates into groups, and find images that two parts share.

Files are compared by their stored SHA-256. Near duplicates come from ``featstore.selection.near_duplicates``.
"""

# N rows of the store, P pairs

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from featstore.errors import ConfigError, shorten
from featstore.files.array_types import Rows
from featstore.reading.store import FeatureStore
from featstore.sources.base import matches

TEST = "test"  # name of the part whose images must not be in other parts


@dataclass(frozen=True)
class Overlap:
    """Images of one part that are in another part too; each image is in one of the three lists at most."""

    part: str
    other: str
    size: int  # images of ``part``
    same: Rows  # rows that both parts' patterns match
    exact: Rows  # (k,) rows of ``part`` with the bytes of another row in ``other``
    near: Rows  # (k,) rows of ``part`` that have a near duplicate in ``other``

    @property
    def leak(self) -> bool:
        """Whether test images are in another part."""
        shared = len(self.same) + len(self.exact) + len(self.near)
        return self.part == TEST and shared > 0


def exact_duplicates(store: FeatureStore) -> list[Rows]:
    """Find images whose files have the same bytes.

    Args:
        store: May be incomplete; rows that are not valid or have no content hash are left out.

    Returns:
        Groups of two and more rows, ascending; groups in the order of their first row.

    Raises:
        ShardCorrupt: A shard is damaged.
    """
    rows = np.flatnonzero(store.valid & store.content_sha256.any(axis=1))
    words = np.ascontiguousarray(store.content_sha256[rows]).view(np.uint64)
    order = np.lexsort(words.T)  # stable: equal hashes stay in the order of rows
    rows, words = rows[order], words[order]
    cuts = np.flatnonzero((words[1:] != words[:-1]).any(axis=1)) + 1
    found = [group for group in np.split(rows, cuts) if len(group) > 1]
    return sorted(found, key=lambda group: int(group[0]))


def join_groups(exact: Sequence[Rows], near: Rows) -> list[Rows]:
    """Join duplicates into groups, transitively.

    Args:
        exact: Groups of ``exact_duplicates``.
        near: (P, 2) ``Pairs.rows``.

    Returns:
        Groups of two and more rows, ascending; the largest first.
    """
    chains = [np.stack([group[:-1], group[1:]], axis=1) for group in exact]
    links = np.concatenate([near.reshape(-1, 2), *chains])
    if not len(links):
        return []
    rows, ends = np.unique(links, return_inverse=True)
    ends = ends.reshape(-1, 2)
    member = _components(len(rows), ends[:, 0], ends[:, 1])
    order = np.argsort(member, kind="stable")
    found = np.split(rows[order], np.flatnonzero(np.diff(member[order])) + 1)
    return sorted(found, key=lambda group: (-len(group), int(group[0])))


def select_parts(store: FeatureStore, patterns: Mapping[str, Sequence[str]]) -> dict[str, Rows]:
    """The valid rows of each part.

    Args:
        patterns: Shell patterns by name of the part; ``*`` also spans slashes.
    """
    ids, valid = store.sample_ids, np.flatnonzero(store.valid).tolist()
    parts = {}
    for name, several in patterns.items():
        found = [row for row in valid if matches(ids[row], several)]
        if not found:
            raise ConfigError(
                f"{store.address}: part {name}: no image matches {', '.join(several)}. Ids look like "
                f"{shorten(ids[:2])}."
            )
        parts[name] = np.array(found, np.int64)
    return parts


def overlaps(parts: Mapping[str, Rows], exact: Sequence[Rows], near: Rows) -> list[Overlap]:
    """Images that two parts share, for each pair of parts; the part ``test`` first.

    Args:
        parts: Rows by name, of ``select_parts``.
        exact: Groups of ``exact_duplicates``.
        near: (P, 2) ``Pairs.rows``.
    """
    names = sorted(parts, key=lambda name: name != TEST)  # stable: the others keep their order
    size = 1 + max(int(item.max(initial=-1)) for item in [*parts.values(), *exact, near])
    group = np.full(size, -1)
    for number, members in enumerate(exact):
        group[members] = number
    holds = {name: np.isin(np.arange(size), parts[name]) for name in names}
    found = []
    for part, other in combinations(names, 2):
        here, there = holds[part], holds[other]
        copies = np.bincount(group[there & (group >= 0)], minlength=len(exact))
        in_exact = np.zeros(size, np.bool_)
        grouped = np.flatnonzero(here & (group >= 0))
        in_exact[grouped] = copies[group[grouped]] > 0
        in_near = np.zeros(size, np.bool_)
        for first, second in (near.T, near.T[::-1]):
            in_near[first[here[first] & there[second]]] = True
        same = here & there
        in_exact &= ~same
        in_near &= ~same & ~in_exact
        found.append(
            Overlap(
                part,
                other,
                int(here.sum()),
                np.flatnonzero(same),
                np.flatnonzero(in_exact),
                np.flatnonzero(in_near),
            )
        )
    return found


def _components(size: int, first: Rows, second: Rows) -> Rows:
    """(size,) label of the connected component of each node: its smallest node."""
    label = np.arange(size)
    while True:
        low = np.minimum(label[first], label[second])
        sunk = label.copy()
        for ends in (first, second, label[first], label[second]):
            np.minimum.at(sunk, ends, low)
        while not np.array_equal(sunk, sunk[sunk]):
            sunk = sunk[sunk]
        if np.array_equal(sunk, label):
            return label
        label = sunk
