"""Measure a saved student on any source."""

from pathlib import Path

from distill.config import EvaluateConfig


def run(config: EvaluateConfig) -> dict[str, object]:
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
