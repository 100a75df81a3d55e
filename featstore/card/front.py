"""Front matter of a card with the keys of the Hugging Face hub's dataset cards."""

import re
from typing import Any

import yaml

from featstore.card.escape import plain
from featstore.card.statement import KEY, Statement, hub_licence, teacher_licence
from featstore.card.text import title_of
from featstore.format.manifest import Manifest

SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B",
         "10B<n<100B", "100B<n<1T", "n>1T")  # fmt: skip
"""The hub's size categories: below 10^3, 10^4, ..."""


def front_matter(manifest: Manifest, statement: Statement) -> list[str]:
    """Lines of YAML between two lines of dashes."""
    licences = [statement.image_licence]
    licences += [teacher_licence(manifest, statement, name) for name in manifest.teachers]
    size = min(max(0, len(str(manifest.num_rows)) - 3), len(SIZES) - 1)
    tasks = ["image-feature-extraction"]
    if manifest.source.class_names:
        tasks.append("image-classification")
    libraries = {_tag(item.library) for item in manifest.teachers.values()} - {""}
    values: dict[str, Any] = {
        "pretty_name": title_of(manifest, statement),
        **hub_licence(licences),
        "task_categories": tasks,
        "tags": [
            "feature-store",
            "featstore",
            "knowledge-distillation",
            manifest.container,
            *sorted(libraries),
        ],
        "size_categories": [SIZES[size]],
        # The hub would interpret arrays and tars of features as images or tables.
        "viewer": False,
        KEY: {
            "uuid": plain(manifest.uuid),
            "fingerprint": manifest.fingerprint,
            "version": manifest.version,
            "statement": statement.model_dump(mode="json", exclude_defaults=True),
        },
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
    return ["---", text.rstrip("\n"), "---"]


def _tag(text: str) -> str:
    """The text if it is a valid tag of the hub, else ""."""
    return text if re.fullmatch(r"[A-Za-z0-9._-]{1,40}", text) else ""
