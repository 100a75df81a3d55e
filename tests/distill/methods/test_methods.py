"""CustomKD: what each stage trains and what it leaves alone, and what its options do."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill.config import DistillConfig
from distill.data import joined
from distill.losses.logits import dist, dkd, kd_kl, logit_mse, ofa, target_classes
from distill.measures.linear_probe import fit_probe
from distill.methods.base import Needs
from distill.methods.customkd import CustomKD
from distill.training import loop as train
from featstore import FeatureStore
from featstore.errors import ConfigError
from featstore.sources import open_source
from tests.distill.bench import Bench, make_setup, predict, same, snapshot
from tests.distill.conftest import MakeConfig

BY_FORWARD_PASS = {"cka/f_s,f_t", "cka/f_s,P_t(f_t)", "cka/P_t(f_t),f_t"}
"""Logged numbers that need a forward pass of the student over the test list."""


class CustomBench(Bench):
    """A bench whose method is CustomKD, with options by their plain names."""

    method: CustomKD

    def __init__(self, make_config: MakeConfig, **options: Any) -> None:
        changes = {
            name if "__" in name else f"customkd__{name}": value for name, value in options.items()
        }
        super().__init__(make_config(**changes), "customkd")

    def begin(self, epoch: int) -> dict[str, float]:
        """Stage 1, if the epoch begins with one."""
        return self.method.begin_epoch(epoch, self.student)


@pytest.fixture
def bench(make_config: MakeConfig) -> CustomBench:
    return CustomBench(make_config)


def test_stage_1_changes_the_projection_alone(bench: CustomBench) -> None:
    """Every tensor of student and P_s stays bit-identical, and none of them gets a gradient."""
    trainee, custom = snapshot(bench.trainee), snapshot(bench.method.custom)
    numbers = bench.begin(0)
    assert same(bench.trainee, trainee)
    assert all(parameter.grad is None for parameter in bench.trainee.parameters())
    assert all(module.training for module in bench.trainee.modules())
    assert not same(bench.method.custom, custom)
    assert numbers.keys() == BY_FORWARD_PASS | {
        "stage1/loss", "stage1/train_top1", "stage1/test_top1", "norm/f_t", "norm/P_t(f_t)",
        "variance/P_t(f_t)",
    }  # fmt: skip
    assert all(0 <= numbers[name] <= 1 + 1e-9 for name in numbers if name.startswith("cka/"))


def test_stage_2_leaves_the_projection_alone(bench: CustomBench) -> None:
    """P_t stays bit-identical and gets no gradient; everything in the trainee gets one."""
    bench.begin(0)
    bench.method.optimiser.zero_grad()
    custom = snapshot(bench.method.custom)
    bench.teacher.requires_grad_()
    bench.backward()
    assert same(bench.method.custom, custom)
    assert all(parameter.grad is None for parameter in bench.method.custom.parameters())
    assert all(parameter.grad is not None for parameter in bench.trainee.parameters())
    assert bench.teacher.grad is None


def test_stage_1_lowers_its_loss_and_needs_no_image(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads features only: a student whose forward pass fails does not disturb it."""
    bench = CustomBench(make_config, watch_every=0)

    def fail(*args: object) -> None:
        raise AssertionError("the student was run")

    monkeypatch.setattr(bench.student, "forward", fail)
    series = [bench.begin(epoch)["stage1/loss"] for epoch in range(6)]
    assert series[-1] < series[0]


def test_stage_1_takes_a_head_of_several_layers(make_config: MakeConfig) -> None:
    """With the pooled feature the head is all that follows pooling; it is used without dropout and stays as it is."""
    bench = CustomBench(
        make_config,
        student__feature="pooled",
        student__model_args={"drop_rate": 0.5},
        stage1_lr=1e-9,
    )
    assert not isinstance(bench.student.head, nn.Linear)
    trainee = snapshot(bench.trainee)
    first, second = bench.begin(0), bench.begin(0)
    assert first["stage1/loss"] == pytest.approx(second["stage1/loss"], rel=1e-5)
    assert same(bench.trainee, trainee)
    assert all(parameter.grad is None for parameter in bench.trainee.parameters())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_terms_by_the_naive_formula(make_config: MakeConfig, reduction: str) -> None:
    """CE, MSE(P_s(f_s), f_t) and MSE(f_s, P_t(f_t)), each with its weight; summed over the width if asked for."""
    bench = CustomBench(make_config, w_general=2.0, w_specific=0.5, reduction=reduction)
    bench.trainee.eval()
    terms, output = bench.terms(), bench.output()
    log_p = output.logits[:3].log_softmax(1)
    custom = bench.method.custom
    assert isinstance(custom, nn.Linear)
    general = (output.projected["general"] - bench.teacher).square()
    specific = (output.features - bench.teacher @ custom.weight.T - custom.bias).square()
    if reduction == "sum":
        general, specific = general.sum(1), specific.sum(1)
    torch.testing.assert_close(terms["ce"], -(log_p[0, 0] + log_p[1, 1] + log_p[2, 2]) / 3)
    torch.testing.assert_close(terms["general"], 2 * general.mean())
    torch.testing.assert_close(terms["specific"], 0.5 * specific.mean())


