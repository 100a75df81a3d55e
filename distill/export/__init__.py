"""From a trained student to an edge model: a timm folder, ONNX, int8, torch.export, ExecuTorch, and a card.

    run_files.py        what every finished run leaves: student.safetensors and config.json
    config.py           settings of the command
    edge.py work.py     one finished run -> one export folder, whole or not at all; what its parts share
    finished.py         a finished run and its images, read back
    images.py           which images calibrate, which are held out, which measure; pictures batch by batch
    preprocessing.py    from a picture to the input, for phones; normalisation inside the graph
    timm_folder.py onnx_model.py program.py executorch_model.py     one format each
    parity.py           the same pictures through every format, compared
    quantise.py         post-training static quantisation; search.py: the settings that held-out images choose
    fake_quant.py qat.py    a short phase two with fake quantisation
    int8.py             both together: what is kept, and what it loses
    manifest.py card.py     export.json and the model card
    latency.py browser.py   numbers a buyer asks for; a page that runs the model

Importing the package is light, so that a wrong flag fails at once.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.training.saved_student import (
        CONFIG,
        WEIGHTS,
        describe,
        export,
        load_exported,
        plain_state,
        snippet,
        store_fingerprints,
    )

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "describe",
    "export",
    "load_exported",
    "plain_state",
    "snippet",
    "store_fingerprints",
]


def __getattr__(name: str) -> Any:
    """Import what a public name stands for when it is used first (PEP 562)."""
    if name in __all__:
        from distill.training import saved_student as run_files

        return getattr(run_files, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
