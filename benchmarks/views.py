"""How many stored views are enough? Students on one view, on K replayed ones, and with the live teacher beside them.

    python pipelines/extract.py --views.seeded 8                     with the crops that the rows need
    python benchmarks/views.py                                       the embedded digits: 42 runs of three epochs
    python benchmarks/views.py --seeds '[0]' --train.epochs 1 --train.warmup_epochs 0 --out outputs/try
    python benchmarks/views.py --recipe R.yaml --extract E.yaml --store DIR --teacher.weights vit.safetensors
    python benchmarks/views.py --rows stored-8 live-fresh            some rows only

Flags ``--teacher.*`` are those of extract.py, all others those of distill.py. Rows of the table:

    canonical      every pass over an image shows the whole view, read from the store
    stored-K       every pass shows one of the first K stored crops
    live-same-K    as stored-K, but the teacher, loaded beside the student, computes the features of these crops
    live-fresh     pass n over an image shows crop number n, so that no crop ever comes back; the teacher computes it

A crop is the same function of seed, image and number everywhere, of the scale and ratio that the store states; student
and teacher always look at the same one. live-same-K must give the losses of stored-K: told is the largest
difference in the first step, where the weights are equal, in the first six, which the tolerance is for, and in whole
runs. Training makes any difference grow, at a high rate without warm-up a thousandfold within two steps: where the
store is in float16, the accuracies of these two rows may lie as far apart as those of two seeds.

The live teacher is charged with what training asks for: every step, and every stage 1 of customkd, whose passes over
the labelled features take the crops of the student's passes of the same number. Everything else is read from the store
in all rows: probes, the final measurement, and the statistics of ``standardize``, which are those of the views in use,
and for fresh crops those of the whole view and the first eight stored crops (or as many as there are).

"once" is phase one, for the views in use of all rows of the store, at the pace of live-fresh, so that both sides are
timed on the same machine at the same time; what the store's ledger says of its extraction is told beside it. Runs are
folders of train.py, OUT/FEATURES/METHOD/seedK; the same command goes on where it stopped. The table is also in
OUT/views.csv and OUT/views.json.
"""

import argparse
import csv
import dataclasses
import io
import itertools
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks._live import (
    TOLERANCE,
    TOLERATED_STEPS,
    FreshData,
    LiveData,
    LiveInTraining,
    Spent,
    fresh_rule,
    largest_difference,
    live_data,
    logged_losses,
    num_passes,
    same_teacher,
    steps_per_epoch,
)
from benchmarks._measure import print_table
from distill.config import DataConfig, DistillConfig, EvalConfig
from distill.data import joined
from distill.experiments.cost import StoreCost, store_cost
from distill.measures.linear_probe import LinearProbe
from distill.measures.score import TOP1
from distill.methods import METHODS
from distill.register import kinds, options_of
from distill.training import loop as train
from distill.training import run_folder as runs
from distill.training.launch import make_accelerator
from featstore import FeatureStore
from featstore.cli.recipe import parse
from featstore.display.text import format_bytes
from featstore.errors import FeatstoreError
from featstore.extraction.config import ExtractConfig
from featstore.extraction.teachers import Teacher
from featstore.files.atomic import write_bytes, write_json
from featstore.format.views import View, ViewSet
from featstore.planning.costs import stored_bytes
from featstore.sources import open_source
from featstore.sources.config import require

RECIPES = Path(__file__).resolve().parents[1] / "pipelines" / "recipes" / "digits"
SETTINGS = (
    "--methods=[fitnet,customkd]",
    "--out=outputs/digits/views",
    "--fitnet={norm: standardize, weight: 100}",
    # Without watching, which would look at test images in every epoch, and changes nothing that is learnt.
    "--customkd={norm: standardize, match_norm: layernorm, stage1_epochs: 3, w_general: 100,"
    " w_specific: 10, w_logits: 0.3, watch_every: 0}",
    "--train.log_every=1",
)
"""What the recipe and the flags may overrule."""
COUNTS = (1, 2, 4, 8)
MOST_SAME = 4  # replayed crops of live-same-K, or the most below it that are there
STATISTICS_VIEWS = 8  # stored crops whose statistics stand for those of fresh ones
FRESH_ROW = "live-fresh"
SPENT_NAME = "teacher.json"  # in the folder of a live run: what its teacher has cost so far


