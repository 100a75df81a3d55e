"""The methods on features and relations: their terms by the formula, what they train, keep and fold."""

import copy
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.losses import IGNORE, cross_entropy, feature_mse, relations
from distill.losses import contrast as contrasts
from distill.losses import features as maps
from distill.methods import METHODS
from distill.methods.base import ADAPTER
from distill.methods.modules import ManyToOne, MapProjection
from distill.methods.norm import NORM
from distill.methods.queue_kl import QueueKL
from distill.methods.specmatch import SpecMatch
from distill.student.model import evaluating
from featstore.errors import ConfigError
from tests.distill.bench import Bench, make_setup
from tests.distill.conftest import MakeConfig
from tests.distill.resume import Stop, elsewhere
from tests.distill.training.test_loop import folder, start

FEATURE_METHODS = (
    "fitnet", "fitnet_grid", "rkd", "cc", "cc_crd", "sp", "pkt", "crd", "norm", "at", "queue_kl", "specmatch", "tffd",
)  # fmt: skip


def bench_of(make_config: MakeConfig, method: str, **changes: Any) -> Bench:
    """A method whose batch is of training images, ready for a step of its first epoch."""
    if method == "at":  # at 32 pixels the student's map has one place, where there is no attention
        changes["student__image_size"] = 64
    bench = Bench(make_config(**changes), method)
    split = bench.setup.split
    chosen = np.concatenate([split.labelled[:3], split.unlabelled[:2]])
    labels = torch.from_numpy(bench.setup.samples.labels[chosen]).clone()
    labels[3:] = IGNORE
    bench.batch = dataclasses.replace(
        bench.batch,
        indices=torch.from_numpy(chosen),
        labels=labels,
        images=torch.randn(5, 3, *bench.student.input_size),
    )
    bench.method.begin_epoch(0, bench.student)
    return bench


def normed(bench: Bench) -> Tensor:
    """The stored features as the method sees them."""
    target: Tensor = bench.method.norm(bench.teacher)  # type: ignore[attr-defined]
    return target


@pytest.mark.parametrize("method", FEATURE_METHODS)
def test_one_step_trains_the_student_and_nothing_frozen(
    make_config: MakeConfig, method: str
) -> None:
    """Finite terms; a finite gradient for every parameter of the trainee, none for what is stored."""
    bench = bench_of(make_config, method)
    bench.teacher.requires_grad_()
    if bench.batch.grid is not None:
        bench.batch.grid.requires_grad_()
    if isinstance(bench.method, SpecMatch):
        bench.method.head.alone = False
    terms = bench.terms()
    assert all(term.isfinite() and term.dim() == 0 and term > 0 for term in terms.values())
    ce = terms.pop("ce")
    torch.testing.assert_close(ce, cross_entropy(bench.output().logits, bench.batch.labels))
    # The first layer of the student learns from the terms of the method alone.
    own, first = torch.stack(list(terms.values())).sum(), next(bench.student.parameters())
    assert torch.autograd.grad(own, first, retain_graph=True)[0].abs().max() > 0
    (own + ce).backward()
    for name, parameter in bench.trainee.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert bench.batch.grid is None or bench.batch.grid.grad is None


@pytest.mark.parametrize(
    "method", [name for name in FEATURE_METHODS if name not in ("fitnet_grid", "at", "tffd")]
)
def test_every_norm_is_taken(make_config: MakeConfig, method: str) -> None:
    """The stored feature is normalised before anything else sees it."""
    bench = bench_of(make_config, method, **{f"{method}__norm": "l2"})
    torch.testing.assert_close(normed(bench).norm(dim=1), torch.ones(5))
    assert all(term.isfinite() for term in bench.terms().values())


def test_what_is_needed() -> None:
    """Vectors for most, grids where maps are compared, neither for the controls."""

    needs = {
        name: METHODS[name].needs(METHODS[name].Options()) for name in (*FEATURE_METHODS, "labels")
    }
    assert {name for name, need in needs.items() if need.grid} == {"fitnet_grid", "at"}
    assert {name for name, need in needs.items() if not need.vector} == {
        "fitnet_grid", "at", "tffd", "labels",
    }  # fmt: skip
    assert [name for name, need in needs.items() if not need.unlabelled] == ["labels"]


