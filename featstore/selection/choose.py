"""Choose rows of a store by its features, in steps: each step keeps some of the rows of the step before.

1. ``without_duplicates``: of equal files and near duplicates, the first.
2. ``novel``: rows unlike every row of another store.
3. ``like``: the rows nearest to some rows, as many for each of these as possible (retrieval of a transfer set).
4. ``diverse``: rows spread over clusters of the features.
"""

# n candidates, q rows to be like, D numbers of a row

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featstore.derive.subset import choose_rows
from featstore.errors import ConfigError, ManifestMismatch, shorten
from featstore.files.array_types import Rows
from featstore.files.progress import Progress, no_progress
from featstore.format.ids import write_ids
from featstore.format.manifest import MANIFEST_NAME, differences
from featstore.places.open_place import is_url
from featstore.reading.store import FeatureStore
from featstore.selection.clusters import clustered
from featstore.selection.groups import exact_duplicates, join_groups
from featstore.selection.near_duplicates import THRESHOLD, near_duplicates
from featstore.selection.unit_vectors import Floats, UnitVectors, blocks, default_field

LABELLED = "labelled"  # instead of a store or pattern: the rows of the store that have a label
MOST_CLUSTERS = 1024  # most clusters; for more rows, several are chosen of each cluster
EXACT_ROWS = 50_000  # up to this number of rows, all pairs are compared
CELL_ROWS = 250  # mean number of rows of a cluster where pairs are compared within clusters
MOST_KEPT = 2**26  # most neighbours held in memory, over all target rows


@dataclass(frozen=True)
class Step:
    """Rows that one step kept and dropped."""

    name: str  # of the step
    taken: Rows  # (k,) rows that it took, the ones that fit best first
    left: Rows  # (m,) rows that it left, the ones that nearly were taken first
    score: str  # name of the number behind its choice
    taken_scores: Floats  # (k,) that number
    left_scores: Floats  # (m,) that number


@dataclass(frozen=True)
class Selection:
    """Rows that were chosen."""

    rows: Rows  # (k,) ascending
    ids: list[str]  # (k,) their sample ids
    field: str  # field whose features were compared; "" if none were
    steps: list[Step]  # in order
    notes: list[str]  # what a user should know


