"""Each partner for domain adaptation against its formula."""

from typing import cast

import pytest
import torch
from torch.nn import functional as F

from distill.losses import adaptation as losses
from distill.partners.dann import DANN
from distill.partners.sentry import SENTRY, balancing_weights
from distill.partners.shot import SHOT, cosine_pseudo_labels
from distill.student.model import Student
from featstore.errors import ConfigError
from tests.distill.partner_bench import CLASSES, LABELLED, LABELS, PICTURES, UNLABELLED, Bench


def test_dann_reverses_more_and_more() -> None:
    """The factor follows training; at its end the student's gradient is minus the ramp's end times the plain one."""
    bench = Bench("dann", gamma=10.0)
    assert isinstance(bench.partner, DANN)
    discriminator = bench.partner.discriminator
    factors = [discriminator.factor]
    for _ in range(6):
        bench.terms()
        factors.append(discriminator.factor)
    assert factors == pytest.approx([losses.ramp(share / 6, 10) for share in range(7)])
    bench.terms()["domain"].backward()
    found = bench.student.body.weight.grad
    bench.student.zero_grad()
    batch = bench.batch()
    plain = discriminator.layers(bench.student(batch.images).features)
    losses.domain_bce(plain[:4], plain[4:]).backward()
    expected = bench.student.body.weight.grad
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found, -losses.ramp(7 / 6, 10) * expected, rtol=1e-3, atol=1e-6)


def test_dan_coral_and_dsan_compare_the_student_s_features() -> None:
    """Their terms are the losses on the features of the two domains, times weight and ramp."""
    dan, dsan = Bench("dan", weight=3.0), Bench("dsan", weight=3.0, gamma=2.0)
    source, target = (dan.predict(part[:4]) for part in (LABELLED, UNLABELLED))
    mmd = losses.mk_mmd(source[0], target[0])
    torch.testing.assert_close(dan.terms()["mmd"], 3 * mmd)
    cov = losses.coral(source[0], target[0])
    torch.testing.assert_close(Bench("deepcoral", weight=3.0).terms()["coral"], 3 * cov)
    assert dsan.terms()["lmmd"].item() == 0
    labels = torch.from_numpy(LABELS[LABELLED[:4]])
    lmmd = losses.lmmd(source[0], target[0], labels, F.softmax(target[1], 1))
    torch.testing.assert_close(dsan.terms()["lmmd"], 3 * losses.ramp(1 / 6, 2) * lmmd)


def test_balancing_weights_by_hand() -> None:
    """Three images of class 0, one of class 2: 4 / (2 x 3) and 4 / (2 x 1)."""
    weight = balancing_weights(torch.tensor([0, 0, 2, 0]), 4)
    torch.testing.assert_close(weight, torch.tensor([2 / 3, 2 / 3, 2.0, 2 / 3]))


def test_sentry_waits_for_the_source_and_then_keeps_a_queue() -> None:
    """No term in the source epoch; then the weighted frequencies of the last predictions."""
    bench = Bench("sentry", queue=3)
    assert isinstance(bench.partner, SENTRY)
    assert bench.terms() == {}
    frequency = bench.partner._frequencies(torch.tensor([1, 0]), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(frequency, torch.tensor([0.75, 0.25, 0.0]))
    frequency = bench.partner._frequencies(torch.tensor([2, 2]), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(frequency, torch.tensor([0.6, 0.0, 0.4]))
    bench.terms()
    bench.partner.begin_epoch(1, cast(Student, bench.student))
    _, logits = bench.predict(bench.partner.places.members)
    expected = balancing_weights(logits.argmax(1), CLASSES)
    assert torch.equal(bench.partner.memory["weight_N"], expected)
    assert bench.terms().keys() == {"entropy", "frequency"}


def test_cosine_pseudo_labels_by_hand() -> None:
    """Three features point right, two up. One on the right is predicted wrongly and comes home; class 2 has nobody."""
    features = torch.tensor([[1.0, 0.0], [5.0, 0.5], [1.0, 0.1], [0.0, 1.0], [0.1, 3.0]])
    logits = torch.tensor(
        [[3.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 3.0, 0.0], [0.0, 3.0, 2.9]]
    )
    assert cosine_pseudo_labels(features, logits).tolist() == [0, 0, 0, 1, 1]


def test_shot_has_two_phases() -> None:
    """Source: smoothed cross entropy, nothing frozen. Target: pseudo-labels by index, no labels, the head frozen."""
    bench = Bench("shot", w_pseudo=0.5)
    assert isinstance(bench.partner, SHOT)
    student = cast(Student, bench.student)
    labels = torch.from_numpy(LABELS[LABELLED[:4]])
    logits = bench.student(PICTURES[LABELLED[:4]]).logits
    log = F.log_softmax(logits, 1)
    smooth = 0.9 * F.one_hot(labels, CLASSES) + 0.1 / CLASSES
    torch.testing.assert_close(bench.terms()["source"], -(smooth * log).sum(1).mean())
    assert bench.partner.frozen(0, student) == []
    bench.terms()
    bench.partner.begin_epoch(1, student)
    head = bench.student.head
    assert bench.partner.frozen(1, student) == [head.weight, head.bias]
    assert not bench.partner.uses_labels(1)
    members = bench.partner.places.members
    pseudo = cosine_pseudo_labels(*bench.predict(members))
    wanted = pseudo[torch.tensor([list(members).index(index) for index in UNLABELLED[:4]])]
    logits = bench.student(PICTURES[UNLABELLED[:4]]).logits
    terms = bench.terms()
    torch.testing.assert_close(terms["pseudo"], 0.5 * F.cross_entropy(logits, wanted))
    torch.testing.assert_close(terms["information"], losses.information_maximisation(logits))


@pytest.mark.parametrize("name", ["sentry", "shot"])
def test_adaptation_needs_an_epoch(name: str) -> None:
    """Three epochs, all on the source."""
    with pytest.raises(ConfigError, match=rf"--{name}\.source_epochs 3\b"):
        Bench(name, source_epochs=3)
