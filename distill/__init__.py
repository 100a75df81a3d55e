"""Train a small student from stored features of a large teacher. The teacher itself is never loaded here.

All public names are listed in ``__all__``; they are imported when they are used first, so ``import distill`` is fast.

Examples:
    >>> callable(distill.run)
    True
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.api import (
        Run,
        Runs,
        compare_students,
        evaluate,
        export_student,
        load_student,
        run,
    )
    from distill.commands.config import EvaluateConfig
    from distill.config import (
        DataConfig,
        DistillConfig,
        EvalConfig,
        StudentConfig,
        TeacherConfig,
        TrainConfig,
    )
    from distill.export.config import ExportConfig
    from distill.measures.score import Measure
    from distill.methods.base import Method, Needs, Output, Setup, Side
    from distill.register import register_method, register_task
    from distill.tasks.base import Task

_PLACES = {
    "distill.api": (
        "Run", "Runs", "compare_students", "evaluate", "export_student", "load_student", "run",
    ),
    "distill.commands.config": ("EvaluateConfig",),
    "distill.config": (
        "DataConfig", "DistillConfig", "EvalConfig", "StudentConfig", "TeacherConfig", "TrainConfig",
    ),
    "distill.export.config": ("ExportConfig",),
    "distill.methods.base": ("Method", "Needs", "Output", "Setup", "Side"),
    "distill.measures.score": ("Measure",),
    "distill.register": ("register_method", "register_task"),
    "distill.tasks.base": ("Task",),
}  # fmt: skip

__all__ = [
    "DataConfig",
    "DistillConfig",
    "EvalConfig",
    "EvaluateConfig",
    "ExportConfig",
    "Measure",
    "Method",
    "Needs",
    "Output",
    "Run",
    "Runs",
    "Setup",
    "Side",
    "StudentConfig",
    "Task",
    "TeacherConfig",
    "TrainConfig",
    "compare_students",
    "evaluate",
    "export_student",
    "load_student",
    "register_method",
    "register_task",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
