"""Each semi-supervised partner against its formula."""

from typing import cast

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.methods.base import Output
from distill.partners import PARTNERS
from distill.partners.adamatch import AdaMatch
from distill.partners.pseudo_labels import FlexMatch, FreeMatch, PseudoLabel
from distill.partners.selftraining import SelfTraining
from distill.partners.simmatch import SimMatch
from featstore.errors import ConfigError
from tests.distill.partner_bench import (
    CLASSES,
    LABELLED,
    LABELS,
    PICTURES,
    STORED,
    UNLABELLED,
    Bench,
)


@pytest.mark.parametrize("name", ["fixmatch", "pseudo_label"])
def test_nothing_above_the_threshold(name: str) -> None:
    """Loss 0, gradient 0, and the share that is logged is 0."""
    bench = Bench(name, threshold=1.0)
    (term,) = bench.terms().values()
    term.backward()
    assert term.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in bench.trainee.parameters())
    assert bench.partner.end_epoch(0) == {"partner/used": 0.0}


def test_fixmatch_trains_the_strong_view_on_the_weak_ones_guess() -> None:
    """Against the formula, with a threshold that some images pass."""
    bench = Bench("fixmatch", threshold=0.7, weight=2.0)
    weak = F.softmax(bench.student(PICTURES[UNLABELLED[:4]]).logits, 1)
    strong = bench.student(PICTURES[UNLABELLED[:4]] + 0.3).logits
    mask = (weak.amax(1) >= 0.7).float()
    assert 0 < mask.sum() < 4
    expected = 2 * (mask * F.cross_entropy(strong, weak.argmax(1), reduction="none")).sum() / 4
    torch.testing.assert_close(bench.terms()["unlabelled"], expected)


@pytest.mark.parametrize(
    "name", ["pseudo_label", "fixmatch", "flexmatch", "freematch", "softmatch"]
)
def test_labels_from_the_probe(name: str) -> None:
    """The guess is the probe's on the stored vector, which the partner then asks for."""
    bench = Bench(name, labels_from="probe")
    assert PARTNERS[name].needs(bench.options).vector
    assert not PARTNERS[name].needs(Bench(name).options).vector
    assert isinstance(bench.partner, SelfTraining)
    guess = bench.partner.guess(cast(Output, None), bench.batch())
    stored = PICTURES[UNLABELLED[:4], :STORED].numpy()
    expected = F.softmax(torch.from_numpy(bench.setup.probe.logits(stored)), 1)
    torch.testing.assert_close(guess, expected)
    bench.terms()


def test_the_weight_of_pseudo_labels_rises() -> None:
    """Warm-up over half of six calls: 0, 1/3, 2/3, 1, 1 times the same loss."""
    bench = Bench("pseudo_label", threshold=0.0, warmup=0.5)
    values = [bench.terms()["unlabelled"].item() for _ in range(5)]
    assert values == pytest.approx([share * values[-1] for share in (0, 1 / 3, 2 / 3, 1, 1)])
    assert isinstance(bench.partner, PseudoLabel)


def test_flexmatch_remembers_the_last_confident_guess_of_each_image() -> None:
    """An unsure image keeps its old guess; the mask uses the counts before the batch; of a repeated image the last."""
    bench = Bench("flexmatch")
    assert isinstance(bench.partner, FlexMatch)
    # Members in order: 6, 7, 8, 9, 10, 11.
    batch = bench.batch(unlabelled=np.array([11, 7, 7]))
    sure = torch.tensor([[0.97, 0.02, 0.01], [0.0, 0.99, 0.01], [0.99, 0.0, 0.01]])
    assert bench.partner.trust(sure, batch).tolist() == [1, 1, 1]  # all thresholds are zero
    assert bench.partner.memory["guessed"].tolist() == [-1, 0, -1, -1, -1, 0]
    # None: 4 of 6, class 0: 2. Thresholds: class 0 0.95 (1/2) / (3/2) = 0.317, classes 1 and 2 zero.
    unsure = torch.tensor([[0.31, 0.3, 0.3], [0.32, 0.3, 0.3], [0.2, 0.3, 0.5]])
    assert bench.partner.trust(unsure, batch).tolist() == [0, 1, 1]
    assert bench.partner.memory["guessed"].tolist() == [-1, 0, -1, -1, -1, 0]


def test_freematch_moves_its_means() -> None:
    """m = 0.9 from uniform 1/3, one batch of two guesses."""
    bench = Bench("freematch", momentum=0.9)
    assert isinstance(bench.partner, FreeMatch)
    guess = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.4, 0.0]])
    mask = bench.partner.trust(guess, bench.batch(unlabelled=UNLABELLED[:2]))
    memory = bench.partner.memory
    assert memory["mean"].item() == pytest.approx(0.3 + 0.07)
    torch.testing.assert_close(memory["mean_K"], torch.tensor([0.37, 0.325, 0.305]))
    torch.testing.assert_close(memory["histogram_K"], torch.tensor([0.4, 0.3, 0.3]))
    assert mask.tolist() == [1, 1]


