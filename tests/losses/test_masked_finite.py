from itertools import pairwise
from typing import Any

import pytest
import torch

from contracts import BoundContract, standard_errors
from helpers import CountingHead, padded
from unmask import Denoiser, Loss, Rng
from unmask.denoisers.masked import MaskedDenoiser
from unmask.law import State
from unmask.losses.any_order import AnyOrderNLL
from unmask.losses.masked_finite import FiniteMaskedNELBO
from unmask.losses.masked_nelbo import MaskedNELBO
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states
from unmask.processes.masked import Masked
from unmask.schedules.cosine import Cosine

PROCESS = Masked(vocab_size=3, mask_id=2, schedule=Cosine())


class TestFiniteMaskedNELBO(BoundContract):
    tight = False

    def make(self) -> tuple[FiniteMaskedNELBO, Masked]:
        return FiniteMaskedNELBO(process=PROCESS, num_steps=4), PROCESS


def exact_value(world: TinyJoint, num_steps: int) -> float:
    """The bound by summing over steps, data and all noisy states."""
    states, total = enumerate_states(3, world.length), 0.0
    grid = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    for s, t in pairwise(grid):
        law = world.denoiser(PROCESS)(states, t.expand(len(states)))
        nll = -law.log_probs()
        forward = PROCESS.likelihood(states, torch.zeros_like(t), t)  # (k, l, v): q(x_t | y)
        for x0, p in zip(world.sequences, world.probs, strict=True):
            q = forward[:, torch.arange(world.length), x0].prod(1)
            cost = torch.where(states == 2, nll[:, torch.arange(world.length), x0], 0.0).sum(1)
            total += float(p * PROCESS.reveal_probability(t, s) * torch.where(q > 0, q * cost, 0.0).sum())
    return total


def test_decreases_to_the_entropy() -> None:
    world = TinyJoint.random(2, 3, seed=4)
    values = [exact_value(world, steps) for steps in (1, 2, 4, 8, 64, 512)]
    assert all(a > b for a, b in pairwise(values))
    gaps = [v - world.entropy for v in values]
    assert gaps[-1] > 0
    assert gaps[-1] < 0.01 * gaps[0]
    assert gaps[4] / gaps[5] == pytest.approx(8, rel=0.1), "first order in 1 / T"


def test_the_estimator_has_this_expectation() -> None:
    world, loss = TinyJoint.random(2, 3, seed=4), FiniteMaskedNELBO(process=PROCESS, num_steps=4)
    x0 = world.sample(60_000, Rng(0))
    parts = [loss(world.denoiser(PROCESS), part, Rng(1).fold(k)).mean() for k, part in enumerate(x0.split(300))]
    assert abs(standard_errors(torch.stack(parts), exact_value(world, 4))) < 5.3


@pytest.mark.parametrize("num_steps", [0, -3])
def test_refuses_no_steps(num_steps: int) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        FiniteMaskedNELBO(process=PROCESS, num_steps=num_steps)


class Coupled(Loss):
    """Scores masked tokens jointly given the context, weighted as if they were scored one by one: it is no bound."""

    bound = True

    def __call__(self, denoiser: Denoiser, x0: State, rng: Rng, **cond: Any) -> torch.Tensor:
        assert isinstance(x0, torch.Tensor)
        return AnyOrderNLL(process=PROCESS)(denoiser, x0, rng) / 2


def test_the_bound_contract_rejects_a_loss_that_undercuts_the_entropy() -> None:
    suite = BoundContract()
    suite.make = lambda: (Coupled(), PROCESS)  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="below the entropy"):
        suite.test_expectation_against_the_entropy()


def test_any_order_has_less_variance_than_one_uniform_time() -> None:
    world = TinyJoint.random(2, 6, seed=4)
    x0 = world.sample(4000, Rng(0))
    process = Masked(vocab_size=3, mask_id=2)
    continuous = MaskedNELBO(process=process)(world.denoiser(process), x0, Rng(1))
    stratified = AnyOrderNLL(process=process)(world.denoiser(process), x0, Rng(1))
    assert float(stratified.var()) < 0.5 * float(continuous.var())


def test_padding_changes_no_loss() -> None:
    process = Masked(vocab_size=6, mask_id=5)
    loss = FiniteMaskedNELBO(process=process, num_steps=3)
    denoiser = MaskedDenoiser(CountingHead(vocab_size=6), vocab_size=6, mask_id=5)
    x0 = torch.randint(0, 5, (4, 9), generator=torch.Generator().manual_seed(1))
    plain = loss(denoiser, x0, Rng(2))
    for left, right in [(3, 0), (0, 5), (2, 2)]:
        tokens, mask = padded(x0, left, right)
        torch.testing.assert_close(loss(denoiser, tokens, Rng(2), attention_mask=mask), plain)
