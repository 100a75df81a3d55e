"""Sums with rationales of two strategies, and a tiny language model of characters as a folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def write_model(folder: Path, *, seed: int = 0, **sizes: Any) -> Path:
    """A Llama of random weights with a tokenizer of characters."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<pad>", "<end>", "<unk>", *" 0123456789+=>.:abcdefghijklmnopqrstuvwxyz\n"]
    inner = Tokenizer(
        models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(names),
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **{**SIZES, **sizes},
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a table as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def questions(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Sums of two digits."""
    rows = []
    for number in range(first, first + count):
        a, b = np.random.default_rng([3, number]).integers(0, 10, 2).tolist()
        rows.append({"id": f"q{number:03d}", "question": f"{a}+{b}", "answer": str(a + b)})
    return rows


def candidates(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Two rationales for each sum: short, and with the numbers repeated but no mark before the answer."""
    return [
        {
            "question_id": row["id"],
            "question": row["question"],
            "answer": row["answer"],
            "strategy": strategy,
            "rationale": text + row["answer"],
            "prompt": f"{strategy}: {row['question']}=",
            "decoding": {"temperature": 1.0, "seed": 5},
        }
        for row in questions(count, first=first)
        for strategy, text in (("short", ">"), ("long", f"{row['question']}."))
    ]
