"""Measure an exported student: accuracy, calibration, its features, agreement with the teacher, corruptions.

    accelerate launch pipelines/evaluate.py --model outputs/digits/distill/customkd/seed0 --store outputs/digits/store
    accelerate launch pipelines/evaluate.py --config recipe.yaml              any model, any source
    accelerate launch pipelines/evaluate.py --eval.corruptions '[all]'        also on corrupted pictures

About 15 s on the embedded digits. Without --store the student is measured alone; no teacher is needed either way.
"""

import sys
from pathlib import Path

# This folder comes first on sys.path, and in it distill.py would hide the package `distill`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.config import RECIPES, EvaluateConfig
from featstore.cli.recipe import run_main

DEFAULT_RECIPE = RECIPES / "evaluate.yaml"


def main(config: EvaluateConfig) -> dict[str, object]:
    """Load a student and measure it on the test part. Returns what is also written as JSON.

    Raises:
        FeatstoreError: something the user can mend.
    """
    from distill.data import joined
    from distill.evaluation.evaluate import check_classes, evaluate
    from distill.training.saved_student import load_exported, store_fingerprints
    from featstore import FeatureStore
    from featstore.extraction.accelerator import start_accelerator
    from featstore.files.atomic import write_json
    from featstore.sources import open_source
    from featstore.sources.load import ViewRule

    accelerator = start_accelerator()
    say = accelerator.print

    student, described = load_exported(Path(config.model))
    rule = ViewRule.from_description(described["input"]["region"])
    source = open_source(config.source)
    probe = None
    data: joined.Data
    if config.store:
        store = FeatureStore.open(config.store)
        data = joined.prepare(source, store, config.data, config.field, teachers=config.teachers)
        if data.fingerprints != store_fingerprints(described):
            say(
                "note: these are not the stores the student was trained from; the agreement is with their teachers"
            )
    else:
        data = joined.prepare_without_store(source, config.data, rule)
    check_classes(data.samples, described["label_names"], config.model)
    part = data.split(config.seed)
    if isinstance(data, joined.JoinedData):
        probe = data.fit_probe(part, most=config.eval.probe_rows, seed=config.seed)
    for note in data.samples.notes + part.notes:
        say(f"note: {note}")

    # Nothing is trained but a k-NN and linear probes on fixed features.
    student.to(accelerator.device)
    measured = evaluate(
        data,
        student,
        part,
        settings=config.eval,
        workers=config.workers,
        accelerator=accelerator,
        seed=config.seed,
        probe=probe,
        rule=rule,
    )
    result = measured.result
    out = Path(config.out or Path(config.model) / "reevaluation.json")
    if accelerator.is_main_process:
        write_json(out, result)
    for name, value in result.items():
        if isinstance(value, float):
            say(f"{name:<28} {value:.4f}")
    for name, value in dict(result.get("teacher", {})).items():
        say(f"teacher {name:<20} {value:.4f}")
    for name, value in dict(result.get("corruptions", {}).get("mean", {})).items():
        say(f"corrupted {name:<18} {value:.4f}")
    say(f"\n{result['num_images']:,} test images; written to {out}")
    accelerator.end_training()
    return result


if __name__ == "__main__":
    run_main(main, EvaluateConfig, default_recipe=DEFAULT_RECIPE)
