"""Match the views of two stores of the same images."""

from collections.abc import Sequence

import numpy as np

from distill.data.samples import Indices, Samples
from featstore import FeatureStore
from featstore.errors import ViewMismatch, shorten
from featstore.format.views import describe_views


def match_views(
    store: FeatureStore, other: FeatureStore, columns: Sequence[int], samples: Samples, number: int
) -> Indices:
    """Find the view columns of a further store that hold the very same regions.

    Args:
        store: Store of the first teacher, to whose view axis ``columns`` refer.
        number: Number of the further store, from 0.

    Returns:
        (V,) column in ``other`` for each of ``store``; -1 where it has none.
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
