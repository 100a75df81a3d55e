"""kd3: which images of the pool teach, how much each counts, and what of it resumes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn import functional as F

from distill.commands.train import run
from distill.config import DataConfig
from distill.methods.kd3 import KD3, mix_distribution
from featstore.errors import ConfigError
from tests.conftest import RunTwo
from tests.distill.bench import Bench
from tests.distill.conftest import MakeConfig

POOL = DataConfig(
    labelled=["train/left/*", "train/right/*"],
    labels_per_class=4,
    unlabelled=["train/*"],
    test=["test/left/*", "test/right/*"],
)
"""A teacher of two classes, and a pool of three: 8 labelled, 28 unlabelled images."""


def kd3_bench(make_config: MakeConfig, **changes: Any) -> tuple[Bench, KD3]:
    bench = Bench(make_config(data=POOL, **changes), "kd3")
    assert isinstance(bench.method, KD3)
    return bench, bench.method


def test_the_most_confident_teach(make_config: MakeConfig) -> None:
    """By the teacher alone at first, then by the mean of both softmaxes; weights are confidences, others are zero."""
    bench, method = kd3_bench(make_config, kd3__keep=0.25)
    numbers = method.begin_epoch(0, bench.student)
    assert numbers["selection/share"] == 7 / 28
    pool = torch.from_numpy(method.pool)
    teacher = F.softmax(method.probe(method.setup.features.take(method.pool)), dim=1)
    most = teacher.amax(1).topk(7)
    expected = torch.zeros_like(method.weights)
    expected[pool[most.indices]] = most.values.detach()
    torch.testing.assert_close(method.weights, expected)
    labels = torch.from_numpy(method.setup.samples.labels)[pool[most.indices]]
    assert numbers["selection/purity"] == pytest.approx(float((labels < 2).double().mean()))
    # The student is sure of three images that the teacher is not sure of: they join.
    unsure = teacher.amax(1).topk(3, largest=False).indices
    logits = torch.zeros(28, 3)
    logits[unsure, 0] = 50
    method.setup = dataclasses.replace(
        method.setup, predict=lambda rows: (torch.zeros(len(rows), 1), logits)
    )
    method.begin_epoch(1, bench.student)
    both = ((teacher + F.softmax(logits, dim=1)) / 2).amax(1)
    assert set(method.weights.nonzero()[:, 0].tolist()) == set(pool[both.topk(7).indices].tolist())


@pytest.mark.parametrize(("select", "count"), [("teacher", 14), ("random", 14), ("all", 28)])
def test_other_choices(make_config: MakeConfig, select: str, count: int) -> None:
    """As many at random, always the same; or all. Labelled images never teach."""
    bench, method = kd3_bench(make_config, kd3__select=select)
    method.begin_epoch(0, bench.student)
    first = method.weights.clone()
    method.begin_epoch(1, bench.student)
    assert torch.equal(method.weights, first)
    assert int((first > 0).sum()) == count
    assert not first[torch.from_numpy(method.setup.split.labelled)].any()


def test_the_loss_by_hand(make_config: MakeConfig) -> None:
    """Means over the unlabelled images, weights 1 on average over the pool; nothing chosen is zero, with a gradient."""
    bench, method = kd3_bench(make_config, kd3__contrast=0.0, kd3__temperature=2.0, kd3__kd=3.0)
    method.weights[1], method.weights[4] = 0.5, 1.0
    output = bench.output()
    own, target = output.projected["general"], bench.teacher
    error = (own - target).square().mean(1).detach()
    terms = {k: v.detach() for k, v in method.loss(output, bench.batch, bench.student).items()}
    # 28 images in the pool, two of them unlabelled images of this batch
    share = 28 / 1.5 / 2
    expected = share * float(0.5 * error[1] + error[4])
    assert float(terms["align"]) == pytest.approx(expected, rel=1e-5)
    p, q = (F.softmax(method.probe(item) / 2, dim=1) for item in (target, own))
    kl = (p * (p / q).log()).sum(1).detach()
    expected = share * 3 * 4 * float(0.5 * kl[1] + kl[4])
    assert float(terms["kd"]) == pytest.approx(expected, rel=1e-4)
    assert float(terms["ce"]) == 0
    method.weights.zero_()
    none = method.loss(bench.output(), bench.batch, bench.student)
    assert all(float(term.detach()) == 0 for term in none.values())
    torch.stack(list(none.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in bench.trainee.parameters())


def test_another_distribution_keeps_the_content() -> None:
    """Only mean and deviation of the channels change; images of one distribution stay as they are."""
    images = torch.randn(4, 3, 8, 8) * torch.tensor([1.0, 2, 3, 4])[:, None, None, None]
    mixed = mix_distribution(images)

    def plain(items: torch.Tensor) -> torch.Tensor:
        return (items - items.mean((2, 3), keepdim=True)) / items.std((2, 3), keepdim=True)

    torch.testing.assert_close(plain(mixed), plain(images), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(mixed, images)
    same = images[:1].repeat(3, 1, 1, 1)
    torch.testing.assert_close(mix_distribution(same), same, atol=1e-4, rtol=1e-4)


def test_a_run_over_a_pool(make_config: MakeConfig) -> None:
    """The selection is in the log at every epoch; the exported student answers classes of the teacher alone."""
    config = make_config(data=POOL, methods=["kd3"], train__epochs=3)
    (record,) = run(config)
    folder = Path(config.out) / "kd3" / "seed0"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum("selection/purity" in line for line in lines) == 3
    assert any("loss/contrast" in line for line in lines)
    assert record["num_unlabelled"] == 28
    assert run(config)[0]["skipped"]


@pytest.mark.slow
def test_two_processes(make_config: MakeConfig, tmp_path: Path, run_two: RunTwo) -> None:
    """Without the contrast, which is within a process, every logged number is that of one process."""
    config = make_config(
        data=POOL, methods=["kd3"], kd3__contrast=0, kd3__keep=0.5, train__grad_accum=1
    )
    run(config)
    two = dataclasses.replace(config, out=config.out + "-two")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(two.plain()))
    done = run_two(["pipelines/distill.py", "--config", str(recipe)])
    assert done.returncode == 0, done.stderr
    ones, twos = (
        [
            json.loads(line)
            for line in (Path(item.out) / "kd3" / "seed0" / "metrics.jsonl")
            .read_text()
            .splitlines()
        ]
        for item in (config, two)
    )
    assert len(ones) == len(twos) > 4
    for a, b in zip(ones, twos, strict=True):
        names = [name for name, value in a.items() if not isinstance(value, str)]
        assert a.keys() == b.keys()
        assert [b[name] for name in names] == pytest.approx(
            [a[name] for name in names], rel=1e-3, abs=1e-5
        )


def test_copies_pass_through_the_wrapped_module(make_config: MakeConfig) -> None:
    """The contrast's gradient reaches the student by way of the trainee, whose forward all precision settings wrap."""
    bench, method = kd3_bench(make_config, kd3__align=0.0, kd3__kd=0.0)
    method.weights[:] = 1
    given = method.inputs(bench.batch)
    (copies,) = given.values()
    assert copies.shape == bench.batch.images.shape
    output = bench.output()
    terms = method.loss(output, bench.batch, bench.student)
    assert output.projected["copies"].shape == output.features.shape
    terms["contrast"].backward()
    assert any(parameter.grad is not None for parameter in bench.student.parameters())
    method.weights.zero_()
    assert method.inputs(bench.batch) == {}


def test_no_pool(make_config: MakeConfig) -> None:
    """Without unlabelled images there is nothing to choose from."""
    with pytest.raises(ConfigError, match="unlabelled"):
        Bench(make_config(data=DataConfig(labelled=["train/*"], test=["test/*"])), "kd3")


def test_the_choice_is_part_of_the_state(make_config: MakeConfig) -> None:
    """A run that resumes in an epoch goes on with the images of that epoch."""
    bench, method = kd3_bench(make_config)
    method.begin_epoch(0, bench.student)
    state = {name: value.clone() for name, value in method.state().items()}
    _, other = kd3_bench(make_config)
    other.load_state(state)
    assert torch.equal(other.weights, method.weights)