def test_terms_of_single_images_by_the_formula(make_config: MakeConfig) -> None:
    """fitnet, fitnet_grid, at and tffd: the pure loss on what the sides gave, times the weight."""
    bench = bench_of(make_config, "fitnet", fitnet__weight=0.3, fitnet__norm="layernorm")
    output = bench.output()
    expected = 0.3 * feature_mse(output.projected["general"], normed(bench))
    torch.testing.assert_close(bench.terms()["general"], expected)

    bench = bench_of(make_config, "fitnet", fitnet__weight=2.0, fitnet__beta=0.5)
    far = (bench.output().projected["general"] - normed(bench)).abs()
    expected = 2 * torch.where(far < 0.5, far.square(), far - 0.25).mean()
    torch.testing.assert_close(bench.terms()["general"], expected)

    bench = bench_of(make_config, "fitnet", fitnet__contrast=2.0, fitnet__temperature=0.5)
    bench.batch.indices[1] = bench.batch.indices[0]  # shares a stored row, and is no negative
    own, same = bench.output().projected["general"], torch.eye(5, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    expected = 2 * contrasts.symmetric_info_nce(own, normed(bench), same, temperature=0.5)
    torch.testing.assert_close(bench.terms()["contrast"], expected)

    bench = bench_of(make_config, "fitnet_grid", fitnet_grid__weight=0.5, fitnet_grid__norm="none")
    grid = bench.batch.grid
    assert grid is not None
    bench.trainee.eval()
    found = bench.output().projected["grid"]
    assert found.shape == (5, 3, 2, 2)
    expected = 0.5 * (found - grid.permute(0, 3, 1, 2)).square().mean()
    torch.testing.assert_close(bench.terms()["grid"], expected)

    bench = bench_of(make_config, "fitnet_grid")  # standardised over places and training images
    bench.trainee.eval()
    grid, stored, setup = bench.batch.grid, bench.setup.grid, bench.setup
    assert grid is not None
    assert stored is not None
    views = [
        stored.take(setup.training, np.full(len(setup.training), column))
        for column in setup.picker.columns
    ]
    every = torch.cat(views).flatten(0, 2)
    places = (grid - every.mean(0)) / every.std(0, correction=0)
    expected = 10 * (bench.output().projected["grid"] - places.permute(0, 3, 1, 2)).square().mean()
    torch.testing.assert_close(bench.terms()["grid"], expected)

    bench = bench_of(make_config, "at", at__weight=7.0)
    grid = bench.batch.grid
    assert grid is not None
    expected = 7 * maps.attention_transfer(bench.output().map, grid.permute(0, 3, 1, 2))
    torch.testing.assert_close(bench.terms()["attention"], expected)

    bench = bench_of(make_config, "tffd", tffd__w_inter=2.0, tffd__w_intra=3.0)
    stages = bench.output().projected["stages"]
    assert len(stages) > 2
    terms = bench.terms()
    intra = sum(maps.within_stage(stage) for stage in stages)
    inter = sum(maps.between_stages(a, b) for a, b in itertools.pairwise(stages))
    torch.testing.assert_close(terms["intra"], 3 * torch.as_tensor(intra))
    torch.testing.assert_close(terms["inter"], 2 * torch.as_tensor(inter))


def test_terms_of_relations_by_the_formula(make_config: MakeConfig) -> None:
    """Each weight and setting arrives at its loss."""
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "cc": lambda s, t: 100 * relations.cc(s, t, gamma=0.7, order=3),
        "sp": lambda s, t: 3000 * relations.sp(s, t),
        "pkt": lambda s, t: 30000 * relations.pkt(s, t),
    }
    for method, loss in losses.items():
        changes = {"cc__gamma": 0.7, "cc__order": 3} if method == "cc" else {}
        bench = bench_of(make_config, method, **changes)
        terms = bench.terms()
        del terms["ce"]
        (found,) = terms.values()
        torch.testing.assert_close(found, loss(bench.output().features, bench.teacher))
    bench = bench_of(make_config, "cc_crd", cc_crd__width=6)
    sides = bench.output().projected
    assert sides["student_embedding"].shape == sides["teacher_embedding"].shape == (5, 6)
    expected = 0.02 * relations.cc_crd(*sides.values())
    torch.testing.assert_close(bench.terms()["correlation"], expected)


def test_angles_are_of_some_images_and_distances_of_all(make_config: MakeConfig) -> None:
    """Three of five, evenly spread: the first, the middle and the last."""
    bench = bench_of(make_config, "rkd", rkd__most=3, rkd__weight=2.0)
    terms, student = bench.terms(), bench.output().features
    some = [0, 2, 4]
    torch.testing.assert_close(
        terms["angle"], 100 * relations.rkd_angle(student[some], bench.teacher[some])
    )
    torch.testing.assert_close(
        terms["distance"], 50 * relations.rkd_distance(student, bench.teacher)
    )


def test_attention_between_single_places_is_refused(make_config: MakeConfig) -> None:
    """A map of one place always has all its energy there: nothing would be learnt."""
    with pytest.raises(ConfigError, match=r"\b1\b.*\b1\b.*grid2.*\b2\b.*\b2\b"):
        Bench(make_config(), "at")


