"""Texts in phase two: the stored row that teaches each, its translations, and batches of what a student is given."""

# n texts that take part, L numbers of a student's input

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch

from distill.data.pictures import Pictures, ViewDataset, request_table
from distill.data.samples import Indices, Samples
from distill.data.schedule import Request
from featstore.files.array_types import Array

Encode = Callable[[str], Array]  # (L,) int32 input of a student for one text


class Translations:
    """Which texts that take part mean the same in another language: those with the same value in column pair."""

    def __init__(self, samples: Samples) -> None:
        source, positions = samples.source, samples.positions.tolist()
        self.languages = [source.languages[row] for row in positions] if source.languages else []
        self.pairs = [source.pairs[row] for row in positions] if source.pairs else []
        self._members: dict[str, list[int]] = defaultdict(list)
        for index, pair in enumerate(self.pairs):
            if pair:
                self._members[pair].append(index)

    def of(self, index: int) -> list[int]:
        """Translations of one text; empty if there is none."""
        if not self.pairs or not self.languages:
            return []
        own = self.languages[index]
        return [
            other
            for other in self._members.get(self.pairs[index], ())
            if self.languages[other] != own
        ]

    def between(self, members: Indices) -> dict[tuple[str, str], Indices]:
        """By (language, other language): (P, 2) positions in ``members`` of each text and its first translation."""
        place = {int(index): number for number, index in enumerate(members)}
        found: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        for number, index in enumerate(members.tolist()):
            for other in self.of(index):
                if other in place:
                    key = self.languages[index], self.languages[other]
                    found[key].append((number, place[other]))
        return {key: np.array(pairs, np.int64) for key, pairs in sorted(found.items())}


class TextDataset(ViewDataset):
    """Texts by request, as a student's encoder gives them; the strong copy of a text is a translation of it.

    Args:
        length: L.
        known: inputs that were made before, by index; more are added.
        megabytes: memory for them.
    """

    def __init__(
        self,
        samples: Samples,
        encode: Encode,
        length: int,
        *,
        known: dict[int, Array],
        megabytes: int,
    ) -> None:
        self.samples = samples
        self.size = (1, length)
        self._encode = encode
        self._most = megabytes * 2**20 // self.row_bytes
        self._known = known

    @cached_property
    def translations(self) -> Translations:
        """Of the texts that take part."""
        return Translations(self.samples)

    @property
    def row_bytes(self) -> int:
        return 4 * self.size[1]

    def __getitems__(self, requests: Sequence[Request]) -> Pictures:
        """Make a batch of (B, L) int32."""
        inputs = np.stack([self._input(self._shown(request)) for request in requests])
        return Pictures(torch.from_numpy(inputs), request_table(requests), [], [])

    def _shown(self, request: Request) -> int:
        others = self.translations.of(request.sample) if request.strong else []
        return others[request.draw % len(others)] if others else request.sample

    def _input(self, index: int) -> Array:
        known = self._known.get(index)
        if known is None:
            row = int(self.samples.positions[index])
            known = self._encode(self.samples.source.read(row).decode())
            if len(self._known) < self._most:
                self._known[index] = known
        return known