class Probes:
    """The teacher's probe of every seed, fitted once however many methods use it."""

    def __init__(self, data: joined.JoinedData, settings: EvalConfig) -> None:
        self._fit: Any = lru_cache(maxsize=None)(
            lambda seed: data.fit_probe(data.split(seed), most=settings.probe_rows, seed=seed)
        )

    def __call__(self, seed: int) -> LinearProbe:
        """The probe of one seed."""
        probe: LinearProbe = self._fit(seed)
        return probe


def options(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Our own flags, those of the teacher, and those of phase two."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe", default=str(RECIPES / "experiments" / "recipe.yaml"), help="of distill.py"
    )
    parser.add_argument(
        "--extract", default=str(RECIPES / "extract.yaml"), help="of extract.py: the teacher"
    )
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS), metavar="K")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="of the table; all without it")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    chosen, rest = parser.parse_known_args(argv)
    teacher: list[str] = []
    others: list[str] = []
    belongs = others
    for item in rest:
        if item.startswith("--"):
            belongs = teacher if item.startswith("--teacher.") else others
        belongs.append(item)
    return chosen, teacher, others


# ---------------------------------------------------------------- rows and runs


@dataclass(frozen=True)
class Row:
    """One way to get features."""

    name: str  # and folder
    views: Any  # see ``DataConfig``
    seeded: int = 0  # see ``DataConfig``
    live: type[LiveData] | None = None  # kind of the task; None reads the store

    def data(self, config: DataConfig) -> DataConfig:
        """The settings of its views."""
        return dataclasses.replace(config, views=self.views, seeded=self.seeded)


def make_rows(views: ViewSet, counts: Sequence[int]) -> list[Row]:
    """All rows that the stored views allow."""
    held = len([view for view in views.views if view.kind == "seeded" and not view.mirrored])
    found = [Row("canonical", "canonical")] if View(kind="canonical") in views.views else []
    kept = [count for count in sorted(counts) if count <= held]
    require(
        bool(kept),
        f"--counts {counts}: the store holds {held} seeded views. Extract one with more (--views.seeded).",
    )
    found += [Row(f"stored-{count}", "seeded", count) for count in kept]
    same = max([count for count in kept if count <= MOST_SAME] or kept[:1])
    found.append(Row(f"live-same-{same}", "seeded", same, LiveData))
    return [*found, Row(FRESH_ROW, "all", min(STATISTICS_VIEWS, held), FreshData)]


