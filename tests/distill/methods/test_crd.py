"""CRD: its loss by loops, its negatives, and banks that are kept, resumed and equal on all processes."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed

from distill.losses.features import unit
from distill.methods import Output
from distill.methods.crd import CRD
from tests.distill.bench import Bench
from tests.distill.conftest import MakeConfig
from tests.distill.methods.test_feature_methods import bench_of
from tests.featstore.processes import fork, wait


def naive_crd(
    method: CRD, embeddings: list[Tensor], indices: list[int], labels: list[int]
) -> float:
    """The formula, with loops over anchors and rows; every row of the bank is drawn."""
    rows = method.training.tolist()
    own_labels = {index: label for index, label in zip(indices, labels, strict=True) if label >= 0}
    classes = {row: int(method.labels[place]) for place, row in enumerate(rows)}
    total = 0.0
    for anchors, bank in ((embeddings[0], method.bank[1]), (embeddings[1], method.bank[0])):
        scores = torch.exp(anchors @ bank.T / 0.07).double()
        allowed = [
            [
                place
                for place, row in enumerate(rows)
                if row != index and not (index in own_labels and classes[row] == own_labels[index])
            ]
            for index in indices
        ]
        seen = [float(scores[a, rows.index(index)]) for a, index in enumerate(indices)]
        seen += [float(scores[a, place]) for a, places in enumerate(allowed) for place in places]
        constant = np.mean(seen) * len(rows)
        for a, index in enumerate(indices):
            noise = len(allowed[a]) / len(rows)
            p = float(scores[a, rows.index(index)]) / constant
            total -= np.log(p / (p + noise + 1e-7))
            for place in allowed[a]:
                q = float(scores[a, place]) / constant
                total -= np.log(noise / (q + noise + 1e-7))
    return total / len(indices)


def crd_bench(make_config: MakeConfig, **changes: Any) -> tuple[Bench, CRD]:
    bench = bench_of(make_config, "crd", crd__width=8, **changes)
    assert isinstance(bench.method, CRD)
    return bench, bench.method


def embeddings_of(output: Output) -> list[Tensor]:
    with torch.no_grad():
        return [unit(output.projected[name]) for name in ("student_embedding", "teacher_embedding")]


def test_crd_by_loops(make_config: MakeConfig) -> None:
    """First step, in which Z is estimated as well."""
    bench, method = crd_bench(make_config)
    output = bench.output()
    expected = naive_crd(
        method, embeddings_of(output), bench.batch.indices.tolist(), bench.batch.labels.tolist()
    )
    assert expected > 0
    terms = method.loss(output, bench.batch, bench.student)
    assert terms["contrast"].item() == pytest.approx(0.8 * expected, rel=1e-4)


def test_crd_draws_no_negative_of_the_class(make_config: MakeConfig) -> None:
    """A labelled anchor meets no labelled image of its class, nor itself; an unlabelled one meets all others."""
    _, method = crd_bench(make_config)
    rows, labels = method.training.numpy(), method.setup.samples.labels
    labelled = set(method.setup.split.labelled.tolist())
    drawn = torch.arange(len(rows))
    found = method.negatives(drawn, drawn)
    for a, anchor in enumerate(rows):
        for b, other in enumerate(rows):
            known = {int(anchor), int(other)} <= labelled
            expected = a != b and not (known and labels[anchor] == labels[other])
            assert bool(found[a, b]) == expected


def test_crd_moves_the_rows_it_saw(make_config: MakeConfig) -> None:
    """Half the old row, half the embedding, at length 1; other rows stay; of an image seen twice the first counts."""
    bench, method = crd_bench(make_config, crd__momentum=0.25)
    bench.batch.indices[4] = bench.batch.indices[0]
    before, output = method.bank.clone(), bench.output()
    method.loss(output, bench.batch, bench.student)
    places = [method.training.tolist().index(index) for index in bench.batch.indices.tolist()]
    for side, embedding in enumerate(embeddings_of(output)):
        expected = before[side].clone()
        for row in range(4):
            mixed = 0.25 * before[side, places[row]] + 0.75 * embedding[row]
            expected[places[row]] = mixed / mixed.norm()
        torch.testing.assert_close(method.bank[side], expected)


def test_crd_goes_on_from_its_state(make_config: MakeConfig) -> None:
    """Banks and constants, which are estimated once, are all that it remembers."""
    bench, method = crd_bench(make_config, crd__negatives=7)
    torch.manual_seed(1)
    bench.terms()
    constants = method.constants.clone()
    state = copy.deepcopy(method.state())
    torch.manual_seed(2)
    expected = bench.terms()["contrast"]
    assert torch.equal(method.constants, constants)
    other, fresh = crd_bench(make_config, crd__negatives=7)
    other.trainee.load_state_dict(bench.trainee.state_dict())
    fresh.load_state(state)
    torch.manual_seed(2)
    assert torch.equal(other.terms()["contrast"], expected)
    assert torch.equal(fresh.bank, method.bank)


def gathered(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(2)]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def test_crd_banks_are_equal_on_both_processes(make_config: MakeConfig, tmp_path: Path) -> None:
    """Two processes with batches of their own, one image in both, another twice in one."""
    config = make_config(crd__width=8, crd__negatives=9)

    def work(rank: int) -> None:
        distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path / 'meet'}", rank=rank, world_size=2
        )
        bench = Bench(config, "crd")
        method = CRD(
            dataclasses.replace(bench.setup, processes=2, gather=gathered), bench.method.options
        )
        torch.manual_seed(rank)
        training = torch.from_numpy(bench.setup.training)
        for step in range(3):
            mine = training[torch.tensor([0, 1, 1, 2, 3]) + (2 + step) * rank]
            batch = dataclasses.replace(bench.batch, indices=mine, images=torch.randn(5, 3, 32, 32))
            with torch.no_grad():
                output: Output = bench.trainee(batch.images, method.inputs(batch))
                method.loss(output, batch, bench.student)
        torch.save(method.state(), tmp_path / f"{rank}.pt")
        distributed.destroy_process_group()

    children = [fork(lambda rank=rank: work(rank)) for rank in range(2)]  # type: ignore[misc]
    assert [wait(child) for child in children] == [0, 0]
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(one["bank"], two["bank"])
    assert torch.equal(one["constants"], two["constants"])
    moved = (one["bank"].norm(dim=2) - 1).abs().max(0).values < 1e-6
    assert moved.nonzero().flatten().tolist() == list(range(8))