def test_softmatch_weighs_by_the_aligned_confidence() -> None:
    """m = 0: the mean and variance of this batch's aligned confidences alone."""
    bench = Bench("softmatch", momentum=0.0)
    guess = torch.tensor([[0.8, 0.1, 0.1], [0.4, 0.4, 0.2]])
    aligned = guess / guess.mean(0)
    confidence = (aligned / aligned.sum(1, keepdim=True)).amax(1)
    weight = bench.partner.trust(guess, bench.batch(unlabelled=UNLABELLED[:2]))  # type: ignore[attr-defined]
    below = (confidence - confidence.mean()).clamp(max=0)
    expected = torch.exp(-below.square() / (2 * confidence.var() / 4))
    torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-6)
    assert weight.max() == 1 > weight.min()


def test_adamatch_aligns_and_follows_the_labelled_confidence() -> None:
    """First batch, against the formula: p_u mean(p_l) / mean(p_u), threshold 0.9 of the labelled confidence."""
    bench = Bench("adamatch", threshold=0.9)
    known = F.softmax(bench.student(PICTURES[LABELLED[:4]]).logits, 1)
    guess = F.softmax(bench.student(PICTURES[UNLABELLED[:4]]).logits, 1)
    strong = bench.student(PICTURES[UNLABELLED[:4]] + 0.3).logits
    aligned = guess * known.mean(0) / guess.mean(0)
    aligned = aligned / aligned.sum(1, keepdim=True)
    mask = (aligned.amax(1) >= 0.9 * known.amax(1).mean()).float()
    assert 0 < mask.sum() < 4
    expected = (mask * F.cross_entropy(strong, aligned.argmax(1), reduction="none")).mean()
    torch.testing.assert_close(bench.terms()["unlabelled"], expected, rtol=1e-4, atol=1e-6)
    assert isinstance(bench.partner, AdaMatch)
    torch.testing.assert_close(bench.partner.memory["labelled_K"], known.mean(0))


def test_simmatch_against_the_formula() -> None:
    """The first epoch fills the bank without instance term; then both terms equal the formula."""
    bench = Bench("simmatch", threshold=0.4, temperature=0.5, smoothing=0.6)
    assert isinstance(bench.partner, SimMatch)
    assert bench.terms()["instance"].item() == 0
    bench.terms(bench.batch(labelled=LABELLED[2:]))
    bank = bench.partner.memory["bank_NE"].clone()
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(6))
    embed = bench.partner.embedding
    torch.testing.assert_close(bank[0], embed(bench.student(PICTURES[:1]).features)[0])
    weak, strong = (bench.student(PICTURES[UNLABELLED[:4]] + shift) for shift in (0, 0.3))
    guess = F.softmax(weak.logits, 1)
    guess = guess / guess.mean(0)  # the queue holds this batch three times
    guess = guess / guess.sum(1, keepdim=True)
    similar = F.softmax(embed(weak.features) @ bank.T / 0.5, 1)
    unfolded = similar * guess[:, LABELS[:6]]
    unfolded = unfolded / unfolded.sum(1, keepdim=True)
    log_strong = F.log_softmax(embed(strong.features) @ bank.T / 0.5, 1)
    near = torch.stack([similar[:, LABELS[:6] == c].sum(1) for c in range(CLASSES)], 1)
    target = 0.6 * guess + 0.4 * near
    mask = (target.amax(1) >= 0.4).float()
    assert 0 < mask.sum() < 4
    terms = bench.terms()
    torch.testing.assert_close(
        terms["instance"], -(unfolded * log_strong).sum(1).mean(), rtol=1e-4, atol=1e-5
    )
    expected = -(mask * (target * F.log_softmax(strong.logits, 1)).sum(1)).mean()
    torch.testing.assert_close(terms["unlabelled"], expected, rtol=1e-4, atol=1e-5)


def test_the_bank_of_simmatch_is_a_moving_mean() -> None:
    """Old and new embedding at a right angle, 0.7 and 0.3, normalised; a repeated image counts once, with the last."""
    bench = Bench("simmatch", width=2)
    assert isinstance(bench.partner, SimMatch)
    bench.partner.memory["bank_NE"][0] = torch.tensor([1.0, 0.0])
    batch = bench.batch(labelled=np.array([0, 0, 3]))
    new = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    bench.partner._remember(new, batch)
    bank = bench.partner.memory["bank_NE"]
    torch.testing.assert_close(bank[0], torch.tensor([0.7, 0.3]) / 0.58**0.5)
    torch.testing.assert_close(bank[3], new[2])


def test_shares_and_momentums_have_an_upper_end() -> None:
    """A threshold of 1 is possible, a moving mean that never moves is not."""
    with pytest.raises(ConfigError, match=r"--fixmatch\.threshold 1\.5"):
        Bench("fixmatch", threshold=1.5)
    for name, option in (("freematch", "momentum"), ("simmatch", "bank_momentum")):
        with pytest.raises(ConfigError, match=rf"--{name}\.{option} 1\.0"):
            Bench(name, **{option: 1.0})  # type: ignore[arg-type]