def chosen_rows(rows: Sequence[Row], names: Sequence[str] | None) -> list[Row]:
    """The rows of ``--rows``, in the order of the table. Raises ConfigError: there is none of that name."""
    held = [row.name for row in rows]
    missing = [name for name in names or [] if name not in held]
    require(not missing, f"--rows {' '.join(missing)}: there are {', '.join(held)}.")
    require(
        not names or FRESH_ROW in names,
        f"--rows: without {FRESH_ROW} nothing says at what pace the teacher works.",
    )
    return [row for row in rows if not names or row.name in names]


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    config: DistillConfig  # of phase two
    store: FeatureStore  # of the features
    teacher: Teacher  # that made them
    fields: dict[str, list[str]]  # of the store that the methods read, by method
    cost: StoreCost  # of the store
    tasks: dict[Row, joined.JoinedData]  # over the store, by row
    probes: Probes  # of the teacher, by seed

    def config_of(self, row: Row) -> DistillConfig:
        """The settings of a row's runs."""
        return dataclasses.replace(
            self.config,
            data=row.data(self.config.data),
            out=str(Path(self.config.out) / row.name),
        )

    def run(self, row: Row, method: str, seed: int) -> dict[str, Any]:
        """Train one student, or read what is known of it: the record of ``train.run``, and ``Spent`` as "live"."""
        config = self.config_of(row)
        # Each run decodes for itself, so that the first one does not pay for all.
        data = dataclasses.replace(self.tasks[row], caches={})
        part = data.split(seed, measured=config.eval.part)
        probe = self.probes(seed)
        if row.live is None:
            return train.run(config, data, probe, method=method, seed=seed)
        fresh = row.live is FreshData
        if fresh:  # nothing comes back, so there is nothing to keep
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_mb=0))
        live = live_data(
            data,
            [self.teacher],
            kind=row.live,
            features=LiveInTraining,
            rule=fresh_rule(data.rule, num_passes(config, part)) if fresh else None,
            cache_mb=config.data.cache_mb,
        )
        seen = live.features.live[0]
        path = runs.run_dir(config, method, seed) / SPENT_NAME
        if path.exists():
            seen.spent = Spent(**json.loads(path.read_bytes()))
        per_epoch, every = steps_per_epoch(config, part), config.train.checkpoint_every

        def keep(step: int) -> None:
            if step % per_epoch == 0 or (every and step % every == 0):  # there is a checkpoint
                write_json(path, dataclasses.asdict(seen.spent))

        record = train.run(config, live, probe, method=method, seed=seed, on_step=keep)
        return {**record, "live": json.loads(path.read_bytes())}

    def same(self, stored: Row, live: Row, method: str, seed: int) -> dict[str, Any]:
        """How far the losses of two runs lie apart."""
        folders = [runs.run_dir(self.config_of(row), method, seed) for row in (stored, live)]

        def apart(steps: int | None) -> float:
            return largest_difference(*(logged_losses(path, steps=steps) for path in folders))

        records = [self.store.manifest.fields[name] for name in self.fields[method]]
        kinds = {"int8" if item.encoding.kind == "int8" else item.dtype for item in records}
        return {
            "method": method,
            "seed": seed,
            "steps": TOLERATED_STEPS,
            "difference": apart(TOLERATED_STEPS),
            "tolerance": max((TOLERANCE[kind] for kind in kinds), default=TOLERANCE["float32"]),
            "difference_of_first_step": apart(1),
            "difference_of_whole_run": apart(None),
        }

    def line(
        self, row: Row, method: str, records: Sequence[dict[str, Any]], pace: Spent
    ) -> dict[str, Any]:
        """One line of the table: means over the runs; ``pace``: what some live teacher took for some images."""
        columns = 0 if row.live else len(self.tasks[row].columns)
        images = self.cost.images * columns
        teacher_s, pictures_s = (
            images * seconds / pace.images for seconds in (pace.teacher_s, pace.pictures_s)
        )
        manifest = self.store.manifest
        size = sum(
            stored_bytes(name, manifest.fields[name], columns) if columns else 0
            for name in self.fields[method]
        )
        top1 = [record["top1"] for record in records]
        live = [Spent(**record["live"]) for record in records if "live" in record] or [Spent()]
        seconds = [record["seconds"] for record in records]
        return {
            "method": method,
            "features": row.name,
            "runs": len(records),
            "top1_mean": statistics.fmean(top1),
            "top1_std": statistics.stdev(top1) if len(top1) > 1 else None,
            "teacher_images_once": images,
            "teacher_images_per_run": statistics.fmean(item.images for item in live),
            "teacher_s_once": teacher_s,
            "teacher_s_per_run": statistics.fmean(item.teacher_s for item in live),
            "teacher_pictures_s_per_run": statistics.fmean(item.pictures_s for item in live),
            "teacher_pictures_s_once": pictures_s,
            "bytes_per_image": size,
            "bytes": size * manifest.num_rows,
            "train_s_per_run": statistics.fmean(seconds),
            "all_s": teacher_s + pictures_s + sum(seconds),
        }


