"""What the loop promises to methods and partners: rows, sides, strong copies, frozen parameters, folding."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.config import DataConfig, DistillConfig
from distill.data.pictures import Batch
from distill.data.schedule import EpochPlan, JointSampler, Stream, ViewPicker
from distill.losses import cross_entropy
from distill.methods import METHODS, Method, Output
from distill.methods.base import ADAPTER, Needs, Side
from distill.partners import PARTNERS, Partner
from distill.student.model import Student
from distill.training import checkpoint
from distill.training import loop as train
from distill.training.launch import make_accelerator
from featstore.errors import ConfigError
from tests.distill.conftest import MakeConfig
from tests.distill.training.test_loop import folder, metrics, prepared, start


class Watcher(Method):
    """Cross entropy, and a look at everything that the loop hands over."""

    seen: list[tuple[Output, Batch]]

    @classmethod
    def needs(cls, config: DistillConfig) -> Needs:
        return Needs(unlabelled=False, vector=False)

    def student_sides(self) -> dict[str, Side]:
        return {"own": Side(nn.Linear(self.setup.student_width, 2))}

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        type(self).seen.append((output, batch))
        return {
            "ce": cross_entropy(output.logits, batch.labels),
            "own": output.projected["own"].square().mean(),
        }


class Committee(Partner):
    """Two strong copies; labels and head rest in the second epoch."""

    calls: list[tuple[int, int, list[int]]]

    @classmethod
    def strong_views(cls, config: DistillConfig) -> int:
        return 2

    def student_sides(self) -> dict[str, Side]:
        width = self.setup.features.width
        return {"other": Side(nn.Linear(width, 3), "stored")}

    @classmethod
    def needs(cls, config: DistillConfig) -> Needs:
        return Needs(unlabelled=True, vector=True)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.teacher is not None
        return {"stored": batch.teacher}

    def loss(
        self,
        labelled: Output,
        weak: Output,
        strong: Sequence[Output],
        batch: Batch,
    ) -> dict[str, Tensor]:
        type(self).calls.append(
            (len(labelled.logits), len(weak.logits), [len(copy.logits) for copy in strong])
        )
        assert labelled.projected["other"].shape == (len(labelled.logits), 3)
        assert weak.projected["other"].shape == (len(weak.logits), 3)
        terms = [weak.logits, *(copy.logits for copy in strong), weak.projected["other"]]
        return {"spread": torch.stack([part.square().mean() for part in terms]).sum()}

    def uses_labels(self, epoch: int) -> bool:
        return epoch == 0

    def frozen(self, epoch: int, student: Student) -> list[nn.Parameter]:
        return list(student.head.parameters()) if epoch else []


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    Watcher.seen, Committee.calls = [], []
    monkeypatch.setitem(METHODS, "labels", Watcher)
    monkeypatch.setitem(PARTNERS, "fixmatch", Committee)


@pytest.mark.usefixtures("parts")
def test_a_partner_joins_in_one_forward_pass(make_config: MakeConfig) -> None:
    """Rows are cut as promised; the partner brings what the method alone would not ask for."""
    config = make_config(partner="fixmatch")
    record = start(config, "labels")
    assert record["method"] == "labels+fixmatch"
    assert all(call == (4, 8, [8, 8]) for call in Committee.calls)
    output, batch = Watcher.seen[0]
    assert (batch.num_labelled, batch.num_unlabelled, batch.num_strong) == (4, 8, 2)
    assert len(batch.images) == 4 + 8 + 2 * 8
    assert len(output.logits) == len(batch.labels) == len(batch.indices) == 12
    assert output.projected["own"].shape == (12, 2)
    names = {name for line in metrics(config, "labels+fixmatch") for name in line}
    assert {"loss/ce", "loss/own", "loss/partner/spread"} <= names
    assert (folder(config, "labels+fixmatch") / "student.safetensors").exists()


@pytest.mark.usefixtures("parts")
def test_a_method_alone_asks_for_no_more_than_it_needs(make_config: MakeConfig) -> None:
    """Neither unlabelled images nor stored features."""
    start(make_config(), "labels")
    _, batch = Watcher.seen[0]
    assert (batch.num_unlabelled, batch.num_strong, batch.teacher, batch.grid) == (0, 0, None, None)


@pytest.mark.slow
@pytest.mark.usefixtures("parts")
def test_frozen_parameters_rest_and_labels_are_left_out(make_config: MakeConfig) -> None:
    """In the second epoch of two the head moves no more, not even by weight decay, and "ce" is no term."""
    config = make_config(partner="fixmatch", train__weight_decay=0.5, train__lr=0.01)
    heads: list[Tensor] = []
    loop = train.Loop(
        config,
        *prepared(config),
        method="labels",
        seed=0,
        accelerator=make_accelerator(config),
        folder=folder(config, "labels+fixmatch"),
        asked={},
    )
    loop.start(None)
    loop.train(lambda step: heads.append(loop.student.head.weight.detach().clone()))
    per_epoch = loop.plan.steps_per_epoch
    assert not torch.equal(heads[0], heads[per_epoch - 1])
    assert all(torch.equal(head, heads[per_epoch - 1]) for head in heads[per_epoch:])
    lines = [line for line in metrics(config, "labels+fixmatch") if "loss/own" in line]
    assert all(("loss/ce" in line) == (line["epoch"] == 0) for line in lines)


class Scaled(Method):
    """Logits come from twice the feature; folding doubles the head's weight."""

    @classmethod
    def needs(cls, config: DistillConfig) -> Needs:
        return Needs(unlabelled=False, vector=False)

    def student_sides(self) -> dict[str, Side]:
        double = nn.Linear(self.setup.student_width, self.setup.student_width, bias=False)
        nn.init.eye_(double.weight)
        return {ADAPTER: Side(double)}

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        adapted = output.logits
        assert ADAPTER not in output.projected
        return {"ce": cross_entropy(adapted, batch.labels)}

    def fold(self, student: Student, sides: Mapping[str, nn.Module]) -> None:
        weight: Any = sides[ADAPTER].weight
        with torch.no_grad():
            student.head.weight.copy_(student.head.weight @ weight)