LOGIT_LOSSES = {
    "kl": lambda s, t, labels: kd_kl(s, t, temperature=2.0),
    "mse": lambda s, t, labels: logit_mse(s, t),
    "dkd": lambda s, t, labels: dkd(
        s, t, target_classes(labels, t), alpha=0.5, beta=3.0, temperature=2.0
    ),
    "dist": lambda s, t, labels: dist(s, t, beta=0.5, gamma=3.0, temperature=2.0),
    "ofa": lambda s, t, labels: ofa(s, t, target_classes(labels, t), eps=1.5, temperature=2.0),
}


@pytest.mark.parametrize(("share", "source"), [(0.79, "probe"), (0.8, "custom")])
def test_logits_by_the_domains_of_the_images(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, share: float, source: str
) -> None:
    """auto takes the customised logits across domains and the probe's within one, and says so."""
    parts: list[tuple[np.ndarray, ...]] = []

    def separability(*given: np.ndarray) -> float:
        parts.append(given)
        return share

    monkeypatch.setattr("distill.methods.customkd.separability", separability)
    bench = CustomBench(make_config, w_logits=0.7, logits_from="auto")
    chosen = CustomBench(make_config, w_logits=0.7, logits_from=source)
    torch.testing.assert_close(bench.terms()["logits"], chosen.terms()["logits"])
    split, features = bench.setup.split, bench.setup.features
    assert len(parts) == 1
    assert [part.shape for part in parts[0]] == [
        (len(split.labelled), features.width), (len(split.unlabelled), features.width),
    ]  # fmt: skip
    (note,) = (note for note in bench.student.notes if "customkd" in note)
    assert ("another domain" in note) == (source == "custom")
    assert not any("customkd" in note for note in chosen.student.notes)
    CustomBench(make_config, logits_from="auto")  # no term of logits: nothing to decide
    monkeypatch.setattr("distill.methods.customkd.LEAST", 1 + len(split.unlabelled))
    alone = CustomBench(make_config, w_logits=0.7, logits_from="auto")  # nothing to tell apart
    assert (alone.method.logits_from, len(parts)) == ("probe", 1)
    assert not any("customkd" in note for note in alone.student.notes)


@pytest.mark.parametrize("source", ["custom", "probe"])
@pytest.mark.parametrize("kind", LOGIT_LOSSES)
def test_the_logit_term_uses_frozen_targets(
    make_config: MakeConfig, source: str, kind: str
) -> None:
    """Targets from the student's own head on P_t(f_t), or from the probe; neither gets a gradient from it."""
    bench = CustomBench(
        make_config, w_logits=0.7, logits_from=source, logits_loss=kind, temperature=2.0, dkd_alpha=0.5, dkd_beta=3.0,
        dist_beta=0.5, dist_gamma=3.0, ofa_eps=1.5, logits_warmup_epochs=4,
    )  # fmt: skip
    bench.trainee.eval()
    bench.method.epoch = 1
    if source == "custom":
        target = bench.student.head(bench.method.custom(bench.teacher))
    else:
        target = torch.from_numpy(bench.setup.probe.logits(bench.teacher.numpy()))
    output, terms = bench.output(), bench.terms()
    expected = LOGIT_LOSSES[kind](output.logits, target, bench.batch.labels)
    # 2 of 4 epochs into the warm-up.
    torch.testing.assert_close(terms["logits"], 0.5 * 0.7 * expected)
    exits = output.projected.get("exits", [])
    assert bool(len(exits)) == (kind == "ofa")
    for number, logits in enumerate(exits):
        of_exit = LOGIT_LOSSES[kind](logits, target, bench.batch.labels)
        torch.testing.assert_close(terms[f"exit{number}"], 0.5 * 0.7 * of_exit)
    head = bench.student.head.weight
    assert isinstance(head, Tensor)
    (through,) = torch.autograd.grad(terms["logits"], head, retain_graph=True)
    (direct,) = torch.autograd.grad(
        0.35 * LOGIT_LOSSES[kind](output.logits, target.detach(), bench.batch.labels), head
    )
    torch.testing.assert_close(through, direct)


