"""Fuse the soft labels of several teams over one transfer set: one target per team, from teams that are alike (KnFu).

Every team is a teacher of the store with one field of class logits; ``featstore merge`` puts them side by side. Softmax
of a team's logits is its soft label; p_k, their mean over the valid rows, estimates its distribution of classes. Then

    knfu      w_kj = exp(-beta KL(p_k || p_j)), divided by the sum over j
    uniform   w_kj = 1 / K
    fused_k = log sum_j w_kj softmax(z_j)

in float64, stored as float32 log-probabilities: softmax of what is stored gives the fused soft label. The weighting is
our reading of KnFu (arXiv:2403.11892), whose equations could not be read.
"""

# K teams, C classes, n rows

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from featstore.derive.composition import STEP_ROWS, Composition, compose, whole
from featstore.errors import ConfigError, shorten
from featstore.files.array_types import Array, Rows
from featstore.files.progress import Progress, no_progress
from featstore.format.artefacts import artefact_record, pack
from featstore.format.class_logits import are_probabilities, class_names_of
from featstore.format.manifest import Manifest, new_manifest
from featstore.format.manifest_records import FieldRecord
from featstore.format.version import __version__
from featstore.reading.store import FeatureStore
from featstore.reading.stored_rows import RowReader

Rule = Literal["knfu", "uniform"]

PREFIX = "fused."
"""Before the name of the field that a target is for."""

WEIGHTS = "fusion"
"""Artefact with the weights (K, K) and the mean soft labels (K, C)."""

LEAST = 1e-12
"""Smallest probability whose logarithm is taken."""


def fuse(
    source: Path,
    out: Path,
    *,
    rule: Rule = "knfu",
    beta: float = 10.0,
    fields: Sequence[str] = (),
    progress: Progress = no_progress,
) -> tuple[Manifest, Array]:
    """Write a store with a fused target for every team, or resume.

    Args:
        source: Folder of a complete store with the teams' logits.
        out: Folder of the new store; its fields are called ``fused.NAME``.
        rule: How the weights are made.
        beta: Of rule knfu; 0 is uniform.
        fields: Of the teams, at least two; empty takes every field that a teacher made with one vector of as many
            classes as the first one.

    Returns:
        The manifest of the new store, and the (K, K) weights, a row per team.

    Raises:
        ConfigError: Fewer than two teams, fields that are no class logits, other numbers or orders of classes, or
            ``beta`` is negative.
        StoreIncomplete, ShardCorrupt: The old store is not whole.
        ManifestMismatch, StoreNotFound, StoreBusy, StoreWriteError: See ``featstore.writing.fill``.
    """
    store = FeatureStore.open(source)
    plan, weights = plan_fuse(store, rule=rule, beta=beta, fields=fields)
    return compose(plan, out, progress=progress), weights


def plan_fuse(
    store: FeatureStore, *, rule: Rule, beta: float, fields: Sequence[str]
) -> tuple[Composition, Array]:
    """Plan the new store."""
    if beta < 0:
        raise ConfigError(f"--beta {beta:g} must not be negative.")
    teams = _teams(store, fields)
    means = mean_soft_labels(store, teams)
    weights = fusion_weights(means, rule=rule, beta=beta)
    data = pack({"weights": weights, "mean_soft_labels": means})
    old = store.manifest
    records = {
        f"{PREFIX}{name}": FieldRecord(
            shape=old.fields[name].shape,
            dtype="float32",
            dims=("class",),
            meaning=f"log of fused soft labels for {name}, weights "
            + ", ".join(f"{team} {weight:.4g}" for team, weight in zip(teams, row, strict=True)),
            teacher=old.fields[name].teacher,
            per_view=old.fields[name].per_view,
        )
        for name, row in zip(teams, weights.tolist(), strict=True)
    }
    manifest = new_manifest(
        teachers=old.teachers,
        views=old.views,
        fields=records,
        artefacts={
            WEIGHTS: artefact_record(
                data,
                meaning="weights (K, K) and mean soft labels (K, C), in the order of the fields",
            )
        },
        source=old.source,
        work=old.work,
        created_by={
            **old.created_by,
            "fused_by": f"featstore {__version__}, rule {rule}, beta {beta:g}",
            "fused_from": old.fingerprint,
        },
        container=old.container,
    )
    axis = whole(store)
    plan = Composition(
        manifest,
        {WEIGHTS: data},
        axis,
        {f"{PREFIX}{name}": (axis, name) for name in teams},
        conversions=_conversions(teams, weights),
    )
    return plan, weights


