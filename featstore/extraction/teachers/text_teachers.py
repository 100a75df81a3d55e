"""Text teachers: encoders of transformers, open_clip's text side, and ONNX models that take token numbers.

Fields: ``pooled`` (B, D), the mean of the tokens or the first one; ``cls`` (B, D), the first token; ``projected``
(B, C), the text embedding of a contrastive model; outputs of an ONNX model by name, one vector per text; and, of an
encoder of transformers, (B, L, D) queries, keys and values of the last block (``q``, ``k``, ``v``) or tokens of any
block, where L is the longest input, with zeros behind the end of a text.
"""

# B texts, L tokens, D teacher width, C projection width

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from featstore.errors import TeacherError, shorten
from featstore.extraction.config import TeacherConfig
from featstore.extraction.teachers.base import Built, Tower, brief
from featstore.extraction.teachers.onnx_teacher import file_sha256, find_model, open_session
from featstore.extraction.teachers.open_clip_teacher import load_model as load_open_clip
from featstore.extraction.teachers.tokenizers import open_clip_tokenizer, own_tokenizer
from featstore.extraction.teachers.transformers_teacher import load_model as load_transformers
from featstore.format.manifest_records import TextRecord
from featstore.format.tokenizers import (
    MOST_TOKENS,
    PADDING,
    FastTokenizer,
    read_tokenizer,
)

Pooling = Literal["mean", "cls"]