def test_the_dkd_term_may_leave_out_unlabelled_images(make_config: MakeConfig) -> None:
    """dkd_target labels: as if only the labelled rows were there."""
    bench = CustomBench(make_config, w_logits=1.0, logits_loss="dkd", dkd_target="labels")
    bench.trainee.eval()
    output = bench.output()
    target = bench.student.head(bench.method.custom(bench.teacher))[:3]
    expected = dkd(
        output.logits[:3], target, bench.batch.labels[:3], alpha=1, beta=2, temperature=4
    )
    torch.testing.assert_close(bench.terms()["logits"], expected)


def begins(bench: CustomBench, epochs: int) -> list[bool]:
    """Which epochs begin with a stage 1."""
    return ["stage1/loss" in bench.begin(epoch) for epoch in range(epochs)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"stage2_epochs": 2}, [1, 0, 1, 0, 1]),
        ({"stage2_epochs": 2, "start": "stage2"}, [0, 0, 1, 0, 1]),
        ({"stage1": "once"}, [1, 0, 0, 0, 0]),
        ({"stage1": "once", "start": "stage2", "stage2_epochs": 3}, [0, 0, 0, 1, 0]),
        ({"stage1": "never"}, [0, 0, 0, 0, 0]),
    ],
)
def test_stages_alternate_as_told(
    make_config: MakeConfig, options: dict[str, Any], expected: list[int]
) -> None:
    """Cycle, start and stage 1 once or never."""
    assert begins(CustomBench(make_config, train__epochs=5, **options), 5) == expected


def test_every_pass_of_stage_1_is_a_new_one(make_config: MakeConfig) -> None:
    """stage1_epochs 2: the passes of cycle c are 2c and 2c + 1, whatever it starts with."""
    bench = CustomBench(
        make_config, stage1_epochs=2, stage2_epochs=2, start="stage2", train__epochs=6
    )
    numbers: list[int] = []
    read = type(bench.setup).labelled_features

    def watch(setup: Any, *, number: int, batch: int) -> Any:
        numbers.append(number)
        return read(setup, number=number, batch=batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(bench.setup), "labelled_features", watch)
        for epoch in range(6):
            bench.begin(epoch)
    assert numbers == [0, 1, 2, 3]


def test_terms_that_need_the_projection_wait_for_it(make_config: MakeConfig) -> None:
    """start stage2: nothing is asked towards a random P_t, not even after a restart in the middle of an epoch."""
    bench = CustomBench(make_config, start="stage2", w_logits=1.0)
    for epoch, waits in ((0, True), (1, False)):
        bench.begin(epoch)
        terms = bench.terms()
        assert (terms["specific"] == 0) == waits
        assert (terms["logits"] == 0) == waits
        assert terms["general"] > 0
    resumed = CustomBench(make_config, start="stage2", w_logits=1.0)
    resumed.method.load_state(bench.method.state())
    torch.testing.assert_close(resumed.terms(), bench.terms())
    with pytest.raises(ConfigError, match=r"\b2\b"):
        CustomBench(make_config, start="stage2", stage2_epochs=2)


def test_a_random_head_is_trained_with_the_projection(make_config: MakeConfig) -> None:
    """The paper's ablation: the student's head is not looked at; both are saved, and neither is in the trainee."""
    bench = CustomBench(make_config, head="random", w_logits=1.0)
    own = bench.method.teacher_side["head"]
    trainee, before = snapshot(bench.trainee), snapshot(own)
    with torch.no_grad():
        bench.student.classifier.weight.fill_(math.nan)
    bench.begin(0)
    assert not same(own, before)
    assert bench.method.custom.weight.isfinite().all()  # type: ignore[operator, union-attr]
    bench.student.load_state_dict(
        {key[8:]: trainee[key] for key in trainee if key[:8] == "student."}
    )
    bench.trainee.eval()
    target = own(bench.method.custom(bench.teacher))
    expected = kd_kl(bench.output().logits, target, temperature=4.0)
    torch.testing.assert_close(bench.terms()["logits"], expected)
    assert not any(
        parameter is other for other in own.parameters() for parameter in bench.trainee.parameters()
    )
    resumed = CustomBench(make_config, head="random", w_logits=1.0)
    resumed.method.load_state(bench.method.state())
    assert same(resumed.method.teacher_side, snapshot(bench.method.teacher_side))