def _teams(store: FeatureStore, asked: Sequence[str]) -> list[str]:
    """Fields of the teams, in the order of the manifest."""
    fields = store.manifest.fields
    unknown = [name for name in asked if name not in fields]
    if unknown:
        raise ConfigError(
            f"--fields {' '.join(asked)}: {store.path} has no {shorten(unknown)}; it has {shorten(list(fields), 12)}."
        )
    usable = [name for name, record in fields.items() if _is_logits(record)]
    teams = [name for name in fields if name in asked] if asked else usable
    unfit = [name for name in teams if name not in usable]
    if unfit or len(teams) < 2:
        raise ConfigError(
            f"{store.path}: fusing takes the class logits of two or more teams, one plain vector each; found "
            f"{shorten(usable) or 'none'}{f', asked for {shorten(unfit)} too' if unfit else ''}. Put the teams' stores "
            "over the same transfer set side by side: featstore merge A B OUT --as teachers --names a,b"
        )
    classes = {name: fields[name].shape[0] for name in teams}
    if len(set(classes.values())) > 1:
        counts = [f"{name} {count}" for name, count in classes.items()]
        raise ConfigError(
            f"{store.path}: teams with other numbers of classes cannot be fused: {shorten(counts, 12)}. Choose those "
            "with the same classes (--fields)."
        )
    _check_orders(store, teams)
    return teams


def _check_orders(store: FeatureStore, teams: Sequence[str]) -> None:
    """Refuse teams whose teachers state other class names, or the same in another order."""
    manifest = store.manifest
    stated = {name: class_names_of(manifest.teacher_of(name)) for name in teams}
    first = next((names for names in stated.values() if names), None)
    other = [name for name, names in stated.items() if names and names != first]
    if other:
        raise ConfigError(
            f"{store.path}: {shorten(other)} have other classes, or the same in another order, than "
            f"{next(name for name, names in stated.items() if names == first)} (class_names in the model_args of the "
            "teachers). Write every team's logits in one order of classes."
        )


def _is_logits(record: FieldRecord) -> bool:
    floats = record.dtype in ("float16", "bfloat16", "float32")
    return (
        bool(record.teacher)
        and record.encoding.kind == "plain"
        and floats
        and len(record.shape) == 1
    )


def softmax(logits: Array) -> Array:
    """Softmax along the last axis, in float64."""
    values = logits.astype(np.float64)
    values = np.exp(values - values.max(axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def mean_soft_labels(store: FeatureStore, teams: Sequence[str]) -> Array:
    """(K, C) float64: the mean soft label of every team over valid rows and their views."""
    rows = np.flatnonzero(store.valid)
    if not len(rows):
        raise ConfigError(f"{store.path}: no row is valid; there is nothing to fuse.")
    sums = []
    for name in teams:
        width = store.manifest.fields[name].shape[0]
        total = np.zeros(width)
        for start in range(0, len(rows), STEP_ROWS):
            values = store.gather(name, rows[start : start + STEP_ROWS])
            if start == 0 and are_probabilities(values):
                raise ConfigError(
                    f"{store.path}: field {name} holds probabilities; fusing takes logits or log-probabilities. Store "
                    "their logarithm."
                )
            found = softmax(values)
            total += found.reshape(-1, width).mean(axis=0) * len(rows[start : start + STEP_ROWS])
        sums.append(total / len(rows))
    return np.stack(sums)


def fusion_weights(means: Array, *, rule: Rule, beta: float) -> Array:
    """(K, K) float64 weights; every row sums to 1.

    Args:
        means: (K, C) mean soft labels.
        rule: How the weights are made.
        beta: Of rule knfu.
    """
    if rule == "uniform":
        return np.full((len(means), len(means)), 1 / len(means))
    logs = np.log(np.maximum(means, LEAST))
    divergence = (means[:, None] * (logs[:, None] - logs[None])).sum(axis=-1)
    weights = np.exp(-beta * divergence)
    return weights / weights.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def _conversions(
    teams: Sequence[str], weights: Array
) -> Mapping[str, Callable[[RowReader, Rows], Array]]:
    def of(row: Array) -> Callable[[RowReader, Rows], Array]:
        def read(reader: RowReader, rows: Rows) -> Array:
            parts = [
                weight * softmax(reader.numbers(f"fields/{name}", rows))
                for name, weight in zip(teams, row, strict=True)
            ]
            fused: Array = np.log(np.maximum(sum(parts), LEAST)).astype(np.float32)
            return fused

        return read

    return {f"{PREFIX}{name}": of(row) for name, row in zip(teams, weights, strict=True)}
