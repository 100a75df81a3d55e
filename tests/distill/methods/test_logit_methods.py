"""The methods on logits: their terms by the formula, what they train, and what SimKD exports."""

import copy
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.data.pictures import Batch
from distill.losses import IGNORE, cross_entropy
from distill.methods import METHODS, Output
from distill.methods.modules import Exits
from distill.methods.teacher_head import SimKD
from distill.student.model import evaluating
from featstore.errors import ConfigError
from tests.distill.bench import Bench, predict, same, snapshot
from tests.distill.conftest import MakeConfig
from tests.featstore.processes import fork, wait

LOGIT_METHODS = ("kd", "logits", "dkd", "dist", "ofa", "srd", "simkd")


def kl_rows(target: Tensor, student: Tensor, temperature: float) -> Tensor:
    """(B,) T^2 KL, with logarithms of probabilities."""
    p, q = (target / temperature).softmax(1), (student / temperature).softmax(1)
    return temperature**2 * (p * (p.log() - q.log())).sum(1)


def seen(bench: Bench) -> tuple[Output, Tensor]:
    """Output of the student, and the probe's logits worked out by the probe itself."""
    target = torch.from_numpy(bench.setup.probe.logits(bench.teacher.numpy()))
    with torch.no_grad():
        return bench.output(), target


def bench_of(make_config: MakeConfig, method: str, **changes: Any) -> Bench:
    bench = Bench(make_config(**changes), method)
    bench.trainee.eval()
    return bench


@pytest.mark.parametrize("method", LOGIT_METHODS)
def test_one_step_trains_the_student_and_nothing_frozen(
    make_config: MakeConfig, method: str
) -> None:
    """Finite terms; a finite gradient for every parameter of the trainee; none for probe and stored feature."""
    bench = Bench(make_config(), method)
    bench.teacher.requires_grad_()
    probe = snapshot(bench.method.probe)  # type: ignore[attr-defined]
    terms = bench.backward()
    assert all(term.isfinite() and term.dim() == 0 for term in terms.values())
    assert "ce" in terms
    for name, parameter in bench.trainee.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    frozen = bench.method.probe  # type: ignore[attr-defined]
    assert all(parameter.grad is None for parameter in frozen.parameters())
    assert same(frozen, probe)
    assert bench.teacher.grad is None
    if method != "simkd":
        assert bench.student.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("method", LOGIT_METHODS)
def test_bf16_features_and_logits_are_compared_in_float32(
    make_config: MakeConfig, method: str
) -> None:
    """A forward pass under autocast, as without accelerate's conversion of outputs."""
    bench = Bench(make_config(), method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = bench.output()
    terms = bench.method.loss(output, bench.batch, bench.student)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())


def test_kd_by_the_formula(make_config: MakeConfig) -> None:
    """weight T^2 KL to the probe on the batch's own features, over labelled and unlabelled images."""
    bench = bench_of(make_config, "kd", kd__weight=0.3, kd__temperature=3.0)
    output, target = seen(bench)
    torch.testing.assert_close(
        bench.terms()["logits"], 0.3 * kl_rows(target, output.logits, 3.0).mean()
    )


def test_logits_by_the_formula(make_config: MakeConfig) -> None:
    """weight times the mean squared difference."""
    bench = bench_of(make_config, "logits", logits__weight=0.3)
    output, target = seen(bench)
    expected = 0.3 * (output.logits - target).square().mean()
    torch.testing.assert_close(bench.terms()["logits"], expected)


@pytest.mark.parametrize("target_of", ["teacher", "labels"])
def test_dkd_by_the_formula(make_config: MakeConfig, target_of: str) -> None:
    """With alpha 1 and beta 1 - p_own of one row, DKD is KD; unlabelled rows count only with the teacher's class."""
    bench = bench_of(
        make_config, "dkd", dkd__alpha=1.0, dkd__beta=0.0, dkd__target=target_of,
        dkd__temperature=2.0, dkd__warmup_epochs=4,
    )  # fmt: skip
    output, target = seen(bench)
    classes = torch.cat([torch.tensor([0, 1, 2]), target[3:].argmax(1)])
    rows = torch.arange(5)
    p = (target / 2).softmax(1)[rows, classes]
    q = (output.logits / 2).softmax(1)[rows, classes]
    tckd = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    counted = tckd.mean() if target_of == "teacher" else tckd[:3].mean()
    for epoch, share in ((0, 0.25), (2, 0.75), (3, 1.0), (9, 1.0)):
        bench.method.begin_epoch(epoch, bench.student)
        # Probabilities and their logarithms are rounded one after the other in the formula above.
        torch.testing.assert_close(bench.terms()["logits"], share * counted, rtol=1e-4, atol=1e-6)


def test_dkd_goes_on_with_its_ramp(make_config: MakeConfig) -> None:
    """The epoch is part of the state: begin_epoch is not called when a run goes on inside one."""
    bench, other = (bench_of(make_config, "dkd", dkd__warmup_epochs=4) for _ in range(2))
    bench.method.begin_epoch(2, bench.student)
    other.method.load_state(bench.method.state())
    torch.testing.assert_close(bench.terms(), other.terms())