@pytest.mark.slow
def test_a_probe_head_reads_the_students_features(make_config: MakeConfig) -> None:
    """Fitted on the labelled images as the student sees them now, and left alone by stage 1."""
    bench = CustomBench(make_config, head="probe")
    bench.begin(0)
    labelled = bench.setup.split.labelled
    features = predict(bench.student, labelled)[0].numpy()
    probe = fit_probe(features, bench.setup.samples.labels[labelled], num_classes=3)
    own = bench.method.teacher_side["head"]
    assert torch.equal(own.weight, torch.from_numpy(probe.weight_KD))  # type: ignore[arg-type]
    assert torch.equal(own.bias, torch.from_numpy(probe.bias_K))  # type: ignore[arg-type]
    assert all(parameter.grad is None for parameter in own.parameters())


def test_projections_of_two_layers(make_config: MakeConfig) -> None:
    """Depth 2 on both sides, with the width asked for; the larger of the two if none is."""
    bench = CustomBench(make_config, depth=2, hidden=7)
    trainee = snapshot(bench.trainee)
    assert [
        part.in_features
        for part in nn.ModuleList([bench.method.custom]).modules()
        if isinstance(part, nn.Linear)
    ] == [
        24,
        7,
    ]
    first = bench.begin(0)
    assert same(bench.trainee, trainee)
    bench.backward()
    assert all(parameter.grad is not None for parameter in bench.trainee.parameters())
    assert bench.begin(1)["stage1/loss"] < first["stage1/loss"]
    wide = CustomBench(make_config, depth=2).trainee.sides["general"]
    assert [part.in_features for part in wide.modules() if isinstance(part, nn.Linear)] == [64, 64]


def test_the_optimiser_of_stage_1_is_an_option(make_config: MakeConfig) -> None:
    """By timm's name; biases do not decay."""
    bench = CustomBench(make_config, stage1_opt="sgd", stage1_weight_decay=0.5)
    groups = bench.method.optimiser.param_groups
    assert isinstance(bench.method.optimiser, torch.optim.SGD)
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.5]
    with pytest.raises(ConfigError, match=r"--customkd.stage1_opt nope"):
        CustomBench(make_config, stage1_opt="nope")


@pytest.mark.parametrize(("activation", "least"), [("relu", 0.0), ("hardswish", -0.375)])
def test_the_target_can_be_bounded(make_config: MakeConfig, activation: str, least: float) -> None:
    """Nothing is asked of the student that its own activation cannot give."""
    bench = CustomBench(make_config, match_activation=activation)
    target = bench.method.customise(torch.randn(99, bench.setup.features.width) * 9)
    assert target.min().item() == pytest.approx(least, abs=1e-4)


def test_a_normalised_match_is_free_of_scale(make_config: MakeConfig) -> None:
    """layernorm: two rows of variance 1 differ by 4 at most."""
    assert CustomBench(make_config, match_norm="layernorm").terms()["specific"] < 4.1


@pytest.mark.parametrize("norm", ["standardize", "layernorm", "l2"])
def test_every_norm_runs_in_both_stages(make_config: MakeConfig, norm: str) -> None:
    """Stage 1 and stage 2 see the same normalised feature."""
    bench = CustomBench(make_config, norm=norm)
    bench.begin(0)
    assert all(term.isfinite() for term in bench.terms().values())


def test_watching_the_student_is_an_option(make_config: MakeConfig) -> None:
    """Every second cycle, or never."""
    every = CustomBench(make_config, watch_every=2, train__epochs=3)
    assert [begun.keys() >= BY_FORWARD_PASS for begun in map(every.begin, range(3))] == [
        True, False, True,
    ]  # fmt: skip
    never = CustomBench(make_config, watch_every=0).begin(0)
    assert not BY_FORWARD_PASS & never.keys()


def test_collapse_and_inflation_are_told(bench: CustomBench) -> None:
    """A projection scaled up or down by hand is noticed at the end of the epoch."""
    weight = bench.method.custom.weight
    assert isinstance(weight, Tensor)
    bench.begin(0)
    bench.terms()
    with torch.no_grad():
        weight *= 100
    for group in bench.method.optimiser.param_groups:
        group["lr"] = 0.0
    bench.begin(1)
    bench.terms()
    assert bench.method.end_epoch(1)["norm/P_t(f_t)/f_s"] > 2
    assert "inflation" in bench.method.warnings()
    with torch.no_grad():
        weight *= 1e-4
    bench.begin(2)
    bench.terms()
    bench.method.end_epoch(2)
    assert "collapse" in bench.method.warnings()


