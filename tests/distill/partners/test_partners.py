"""What all partners have in common: finite terms, exact resume, equal state in all processes."""

import copy
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor

from distill.partners import PARTNERS as ALL
from distill.partners.places import Places, last_of_each
from distill.student.model import Student
from featstore.errors import ConfigError
from tests.distill.partner_bench import (
    LABELLED,
    UNLABELLED,
    Bench,
)
from tests.featstore.processes import fork, wait

PARTNERS = {name: partner for name, partner in ALL.items() if name != "pairs"}
"""Those of images; pairs of texts are tested in tests/distill/test_texts.py."""


@pytest.mark.parametrize("name", PARTNERS)
def test_no_number_may_be_negative(name: str) -> None:
    """The error names the setting as it is spelled on the command line."""
    section = PARTNERS[name].Options()
    for field in dataclasses.fields(section):
        if not isinstance(getattr(section, field.name), str):
            with pytest.raises(ConfigError, match=rf"--{name}\.{field.name} -1"):
                dataclasses.replace(section, **{field.name: -1})


def easy(name: str) -> dict[str, Any]:
    """Options with which the tiny student's guesses are trusted."""
    return {"threshold": 0.3} if hasattr(PARTNERS[name].Options(), "threshold") else {}


@pytest.mark.parametrize("name", PARTNERS)
def test_one_step_reaches_the_student(name: str) -> None:
    """In the second epoch all terms are finite, and the student's body and every side get a gradient."""
    bench = Bench(name, **easy(name))
    bench.epoch(0)
    bench.partner.begin_epoch(1, cast(Student, bench.student))
    terms = bench.terms()
    total = torch.stack(list(terms.values())).sum()
    assert total.isfinite()
    total.backward()
    assert bench.student.body.weight.grad is not None
    assert bench.student.body.weight.grad.abs().sum() > 0
    for parameter in bench.trainee.sides.parameters():
        assert parameter.grad is not None


@pytest.mark.parametrize("name", PARTNERS)
def test_a_restored_partner_goes_on_exactly(name: str) -> None:
    """In the middle of an epoch: the next losses, and all that is remembered, are bit-identical."""
    bench = Bench(name, **easy(name))
    bench.epoch(0)
    bench.partner.begin_epoch(1, cast(Student, bench.student))
    bench.terms()
    other = Bench(name, **easy(name))
    other.trainee.load_state_dict(bench.trainee.state_dict())
    other.partner.load_state(copy.deepcopy(bench.partner.state()))
    batch = bench.batch(LABELLED[2:], UNLABELLED[2:])
    expected, found = bench.terms(batch), other.terms(batch)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert bench.partner.end_epoch(1) == other.partner.end_epoch(1)
    for key, value in bench.partner.state().items():
        assert torch.equal(other.partner.state()[key], value)


@pytest.mark.parametrize("name", PARTNERS)
def test_a_batch_of_one(name: str) -> None:
    """One labelled and one unlabelled image, logits of tens of thousands in float16: everything stays finite."""
    bench = Bench(name)
    bench.epoch(0)
    with torch.no_grad():
        bench.student.head.weight *= 1e4
    bench.student.dtype = torch.float16
    bench.partner.begin_epoch(1, cast(Student, bench.student))
    terms = bench.terms(bench.batch(LABELLED[:1], UNLABELLED[:1]))
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in bench.trainee.parameters())
    assert all(value.float().isfinite().all() for value in bench.partner.state().values())


@pytest.mark.parametrize("name", PARTNERS)
def test_without_unlabelled_images_it_is_refused(name: str) -> None:
    """There is nothing to work on."""
    with pytest.raises(ConfigError, match=r"--data\.unlabelled"):
        Bench(name, unlabelled=np.zeros(0, np.int64))


def test_places_and_last_of_each() -> None:
    """Places are by sorted index; of equal values the last position is kept."""
    places = Places(np.array([9, 2, 5]), torch.device("cpu"))
    assert places(torch.tensor([5, 9, 2, 5])).tolist() == [1, 2, 0, 1]
    assert sorted(last_of_each(torch.tensor([1, 2, 0, 1])).tolist()) == [1, 2, 3]
    assert last_of_each(torch.zeros(0, dtype=torch.int64)).tolist() == []


TOGETHER: dict[str, dict[str, Any]] = {
    "pseudo_label": {"threshold": 0.5},
    "flexmatch": {"threshold": 0.5},
    "freematch": {},
    "softmatch": {},
    "adamatch": {},
    "simmatch": {},
    "sentry": {},
}
"""Partners that remember something of every batch, with options under which they do so in this test."""


def gather(tensor: Tensor) -> Tensor:
    """What accelerate does."""
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def remembered(bench: Bench, rank: int, processes: int) -> dict[str, Tensor]:
    """State after an epoch and a half on a process's share of each batch of four."""
    share = 4 // processes
    for step, first in enumerate((0, 2, 1)):
        if step % 2 == 0:
            bench.partner.begin_epoch(step // 2, cast(Student, bench.student))
        rows = slice(first + rank * share, first + (rank + 1) * share)
        bench.terms(bench.batch(LABELLED[rows], UNLABELLED[rows]))
    return bench.partner.state()


def work(rank: int, folder: Path) -> None:
    """One of two processes."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    state = {
        name: remembered(Bench(name, gather=gather, **options), rank, 2)
        for name, options in TOGETHER.items()
    }
    torch.save(state, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_remember_the_same(tmp_path: Path) -> None:
    """Bit-equal on both, and, up to rounding, what one process with the whole batch remembers."""
    children = [fork(partial(work, rank, tmp_path)) for rank in range(2)]
    assert [wait(child) for child in children] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, options in TOGETHER.items():
        fresh = Bench(name, **options).partner.state()
        alone = remembered(Bench(name, **options), 0, 1)
        assert first[name].keys() == alone.keys()
        for key, value in alone.items():
            assert torch.equal(first[name][key], second[name][key]), (name, key)
            torch.testing.assert_close(first[name][key], value, msg=f"{name} {key}")
            assert not torch.equal(fresh[key], value), (name, key)
