"""What each method trains and what it leaves alone (spec section 11)."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill import losses, task, train
from distill.config import DistillConfig
from distill.data import Batch
from distill.methods import METHODS, Method, Setup, Trainee
from distill.methods.customkd import CustomKD
from distill.sampler import ViewPicker
from distill.student import build_student
from featstore import FeatureStore
from featstore.errors import ConfigError
from featstore.sources import open_source
from tests.distill.conftest import MakeConfig


def make_setup(config: DistillConfig, seed: int = 0) -> Setup:
    data = task.prepare(
        open_source(config.source), FeatureStore.open(config.store), config.data, config.field
    )
    assert data.features is not None
    part = data.split(seed)
    return Setup(
        config=config,
        seed=seed,
        samples=data.samples,
        split=part,
        features=data.features,
        columns=data.columns,
        picker=ViewPicker(data.columns, data.samples.stored_ids, seed=seed),
        probe=data.fit_probe(part, most=1000, seed=seed),
        student_width=64,
        device=torch.device("cpu"),
    )


class Bench:
    """A method with a student and a batch of random pictures and features."""

    def __init__(self, config: DistillConfig, method: str) -> None:
        torch.manual_seed(0)
        self.setup = make_setup(config)
        self.student = build_student(config.student, 3)
        self.method: Method = METHODS[method](self.setup)
        self.trainee = Trainee(self.student, self.method.student_sides())
        labels = torch.tensor([0, 1, 2, losses.IGNORE, losses.IGNORE])
        self.batch = Batch(
            torch.randn(5, 3, 32, 32),
            labels,
            torch.randn(5, self.setup.features.width),
            torch.arange(5),
        )

    def terms(self) -> dict[str, Tensor]:
        return self.method.loss(self.trainee, self.batch, self.student)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.fixture
def bench(make_config: MakeConfig) -> Bench:
    return Bench(make_config(), "customkd")


def test_stage_1_changes_the_projection_alone(bench: Bench) -> None:
    """Every tensor of student and P_s stays bit-identical, and none of them gets a gradient."""
    assert isinstance(bench.method, CustomKD)
    trainee, custom = snapshot(bench.trainee), snapshot(bench.method.custom)
    numbers = bench.method.begin_epoch(0, bench.student)
    assert same(bench.trainee, trainee)
    assert all(parameter.grad is None for parameter in bench.trainee.parameters())
    assert not same(bench.method.custom, custom)
    assert {
        "stage1/loss",
        "stage1/train_top1",
        "stage1/test_top1",
        "norm/P_t(f_t)",
    } <= numbers.keys()


def test_stage_2_leaves_the_projection_alone(bench: Bench) -> None:
    """P_t stays bit-identical and gets no gradient; everything in the trainee gets one."""
    assert isinstance(bench.method, CustomKD)
    bench.method.begin_epoch(0, bench.student)
    bench.method.optimiser.zero_grad()
    custom = snapshot(bench.method.custom)
    torch.stack(list(bench.terms().values())).sum().backward()
    assert same(bench.method.custom, custom)
    assert all(parameter.grad is None for parameter in bench.method.custom.parameters())
    assert all(parameter.grad is not None for parameter in bench.trainee.parameters())
    assert not bench.method.customise(bench.batch.teacher).isnan().any()  # type: ignore[arg-type]


def test_stage_1_lowers_its_loss_and_needs_no_image(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads features only: a student whose forward pass fails does not disturb it."""

    def fail(*args: object) -> None:
        raise AssertionError("the student was run")

    monkeypatch.setattr(bench.student, "forward", fail)
    series = [bench.method.begin_epoch(epoch, bench.student)["stage1/loss"] for epoch in range(6)]
    assert series[-1] < series[0]


def test_stages_alternate_as_told(make_config: MakeConfig) -> None:
    """stage2_epochs 2: stage 1 comes before epochs 0, 2, 4."""
    bench = Bench(make_config(customkd__stage2_epochs=2), "customkd")
    assert [bool(bench.method.begin_epoch(epoch, bench.student)) for epoch in range(5)] == [
        True, False, True, False, True,
    ]  # fmt: skip


def test_terms_by_the_naive_formula(make_config: MakeConfig) -> None:
    """CE, MSE(P_s(f_s), f_t) and MSE(f_s, P_t(f_t)), each with its weight."""
    bench = Bench(make_config(customkd__w_general=2.0, customkd__w_specific=0.5), "customkd")
    assert isinstance(bench.method, CustomKD)
    bench.trainee.eval()
    terms = bench.terms()
    feature, logits = bench.student(bench.batch.images)
    teacher = bench.batch.teacher
    assert teacher is not None
    log_p = logits[:3].log_softmax(1)
    general = (bench.method.general(feature) - teacher).square().mean()
    specific = (
        (feature - teacher @ bench.method.custom.weight.T - bench.method.custom.bias)
        .square()
        .mean()
    )
    torch.testing.assert_close(terms["ce"], -(log_p[0, 0] + log_p[1, 1] + log_p[2, 2]) / 3)
    torch.testing.assert_close(terms["general"], 2 * general)
    torch.testing.assert_close(terms["specific"], 0.5 * specific)


