"""Probabilities are told from logits; stores of before class names were recorded are still the same."""

from typing import Any

import numpy as np
import pytest

from featstore.errors import ManifestMismatch
from featstore.format.class_logits import are_probabilities, class_names_of
from featstore.format.manifest import Manifest, check_same_contract
from tests.featstore.stores import TEACHER, make_manifest


def with_names(manifest: Manifest, names: list[str]) -> Manifest:
    teachers = {
        name: teacher.model_copy(
            update={"model_args": {**teacher.model_args, "class_names": names}}
        )
        for name, teacher in manifest.teachers.items()
    }
    return manifest.model_copy(update={"teachers": teachers})


def test_probabilities() -> None:
    """Softmax is recognised in half precision too; logits, log-probabilities and one negative number are not."""
    logits = np.random.default_rng(0).normal(size=(20, 1, 5))
    soft = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert are_probabilities(soft)
    assert are_probabilities(soft.astype(np.float16))
    assert not are_probabilities(logits)
    assert not are_probabilities(np.log(soft))
    assert not are_probabilities(soft * 1.1)


def test_class_names(tmp_path: Any) -> None:
    """A store without class names fits settings that state them; two orders do not fit."""
    old = make_manifest()
    new, other = with_names(old, ["a", "b"]), with_names(old, ["b", "a"])
    assert class_names_of(TEACHER) is None
    assert class_names_of(next(iter(new.teachers.values()))) == ["a", "b"]
    check_same_contract(tmp_path, found=old, expected=new)
    with pytest.raises(ManifestMismatch, match="class_names"):
        check_same_contract(tmp_path, found=new, expected=other)