@pytest.mark.slow
def test_what_is_folded_is_exported_and_measured(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exported head is the trained one times the adapter; the checkpoint keeps both apart."""
    monkeypatch.setitem(METHODS, "labels", Scaled)
    config = make_config(train__lr=0.05)
    start(config, "labels")
    saved = checkpoint.read_checkpoint(folder(config, "labels") / "checkpoint.pt")["trainee"]
    weights = load_file(folder(config, "labels") / "student.safetensors")
    name = next(key for key in weights if key.endswith("fc.weight"))
    folded = saved[f"student.model.{name}"] @ saved[f"sides.{ADAPTER}.weight"]
    torch.testing.assert_close(weights[name], folded)
    assert not torch.allclose(weights[name], saved[f"student.model.{name}"])


def test_strong_copies_follow_the_unlabelled_in_the_same_views() -> None:
    """All first copies, then all second ones, each with bits of its own that depend on the pass alone."""
    ids = [str(number) for number in range(6)]
    sampler = JointSampler(
        labelled=Stream(torch.arange(2).numpy(), seed=0, name="labelled"),
        unlabelled=Stream(torch.arange(2, 6).numpy(), seed=0, name="unlabelled"),
        picker=ViewPicker([0, 1, 2], ids, seed=0),
        plan=EpochPlan(labelled=2, unlabelled=3, pieces=1, steps_per_epoch=1),
        rank=0,
        processes=1,
        start=0,
        stop=2,
        strong=2,
    )
    first, second = list(sampler)
    assert [request.strong for request in first] == [0] * 5 + [1] * 3 + [2] * 3
    weak, one, two = first[2:5], first[5:8], first[8:]
    for copy in (one, two):
        assert [(r.sample, r.column, r.labelled) for r in copy] == [
            (r.sample, r.column, False) for r in weak
        ]
    bits = [request.draw for request in first + second if request.strong]
    assert len(set(bits)) == len(bits)
    assert list(sampler) == [first, second]


@pytest.mark.slow
def test_validation_images_are_held_out_of_everything(make_config: MakeConfig) -> None:
    """The same whatever the method; measured in the test part's place when asked for."""
    config = make_config(data__validation=2)
    data, _ = prepared(config)
    part = data.split(0)
    assert len(part.validation) == 6
    others = [part.labelled, part.unlabelled, part.test]
    assert not set(part.validation) & {index for other in others for index in other}
    assert sorted(data.samples.labels[part.validation]) == [0, 0, 1, 1, 2, 2]
    measured = data.split(0, measured="validation")
    assert (measured.test == part.validation).all()
    assert (measured.labelled == part.labelled).all()
    assert (
        start(make_config(data__validation=2, eval__part="validation"), "labels")["num_test"] == 6
    )


def test_a_validation_part_must_exist_to_be_measured(make_config: MakeConfig) -> None:
    """Says which setting makes one."""
    with pytest.raises(Exception, match=r"--data.validation"):
        start(make_config(eval__part="validation"), "labels")
    with pytest.raises(ValueError, match=r"--data.validation -1\b"):
        DataConfig(validation=-1)


@pytest.mark.slow
@pytest.mark.usefixtures("parts")
def test_the_last_epochs_may_train_on_labels_alone(make_config: MakeConfig) -> None:
    """All terms but "ce" are zero there, and a method without it is refused by name."""
    config = make_config(train__finetune_epochs=1)
    start(config, "fitnet")
    lines = [line for line in metrics(config, "fitnet") if "loss/ce" in line]
    assert all((line["loss/general"] == 0) == (line["epoch"] == 1) for line in lines)
    assert all(line["loss/ce"] > 0 for line in lines)
    with pytest.raises(ConfigError, match=r"--train.finetune_epochs 1\b.*labels\+fixmatch"):
        start(make_config(train__finetune_epochs=1, partner="fixmatch"), "labels")
