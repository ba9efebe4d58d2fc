from __future__ import annotations

import pytest
import torch

from contracts import FALSE_ALARM, SamplerContract
from ctmc_worlds import changes_shown, orders, start_law, two_stage_law
from unmask import Rng, sample
from unmask.oracles.statistics import chi_square, total_variation
from unmask.oracles.tiny_joint import TinyJoint, state_index
from unmask.process import DiscreteProcess
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.theta_rk2 import ThetaRK2
from unmask.samplers.theta_trapezoidal import ThetaTrapezoidal
from unmask.schedules.cosine import Cosine

MASKED = Masked(vocab_size=4, mask_id=3)
UNIFORM = Uniform(vocab_size=3)
PAIR = TinyJoint.random(3, 2, seed=5)
SITE = TinyJoint.random(3, 1, seed=5)


class TestOnMasks(SamplerContract):
    def make(self) -> tuple[ThetaRK2, DiscreteProcess]:
        return ThetaRK2(process=MASKED), MASKED


class TestOnUniformNoise(SamplerContract):
    def make(self) -> tuple[ThetaRK2, DiscreteProcess]:
        return ThetaRK2(process=UNIFORM, theta=0.7), UNIFORM


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
def test_draws_have_the_law_of_the_recursion(process: DiscreteProcess) -> None:
    sampler, n = ThetaRK2(process=process, theta=0.7), 100_000
    exact = two_stage_law(sampler, PAIR, process, 4, start_law(PAIR, process))
    drawn = sample(sampler, PAIR.denoiser(process), (n, 2), num_steps=4, rng=Rng(1))
    counts = state_index(drawn, process.vocab_size).bincount(minlength=len(exact))
    assert chi_square(counts, exact) > FALSE_ALARM


@pytest.mark.parametrize("theta", [0.4, 0.5, 1.0])
def test_second_order_while_a_site_can_jump_only_once_and_alone(theta: float) -> None:
    """How long a mask lasts: the chance that one is left at t = 1/2, against the exact 1 - alpha(1/2)."""
    process = Masked(vocab_size=4, mask_id=3, schedule=Cosine())
    errors = [left_at_half(ThetaRK2(process=process, theta=theta), n) for n in (32, 64, 128)]
    assert orders(errors) == pytest.approx([2.0, 2.0], abs=0.15)


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
def test_first_order_on_dependent_sites(process: DiscreteProcess) -> None:
    """The trial's jumps are undone: that the sites jump together costs an error of the second order in each step."""
    start, target = start_law(PAIR, process), PAIR.as_states(process)
    errors = [
        total_variation(two_stage_law(ThetaRK2(process=process), PAIR, process, n, start), target) for n in (8, 16, 32)
    ]
    better = total_variation(two_stage_law(ThetaTrapezoidal(process=process), PAIR, process, 32, start), target)
    assert orders(errors) == pytest.approx([1.0, 1.0], abs=0.15)
    assert better < 0.2 * errors[-1]


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
def test_fixed_tokens_are_shown_as_they_are(process: DiscreteProcess) -> None:
    assert changes_shown(ThetaRK2(process=process), PAIR, process) == 0


@pytest.mark.parametrize("theta", [0.0, 1.1, float("nan")])
def test_refuses(theta: float) -> None:
    with pytest.raises(ValueError, match="theta"):
        ThetaRK2(process=MASKED, theta=theta)


def left_at_half(sampler: ThetaRK2, num_steps: int) -> float:
    """The error of the chance that the only site is still masked at t = 1/2, in steps of 1 / num_steps."""
    process = sampler.process
    assert isinstance(process, Masked)
    times = [1 - k / num_steps for k in range(num_steps // 2 + 1)]
    law = two_stage_law(sampler, SITE, process, times, start_law(SITE, process))
    return abs(float(law[3]) - float(process.schedule.noise(torch.tensor(0.5, dtype=torch.float64))))
