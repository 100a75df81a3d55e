"""A table of texts in two languages, and a small ONNX text teacher with its tokenizer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORDS = {
    "en": ["dog", "cat", "runs", "sleeps", "red", "blue"],
    "xx": ["hun", "kat", "rent", "slaapt", "rood", "blauw"],
}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS["en"], *WORDS["xx"]]

Row = dict[str, Any]


def rows(count: int = 24, *, languages: Sequence[str] = ("en", "xx"), first: int = 0) -> list[Row]:
    """Texts of one to five words, every one in all languages, word by word; every sixth pair is of the part test."""
    out: list[Row] = []
    for number in range(first, first + count):
        words = np.random.default_rng([7, number]).integers(0, 6, size=1 + number % 5)
        part = "train" if number % 6 else "test"
        out += [
            {
                "id": f"{part}/{number:03d}.{language}",
                "language": language,
                "text": " ".join([*(WORDS[language][word] for word in words), str(number)]),
                "pair": str(number),
            }
            for language in languages
        ]
    return out


def write(path: Path, table: Sequence[Row]) -> Path:
    """Write rows as JSONL."""
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table), encoding="utf-8"
    )
    return path


def write_vocabulary(path: Path) -> Path:
    """Write the WordPiece vocabulary of the words and of digits."""
    digits = [str(digit) for digit in range(10)]
    path.write_text("\n".join([*VOCABULARY, *digits, *(f"##{digit}" for digit in digits)]))
    return path


def write_teacher(path: Path, *, width: int = 8, inputs: Sequence[str] = ("input_ids",)) -> Path:
    """Write an ONNX model that looks token numbers up in a table: (B, L) -> (B, L, width)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    table = np.random.default_rng(3).normal(size=(64, width)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "lookup",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "L"]) for name in inputs],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["B", "L", width])],
        [numpy_helper.from_array(table, "table")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path