@pytest.mark.parametrize(("size", "side"), [((4, 4), 2), ((2, 2), 5), ((2, 6), 4)])
def test_maps_are_projected_at_the_smaller_size(size: tuple[int, int], side: int) -> None:
    """A 1x1 convolution commutes with resizing, so the cheaper order gives the same as resizing first."""
    torch.manual_seed(0)
    project = MapProjection(3, 4, side).eval()
    seen = torch.randn(2, 3, *size)
    expected = project.project(maps.resize_map(seen, (side, side)))
    torch.testing.assert_close(project(seen), expected)


# NORM


def trained_norm(make_config: MakeConfig) -> Bench:
    """After some steps, so that no batch norm is the identity and every statistic has moved."""
    bench = bench_of(make_config, "norm", norm__copies=3)
    optimiser = torch.optim.SGD(bench.trainee.parameters(), lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        bench.backward()
        optimiser.step()
    return bench


@torch.no_grad()
def test_norm_folds_exactly(make_config: MakeConfig) -> None:
    """The plain student alone gives the logits of student and expansion, with the same keys."""
    with torch.enable_grad():
        bench = trained_norm(make_config)
    assert isinstance(bench.method, NORM)
    folded = copy.deepcopy(bench.student)
    bench.method.fold(folded, dict(bench.trainee.sides.items()))
    assert folded.state_dict().keys() == bench.student.state_dict().keys()
    with evaluating(bench.trainee), evaluating(folded):
        expected = bench.output().logits
        plain = bench.student(bench.batch.images).logits
        found = folded(bench.batch.images).logits
    assert (plain - expected).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_norm_compares_every_copy(make_config: MakeConfig) -> None:
    """The expansion of f_s is what the loss sees, computed once, and only for the images that the method sees."""
    bench = bench_of(make_config, "norm", norm__copies=3, norm__weight=0.25)
    adapter = bench.trainee.sides[ADAPTER]
    assert isinstance(adapter, ManyToOne)
    passes: list[int] = []
    adapter.expand.register_forward_hook(lambda *_: passes.append(1))
    output = bench.output()
    assert len(passes) == 1
    assert adapter.expanded is None  # nothing of a graph stays behind
    expected = sum(
        feature_mse(copy, bench.teacher)
        for copy in adapter.expand(output.features).split(bench.setup.features.width, dim=1)
    )
    terms = bench.method.loss(output, bench.batch, bench.student)
    torch.testing.assert_close(terms["many_to_one"], 0.25 * torch.as_tensor(expected))
    assert output.rows(0, 2).projected["expanded"].shape == (2, 3 * bench.setup.features.width)


def test_norm_needs_a_head_to_merge_into(make_config: MakeConfig) -> None:
    """A head without a bias, or one that is more than a Linear, is refused with a way out."""
    setup = make_setup(make_config())
    setup.student.classifier.bias = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"--methods norm.*test_convnext.*bias=False"):
        NORM(setup, NORM.Options())
    with pytest.raises(ConfigError, match=r"--student.feature prelogits"):
        NORM(
            make_setup(
                make_config(student__name="mobilenetv3_small_050", student__feature="pooled")
            ),
            NORM.Options(),
        )


# Queue


def test_the_queue_is_of_training_images_and_new_in_every_epoch(make_config: MakeConfig) -> None:
    """Drawn by seed and epoch alone, without repeats, and normalised like the feature."""
    bench = bench_of(make_config, "queue_kl", queue_kl__size=10, queue_kl__norm="standardize")
    method = bench.method
    assert isinstance(method, QueueKL)
    every = method.norm(bench.setup.features.take(bench.setup.training))
    first = method.queue_QD
    assert first.shape == (10, bench.setup.features.width)
    places = [(row == every).all(1).nonzero().item() for row in first]
    assert places == sorted(set(places))
    method.begin_epoch(1, bench.student)
    assert not torch.equal(method.queue_QD, first)
    again = bench_of(
        make_config, "queue_kl", queue_kl__size=10, queue_kl__norm="standardize"
    ).method
    assert isinstance(again, QueueKL)
    assert torch.equal(again.queue_QD, first)
    again.load_state(method.state())
    assert torch.equal(again.queue_QD, method.queue_QD)


def test_a_queue_larger_than_the_store_holds_every_training_image(make_config: MakeConfig) -> None:
    """And the term is the loss on it, with its temperature and weight."""
    bench = bench_of(make_config, "queue_kl", queue_kl__temperature=0.2, queue_kl__weight=3.0)
    method = bench.method
    assert isinstance(method, QueueKL)
    assert torch.equal(method.queue_QD, bench.setup.features.take(bench.setup.training))
    side = bench.output().projected["queue"]
    expected = 3 * contrasts.queue_kl(side, bench.teacher, method.queue_QD, temperature=0.2)
    torch.testing.assert_close(bench.terms()["queue"], expected)
    fresh = METHODS["queue_kl"](bench.setup, bench.method.options)
    fresh.load_state(fresh.state())  # before the first epoch there is nothing to draw