class TextTower(Tower):
    """A text encoder whose input is cut to the longest text of the batch.

    Args:
        pooling: how ``pooled`` is made.
        length: longest input.
    """

    def __init__(self, pooling: Pooling, pad_id: int, length: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.pad_id = pad_id
        self.length = length
        self._mask_BL = torch.ones(1, 1)

    def run(self, ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the model: (B, L, D) hidden tokens, and further outputs of one vector per text."""
        raise TypeError(f"{type(self).__name__} does not run")

    def split(self, tokens: Tensor) -> dict[str, Tensor]:
        """See ``Tower.split``; all tokens have the length of the longest input, zeros behind the end of a text."""
        known = tokens * self._mask_BL[..., None].to(tokens.dtype)
        return {
            "tokens": functional.pad(known, (0, 0, 0, self.length - known.shape[1])),
            "cls": tokens[:, 0],
        }

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """See ``Tower.encode``; ``images`` are (B, L) token numbers, ``PADDING`` behind the end of a text."""
        mask_BL = images != PADDING
        length = max(1, int(mask_BL.sum(1).max()))
        ids_BL = images[:, :length].long().masked_fill(~mask_BL[:, :length], self.pad_id)
        mask_BL = self._mask_BL = mask_BL[:, :length].long()
        tokens, others = self.run(ids_BL, mask_BL)
        out = {"cls": tokens[:, 0]}
        weights = mask_BL[..., None].to(tokens.dtype)
        mean = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
        out["pooled"] = mean if self.pooling == "mean" else out["cls"]
        return out | others


class TransformersText(TextTower):
    """An encoder of transformers; of CLIP and its kind, the text side with its projection."""

    def __init__(self, model: Any, pooling: Pooling, pad_id: int, length: int) -> None:
        super().__init__(pooling, pad_id, length)
        self.text = getattr(model, "text_model", model)
        self.projection = getattr(model, "text_projection", None)

    def run(self, ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.text(input_ids=ids_BL, attention_mask=mask_BL)
        others = {}
        if self.projection is not None:
            others["projected"] = self.projection(output.pooler_output)
        return output.last_hidden_state, others


class OnnxText(TextTower):
    """A session of onnxruntime whose inputs are token numbers and, if it takes them, mask and token types."""

    INPUTS = ("input_ids", "attention_mask", "token_type_ids")

    def __init__(
        self, path: Path, pooling: Pooling, pad_id: int, length: int, *, cuda: bool
    ) -> None:
        super().__init__(pooling, pad_id, length)
        self.session = open_session(path, cuda=cuda)
        self.inputs = {item.name: item.type for item in self.session.get_inputs()}
        self.outputs = [item.name for item in self.session.get_outputs()]
        if "input_ids" not in self.inputs or set(self.inputs) - set(self.INPUTS):
            raise TeacherError(
                f"--teacher.name {path}: its inputs are {shorten(list(self.inputs))}; a text teacher takes "
                f"{', '.join(self.INPUTS)} (the last two may be missing)."
            )

    def run(self, ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        given = dict(zip(self.INPUTS, (ids_BL, mask_BL, torch.zeros_like(ids_BL)), strict=True))
        feed = {
            name: given[name].to(torch.int32 if "int32" in kind else torch.int64).cpu().numpy()
            for name, kind in self.inputs.items()
        }
        try:
            values = self.session.run(None, feed)
        except Exception as error:  # onnxruntime's own errors have no common base
            raise TeacherError(
                f"the ONNX text teacher cannot run on the tokens of this tokenizer ({brief(error)})."
            ) from error
        found = {
            name: torch.from_numpy(value).float().to(ids_BL.device)
            for name, value in zip(self.outputs, values, strict=True)
        }
        tokens = [value for value in found.values() if value.ndim == 3]
        vectors = {name: value for name, value in found.items() if value.ndim == 2}
        if len(tokens) != 1:
            raise TeacherError(
                f"an ONNX text teacher needs one output of (B, L, D) tokens; this one has {len(tokens)}."
            )
        return tokens[0], vectors


class OpenClipText(Tower):
    """The text side of an open_clip model; its context has a fixed length."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        model.visual = None
        self.model: Any = model

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """See ``Tower.encode``; ``images`` are (B, L) token numbers."""
        return {"projected": self.model.encode_text(images.long())}


def build(config: TeacherConfig, *, cuda: bool = False) -> Built:
    """Build the text teacher that a config names.

    Raises:
        TeacherError: unknown name, weights or tokenizer that cannot be had or do not fit.
    """
    if config.library == "open_clip":
        return _of_open_clip(config)
    return _of_onnx(config, cuda=cuda) if config.library == "onnx" else _of_transformers(config)


def _of_onnx(config: TeacherConfig, *, cuda: bool) -> Built:
    path = find_model(config)
    if config.model_args:
        raise TeacherError(
            f"--teacher.model_args {config.model_args}: an ONNX text teacher has none."
        )
    if not config.tokenizer:
        raise TeacherError(
            "--teacher.tokenizer is missing: an ONNX text teacher needs the tokenizer that it was trained with, a "
            "tokenizer.json or a WordPiece vocabulary (vocab.txt)."
        )
    length = config.max_tokens or MOST_TOKENS
    tokenizer, kind, sha256 = read_tokenizer(Path(config.tokenizer), length)
    pooling: Pooling = config.pooling or "mean"
    return Built(
        OnnxText(path, pooling, tokenizer.pad_id, length, cuda=cuda),
        _record(kind, sha256, length, pooling),
        tokenizer=tokenizer,
        recorded_name=path.name,
        weights_sha256=file_sha256(path),
    )


def _of_transformers(config: TeacherConfig) -> Built:
    settings, model = load_transformers(config)
    text = getattr(settings, "text_config", settings)
    vocabulary = getattr(text, "vocab_size", 0)
    if not vocabulary or getattr(settings, "is_encoder_decoder", False):
        raise TeacherError(
            f"teacher {config.name}: {settings.model_type} is no text encoder (nor a model with a text side)."
        )
    most = int(getattr(text, "max_position_embeddings", 0) or MOST_TOKENS)
    if config.max_tokens > most:
        raise TeacherError(
            f"--teacher.max_tokens {config.max_tokens}: {config.name} takes at most {most} tokens."
        )
    length = config.max_tokens or min(MOST_TOKENS, most)
    folder = Path(config.name)
    file = Path(config.tokenizer) if config.tokenizer else folder / "tokenizer.json"
    if config.tokenizer or file.is_file():
        tokenizer, kind, sha256 = read_tokenizer(file, length)
    else:
        tokenizer, kind, sha256 = own_tokenizer(config.name, length)
    _check_vocabulary(tokenizer, vocabulary, config.name)
    pooling = config.pooling or _stated_pooling(folder)
    return Built(
        TransformersText(model, pooling, tokenizer.pad_id, length),
        _record(kind, sha256, length, pooling),
        tokenizer=tokenizer,
        recorded_name=folder.name if folder.is_dir() else "",
        recorded_args={**config.model_args, "model_type": settings.model_type},
    )


def _of_open_clip(config: TeacherConfig) -> Built:
    if config.tokenizer or config.pooling:
        raise TeacherError(
            "--teacher.tokenizer and --teacher.pooling: open_clip's models have their own; leave them out."
        )
    model, _ = load_open_clip(config, texts=True)
    length = int(model.context_length)
    if config.max_tokens not in (0, length):
        raise TeacherError(
            f"--teacher.max_tokens {config.max_tokens}: {config.name} takes {length} tokens."
        )
    try:
        tokenizer, kind, sha256 = open_clip_tokenizer(config.name, length)
    except Exception as error:  # hub client and tokenizers raise their own kinds
        raise TeacherError(
            f"teacher {config.name}: its tokenizer cannot be loaded ({brief(error)})."
        ) from error
    return Built(OpenClipText(model), _record(kind, sha256, length, "model"), tokenizer=tokenizer)


def _record(kind: str, sha256: str, length: int, pooling: Any) -> TextRecord:
    return TextRecord(tokenizer=kind, tokenizer_sha256=sha256, max_tokens=length, pooling=pooling)


def _check_vocabulary(tokenizer: FastTokenizer, size: int, name: str) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings."""
    found = tokenizer.tokenizer.get_vocab_size()
    if found > size:
        raise TeacherError(
            f"--teacher.tokenizer: has {found:,} tokens, {name} only {size:,}. Give the tokenizer of this model."
        )


def _stated_pooling(folder: Path) -> Pooling:
    """Pooling as a folder of sentence-transformers states it; mean where it states none."""
    try:
        values = json.loads((folder / "1_Pooling" / "config.json").read_text())
    except OSError:
        return "mean"
    if values.get("pooling_mode_mean_tokens"):
        return "mean"
    if values.get("pooling_mode_cls_token"):
        return "cls"
    raise TeacherError(
        f"{folder}/1_Pooling/config.json: pools in another way than by mean or first token; choose with "
        "--teacher.pooling."
    )
