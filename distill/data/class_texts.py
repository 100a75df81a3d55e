"""The text table of a run: which artefact of the store it is, and its rows in the order of the classes."""

# B images, K classes, D width of the teacher's space

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.data.samples import Samples, Split
from distill.data.stored_features import Features
from distill.losses.alignment import text_logits
from featstore.errors import ConfigError, shorten
from featstore.format.text_table import TextTable, artefact_name, tables_of


@dataclass(frozen=True)
class ClassTexts:
    """Texts of the classes."""

    texts_KD: Tensor  # (K, D) float32, rows of length 1, in the order of the classes
    seen_K: Tensor  # (K,) bool: an image of the class is labelled and trained on

    def to(self, device: torch.device) -> "ClassTexts":
        """The same on a device."""
        return ClassTexts(self.texts_KD.to(device), self.seen_K.to(device))

    def logits(self, embedding_BD: Tensor, *, temperature: float) -> Tensor:
        """(B, K) cosine over the temperature; minus infinity for classes that are not trained on."""
        logits = text_logits(embedding_BD, self.texts_KD, temperature=temperature)
        return logits.masked_fill(~self.seen_K, -torch.inf)


@dataclass(frozen=True)
class Texts:
    """Texts in the space of the stored vector."""

    artefact: str  # name in the store
    origin: str  # how the texts were embedded, from the manifest
    table: TextTable  # names and embeddings

    def of_classes(self, samples: Samples, part: Split) -> "ClassTexts":
        """The texts of the classes of the images, and which of them are trained on."""
        if not samples.num_classes:
            raise ConfigError(
                f"{samples.source.uri}: its images have no classes to look up in the text table."
            )
        try:
            rows = self.table.rows_of(samples.class_names)
        except ConfigError as error:
            raise ConfigError(f"{self.artefact}: {error}") from None
        seen = np.zeros(samples.num_classes, np.bool_)
        seen[samples.labels[part.labelled]] = True
        return ClassTexts(torch.from_numpy(self.table.embedding[rows]), torch.from_numpy(seen))

    @property
    def all(self) -> Tensor:
        """(n, D) float32, every text."""
        return torch.from_numpy(self.table.embedding)


def read_texts(features: Features, name: str, *, setting: str) -> Texts:
    """The text table of a store.

    Args:
        name: of the table; empty takes the only one.
    """
    store = features.store
    if len(features.teachers) > 1:
        raise ConfigError(
            f"{setting}: texts are in the space of one teacher; leave out --teachers."
        )
    known = tables_of(store.manifest)
    chosen = [name] if name in known else [artefact_name(name)] if name else known
    if len(chosen) != 1 or chosen[0] not in known:
        raise ConfigError(
            f"{setting} {name or '(none named)'}: {store.address} has the text tables {shorten(known) or 'none'}. "
            "Add one: featstore text-table STORE OUT."
        )
    record = store.manifest.artefacts[chosen[0]]
    table = TextTable.from_tensors(store.artefact(chosen[0]))
    teacher = store.manifest.fields[features.field].teacher
    if table.width != features.width or record.teacher not in ("", teacher):
        raise ConfigError(
            f"{setting} {chosen[0]}: texts of width {table.width} by teacher {record.teacher or 'none'}; field "
            f"{features.field} has width {features.width} by {teacher or 'none'}. Name the field that they belong to "
            f"(--field): {record.meaning}."
        )
    return Texts(chosen[0], record.meaning, table)
