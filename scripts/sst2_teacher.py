#!/usr/bin/env python3
"""Write SST-2 as a table of texts, and train a small BERT on its training sentences: a teacher of texts.

    python scripts/sst2_teacher.py FOLDER data/sst2

FOLDER holds train.tsv.gz, dev.tsv.gz and test.tsv.gz with a sentence and its label per line, as
github.com/clairett/pytorch-sentiment-classification publishes them. Written are OUT/sst2.jsonl (ids train/00001 and so
on) and the folder OUT/teacher: an encoder of transformers with a WordPiece tokenizer of the training sentences
(tokenizer.json, its vocabulary as vocab.txt). Both are trained from nothing, on the training sentences alone; the
number printed is the accuracy of its classifier on the part dev.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

PARTS = ("train", "dev", "test")
CLASSES = {"0": "negative", "1": "positive"}
LONGEST = 32  # tokens

Rows = list[dict[str, str]]


def read_rows(folder: Path, part: str) -> Rows:
    """The sentences of one part; of several with the same text in lower case, the first."""
    lines = gzip.decompress((folder / f"{part}.tsv.gz").read_bytes()).decode().splitlines()
    found: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines):
        text, _, label = line.rpartition("\t")
        row = {"id": f"{part}/{number:05d}", "text": text, "label": CLASSES[label]}
        found.setdefault(" ".join(text.lower().split()), row)
    return list(found.values())


def train_tokenizer(rows: Rows, size: int) -> Any:
    """A lower-case WordPiece tokenizer of some sentences."""
    from tokenizers.implementations import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(lowercase=True)
    texts = (row["text"] for row in rows)
    tokenizer.train_from_iterator(texts, vocab_size=size, show_progress=False)
    return tokenizer


def encode(tokenizer: Any, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L) token numbers, 0 behind the end, and (B,) labels."""
    ids = torch.zeros(len(rows), LONGEST, dtype=torch.int64)
    for place, row in enumerate(rows):
        found = torch.tensor(tokenizer.encode(row["text"]).ids)
        ids[place, : len(found)] = found[:LONGEST]
    labels = [list(CLASSES.values()).index(row["label"]) for row in rows]
    return ids, torch.tensor(labels)


def train(model: Any, ids: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """AdamW with a linear decay; every token is left out with a probability of 0.1."""
    steps = epochs * (len(ids) // 64)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(ids)).split(64)[: len(ids) // 64]:
            batch = ids[chosen]
            kept = (batch != 0) & (torch.rand(batch.shape) > 0.1)
            kept[:, 0] = True
            logits = model(input_ids=batch, attention_mask=kept.long()).logits
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()


def main() -> None:
    """See the top of this file."""
    from transformers import BertConfig, BertForSequenceClassification

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocabulary", type=int, default=4000, help="tokens of the tokenizer")
    parser.add_argument("--epochs", type=int, default=4)
    chosen = parser.parse_args()
    parts = {part: read_rows(chosen.folder, part) for part in PARTS}
    teacher = chosen.out / "teacher"
    teacher.mkdir(parents=True, exist_ok=True)
    with (chosen.out / "sst2.jsonl").open("w", encoding="utf-8") as file:
        for rows in parts.values():
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    tokenizer = train_tokenizer(parts["train"], chosen.vocabulary)
    tokenizer.save(str(teacher / "tokenizer.json"))
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=128, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=512, max_position_embeddings=LONGEST,
        )
    )  # fmt: skip
    train(model, *encode(tokenizer, parts["train"]), chosen.epochs)
    model.bert.save_pretrained(teacher)
    model.eval()
    ids, labels = encode(tokenizer, parts["dev"])
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
    right = float((logits.argmax(1) == labels).float().mean())
    print(f"{teacher}: accuracy {right:.3f} on {len(labels)} sentences of part dev")


if __name__ == "__main__":
    main()
