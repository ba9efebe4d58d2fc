from __future__ import annotations

import math

import pytest
import torch

from contracts import SamplerContract
from ctmc_worlds import orders
from unmask import time_grid
from unmask.jumps import Jumps
from unmask.leaping import Leap
from unmask.oracles.statistics import total_variation
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.process import DiscreteProcess
from unmask.processes.gidd import GIDD
from unmask.processes.masked import Masked
from unmask.processes.matrix import GaussianRates, Matrix
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.euler import Euler
from unmask.samplers.tau_leaping import TauLeaping

MASKED = Masked(vocab_size=4, mask_id=3)
UNIFORM = Uniform(vocab_size=3)
BANDED = Matrix(generator=GaussianRates(vocab_size=3, width=0.5))
WORLD = TinyJoint.random(3, 3, seed=5)


class TestFirstJump(SamplerContract):
    num_steps = 4

    def make(self) -> tuple[TauLeaping, DiscreteProcess]:
        return TauLeaping(process=UNIFORM), UNIFORM


class TestNoSecondJump(SamplerContract):
    def make(self) -> tuple[TauLeaping, DiscreteProcess]:
        return TauLeaping(process=MASKED, several="none"), MASKED


class TestNoSecondJumpOfUniformNoise(SamplerContract):
    """Its chance of a jump falls again for rates above one a step: the ceiling must not thin too much."""

    num_steps = 3

    def make(self) -> tuple[TauLeaping, DiscreteProcess]:
        return TauLeaping(process=UNIFORM, several="none"), UNIFORM


def output(sampler: TauLeaping | Euler, num_steps: int) -> torch.Tensor:
    process = sampler.process
    return WORLD.sampler_law(sampler.transition, WORLD.denoiser(process), process, time_grid(num_steps))


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
@pytest.mark.parametrize("several", ["first", "none"])
def test_first_order(process: DiscreteProcess, several: str) -> None:
    sampler = TauLeaping(process=process, several=several)
    errors = [total_variation(output(sampler, n), WORLD.as_states(process)) for n in (16, 32, 64)]
    assert errors[0] > 0.005
    assert orders(errors) == pytest.approx([1.0, 1.0], abs=0.15)


def test_counts_are_poisson() -> None:
    """No jump: exp(-M). Jumps to y alone, or to y first, by summing the counts' probabilities by hand."""
    rates = torch.tensor([[[0.0, 0.5, 1.2]]], dtype=torch.float64)

    class Known(Jumps):
        def at(self, where: torch.Tensor) -> torch.Tensor:
            return rates[where]

    jumps, x = Known(rates.sum(-1), 3), torch.zeros(1, 1, dtype=torch.int64)
    first, single = (
        Leap(jumps, x, TauLeaping(process=UNIFORM, several=several).rule).log_probs().exp()[0, 0]
        for several in ("first", "none")
    )
    loosest = TauLeaping(process=UNIFORM, several="none").rule.highest(torch.tensor([0.5, 5.0, torch.inf]))
    assert loosest.tolist() == pytest.approx([0.5 * math.exp(-0.5), math.exp(-1), math.exp(-1)])
    assert float(single[1]) == pytest.approx(0.5 * math.exp(-0.5) * math.exp(-1.2))
    assert float(single[2]) == pytest.approx(1.2 * math.exp(-1.2) * math.exp(-0.5))
    by_counts = sum(
        math.exp(-1.7) * 0.5**a / math.factorial(a) * 1.2**b / math.factorial(b) * a / (a + b)
        for a in range(40)
        for b in range(40)
        if a + b
    )
    assert float(first[1]) == pytest.approx(by_counts, rel=1e-9)
    assert float(first[0]) == pytest.approx(math.exp(-1.7))


def test_several_jumps_leave_masks() -> None:
    """The step from 1 to 1/2 expects 1/2 jump of each mask: left are exp(-1/2), 1 - exp(-1/2) / 2, or 1/2 (Euler)."""
    x = torch.full((1, 3), 3)
    t, s = torch.ones(1, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)

    def left(sampler: TauLeaping | Euler) -> float:
        return float(sampler.transition(WORLD.denoiser(MASKED), x, t, s).log_probs()[0, 0, 3].exp())

    assert left(TauLeaping(process=MASKED)) == pytest.approx(math.exp(-0.5))
    assert left(TauLeaping(process=MASKED, several="none")) == pytest.approx(1 - 0.5 * math.exp(-0.5))
    assert left(Euler(process=MASKED)) == pytest.approx(0.5)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="several"):
        TauLeaping(process=MASKED, several="last")
    with pytest.raises(TypeError, match="wanted DiscreteProcess"):
        TauLeaping(process=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "process", [MASKED, UNIFORM, GIDD(vocab_size=4, mask_id=3), BANDED], ids=["masked", "uniform", "gidd", "matrix"]
)
def test_tweedie_tau_leaping_is_ancestral_sampling(process: DiscreteProcess) -> None:
    """The published step is written with the scores s(y) = p_t(x_t with y at a site) / p_t(x_t) and the kernel K(s, t):

    p(x_s = y | x_t)  =  K[y, x_t] sum_z s(z) K^-1[z, y].
    """
    s, t = (torch.tensor(v, dtype=torch.float64) for v in (0.3, 0.7))
    kernel = process.likelihood(torch.arange(process.vocab_size), s, t).T
    states = enumerate_states(process.vocab_size, 3)
    law = WORLD.noised(process, float(t))
    x = states[law > 0]
    ancestral = Ancestral(process=process).transition(WORLD.denoiser(process), x, t.expand(len(x)), s.expand(len(x)))
    sites = ancestral.log_probs().exp()  # type: ignore[attr-defined]
    for i in range(3):
        others = x[:, None].repeat(1, process.vocab_size, 1)
        others[:, :, i] = torch.arange(process.vocab_size)
        score = law[state_index(others.flatten(0, 1), process.vocab_size)].reshape(len(x), -1) / law[law > 0][:, None]
        step = kernel[:, x[:, i]].T * (score @ kernel.inverse())
        torch.testing.assert_close(sites[:, i], step, atol=1e-9, rtol=0)