def prepare(
    config: DistillConfig,
    extract: ExtractConfig,
    counts: Sequence[int],
    names: Sequence[str] | None = None,
) -> tuple[Bench, list[Row]]:
    """Check everything against everything, and load the teacher. Raises FeatstoreError: something the user can mend."""
    require(not config.teachers, "--teachers: this compares one teacher's store to that teacher.")
    require(not config.data.mirror, "--data.mirror: this compares crops that are not mirrored.")
    store = FeatureStore.open(config.store)
    rows = chosen_rows(make_rows(store.manifest.views, counts), names)
    tasks = {
        row: joined.join_data(
            open_source(config.source),
            store,
            row.data(config.data),
            config.field,
            grid_field=config.grid_field,
        )
        for row in rows
    }
    fields: dict[str, list[str]] = {}
    for method in config.methods:
        needs = METHODS[method].needs(options_of(config, method))
        grid = [tasks[rows[0]].grid.field] if needs.grid else []
        fields[method] = [config.field] * needs.vector + grid
    every = dict.fromkeys([config.field, *itertools.chain(*fields.values())])
    device = make_accelerator(config).device
    teacher = same_teacher(extract.teacher, store, list(every), device)
    probes = Probes(tasks[rows[0]], config.eval)
    return Bench(config, store, teacher, fields, store_cost(store), tasks, probes), rows


def pace_of(records: Iterable[dict[str, Any]]) -> Spent:
    """What the live teachers of some runs took together. Raises ConfigError: no run asked them anything."""
    spent = [Spent(**record["live"]) for record in records]
    images = sum(item.images for item in spent)
    require(
        images > 0, "--methods: none of them looks at a teacher, so there is nothing to compare."
    )
    return Spent(
        images, sum(item.teacher_s for item in spent), sum(item.pictures_s for item in spent)
    )


# ---------------------------------------------------------------- the table

COLUMNS = {
    "method": "{}",
    "features": "{}",
    "runs": "{}",
    "top-1 %": "{}",
    "teacher images once": "{:,}",
    "per run": "{:,.0f}",
    "teacher s once": "{:.1f}",
    "per run ": "{:.1f}",
    "bytes/image": "{:,}",
    "bytes": "{}",
    "train s/run": "{:.1f}",
    "all s": "{:.1f}",
}
"""How each column is written."""


def cells(line: dict[str, Any], top1: Sequence[float]) -> list[str]:
    """One line of the table as text."""
    values = [
        *(line["method"], line["features"], line["runs"], TOP1.spread(top1)),
        *(line["teacher_images_once"], line["teacher_images_per_run"]),
        *(line["teacher_s_once"], line["teacher_s_per_run"]),
        *(line["bytes_per_image"], format_bytes(line["bytes"])),
        *(line["train_s_per_run"], line["all_s"]),
    ]
    return [text.format(value) for text, value in zip(COLUMNS.values(), values, strict=True)]


def notes(
    same: Sequence[dict[str, Any]],
    pairs: Sequence[tuple[Row, Row]],
    pace: Spent,
    cost: StoreCost,
) -> list[str]:
    """What a reader must know beside the numbers."""
    spent = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in cost.seconds.items())
    return [
        *(same_losses(same, *pair) for pair in pairs),
        f"Pace of the teacher in live-fresh, by which once is reckoned: {1000 * pace.teacher_s / pace.images:.2f} ms "
        f"for an image, {1000 * pace.pictures_s / pace.images:.2f} ms to decode and cut it. The store's ledger: "
        f"{spent} for {cost.images:,} images x {cost.views} views.",
        "all s: once, decoding and cutting included, and the training of all runs. Training of live rows contains the "
        "teacher, and cutting its pictures.",
    ]


