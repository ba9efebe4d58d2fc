"""A penalty for invalid completions: its value by hand, and what it buys on balanced brackets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import fit, padded
from loop_worlds import Bag
from unmask import Categorical, Denoiser, Dirac, Law, Rng, sample
from unmask.denoisers.masked import MaskedDenoiser
from unmask.losses.complementary import Complementary
from unmask.losses.invalid_penalty import InvalidPenalty
from unmask.losses.masked_nelbo import MaskedNELBO
from unmask.oracles.tiny_joint import enumerate_states
from unmask.processes.masked import Masked
from unmask.samplers.ancestral import Ancestral

LENGTH = 8
PROCESS = Masked(vocab_size=3, mask_id=2)
BASE = MaskedNELBO(process=PROCESS)


def balanced(x: Tensor) -> Tensor:
    depth = ((x == 0).long() - (x == 1).long()).cumsum(1)
    return (depth >= 0).all(1) & (depth[:, -1] == 0)


def penalised(weight: float) -> InvalidPenalty:
    return InvalidPenalty(loss=BASE, mask_id=2, is_valid=balanced, weight=weight)


class Fixed(Denoiser):
    """The same law of every masked site, and what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.tensor([0.7, 0.3, 0.0]).log().requires_grad_()

    def forward(self, xt: Any, t: Tensor, **cond: Any) -> Categorical:
        self.seen = xt
        return Categorical.from_logits(self.logits.expand(*xt.shape, 3)).with_known(xt, xt != 2)


def test_invalid_completions_pay_for_the_confidence_in_them() -> None:
    model = Fixed()
    x = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]]).repeat(200, 1)
    gap = penalised(3.0)(model, x, Rng(1)) - BASE(model, x, Rng(1))
    masked = model.seen == 2
    invalid = ~balanced(model.seen.where(~masked, 0))
    expected = 3.0 * 0.7 * masked.sum(1) * invalid
    torch.testing.assert_close(gap, expected.double())
    assert bool((gap == 0).any())
    (slope,) = torch.autograd.grad(gap.sum(), model.logits)
    assert float(slope[0]) > 0, "descent makes the model less sure of the token it would take"


def test_padding_is_neither_completed_nor_paid_for() -> None:
    model, x = Fixed(), torch.tensor([[0, 1, 0, 1]]).repeat(50, 1)
    bare = penalised(1.0)(model, x, Rng(1))
    told = []

    def spaces_apart(y: Tensor) -> Tensor:
        told.append(y)
        return balanced(y[:, 2:6])

    wide, real = padded(x, 2, 1)
    wide = wide.masked_fill(~real, 2)  # padding that looks like a mask
    loss = InvalidPenalty(loss=BASE, mask_id=2, is_valid=spaces_apart)
    torch.testing.assert_close(loss(model, wide, Rng(1), attention_mask=real), bare)
    assert bool((told[0][~real] == 2).all())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_completions_become_valid_and_draws_do_not(seed: int) -> None:
    """Balanced brackets of 8: the share of valid most probable completions rises by a fifth or more. A finding: draws
    are no more often valid, for the penalty blurs what it cannot decide, and the bound is looser."""
    states = enumerate_states(2, LENGTH)
    data, found = states[balanced(states)], []
    for loss in (BASE, penalised(2.0)):
        net = Bag(vocab_size=3, length=LENGTH, dim=4, width=16, seed=seed)
        model = MaskedDenoiser(net, vocab_size=3, mask_id=2)

        def batch(step: int) -> Tensor:
            return data[(Rng(seed + 100).fold(step).uniform((128,)) * len(data)).long()]

        fit(model.parameters(), loss, model, batch, steps=1000, seed=seed)
        t = Rng(10).uniform((4000,))
        xt = PROCESS.corrupt(data[(Rng(9).uniform((4000,)) * len(data)).long()], t, Rng(11))
        with torch.no_grad():
            completed = xt.where(xt != 2, model(xt, t).log_probs().argmax(-1))
            drawn = sample(Ancestral(process=PROCESS), model, (4000, LENGTH), num_steps=8, rng=Rng(5))
            bound = BASE(model, data.repeat(300, 1), Rng(3))
        assert isinstance(drawn, Tensor)
        found.append([float(v.double().mean()) for v in (balanced(completed), balanced(drawn), bound)])
    print(f"seed {seed}: completions, draws in 8 steps, nats; without {found[0]}, with {found[1]}")
    without, with_penalty = found
    assert with_penalty[0] > without[0] + 0.1
    assert with_penalty[1] < without[1]
    assert with_penalty[2] > without[2]


def test_of_several_laws_each_row_takes_the_mean_of_its_own() -> None:
    """The second pass of `Complementary` is left out when no row of the batch needs it."""
    loss = InvalidPenalty(loss=Complementary(process=PROCESS), mask_id=2, is_valid=lambda x: x[:, 0] > 9)
    model, x = Fixed(), torch.tensor([[0, 1]]).repeat(16, 1)
    together = loss(model, x, Rng(1).rows(torch.arange(16)))
    for i in range(16):
        torch.testing.assert_close(loss(model, x[:1], Rng(1).rows(torch.tensor([i])))[0], together[i])
    gap = together - Complementary(process=PROCESS)(model, x, Rng(1).rows(torch.arange(16)))
    assert set((gap / 0.7).detach().round(decimals=6).tolist()) == {1.0, 2.0}  # masks apart, one a pass; both at once


def test_a_denoiser_with_more_to_offer_still_offers_it() -> None:
    class Richer(Fixed):
        more = 5

    class Asking(MaskedNELBO):
        def __call__(self, denoiser: Any, *rest: Any, **told: Any) -> Tensor:
            assert denoiser.more == 5
            with torch.no_grad():
                denoiser(*told_nothing)
            return super().__call__(denoiser, *rest, **told)

    x = torch.tensor([[0, 1, 0, 1]]).repeat(50, 1)
    told_nothing = (torch.full((50, 4), 2), torch.ones(50).double())
    loss = InvalidPenalty(loss=Asking(process=PROCESS), mask_id=2, is_valid=balanced)
    assert torch.equal(loss(Richer(), x, Rng(1)), penalised(1.0)(Fixed(), x, Rng(1)))


def test_refuses() -> None:
    with pytest.raises(ValueError, match="weight=0"):
        penalised(0.0)

    class Point(Denoiser):
        def forward(self, xt: Any, t: Tensor, **cond: Any) -> Law:
            return Dirac(torch.zeros(1))

    x = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(TypeError, match="Dirac"):
        penalised(1.0)._penalty(x, Point()(None, torch.zeros(1)), None)

    class Silent(MaskedNELBO):
        def __call__(self, *_: Any, **__: Any) -> Tensor:
            return torch.zeros(2)

    with pytest.raises(TypeError, match="Silent asked the denoiser for no law"):
        InvalidPenalty(loss=Silent(process=PROCESS), mask_id=2, is_valid=balanced)(Fixed(), x, Rng(0))


@pytest.mark.parametrize("wrong", [lambda x: balanced(x).long(), lambda x: balanced(x)[:, None]])
def test_refuses_answers_that_are_no_booleans_of_rows(wrong: Any) -> None:
    def unchecked(x):  # as without a checker of annotations
        return wrong(x)

    loss = InvalidPenalty(loss=BASE, mask_id=2, is_valid=unchecked)
    with pytest.raises(TypeError, match="is_valid returned"):
        loss(Fixed(), torch.zeros(2, 4, dtype=torch.int64), Rng(0))