def test_dist_by_the_formula(make_config: MakeConfig) -> None:
    """torch's correlation of rows and of columns."""
    bench = bench_of(
        make_config,
        "dist",
        dist__weight=3.0,
        dist__beta=2.0,
        dist__gamma=0.5,
        dist__temperature=2.0,
    )
    output, target = seen(bench)
    q, p = (output.logits / 2).softmax(1), (target / 2).softmax(1)
    rows = torch.stack([torch.corrcoef(torch.stack([q[i], p[i]]))[0, 1] for i in range(5)])
    columns = torch.stack([torch.corrcoef(torch.stack([q[:, c], p[:, c]]))[0, 1] for c in range(3)])
    expected = 3 * 4 * (2 * (1 - rows.mean()) + 0.5 * (1 - columns.mean()))
    torch.testing.assert_close(bench.terms()["logits"], expected, rtol=1e-4, atol=1e-4)


def test_ofa_by_the_formula(make_config: MakeConfig) -> None:
    """Every exit and the final logits, with (p + 1[y])^eps - 1[y] as weights."""
    bench = bench_of(make_config, "ofa", ofa__weight=0.5, ofa__eps=1.5)
    output, target = seen(bench)
    own = torch.zeros(5, 3)
    own[torch.arange(5), torch.cat([torch.tensor([0, 1, 2]), target[3:].argmax(1)])] = 1
    weight = (target.softmax(1) + own) ** 1.5 - own
    terms = bench.terms()
    exits = output.projected["exits"]
    assert len(exits) == len(bench.student.stage_channels) > 1
    assert terms.keys() == {"ce", "logits", *(f"exit{k}" for k in range(len(exits)))}
    for name, logits in {
        "logits": output.logits,
        **{f"exit{k}": x for k, x in enumerate(exits)},
    }.items():
        expected = -0.5 * (weight * logits.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(terms[name], expected)


def test_ofa_without_stages_has_no_exits(make_config: MakeConfig) -> None:
    """Only the final logits; with labels as targets, of labelled images only."""
    bench = bench_of(make_config, "ofa", ofa__stages=False, ofa__target="labels")
    assert bench.method.student_sides() == {}
    terms = bench.terms()
    assert terms.keys() == {"ce", "logits"}
    bench.batch = dataclasses.replace(bench.batch, labels=torch.full((5,), IGNORE))
    assert bench.terms()["logits"] == 0


def test_ofa_needs_a_student_with_stages(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before training, with what to do."""
    bench = bench_of(make_config, "kd")
    bench.student.stage_channels = ()
    with pytest.raises(ConfigError, match=r"--ofa.stages false"):
        METHODS["ofa"](bench.setup, METHODS["ofa"].Options())


def test_exits_come_down_to_one_place() -> None:
    """Any sides and channels; one exit per stage, each through all the channels that follow."""
    exits = Exits((4, 8, 6), 5)
    maps = [torch.randn(2, 4, 9, 8), torch.randn(2, 8, 4, 4), torch.randn(2, 6, 1, 2)]
    assert [tuple(logits.shape) for logits in exits(maps)] == [(2, 5)] * 3
    assert [len(part) for part in exits.exits] == [5, 4, 3]  # type: ignore[arg-type]


def test_srd_by_the_formula(make_config: MakeConfig) -> None:
    """Feature and, through the probe, logits of the projected feature."""
    bench = bench_of(make_config, "srd", srd__w_feature=0.5, srd__w_logits=2.0)
    output, target = seen(bench)
    projected = output.projected["general"]
    through = torch.from_numpy(bench.setup.probe.logits(projected.numpy()))
    terms = bench.terms()
    expected = 0.5 * (projected - bench.teacher).square().mean()
    torch.testing.assert_close(terms["general"], expected)
    torch.testing.assert_close(terms["logits"], 2 * (through - target).square().mean())


def test_simkd_trains_by_the_feature_alone(make_config: MakeConfig) -> None:
    """No cross entropy: the head gets a gradient of zero, so that distributed training does not miss it."""
    bench = Bench(make_config(simkd__weight=0.5), "simkd")
    bench.trainee.eval()
    terms = bench.backward()
    projected = seen(bench)[0].projected["general"]
    expected = 0.5 * (projected - bench.teacher).square().mean()
    torch.testing.assert_close(terms["general"].detach(), expected)
    assert terms["ce"] == 0
    assert bench.student.head.weight.grad is not None
    assert bench.student.head.weight.grad.abs().sum() == 0


def test_simkd_folds_projector_and_probe_into_the_head(make_config: MakeConfig) -> None:
    """The plain model predicts what probe(P_s(f_s)) predicts, with the same keys; the trained student stays."""
    bench = Bench(make_config(), "simkd")
    before = snapshot(bench.student)
    exported = copy.deepcopy(bench.student)
    bench.method.fold(exported, dict(bench.trainee.sides.items()))
    assert same(bench.student, before)
    assert exported.state_dict().keys() == before.keys()
    indices = bench.setup.split.test
    features, plain = predict(exported, indices)
    expected = bench.setup.probe.logits(bench.trainee.sides["general"](features).detach().numpy())
    torch.testing.assert_close(plain, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    with evaluating(exported), torch.no_grad():
        torch.testing.assert_close(
            exported.model(bench.batch.images), exported(bench.batch.images).logits
        )


def test_simkd_refuses_what_it_cannot_fold(make_config: MakeConfig) -> None:
    """A head of several layers, a head without a bias, and epochs on labels alone."""
    with pytest.raises(ConfigError, match=r"--student.feature prelogits"):
        Bench(make_config(student__feature="pooled"), "simkd")
    bench = Bench(make_config(), "kd")
    bench.student.classifier.bias = None  # type: ignore[assignment]
    with pytest.raises(ConfigError):
        SimKD(bench.setup, SimKD.Options())
    with pytest.raises(ConfigError, match="finetune_epochs"):
        Bench(make_config(train__finetune_epochs=1), "simkd")


def test_wrong_options_are_refused_by_name(make_config: MakeConfig) -> None:
    """Each is spelled as on the command line."""
    for change, words in (
        ({"kd__temperature": 0.0}, "--kd.temperature 0.0 must be positive"),
        ({"logits__weight": -1.0}, "--logits.weight -1.0 must not be negative"),
        ({"dkd__beta": -1.0}, "--dkd.beta"),
        ({"dkd__warmup_epochs": 0}, "--dkd.warmup_epochs"),
        ({"dist__gamma": -1.0}, "--dist.gamma"),
        ({"ofa__eps": 0.0}, "--ofa.eps"),
        ({"srd__w_feature": 0.0, "srd__w_logits": 0.0}, "both 0"),
        ({"simkd__weight": 0.0}, "--simkd.weight"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_config(**change)  # type: ignore[arg-type]


def half_of(batch: Batch, rank: int) -> Batch:
    """Every second labelled and every second unlabelled image, as the sampler would share them out."""
    assert batch.teacher is not None
    rows = torch.arange(rank, len(batch.labels), 2)
    return dataclasses.replace(
        batch,
        images=batch.images[rows],
        labels=batch.labels[rows],
        teacher=batch.teacher[rows],
        indices=batch.indices[rows],
        num_labelled=2,
        num_unlabelled=2,
    )


def train_half(benches: dict[str, Bench], rank: int, folder: Path) -> None:
    """One of two processes: the gradients that distributed training would step with."""
    # Depthwise convolutions order their gradients in memory as they like; that costs a copy.
    warnings.filterwarnings("ignore", message="Grad strides do not match")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    for name, bench in benches.items():
        model = torch.nn.parallel.DistributedDataParallel(bench.trainee)
        batch = half_of(bench.batch, rank)
        output = model(batch.images, bench.method.inputs(batch))
        own = bench.method.loss(output, batch, bench.student)
        terms = {"ce": cross_entropy(output.logits, batch.labels)} | own
        torch.stack(list(terms.values())).sum().backward()
        if rank == 0:
            torch.save(gradients(bench), folder / name)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def gradients(bench: Bench) -> dict[str, Tensor]:
    found = {name: part.grad for name, part in bench.trainee.named_parameters()}
    assert all(grad is not None for grad in found.values())
    return {name: grad for name, grad in found.items() if grad is not None}


def test_two_processes_have_the_gradients_of_one(make_config: MakeConfig, tmp_path: Path) -> None:
    """Losses per image: the mean over two halves is the whole, up to the order of float32 sums.

    Every parameter of the trainee gets a gradient on both sides, or distributed training would wait for it.
    """
    config = make_config(
        customkd__w_logits=1.0, customkd__logits_loss="dkd", customkd__logits_from="custom"
    )
    benches = {
        name: Bench(config, name) for name in ("kd", "logits", "dkd", "srd", "simkd", "customkd")
    }
    for bench in benches.values():
        bench.batch = Batch(
            images=torch.randn(8, 3, 32, 32),
            labels=torch.tensor([0, 1, 2, 0, IGNORE, IGNORE, IGNORE, IGNORE]),
            teacher=torch.randn(8, bench.setup.features.width),
            grid=None,
            indices=torch.arange(8),
            num_labelled=4,
            num_unlabelled=4,
            num_strong=0,
        )
        bench.method.begin_epoch(0, bench.student)
    children = [fork(lambda rank=rank: train_half(benches, rank, tmp_path)) for rank in (0, 1)]  # type: ignore[misc]
    assert [wait(child) for child in children] == [0, 0]
    for name, bench in benches.items():
        bench.backward()
        two = torch.load(tmp_path / name, weights_only=True)
        for key, grad in gradients(bench).items():
            scale = float(grad.abs().max())
            torch.testing.assert_close(two[key], grad, rtol=1e-4, atol=1e-5 * max(scale, 1e-3))
