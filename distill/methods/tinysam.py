"""``tinysam``: the student's embedding, output tokens and masks imitate those of a SAM (Shu et al., AAAI 2025).

Shu et al., "TinySAM: pushing the envelope for efficient segment anything model" (arXiv:2312.13789). Losses, hard
prompts (--promptable.rounds) and the weighting of hard masks are the paper's formulas. The embedding comes from the
store; the teacher's decoder is run on it in every step, because prompts depend on the student. The weights are ours
(the paper gives none), and so is that the student keeps the teacher's decoder unchanged.
"""

# B images, L of them labelled, P prompts of an image, D g width and side of the embedding

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import F, Tensor, torch
from distill.methods.base import Batch, Needs, Output, Setup, Student
from distill.methods.features import GridMethod
from distill.options import CheckedOptions
from featstore.errors import ConfigError
from featstore.sources.config import require


@dataclass(frozen=True, kw_only=True)
class TinySAMConfig(CheckedOptions, name="tinysam"):
    """Method ``tinysam``: imitate a SAM's embedding, output tokens and masks (Shu et al., AAAI 2025)."""

    embedding: float = 1.0
    """Weight of the absolute difference to the stored embedding; of all images."""
    tokens: float = 1.0
    """Weight of the absolute difference of the decoder's output tokens, at the prompts of the labelled images."""
    masks: float = 0.1
    """Weight of the absolute difference of the masks' logits there."""
    weighting: bool = True
    """Weight each mask by sigmoid(IoU of the teacher / IoU of the student - 1): more where the teacher does better."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.embedding + self.tokens + self.masks > 0,
            "--tinysam: all weights are 0, nothing would be distilled; use --methods labels.",
        )


class TinySAM(GridMethod):
    """L = task + embedding |E_s - E_t| + tokens |T_s - T_t| + masks mean_i H_i |M_s,i - M_t,i|.

    Trained: the student. Frozen: stored embedding E_t, the teacher's prompt encoder and mask decoder.

    Raises:
        ConfigError: the task is another than promptable.
    """

    NEEDS = Needs(vector=False, grid=True, labels=True, classes=False)
    Options = TinySAMConfig
    options: TinySAMConfig

    def __init__(self, setup: Setup, options: TinySAMConfig) -> None:
        super().__init__(setup, options)
        found = getattr(setup.student.task_head, "prompter", None)
        if found is None:
            raise ConfigError(
                f"--methods tinysam: needs --task promptable, whose decoder makes masks; the task is "
                f"{setup.config.task}."
            )
        self.prompter = found[0]

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        options, stored = self.options, self.target(batch)
        terms = {}
        if options.embedding:
            terms["embedding"] = options.embedding * F.l1_loss(output.logits.float(), stored)
        if batch.targets is not None and options.tokens + options.masks:
            terms |= self._at_prompts(output, batch, stored)
        return terms or {"embedding": 0 * output.logits.float().sum()}

    def _at_prompts(self, output: Output, batch: Batch, stored: Tensor) -> dict[str, Tensor]:
        from distill.losses.masks import hardness, mean_of

        assert batch.targets is not None
        own = self.prompter.prompt(output.logits, batch.targets)
        with torch.no_grad():
            teacher = self.prompter.decode(stored[: len(batch.targets)], own.points)
        tokens = (own.masks.tokens - teacher.tokens).abs().mean((2, 3))
        masks = (own.masks.logits - teacher.logits).abs().mean((2, 3))
        if self.options.weighting:
            masks = masks * hardness(own.masks.logits, teacher.logits, own.truth)
        found = {"tokens": (self.options.tokens, tokens), "masks": (self.options.masks, masks)}
        return {
            name: weight * mean_of(value, own.valid)
            for name, (weight, value) in found.items()
            if weight
        }
