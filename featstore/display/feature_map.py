"""t-SNE of several features of the same images."""

# N images, D width of a feature

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

PCA_WIDTH = 50  # principal components given to t-SNE


def embed(features: dict[str, npt.NDArray[np.float32]]) -> dict[str, Points]:
    """t-SNE (van der Maaten & Hinton 2008) of several features of the same images.

    All maps start from the first two principal components of the first feature with the same seed, so that common
    structure has similar positions.

    Args:
        features: by name, (N, D) of any width.

    Returns:
        By name, (N, 2). With fewer than five images, the first two principal components.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    found: dict[str, Points] = {}
    start: Points | None = None
    for name, feature in features.items():
        count, width = feature.shape
        centred = feature.astype(np.float64) - feature.mean(0)
        plane = np.zeros((count, 2))
        if centred.any():
            components = min(PCA_WIDTH, count, width)
            reduced = PCA(components, svd_solver="full").fit_transform(centred)
            plane[:, : min(2, components)] = reduced[:, :2]
        if start is None:
            start = plane
        spread = start[:, 0].std()
        if count < 5 or spread == 0 or not centred.any():
            found[name] = plane
            continue
        tsne = TSNE(
            perplexity=min(30, (count - 1) / 3),
            init=(start / spread * 1e-4).astype(np.float32),
            learning_rate="auto",
            max_iter=500,
            random_state=0,
        )
        found[name] = tsne.fit_transform(reduced.astype(np.float32)).astype(np.float64)
    return found
