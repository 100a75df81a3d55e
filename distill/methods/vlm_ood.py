"""``vlm_ood`` and ``embedding``: the student's embedding takes the place of the teacher's, also for unseen classes.

Li et al., ICCV 2023 ("Distilling large vision-language model with out-of-distribution generalizability",
arXiv:2307.03135). Losses and temperature are those of the public code; that unlabelled images take part is ours.
``embedding`` is its squared distance alone, which needs neither label nor text: the baseline that must stand beside it.
"""

# B batch, D width of the teacher's space, K classes, n texts

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import Tensor, no_grad, torch
from distill.losses import IGNORE, cross_entropy
from distill.methods.base import Batch, Method, Needs, Output, Setup, Student
from distill.options import CheckedOptions
from featstore.errors import ConfigError
from featstore.sources.config import require


@dataclass(frozen=True, kw_only=True)
class VLMOODConfig(CheckedOptions, name="vlm_ood", positive=("temperature", "top_k")):
    """Method ``vlm_ood``: the student's embedding imitates that of an image-text teacher (Li et al., ICCV 2023)."""

    cls: float = 1.0
    """Weight of the cross entropy on labels, by cosine to the texts of the classes that are trained on."""
    mse: float = 1.0
    """Weight of the squared distance to the teacher's embedding, both of length 1; needs no label and no text."""
    cst: float = 1.0
    """Weight of the contrast of student and teacher embeddings within the batch, in both directions."""
    vlalign: float = 1.0
    """Weight of KL(teacher || student) over the texts nearest to the teacher's embedding."""
    caption: float = 0.0
    """Weight of the contrast of images and their captions within the batch; images of one class are no negatives."""
    temperature: float = 0.07
    """Temperature that all cosines are divided by."""
    top_k: int = 256
    """Texts per image in vlalign, those nearest by the teacher; all where there are fewer."""
    table: str = ""
    """Text table of the store with the classes; empty takes the only one."""
    align_table: str = ""
    """Text table for vlalign, e.g. captions or a vocabulary; empty takes the texts of the classes trained on."""
    align_correct: bool = False
    """Leave labelled images that the teacher itself misclassifies out of vlalign."""
    caption_field: str = ""
    """Vector field of the store with an embedded caption of every image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.cls + self.mse + self.cst + self.vlalign + self.caption > 0,
            "--vlm_ood: all weights are 0, nothing would be trained.",
        )
        require(
            not self.caption or bool(self.caption_field),
            f"--vlm_ood.caption {self.caption} needs --vlm_ood.caption_field.",
        )


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig(CheckedOptions, name="embedding", positive=("weight",)):
    """Method ``embedding``: squared distance of the student's embedding to the teacher's, and nothing else."""

    weight: float = 1.0
    """Weight of the squared distance, both of length 1."""


class Embedding(Method):
    """L = weight |s - t|^2 over all images; s, t of length 1. No label, no text.

    Trained: student with its embedding head. Frozen: the stored embeddings.

    Raises:
        ConfigError: the student has no embedding head of the teacher's width.
    """

    Options = EmbeddingConfig
    options: EmbeddingConfig

    def __init__(self, setup: Setup, options: EmbeddingConfig) -> None:
        super().__init__(setup, options)
        _check_head("embedding", setup)

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``. The cross entropy of the task is left out."""
        from distill.losses.alignment import cosine_mse

        assert batch.teacher is not None  # needs
        return {
            "ce": 0 * output.logits.sum(),
            "mse": self.options.weight * cosine_mse(output.logits, batch.teacher),
        }


class VLMOOD(Method):
    """L = cls CE(D_L) + mse |s - t|^2 + cst contrast + vlalign KL + caption contrast; s, t of length 1.

    Trained: student with its embedding head. Frozen: stored embeddings of images, texts and captions.

    Raises:
        ConfigError: the student has no embedding head of the teacher's width, or texts or captions do not fit.
    """

    Options = VLMOODConfig
    options: VLMOODConfig
    NEEDS = Needs(labels=True, classes=False)

    def __init__(self, setup: Setup, options: VLMOODConfig) -> None:
        super().__init__(setup, options)
        from distill.data.class_texts import read_texts

        _check_head("vlm_ood", setup)
        texts = read_texts(setup.features, options.table, setting="--vlm_ood.table")
        self.classes = texts.of_classes(setup.samples, setup.split).to(setup.device)
        self.near = self.classes.texts_KD[self.classes.seen_K]
        if options.align_table:
            found = read_texts(setup.features, options.align_table, setting="--vlm_ood.align_table")
            self.near = found.all.to(setup.device)
        if options.caption:
            self._check_captions(setup.features.width)

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``. The cross entropy takes the place of the task's."""
        from distill.losses.alignment import batch_contrast, cosine_mse

        assert batch.teacher is not None  # needs
        options, own, target = self.options, output.logits, batch.teacher
        logits = self.classes.logits(own, temperature=options.temperature)
        terms = {
            "ce": options.cls * cross_entropy(logits, batch.labels)
            if options.cls
            else 0 * own.sum(),
        }
        if options.mse:
            terms["mse"] = options.mse * cosine_mse(own, target)
        if options.cst:
            contrast = batch_contrast(own, target, temperature=options.temperature)
            terms["cst"] = options.cst * contrast
        if options.vlalign:
            terms["vlalign"] = options.vlalign * self._alignment(own, batch)
        if options.caption:
            alike = (batch.labels[:, None] == batch.labels) & (batch.labels != IGNORE)
            terms["caption"] = options.caption * batch_contrast(
                own, self._captions(batch), temperature=options.temperature, alike_BB=alike
            )
        return terms

    def _alignment(self, own_BD: Tensor, batch: Batch) -> Tensor:
        from distill.losses.alignment import topk_kl

        options, target = self.options, batch.teacher
        assert target is not None  # needs
        kept = torch.ones_like(batch.labels, dtype=torch.bool)
        if options.align_correct:
            answer = self.classes.logits(target, temperature=options.temperature).argmax(1)
            kept = (batch.labels == IGNORE) | (batch.labels == answer)
            if not kept.any():
                return 0 * own_BD.sum()
        return topk_kl(
            own_BD[kept], target[kept], self.near, k=options.top_k, temperature=options.temperature
        )

    @no_grad
    def _captions(self, batch: Batch) -> Tensor:
        """(B, D) stored captions of the images."""
        from featstore.reading.torch_data import as_tensor

        store, rows = (
            self.setup.features.store,
            self.setup.samples.rows[batch.indices.cpu().numpy()],
        )
        stored = as_tensor(store.gather(self.options.caption_field, rows)).float()
        return stored.reshape(len(rows), -1, self.setup.features.width)[:, 0].to(
            batch.labels.device
        )

    def _check_captions(self, width: int) -> None:
        store, name = self.setup.features.store, self.options.caption_field
        record = store.manifest.fields.get(name)
        if record is None or record.shape != (width,):
            raise ConfigError(
                f"--vlm_ood.caption_field {name}: {store.address} has {sorted(store.manifest.fields)}; expected a "
                f"vector of width {width}, that of the teacher's space."
            )


def _check_head(name: str, setup: Setup) -> None:
    if setup.student.num_classes != setup.features.width:
        raise ConfigError(
            f"--methods {name}: the student has {setup.student.num_classes} outputs, the teacher's space has width "
            f"{setup.features.width}. Use --task zeroshot."
        )
