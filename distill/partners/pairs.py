"""``pairs``: a text and its translation are nearer to each other than to other texts of the batch (DC-CLIP, stage 2).

    weight mean over both directions of CE(s_i . s'_j / temperature, i)

s is the student's feature of a text and s' that of its translation, both of length 1 (symmetric InfoNCE, CLIP).
Translations are texts with the same value in column pair. Our reading: beside the method's loss, in one run, where the
paper has two stages.
"""

# U texts of a step, P of them with a translation

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.lazy import Tensor
from distill.losses.contrast import symmetric_info_nce
from distill.methods.base import Batch, Output, Setup
from distill.options import CheckedOptions
from distill.partners.base import Partner
from featstore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PairsConfig(CheckedOptions, name="pairs", share=("share",), positive=("temperature",)):
    """Partner ``pairs``: texts are near to their translations (symmetric InfoNCE)."""

    weight: float = 1.0
    """Weight of this partner's term beside the method's loss."""
    temperature: float = 0.07
    """Divides the cosines."""
    share: float = 1.0
    """Share of the pairs that may be used, chosen by a hash of their value in column pair, 0 to 1."""


class Pairs(Partner):
    """See the top of this file.

    Raises:
        ConfigError: no text of the training part has a translation that may be used.
    """

    Options = PairsConfig
    options: PairsConfig
    labels = False

    def __init__(self, setup: Setup, options: PairsConfig) -> None:
        super().__init__(setup, options)
        import torch

        from distill.data.schedule import random_bits
        from distill.data.texts import Translations

        found = Translations(setup.samples)
        allowed = {
            pair: random_bits("distill-pair", pair) < options.share * 2**64
            for pair in set(found.pairs)
        }
        number = {pair: place for place, pair in enumerate(allowed)}
        count = len(setup.samples.ids)
        usable = [bool(found.of(index)) and allowed[found.pairs[index]] for index in range(count)]
        if not any(usable[index] for index in setup.split.unlabelled):
            raise ConfigError(
                f"--partner pairs with --pairs.share {options.share:g}: none of {len(setup.split.unlabelled):,} texts "
                "has a translation that may be used. The table needs columns pair and language, and --data.unlabelled "
                "must match both languages."
            )
        self._usable = torch.tensor(usable)
        self._pair = torch.tensor([number[pair] for pair in found.pairs])

    @classmethod
    def strong_views(cls, options: Any) -> int:
        """One: the strong copy of a text is its translation."""
        return 1

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        indices = batch.indices[batch.num_labelled :]
        known = self._usable[indices]
        pair = self._pair[indices][known].to(weak.features.device)
        ours, theirs = (part.features[known.to(part.features.device)] for part in (weak, strong[0]))
        if len(pair) < 2:
            return {"pairs": 0 * weak.features.float().mean()}
        same = pair[:, None] == pair[None]
        term = symmetric_info_nce(ours, theirs, same, temperature=self.options.temperature)
        return {"pairs": self.options.weight * term}
