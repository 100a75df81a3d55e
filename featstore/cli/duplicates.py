"""``featstore inspect --duplicates``: find duplicates, and test images in other parts."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from featstore.cli.arguments import flag, positive, value
from featstore.display.text import format_seconds
from featstore.errors import ConfigError, ViewMismatch, shorten
from featstore.files.array_types import Rows
from featstore.reading.store import FeatureStore
from featstore.selection.groups import (
    TEST,
    Overlap,
    exact_duplicates,
    join_groups,
    overlaps,
    select_parts,
)
from featstore.selection.near_duplicates import (
    THRESHOLD,
    NearDuplicates,
    comparison_seconds,
    near_duplicates,
    own_crops,
)
from featstore.selection.unit_vectors import ROUNDING, Floats, default_field

SHOWN = 20  # pairs and groups that are printed

LADDER = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
"""Cosines at which neighbours are counted, to help choose a threshold."""

QUANTILES = (0.5, 0.9, 0.99, 1.0)

MANY = 0.2  # share of images with a near duplicate above which the field is probably unsuitable
LONG_S = 10.0  # longer comparisons are announced, in seconds

DEFAULT_PARTS = {"labelled": ("train/*",), TEST: ("test/*",)}
"""Default parts of distill; used if both match something."""


ARGUMENTS = {
    "--duplicates": flag(
        "find equal files, images with nearly equal features, and images of the test part that are in another part too "
        "(exit status 1)"
    ),
    "--threshold": value(
        f"cosine from which two images count as near duplicates (default: {THRESHOLD})", float
    ),
    "--field": value("field to compare (default: cls, or the shortest vector)"),
    "--sample": value(
        "compare N random images of the test part, or of all if there is none, with all others; the time then grows "
        "with the number of images, not with its square",
        positive,
        metavar="N",
    ),
    "--parts": value(
        "parts by shell patterns over sample ids, such as labelled='train/*' test='test/*' (default: these two, if "
        "both match); a name may be repeated",
        nargs="+",
        metavar="NAME=PATTERN",
    ),
    "--recipe": value("take the parts from section data of a recipe of distill", Path),
}


def asked_for(arguments: argparse.Namespace) -> bool:
    """Return whether duplicates were asked for."""
    if arguments.duplicates:
        if arguments.parts and arguments.recipe:
            raise ConfigError("--parts and --recipe both name parts; give one of them.")
        return True
    for name in ("threshold", "field", "sample", "parts", "recipe"):
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name} needs --duplicates; add it.")
    return False


def find(store: FeatureStore, arguments: argparse.Namespace) -> dict[str, Any]:
    """Find duplicates and leaks; returns plain JSON values.

    Raises:
        ConfigError: Parts match nothing, or there is no such field.
        ViewMismatch: The field has no canonical view.
    """
    start = time.perf_counter()
    parts = select_parts(store, _patterns(store, arguments))
    exact = exact_duplicates(store)
    pairs, crops, reason = None, np.empty(0, np.float32), ""
    try:
        field = arguments.field or default_field(store)
        crops = own_crops(store, field)
        pairs = _compare(store, field, arguments, parts)
    except (ConfigError, ViewMismatch) as error:
        if arguments.field or arguments.threshold is not None or arguments.sample:
            raise
        reason = str(error)
    near = np.empty((0, 2), np.int64) if pairs is None else pairs.rows
    shared = overlaps(parts, exact, near)
    ids = store.sample_ids
    return {
        "images": int(store.valid.sum()),
        "exact": [_names(ids, group) for group in exact],
        "near": None if pairs is None else _near(store, pairs, crops),
        "near_not_compared": reason,
        "groups": [_names(ids, group) for group in join_groups(exact, near)],
        "parts": {name: len(rows) for name, rows in parts.items()},
        "overlaps": [_overlap(ids, item) for item in shared],
        "leak": any(item.leak for item in shared),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _patterns(store: FeatureStore, arguments: argparse.Namespace) -> Mapping[str, Sequence[str]]:
    if arguments.recipe is not None:
        return _recipe_patterns(arguments.recipe)
    if arguments.parts is None:
        try:
            select_parts(store, DEFAULT_PARTS)
        except ConfigError:
            return {}
        return DEFAULT_PARTS
    patterns: dict[str, list[str]] = {}
    for text in arguments.parts:
        name, equals, pattern = text.partition("=")
        if not (name and equals and pattern):
            raise ConfigError(
                f"--parts {text}: expected NAME=PATTERN, such as {TEST}='test/*'. The store goes before the options."
            )
        patterns.setdefault(name, []).append(pattern)
    return patterns


def _recipe_patterns(path: Path) -> dict[str, list[str]]:
    """Return the patterns of the parts in a recipe; missing ones have the defaults of distill."""
    import yaml

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from None
    data = recipe.get("data", {}) if isinstance(recipe, dict) else None
    if not isinstance(data, dict) or not {"data", "methods", "student"} & set(recipe):
        raise ConfigError(
            f"{path}: not a recipe of distill: expected a section data with lists of patterns called labelled, "
            f"unlabelled and {TEST}."
        )
    patterns = {}
    for name in ("labelled", "unlabelled", TEST):
        several = data.get(name, list(DEFAULT_PARTS.get(name, ())))
        if not isinstance(several, list) or not all(isinstance(item, str) for item in several):
            raise ConfigError(f"{path}: data.{name} is {several!r}; expected a list of patterns.")
        if several:
            patterns[name] = several
    return patterns


def _compare(
    store: FeatureStore, field: str, arguments: argparse.Namespace, parts: Mapping[str, Rows]
) -> NearDuplicates:
    """Compare all images with each other, or a sample with all; announce a long run."""
    everyone = np.flatnonzero(store.valid)
    rows = everyone
    if arguments.sample:
        rows = parts.get(TEST, everyone)
        if arguments.sample < len(rows):
            rows = np.random.default_rng(0).choice(rows, arguments.sample, replace=False)
    pairs = len(rows) * len(everyone)
    seconds = comparison_seconds(store, field, len(rows), len(everyone))
    seconds /= 1 if arguments.sample else 2
    if seconds > LONG_S:
        bound = "" if arguments.sample else "; --sample N compares N images with all others"
        print(
            f"comparing {len(rows):,} images with {len(everyone):,}: about {format_seconds(seconds)}{bound}",
            file=sys.stderr,
        )
    quiet = arguments.json or not sys.stderr.isatty()
    with tqdm(
        total=pairs, unit=" pairs", unit_scale=True, disable=quiet, file=sys.stderr, leave=False
    ) as bar:

        def progress(done: int, _: int) -> None:
            bar.update(done - bar.n)

        threshold = THRESHOLD if arguments.threshold is None else arguments.threshold
        return near_duplicates(store, field, threshold, rows=rows, progress=progress)


def _near(store: FeatureStore, pairs: NearDuplicates, crops: Floats) -> dict[str, Any]:
    ids, labels = store.sample_ids, store.labels
    first, second = labels[pairs.compared], labels[pairs.nearest_row]
    foreign = (first >= 0) & (second >= 0) & (first != second)
    ladder = []
    for cosine in LADDER:
        close = pairs.nearest >= cosine
        ladder.append(
            {
                "cosine": cosine,
                "images": int(close.sum()),
                "other_class": int((close & foreign).sum()),
            }
        )
    return {
        "field": pairs.field,
        "threshold": pairs.threshold,
        "compared": len(pairs.compared),
        "images": int((pairs.nearest >= pairs.threshold - ROUNDING).sum()),
        "found": pairs.found,
        "pairs": [
            {"first": ids[a], "second": ids[b], "cosine": round(cosine, 6)}
            for (a, b), cosine in zip(pairs.rows.tolist(), pairs.cosine.tolist(), strict=True)
        ],
        "nearest": _quantiles(pairs.nearest),
        "own_crops": _quantiles(crops),
        "ladder": ladder,
    }


def _quantiles(cosine: Floats) -> dict[str, float]:
    """Return the cosine below which each share of the images lies."""
    if not len(cosine):
        return {}
    values = np.quantile(cosine, QUANTILES).tolist()
    return {f"{share:g}": round(value, 4) for share, value in zip(QUANTILES, values, strict=True)}


def _overlap(ids: list[str], item: Overlap) -> dict[str, Any]:
    return {
        "part": item.part,
        "other": item.other,
        "images": item.size,
        "same": _names(ids, item.same),
        "exact": _names(ids, item.exact),
        "near": _names(ids, item.near),
        "leak": item.leak,
    }


def _names(ids: list[str], rows: Rows) -> list[str]:
    return [ids[row] for row in rows.tolist()]


def duplicate_lines(found: dict[str, Any]) -> list[str]:
    """Return the same as lines of text."""
    exact, near = found["exact"], found["near"]
    copies = sum(len(group) for group in exact)
    text = [
        f"equal files  {copies:,} images in {len(exact):,} groups"
        if exact
        else "equal files  none: no two images have the same bytes"
    ]
    text += [f"  equal      {shorten(group)}" for group in exact[:SHOWN]]
    text += _more(len(exact) - SHOWN, "groups")
    if near is None:
        text.append(f"near         not compared: {found['near_not_compared']}")
    else:
        text += _near_lines(near, found["images"])
    if not found["parts"]:
        return [*text, "leaks        not checked: set the test part with --parts or --recipe"]
    text.append(
        "parts        " + ", ".join(f"{name} {size:,}" for name, size in found["parts"].items())
    )
    for item in found["overlaps"]:
        text += _overlap_lines(item)
    return text


def _near_lines(near: dict[str, Any], images: int) -> list[str]:
    compared = f"{near['compared']:,}"
    if near["compared"] < images:
        compared += f" (of {images:,})"
    text = [
        f"near         {near['found']:,} pairs with cosine {near['threshold']:g} or more; {near['images']:,} of "
        f"{compared} images are in one (field {near['field']}, canonical view, mean taken off)"
    ]
    text += [
        f"  {pair['cosine']:.4f}     {pair['first']}  {pair['second']}"
        for pair in near["pairs"][:SHOWN]
    ]
    text += _more(len(near["pairs"]) - SHOWN, "pairs")
    if near["found"] > len(near["pairs"]):
        text.append(
            f"  ...        only the {len(near['pairs']):,} most similar pairs are listed and checked for leaks: raise "
            "--threshold"
        )
    text.append(f"nearest      {_spread(near['nearest'])}: an image and its nearest other one")
    if near["own_crops"]:
        text.append(f"own crops    {_spread(near['own_crops'])}: an image and its own seeded crops")
    text.append("threshold    cosine   images with such a neighbour   of another class")
    text += [
        f"             {step['cosine']:<6g} {step['images']:>18,} {step['other_class']:>25,}"
        for step in near["ladder"]
    ]
    if near["images"] > MANY * near["compared"]:
        text.append(
            f"warning      {near['images'] / near['compared']:.0%} of the images have a near duplicate: either "
            "images repeat, or this field does not separate them. Look at some pairs; try another --field or a higher "
            "--threshold."
        )
    return text


def _spread(quantiles: dict[str, float]) -> str:
    half, tenth, hundredth, highest = quantiles.values()
    return f"cosine {half:.3f} median, 10 % above {tenth:.3f}, 1 % above {hundredth:.3f}, highest {highest:.3f}"


def _overlap_lines(item: dict[str, Any]) -> list[str]:
    kinds = (("same", "the same images"), ("exact", "equal files"), ("near", "near duplicates"))
    counts = ", ".join(f"{len(item[key]):,} {name}" for key, name in kinds)
    word = "LEAK" if item["leak"] else "overlap"
    text = [
        f"{word:<12} of {item['images']:,} images of {item['part']}, in {item['other']} too: {counts}"
    ]
    if item["leak"]:
        text += [f"  {key:<10} {shorten(item[key], SHOWN)}" for key, _ in kinds if item[key]]
    return text


def _more(count: int, what: str) -> list[str]:
    return [f"  ...        and {count:,} more {what} (--json lists them)"] if count > 0 else []
