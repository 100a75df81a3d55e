"""Clusters of a store's features: k-means on the principal components of the unit vectors."""

# n rows, A principal components, K clusters

from dataclasses import dataclass

import numpy as np

from featstore.errors import ConfigError
from featstore.files.array_types import Rows
from featstore.files.progress import Progress
from featstore.selection.unit_vectors import Floats, UnitVectors, blocks

AXES = 64  # principal components that features are reduced to

BATCH = 8192
PCA_ROWS = 20_480  # rows, evenly spread, that the principal components are measured on


@dataclass(frozen=True)
class Clusters:
    """Rows and their clusters."""

    points: Floats  # (n, A) principal components
    centres: Floats  # (K, A)
    member: Rows  # (n,) cluster of each row

    @property
    def distance(self) -> Floats:
        """(n,) distance of each row from the centre of its cluster."""
        found: Floats = np.linalg.norm(self.points - self.centres[self.member], axis=1)
        return found

    def nearest(self, count: int) -> Rows:
        """(n, count) nearest clusters of each row, in any order; all if there are fewer."""
        squares = np.square(self.centres).sum(axis=1)
        found = [
            np.argpartition(
                squares - 2 * self.points[part] @ self.centres.T,
                min(count, len(squares)) - 1,
                axis=1,
            )[:, :count]
            for part in blocks(np.arange(len(self.points)), BATCH)
        ]
        return np.concatenate(found)


def clustered(
    vectors: UnitVectors, rows: Rows, count: int, seed: int, progress: Progress
) -> Clusters:
    """Cluster rows.

    One thread: its products are small, and where other programs use the processors, threads wait for each other
    (50,000 rows, 512 clusters, load 18 on two cores: 17 s with one thread, over 120 s with two).

    Args:
        vectors: Reader of the features.
        rows: (n,) rows to cluster.
        count: K; each row is a cluster of its own if there are no more rows.
        seed: Seed of the clustering.
        progress: Called with the rows read and to read.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.decomposition import PCA
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ConfigError(
            f'clusters need scikit-learn ({error}): pip install "featstore-distill[card]"'
        ) from None
    places = np.unique(np.linspace(0, len(rows) - 1, min(PCA_ROWS, len(rows))).astype(np.int64))
    sample = np.concatenate(
        [vectors.units(part) for part in blocks(rows[places], vectors.block_rows)]
    )
    axes = min(AXES, *sample.shape)
    pca = PCA(axes, svd_solver="randomized", random_state=seed).fit(sample)
    points = np.empty((len(rows), axes), np.float32)
    for start in range(0, len(rows), vectors.block_rows):
        part = slice(start, start + vectors.block_rows)
        points[part] = pca.transform(vectors.units(rows[part]))
        progress(start, len(rows))
    if count >= len(rows):
        return Clusters(points, points, np.arange(len(rows)))
    means = MiniBatchKMeans(
        count,
        batch_size=BATCH,
        init_size=max(3 * count, min(BATCH, len(rows))),
        n_init=3,
        random_state=seed,
        reassignment_ratio=0.0,
    )
    with threadpool_limits(1):
        means.fit(points)
    progress(len(rows), len(rows))
    return Clusters(points, means.cluster_centers_, means.labels_.astype(np.int64))