def select(
    store: str | Path | FeatureStore,
    out: str | Path | None = None,
    *,
    like: str | Path | Sequence[int] | None = None,
    count: int | None = None,
    diverse: int | None = None,
    without_duplicates: bool = False,
    novel: str | Path | None = None,
    where: Sequence[str] = (),
    field: str | None = None,
    threshold: float = THRESHOLD,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Selection:
    """Choose images by their stored features, e.g. those that are worth a student's time.

    Args:
        store: Folder, URL or opened store whose rows are chosen. Rows that are not valid are never chosen.
        out: File to write the chosen ids to, one per line; for ``data.unlabelled: ["@ids.txt"]`` of phase two and
            ``featstore subset --ids``.
        like: Choose the ``count`` rows that are nearest to these: ``"labelled"`` for the rows of the store that have a
            label, patterns over sample ids (``"train/*"``), row numbers, or the folder of another store of the same
            teacher. Every one of these rows gets its nearest in turn. Rows of the store that are compared with are not
            chosen themselves.
        count: Number of rows for ``like``; without ``like``, of the most novel ones.
        diverse: Choose so many rows, spread over clusters of the features.
        without_duplicates: Of equal files and near duplicates, choose the first. Compares all pairs of up to 50,000
            rows; of more, those within clusters of the features.
        novel: Folder of another store of the same teacher: leave out rows whose cosine with any of its rows reaches
            ``threshold``.
        where: Patterns over sample ids; only rows that match one are candidates.
        field: Field to compare; ``cls`` or the shortest vector by default.
        threshold: Cosine from which two images count as near duplicates.
        seed: Seed of the clustering.
        progress: Called with the numbers of products done and to do in the step that runs.

    Returns:
        The rows, their ids, and what each step took and left.

    Raises:
        ConfigError: Nothing was asked for, nothing is left, or more rows are wanted than there are.
        ManifestMismatch: The other store was made by another teacher.
        ViewMismatch: The field has no canonical view.

    Examples:
        >>> chosen = featstore.select("stores/photos", "ids.txt", diverse=4)
        >>> len(chosen.rows)
        4
    """
    opened = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    if like is None and diverse is None and novel is None and not without_duplicates:
        raise ConfigError("nothing was asked for: give like, diverse, without_duplicates or novel.")
    if (like is not None) and count is None:
        raise ConfigError("like needs a count: how many rows to choose.")
    if count is not None and like is None and novel is None:
        raise ConfigError("count belongs to like or novel; for diverse, give the number there.")
    name = field or default_field(opened)
    rows = np.asarray(choose_rows(opened, where=where), dtype=np.int64)
    chosen = _Chosen(opened, name, rows[opened.valid[rows]], threshold, progress)
    if without_duplicates:
        chosen.drop_duplicates()
    if novel is not None:
        chosen.keep_novel(novel, None if like is not None else count)
    if like is not None:
        assert count is not None
        chosen.keep_like(like, count)
    if diverse is not None:
        chosen.spread(diverse, seed)
    kept = np.sort(chosen.rows)
    ids = [opened.sample_ids[row] for row in kept]
    if out is not None:
        write_ids(Path(out), ids)
    return Selection(kept, ids, name, chosen.steps, chosen.notes)


class _Chosen:
    """Candidate rows, reduced step by step."""

    def __init__(
        self,
        store: FeatureStore,
        field: str,
        rows: Rows,
        threshold: float,
        progress: Progress,
    ) -> None:
        self.store, self.field, self.rows = store, field, rows
        self.threshold, self.progress = threshold, progress
        self.vectors = UnitVectors(store, field, np.flatnonzero(store.valid))
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self._check_left(1, "candidates")

    def _check_left(self, wanted: int, what: str) -> None:
        if len(self.rows) < wanted:
            raise ConfigError(
                f"{self.store.address}: {len(self.rows):,} rows are left, {wanted:,} are wanted ({what})."
            )

    def _take(self, step: str, places: Rows, score: str, scores: Floats, *, best: int) -> None:
        """Keep some of the rows.

        Args:
            step: Its name.
            places: (k,) places among the rows.
            score: Name of the number behind the choice.
            scores: (n,) that number, of all rows.
            best: 1 if high numbers were taken, -1 if low ones.
        """
        order = np.argsort(-best * scores, kind="stable")
        chosen = np.zeros(len(self.rows), dtype=np.bool_)
        chosen[places] = True
        taken, left = order[chosen[order]], order[~chosen[order]]
        rows, self.rows = self.rows, np.sort(self.rows[places])
        self.steps.append(Step(step, rows[taken], rows[left], score, scores[taken], scores[left]))
        self._check_left(1, step)

    def drop_duplicates(self) -> None:
        """Keep the first of each group of equal files and near duplicates."""
        cells = None
        if len(self.rows) > EXACT_ROWS:
            count = min(MOST_CLUSTERS, len(self.rows) // CELL_ROWS)
            cells = clustered(self.vectors, self.rows, count, 0, self.progress).nearest(2)
            self.notes.append(
                f"near duplicates are looked for within {count} clusters of the features, two for every row, not among "
                f"all pairs; up to {EXACT_ROWS:,} rows all pairs are compared"
            )
        pairs = near_duplicates(
            self.store,
            self.field,
            self.threshold,
            rows=self.rows,
            others=self.rows,
            cells=cells,
            progress=self.progress,
        )
        if pairs.found > len(pairs.rows):
            self.notes.append(
                f"{pairs.found:,} near duplicates, of which the {len(pairs.rows):,} most alike count; a higher "
                "threshold finds fewer"
            )
        inside = np.zeros(self.store.num_rows, dtype=np.bool_)
        inside[self.rows] = True
        exact = [group[inside[group]] for group in exact_duplicates(self.store)]
        groups = join_groups([group for group in exact if len(group) > 1], pairs.rows)
        gone = np.concatenate([group[1:] for group in groups]) if groups else np.empty(0, np.int64)
        nearest = np.full(self.store.num_rows, -1, np.float32)
        nearest[pairs.compared] = pairs.nearest
        kept = np.flatnonzero(~np.isin(self.rows, gone))
        scores = nearest[self.rows]
        self._take("without duplicates", kept, "cosine with its nearest", scores, best=-1)

    def keep_novel(self, other: str | Path, count: int | None) -> None:
        """Keep rows unlike all rows of another store; the ``count`` most unlike ones, if given."""
        there = self._open_other(other)
        vectors = UnitVectors(
            there, self.field, np.flatnonzero(there.valid), centre=self.vectors.centre
        )
        others = np.flatnonzero(there.valid)
        best = np.full(len(self.rows), -1, np.float32)
        done = 0
        for block in blocks(others, vectors.block_rows):
            facing = vectors.units(block)
            for start in range(0, len(self.rows), self.vectors.block_rows):
                part = slice(start, start + self.vectors.block_rows)
                cosine = self.vectors.units(self.rows[part]) @ facing.T
                np.maximum(best[part], cosine.max(axis=1), out=best[part])
                done += cosine.size
                self.progress(done, len(others) * len(self.rows))
        taken = np.flatnonzero(best < self.threshold)
        if count is not None:
            if len(taken) < count:
                raise ConfigError(
                    f"{self.store.address}: {len(taken):,} rows are unlike all of {there.address} (cosine below "
                    f"{self.threshold:g}), {count:,} are wanted."
                )
            taken = taken[np.argsort(best[taken], kind="stable")[:count]]
        self._take("novel", taken, "cosine with its nearest there", best, best=-1)

    def keep_like(self, like: str | Path | Sequence[int], count: int) -> None:
        """Keep the rows nearest to others: each of those gets its nearest row, then its second nearest, ..."""
        vectors, targets = self._targets(like)
        self._check_left(count, "like")
        ranks, best = self._neighbours(vectors, targets, count)
        taken = dict.fromkeys(ranks.tolist())
        if len(taken) < count:  # several targets have the same neighbours: fill up by cosine
            taken |= dict.fromkeys(np.argsort(-best, kind="stable").tolist())
        chosen = np.array(list(taken)[:count], dtype=np.int64)
        self._take(f"like {_shown(like)}", chosen, "cosine with its nearest", best, best=1)

    def _targets(self, like: str | Path | Sequence[int]) -> tuple[UnitVectors, Rows]:
        """Target rows and their vectors. Target rows of this store are removed from the candidates."""
        store = self.store
        if isinstance(like, str | Path) and like != LABELLED and _is_store(like):
            there = self._open_other(like)
            valid = np.flatnonzero(there.valid)
            return UnitVectors(there, self.field, valid, centre=self.vectors.centre), valid
        if like == LABELLED:
            targets = np.flatnonzero(store.labels >= 0)
        elif isinstance(like, str | Path):
            targets = np.asarray(choose_rows(store, where=[str(like)]), dtype=np.int64)
        else:
            targets = np.unique(np.asarray(like, dtype=np.int64))
        targets = targets[store.valid[targets]]
        if not len(targets):
            raise ConfigError(f"{store.address}: no valid row is {_shown(like)}.")
        before = len(self.rows)
        self.rows = np.setdiff1d(self.rows, targets)
        if len(self.rows) < before:
            self.notes.append(
                f"{before - len(self.rows):,} rows are {_shown(like)} themselves and are not chosen"
            )
        return self.vectors, targets

    def _neighbours(
        self, vectors: UnitVectors, targets: Rows, count: int
    ) -> tuple[npt.NDArray[np.int64], Floats]:
        """Candidates ordered by their best rank over all targets, and the highest cosine of each candidate."""
        per_target = min(
            len(self.rows), max(8, 4 * math.ceil(count / len(targets))), MOST_KEPT // len(targets)
        )
        per_target = max(1, per_target)
        best = np.full(len(self.rows), -1, np.float32)
        all_places, all_cosines = [], []
        done = 0
        for block in blocks(targets, vectors.block_rows):
            facing = vectors.units(block)
            places: npt.NDArray[np.int64] = np.zeros((len(block), 0), np.int64)
            cosines: Floats = np.zeros((len(block), 0), np.float32)
            for start in range(0, len(self.rows), self.vectors.block_rows):
                part = slice(start, min(start + self.vectors.block_rows, len(self.rows)))
                cosine = facing @ self.vectors.units(self.rows[part]).T
                np.maximum(best[part], cosine.max(axis=0), out=best[part])
                done += cosine.size
                top = _top(cosine, per_target)
                places = np.concatenate([places, top + part.start], axis=1)
                cosines = np.concatenate([cosines, np.take_along_axis(cosine, top, 1)], axis=1)
                top = _top(cosines, per_target)
                places = np.take_along_axis(places, top, 1)
                cosines = np.take_along_axis(cosines, top, 1)
                self.progress(done, len(targets) * len(self.rows))
            order = np.argsort(-cosines, axis=1, kind="stable")
            all_places.append(np.take_along_axis(places, order, axis=1))
            all_cosines.append(np.take_along_axis(cosines, order, axis=1))
        places, cosines = np.concatenate(all_places), np.concatenate(all_cosines)
        rank = np.broadcast_to(np.arange(places.shape[1]), places.shape)
        order = np.lexsort((places.reshape(-1), -cosines.reshape(-1), rank.reshape(-1)))
        return places.reshape(-1)[order], best

    def spread(self, count: int, seed: int) -> None:
        """Keep the same number of rows of every cluster, as far as it has them, from its centre to its edge."""
        self._check_left(count, "diverse")
        clusters = clustered(
            self.vectors, self.rows, min(count, MOST_CLUSTERS), seed, self.progress
        )
        member, distance = clusters.member, clusters.distance
        order = np.lexsort((distance, member))
        sizes = np.bincount(member)
        quota = _shared_out(sizes, count)
        taken = []
        for start, size, wanted in zip(np.cumsum(sizes) - sizes, sizes, quota, strict=True):
            if wanted:
                places = np.linspace(0, size - 1, wanted).round().astype(np.int64)
                taken.append(order[start + places])
        chosen = np.concatenate(taken)
        self._take("diverse", chosen, "distance from its cluster", distance, best=-1)

    def _open_other(self, other: str | Path) -> FeatureStore:
        """Another store, if its features can be compared with those of this one."""
        there = FeatureStore.open(other)
        ours, theirs = self.store.manifest, there.manifest
        if self.field not in theirs.fields:
            raise ConfigError(
                f"{there.address}: no field {self.field!r}; it has: {shorten(sorted(theirs.fields))}."
            )
        mine, its = (
            {
                "shape": list(manifest.fields[self.field].shape),
                "teacher": manifest.teachers[manifest.fields[self.field].teacher].model_dump(
                    exclude={"licence"}
                )
                if manifest.fields[self.field].teacher
                else {},
            }
            for manifest in (ours, theirs)
        )
        differing = differences(mine, its)
        if differing:
            lines = "; ".join(f"{key}: {was!r} and {now!r}" for key, was, now in differing)
            raise ManifestMismatch(
                f"{self.store.address} and {there.address}: features of {self.field} cannot be compared: {lines}."
            )
        return there


def _is_store(like: str | Path) -> bool:
    return is_url(str(like)) or (Path(like) / MANIFEST_NAME).exists()


def _shown(like: str | Path | Sequence[int]) -> str:
    return str(like) if isinstance(like, str | Path) else f"{len(like):,} rows"


def _top(values: Floats, count: int) -> npt.NDArray[np.int64]:
    """Places of the largest numbers of each row, in any order."""
    if values.shape[1] <= count:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.argpartition(-values, count - 1, axis=1)[:, :count]


def _shared_out(sizes: npt.NDArray[np.int64], count: int) -> list[int]:
    """Number of rows to keep of each cluster: the same for all, or all rows of smaller ones."""
    quota = np.zeros(len(sizes), np.int64)
    left = count
    for rank, place in enumerate(np.argsort(sizes, kind="stable")):
        quota[place] = min(int(sizes[place]), left // (len(sizes) - rank))
        left -= int(quota[place])
    return [int(number) for number in quota]
