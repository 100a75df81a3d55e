"""``autodistil``: relations between the tokens of a sample, for all sizes of a slimmable student (Xu et al., 2022).

Xu et al., "AutoDistil: few-shot task-agnostic neural architecture search for distilling large language models" (NeurIPS
2022). Every step compares the largest size, the smallest and some at random (sandwich rule). Read from the paper and
the authors' code, which differ: the paper compares relations after softmax, the code the scores before it.
"""

# B samples, N tokens, g side of a grid of tokens, C student width of a size, D teacher width

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.config import DistillConfig
from distill.lazy import Tensor, torch
from distill.losses.token_relations import Compared, token_relation_mse
from distill.methods.base import Batch, Method, Needs, Output, Setup, Side, Student
from distill.options import CheckedOptions
from featstore.errors import ConfigError
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import TextRecord
from featstore.sources.config import require

INPUTS = "autodistil_inputs"


@dataclass(frozen=True, kw_only=True)
class AutoDistilConfig(CheckedOptions, name="autodistil", positive=("relation_heads", "weight")):
    """Method ``autodistil``: all sizes of a slimmable student imitate the teacher's relations between tokens."""

    fields: list[str] = dataclasses.field(default_factory=lambda: ["q", "k", "v"])
    """Fields with the teacher's queries, keys and values: of all tokens (q), or averaged to a patch grid (q.grid7).
    The student must have as many tokens; its class token is left out where grids are compared."""
    relation_heads: int = 12
    """Parts that every width is cut into, of the teacher and of every size, however many heads they attend with."""
    compared: Compared = "softmax"
    """softmax: relations after softmax, as in the paper. scores: before it, as in the released code."""
    weight: float = 1.0
    """Weight of each of the three relations of each size."""
    randoms: int = 2
    """Sizes at random in a step, beside the largest and the smallest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(set(self.fields)) == 3,
            f"--autodistil.fields {self.fields}: expected three, for queries, keys and values.",
        )


class AutoDistil(Method):
    """L = weight sum over sizes and {Q, K, V} of (1 / H) sum_h MSE(R_t, R_s). Trained: the slimmable student.

    Raises:
        ConfigError: the student is not slimmable, has other tokens than the teacher, or a width that the relation heads
            do not divide.
    """

    Options = AutoDistilConfig
    options: AutoDistilConfig

    def __init__(self, setup: Setup, options: AutoDistilConfig) -> None:
        super().__init__(setup, options)
        check_student(setup.student, setup.features.store.manifest, options)

    @classmethod
    def needs(cls, options: AutoDistilConfig) -> Needs:
        return Needs(vector=False, fields=tuple(options.fields))

    @classmethod
    def check(cls, options: AutoDistilConfig, config: DistillConfig, data: Any) -> None:
        """Refuse fields that are missing, differ in shape, or have another width than the heads divide."""
        store, heads = data.store, options.relation_heads
        known = store.manifest.fields
        shapes = {name: known[name].shape for name in options.fields if name in known}
        shape: tuple[int, ...] = next(iter(shapes.values()), ())
        require(
            len(shapes) == 3 and set(shapes.values()) == {shape} and len(shape) in (2, 3),
            f"--autodistil.fields {options.fields}: {store.address} has {shapes or 'none of them'}; expected three "
            "fields of one shape, (tokens, width) or (side, side, width). Extract them: featstore extract "
            "--store.fields '[cls,q,k,v]'.",
        )
        require(
            shape[-1] % heads == 0,
            f"--autodistil.relation_heads {heads}: the teacher's width, {shape[-1]}, does not divide by it.",
        )

    def student_sides(self) -> dict[str, Side]:
        """Queries, keys and values of the sizes of a step."""
        from distill.methods.modules import Sandwich

        return {"qkv": Side(Sandwich(slimmable(self.setup.student), self.options.randoms), INPUTS)}

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {INPUTS: batch.images[: batch.num_labelled + batch.num_unlabelled]}

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        stored = [batch.fields[name] for name in self.options.fields]
        mask = slimmable(student).token_mask(batch.images[: len(stored[0])])
        losses = [
            self.options.weight * relation_loss(found, stored, self.options, mask)
            for found in output.projected["qkv"]
        ]
        names = ["largest", "smallest"][: len(losses)]
        terms = dict(zip(names, losses, strict=False))
        return terms | ({"random": torch.stack(losses[2:]).sum()} if losses[2:] else {})


def relation_loss(
    qkv_BNC: Tensor, stored: Sequence[Tensor], options: AutoDistilConfig, mask: Tensor | None
) -> Tensor:
    """Sum of the losses of queries, keys and values.

    Args:
        qkv_BNC: (B, N, 3 C) of the student, side by side.
        stored: (B, N, D) or (B, g, g, D) of the teacher, each.
        mask: (B, N), see ``Slimmable.token_mask``.
    """
    losses = []
    for own, target in zip(qkv_BNC.chunk(3, dim=-1), stored, strict=True):
        tokens = target.flatten(1, -2)
        losses.append(
            token_relation_mse(
                own[
                    :, own.shape[1] - tokens.shape[1] :
                ],  # without class token where grids are compared
                tokens,
                heads=options.relation_heads,
                compared=options.compared,
                mask_BN=mask,
            )
        )
    return torch.stack(losses).sum()


def slimmable(student: Student) -> Any:
    """The slimmable model of a student. Raises ConfigError: it is another."""
    from distill.student.slimmable import Slimmable

    model = student.library_model
    if not isinstance(model, Slimmable):
        raise ConfigError(
            "--methods autodistil: trains slimmable students (--student.name slimmable_vit, of texts slimmable_text), "
            f"not {student.name}."
        )
    return model


def check_student(student: Student, manifest: Manifest, options: AutoDistilConfig) -> None:
    """Refuse a student whose tokenizer, tokens or widths do not fit.

    Raises:
        ConfigError: names the sizes.
    """
    model, heads = slimmable(student), options.relation_heads
    record = manifest.fields[options.fields[0]]
    unfit = sorted({size.width for size in model.sizes if size.width % heads})
    require(
        not unfit,
        f"--autodistil.relation_heads {heads}: the student's widths {unfit} do not divide by it.",
    )
    tokens, expected = model.num_tokens, math.prod(record.shape[:-1])
    if len(record.shape) == 3:
        tokens -= model.num_prefix_tokens
    require(
        tokens == expected,
        f"--autodistil.fields: the teacher has {expected} tokens ({record.shape}), the student {tokens}. Choose its "
        "img_size and patch_size (texts: length) to match.",
    )
    teacher = manifest.teacher_of(options.fields[0]).preprocessing
    own = str(getattr(model, "tokenizer_sha256", ""))
    require(
        not isinstance(teacher, TextRecord) or own == teacher.tokenizer_sha256,
        f"--student.model_args tokenizer: SHA-256 {own[:12]}; the teacher: {teacher}. Relations between tokens "
        "need the same tokens: give the file that the teacher was given.",
    )