def test_stage_1_with_one_label_per_class(make_config: MakeConfig) -> None:
    """The smallest labelled set there is."""
    bench = CustomBench(make_config, data__labels_per_class=1)
    assert len(bench.setup.split.labelled) == 3
    assert math.isfinite(bench.begin(0)["stage1/loss"])


def test_only_what_a_term_needs_is_built(make_config: MakeConfig) -> None:
    """Distributed training refuses parameters without a gradient; unused ones must not exist."""
    specific = CustomBench(make_config, w_general=0.0)
    assert specific.method.student_sides() == {}
    specific.backward()
    assert all(parameter.grad is not None for parameter in specific.trainee.parameters())
    general = CustomBench(make_config, w_specific=0.0, w_logits=1.0, logits_from="probe")
    assert general.begin(0) == {}
    assert general.method.end_epoch(0) == {}
    assert general.method.owned() == []
    assert general.terms().keys() == {"ce", "general", "logits"}
    custom_logits = CustomBench(make_config, w_specific=0.0, w_general=0.0, w_logits=1.0)
    assert "stage1/loss" in custom_logits.begin(0)
    assert custom_logits.terms().keys() == {"ce", "logits"}
    off = make_config(customkd__w_general=0.0, customkd__w_specific=0.0)
    assert CustomKD.needs(off.options["customkd"]) == Needs(
        unlabelled=False, vector=False, labels=True
    )


def exported(config: DistillConfig, method: str) -> bytes:
    """Weights of a short run of one method."""
    config = dataclasses.replace(config, out=f"{config.out}-{method}")
    data = joined.join_data(
        open_source(config.source), FeatureStore.open(config.store), config.data, config.field
    )
    probe = data.fit_probe(data.split(0), most=1000, seed=0)
    train.run(config, data, probe, method=method, seed=0)
    return (Path(config.out) / method / "seed0" / "student.safetensors").read_bytes()


def test_without_the_specific_term_it_is_fitnet(make_config: MakeConfig) -> None:
    """w_specific 0: the student is bit-identical to that of ``fitnet``."""
    config = make_config(
        customkd__w_specific=0.0, customkd__norm="l2", fitnet__norm="l2", train__epochs=1
    )
    assert exported(config, "customkd") == exported(config, "fitnet")


def test_without_both_terms_it_is_labels_only(make_config: MakeConfig) -> None:
    """w_general = w_specific = 0: the student is bit-identical to that of ``labels``."""
    config = make_config(customkd__w_specific=0.0, customkd__w_general=0.0, train__epochs=1)
    assert exported(config, "customkd") == exported(config, "labels")


@pytest.mark.slow
def test_watching_changes_nothing_that_is_learnt(make_config: MakeConfig) -> None:
    """Dropout and order of images are the same with and without the forward passes in between."""
    with_dropout = {"student__model_args": {"drop_rate": 0.3}, "train__epochs": 1}
    seen = make_config(**with_dropout)
    blind = make_config(customkd__watch_every=0, out=seen.out + "-blind", **with_dropout)
    assert exported(seen, "customkd") == exported(blind, "customkd")


def test_a_wrong_teacher_width_is_refused(bench: CustomBench) -> None:
    """A batch of another store's width does not broadcast its way through."""
    with pytest.raises(ValueError, match="stored feature"):
        bench.method.customise(torch.zeros(2, 5))


def test_wrong_options_are_refused_by_name(make_config: MakeConfig) -> None:
    """Each is spelled as on the command line."""
    for options, words in (
        ({"depth": 3}, "--customkd.depth 3 must be 1 or 2"),
        ({"hidden": -1}, "--customkd.hidden -1"),
        ({"w_logits": -1.0}, "--customkd.w_logits -1.0"),
        ({"stage2_epochs": 0}, "--customkd.stage2_epochs 0"),
        ({"stage1": "never", "w_logits": 1.0}, "leaves P_t random"),
        ({"stage1": "never", "start": "stage2"}, "no stage 1 to wait for"),
    ):
        with pytest.raises(ConfigError, match=words):
            CustomBench(make_config, **options)  # type: ignore[arg-type]


def test_methods_that_need_labels_say_so(make_config: MakeConfig) -> None:
    """More labels per class than there are end before training."""
    with pytest.raises(ConfigError, match="labels_per_class"):
        make_setup(make_config(data__labels_per_class=99))
