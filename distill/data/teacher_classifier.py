"""The teacher's own classifier, which phase one can keep as an artefact of the store."""

from collections.abc import Sequence

from distill.data.stored_features import Features
from distill.measures.linear_probe import LinearProbe
from featstore.errors import ConfigError, shorten
from featstore.format.class_logits import class_names_of
from featstore.format.classifier import FIELD, check_classifier, classifier_of


def stored_classifier(stored: Features, names: Sequence[str]) -> LinearProbe:
    """Read the classifier of the field that a run learns from.

    Args:
        names: Classes of the labels, in their order.
    """
    store = stored.store
    where = f"--data.classifier stored: {store.address}"
    if len(stored.teachers) > 1:
        raise ConfigError(
            f"{where}: is for one teacher; this run has {len(stored.teachers)} (--teachers)."
        )
    name = classifier_of(stored.field)
    artefacts = store.manifest.artefacts
    if not stored.field.endswith(FIELD) or name not in artefacts:
        raise ConfigError(
            f"{where} has no classifier for --field {stored.field}; its artefacts: "
            f"{shorten(sorted(artefacts)) or 'none'}. Extract it with "
            f"--teacher.classifier true and name --field {FIELD}, or use --data.classifier probe."
        )
    try:
        weight, bias = check_classifier(store.artefact(name), stored.width)
    except ConfigError as error:
        raise ConfigError(f"{where}: artefact {name} {error}") from None
    stated = class_names_of(store.manifest.teacher_of(stored.field))
    if len(bias) != len(names) or (stated is not None and stated != list(names)):
        theirs = f"{len(bias)} classes" + (f" ({shorten(stated, 12)})" if stated else "")
        raise ConfigError(
            f"{where}: the classifier knows {theirs}; the labels are of {len(names)} ({shorten(names, 12)}). Names and "
            "order must be the same: name them with --source.classes, or use --data.classifier probe."
        )
    return LinearProbe(weight, bias)