@pytest.mark.parametrize("source", ["custom", "probe"])
def test_the_logit_term_uses_frozen_targets(make_config: MakeConfig, source: str) -> None:
    """Targets from the student's own head on P_t(f_t), or from the probe; neither gets a gradient."""
    config = make_config(
        customkd__w_logits=0.7, customkd__logits_from=source, customkd__temperature=2.0
    )
    bench = Bench(config, "customkd")
    assert isinstance(bench.method, CustomKD)
    bench.trainee.eval()
    teacher = bench.batch.teacher
    assert teacher is not None
    if source == "custom":
        target = bench.student.head(bench.method.custom(teacher))
    else:
        target = torch.from_numpy(bench.setup.probe.logits(teacher.numpy()))
    _, logits = bench.student(bench.batch.images)
    expected = 0.7 * losses.kd_kl(logits, target, temperature=2.0)
    torch.testing.assert_close(bench.terms()["logits"], expected)


def test_options_of_the_target(make_config: MakeConfig) -> None:
    """relu: nothing negative is asked of the student. layernorm: the specific term is free of scale."""
    bench = Bench(make_config(customkd__match_activation="relu"), "customkd")
    assert isinstance(bench.method, CustomKD)
    assert bench.method.customise(torch.randn(9, bench.setup.features.width)).min() >= 0
    bench = Bench(make_config(customkd__match_norm="layernorm"), "customkd")
    assert bench.terms()["specific"] < 4.1  # two rows of variance 1 differ by 4 at most


@pytest.mark.parametrize("norm", ["standardize", "layernorm", "l2"])
def test_every_norm_runs_in_both_stages(make_config: MakeConfig, norm: str) -> None:
    """Stage 1 and stage 2 see the same normalised feature."""
    bench = Bench(make_config(customkd__norm=norm, features__norm=norm), "customkd")
    bench.method.begin_epoch(0, bench.student)
    assert all(term.isfinite() for term in bench.terms().values())
    assert Bench(make_config(features__norm=norm), "features").terms()["general"].isfinite()


def test_collapse_and_inflation_are_told(bench: Bench) -> None:
    """A projection scaled up or down by hand is noticed at the end of the epoch."""
    assert isinstance(bench.method, CustomKD)
    bench.method.begin_epoch(0, bench.student)
    bench.terms()
    with torch.no_grad():
        bench.method.custom.weight *= 100
    bench.method.optimiser.param_groups[0]["lr"] = 0.0
    bench.method.begin_epoch(1, bench.student)
    bench.terms()
    assert bench.method.end_epoch(1)["norm/P_t(f_t)/f_s"] > 2
    assert "inflation" in bench.method.warnings()
    with torch.no_grad():
        bench.method.custom.weight *= 1e-4
    bench.method.begin_epoch(2, bench.student)
    bench.terms()
    bench.method.end_epoch(2)
    assert "collapse" in bench.method.warnings()


def test_stage_1_with_one_label_per_class(make_config: MakeConfig) -> None:
    """The smallest labelled set there is."""
    bench = Bench(make_config(data__labels_per_class=1), "customkd")
    assert len(bench.setup.split.labelled) == 3
    bench.method.begin_epoch(0, bench.student)


def exported(config: DistillConfig, method: str, change: dict[str, Any] | None = None) -> bytes:
    """Weights of a short run of one method."""
    config = dataclasses.replace(
        config, out=f"{config.out}-{method}-{len(change or {})}", **(change or {})
    )
    data = task.prepare(
        open_source(config.source), FeatureStore.open(config.store), config.data, config.field
    )
    probe = data.fit_probe(data.split(0), most=1000, seed=0)
    train.run(config, data, probe, method=method, seed=0)
    return (Path(config.out) / method / "seed0" / "student.safetensors").read_bytes()


def test_without_the_specific_term_it_is_feature_matching(make_config: MakeConfig) -> None:
    """w_specific 0: the student is bit-identical to that of ``features``."""
    assert exported(make_config(customkd__w_specific=0.0), "customkd") == exported(
        make_config(), "features"
    )


def test_without_both_terms_it_is_labels_only(make_config: MakeConfig) -> None:
    """w_general = w_specific = 0 on labelled images alone: bit-identical to ``labels``."""
    config = make_config(data__unlabelled=[], customkd__w_specific=0.0, customkd__w_general=0.0)
    assert exported(config, "customkd") == exported(config, "labels")
    assert exported(make_config(data__unlabelled=[]), "customkd", {"seeds": [0]}) != exported(
        config, "probe_kd"
    )


def test_probe_kd_moves_towards_the_probe(make_config: MakeConfig) -> None:
    """Its target is the probe on the batch's own features."""
    bench = Bench(make_config(probe_kd__weight=0.3, probe_kd__temperature=3.0), "probe_kd")
    bench.trainee.eval()
    teacher = bench.batch.teacher
    assert teacher is not None
    _, logits = bench.student(bench.batch.images)
    target = torch.from_numpy(bench.setup.probe.logits(teacher.numpy()))
    torch.testing.assert_close(
        bench.terms()["logits"], 0.3 * losses.kd_kl(logits, target, temperature=3.0)
    )


def test_a_wrong_teacher_width_is_refused(bench: Bench) -> None:
    """A batch of another store's width does not broadcast its way through."""
    assert isinstance(bench.method, CustomKD)
    with pytest.raises(ValueError, match="stored feature"):
        bench.method.customise(torch.zeros(2, 5))


def test_methods_that_need_labels_say_so(make_config: MakeConfig) -> None:
    """A source and a store without labels end before training."""
    config = make_config()
    with pytest.raises(ConfigError, match="labels_per_class"):
        make_setup(
            dataclasses.replace(config, data=dataclasses.replace(config.data, labels_per_class=99))
        )