# SpecMatch


def test_the_basis_is_that_of_the_stored_features(make_config: MakeConfig) -> None:
    """Orthonormal axes; coefficients without correlation, largest variance first; equal when computed again."""
    bench = bench_of(make_config, "specmatch", specmatch__norm="standardize")
    method, setup = bench.method, bench.setup
    assert isinstance(method, SpecMatch)
    axes = method.basis.axes_DD
    torch.testing.assert_close(axes.T @ axes, torch.eye(24), rtol=0, atol=1e-5)
    feature = method.norm(
        torch.cat(list(setup.features.chunks(setup.training, setup.picker.columns)))
    )
    coefficients = method.basis(feature).double()
    torch.testing.assert_close(
        coefficients.mean(0), torch.zeros(24, dtype=torch.float64), rtol=0, atol=1e-4
    )
    covariance = coefficients.T @ coefficients / len(coefficients)
    variance = covariance.diagonal()
    assert (covariance - variance.diag()).abs().max() < 1e-4 * variance.max()
    assert (variance.diff() <= 1e-6 * variance.max()).all()
    again = SpecMatch(setup, method.options)
    assert torch.equal(again.basis.axes_DD, axes)  # type: ignore[arg-type]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_specmatch_with_power_one_is_feature_matching(make_config: MakeConfig) -> None:
    """A rotation changes no squared error: D times the MSE between features."""
    bench = bench_of(make_config, "specmatch", specmatch__beta=1.0, specmatch__weight=1.0)
    method = bench.method
    assert isinstance(method, SpecMatch)
    predicted = bench.output().projected["coefficients"] @ method.basis.axes_DD.T
    expected = 24 * feature_mse(predicted + method.basis.mean_D, bench.teacher)
    torch.testing.assert_close(bench.terms()["spectrum"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_specmatch_first_trains_its_linear_alone(make_config: MakeConfig) -> None:
    """For a number of steps, which the state keeps; each step may be cut into pieces."""
    changes = {
        "train__epochs": 20, "train__grad_accum": 2, "specmatch__warmup_steps": 2, "specmatch__weight": 1.0,
    }  # fmt: skip
    bench = bench_of(make_config, "specmatch", **changes)
    method = bench.method
    assert isinstance(method, SpecMatch)

    def reaches(on: Bench) -> bool:
        on.trainee.zero_grad()
        on.terms()["spectrum"].backward()
        assert on.method.head.weight.grad is not None  # type: ignore[attr-defined]
        return next(on.student.parameters()).grad is not None

    assert [reaches(bench) for _ in range(3)] == [False] * 3
    other = bench_of(make_config, "specmatch", **changes)
    other.method.load_state(method.state())
    assert [reaches(bench) for _ in range(2)] == [False, True]
    assert [reaches(other) for _ in range(2)] == [False, True]
    # Three steps per epoch: a tenth of 60 is 6, whatever is asked.
    changes["specmatch__warmup_steps"] = 500
    assert bench_of(make_config, "specmatch", **changes).method.warmup == 12  # type: ignore[attr-defined]


# In the loop


@pytest.mark.slow
@pytest.mark.parametrize("method", ["crd", "specmatch"])
def test_a_run_stopped_within_an_epoch_ends_bit_identical(
    make_config: MakeConfig, method: str
) -> None:
    """What a method keeps comes back with the checkpoint. Three steps per epoch: the checkpoint is of step 4."""
    config = make_config(train__checkpoint_every=2, train__epochs=2, crd__negatives=7)
    stopped = elsewhere(config)
    start(config, method)
    with pytest.raises(Stop):
        start(stopped, method, stop_after=5)
    start(stopped, method)
    for name in ("student.safetensors", "metrics.jsonl"):
        straight, resumed = (folder(run, method) / name for run in (config, stopped))
        assert straight.read_bytes() == resumed.read_bytes(), name


# Options


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rkd__most": 2}, r"--rkd.most 2\b.*\b3\b"),
        ({"crd__momentum": 1.0}, "--crd.momentum 1.0"),
        ({"crd__temperature": 0.0}, r"--crd.temperature 0.0"),
        ({"sp__weight": -1.0}, r"--sp.weight -1.0"),
        ({"norm__copies": 0}, r"--norm.copies 0\b"),
        ({"specmatch__beta": 0.0}, r"--specmatch.beta 0.0"),
    ],
)
def test_options_out_of_range_are_refused(
    make_config: MakeConfig, change: dict[str, Any], message: str
) -> None:
    """The message names the setting as it is spelled on the command line."""
    with pytest.raises(ConfigError, match=message):
        make_config(**change)