def same_losses(same: Sequence[dict[str, Any]], stored: Row, live: Row) -> str:
    """Whether the live teacher gives the losses of its store."""
    worst = max(same, key=lambda item: item["difference"] / item["tolerance"])
    first, whole = (
        max(item[f"difference_of_{part}"] for item in same) for part in ("first_step", "whole_run")
    )
    return (
        f"{live.name} gives the losses of {stored.name}: {'yes' if is_within(worst) else 'NO'}. Largest difference "
        f"in the first {TOLERATED_STEPS} steps {worst['difference']:.1e}, tolerated {worst['tolerance']:.0e} "
        f"({worst['method']}, seed {worst['seed']}); in the first step {first:.1e}, in whole runs {whole:.1e}."
    )


def is_within(found: dict[str, Any]) -> bool:
    """Whether live and stored losses are as close as they must be."""
    within: bool = found["difference"] <= found["tolerance"]
    return within


def write(out: Path, lines: Sequence[dict[str, Any]], values: dict[str, Any]) -> None:
    """Write views.csv and views.json."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_bytes(out / "views.csv", text.getvalue().encode())
    write_json(out / "views.json", {"rows": lines, **values})


def main(argv: Sequence[str] | None = None) -> int:
    """Run all rows, and print the table. Returns 1 if the live teacher does not give the losses of its store."""
    chosen, of_teacher, others = options(argv)
    torch.set_num_threads(chosen.threads)
    recipe, extract_recipe = Path(chosen.recipe), Path(chosen.extract)
    settings = [*SETTINGS, "--config", chosen.recipe, *others]
    config = parse(DistillConfig, default_recipe=recipe, argv=settings, extend=kinds)
    settings = ["--config", chosen.extract, *of_teacher]
    extract = parse(ExtractConfig, default_recipe=extract_recipe, argv=settings)

    bench, rows = prepare(
        dataclasses.replace(config, report=False), extract, chosen.counts, chosen.rows
    )
    records: dict[tuple[str, Row], list[dict[str, Any]]] = {
        pair: [] for pair in itertools.product(config.methods, rows)
    }
    for seed in config.seeds:
        for (method, row), found in records.items():
            record = bench.run(row, method, seed)
            found.append(record)
            how = "finished before" if record.get("skipped") else f"{record['seconds']:.1f} s"
            top1 = f"{100 * record['top1']:.1f} %"
            print(f"seed {seed} {method} {row.name}: {top1} ({how})", flush=True)

    lives = [row for row in rows if row.live is LiveData]
    pairs = [
        (row, live) for live in lives for row in rows if not row.live and row.seeded == live.seeded
    ]
    runs_of_each = itertools.product(config.methods, config.seeds)
    same = [bench.same(*pair, *run) for run in runs_of_each for pair in pairs]
    live_runs = [found for (_, row), found in records.items() if row.live is FreshData]
    pace = pace_of(itertools.chain(*live_runs))
    lines = [bench.line(row, method, found, pace) for (method, row), found in records.items()]
    top1s = [[record["top1"] for record in found] for found in records.values()]
    print_table(
        f"{config.eval.part} top-1 of {config.student.name} after {config.train.epochs} epochs; teacher "
        f"{bench.teacher.record.name}, field {config.field}",
        list(COLUMNS),
        [cells(line, top1) for line, top1 in zip(lines, top1s, strict=True)],
    )
    said = notes(same, pairs, pace, bench.cost)
    write(
        Path(config.out),
        lines,
        {
            "same": same,
            "notes": said,
            "store": dataclasses.asdict(bench.cost),
            "threads": chosen.threads,
            "runs": [
                {"features": row.name, **{key: item[key] for key in item if key != "contract"}}
                for (_, row), found in records.items()
                for item in found
            ],
        },
    )
    print("\n" + "\n".join([*said, f"files: {config.out}/views.csv, {config.out}/views.json"]))
    return 0 if all(is_within(item) for item in same) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FeatstoreError as error:
        sys.exit(f"error: {error}")
