from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from contracts import FALSE_ALARM, SamplerContract
from ctmc_worlds import changes_shown, one_stage_law
from unmask import Categorical, Rng, sample, time_grid, trajectory
from unmask.law import State
from unmask.oracles.statistics import chi_square, total_variation
from unmask.oracles.tiny_joint import TableDenoiser, TinyJoint, draw_states, enumerate_states, state_index
from unmask.process import DiscreteProcess
from unmask.processes.gidd import GIDD
from unmask.processes.masked import Masked
from unmask.processes.matrix import GaussianRates, Matrix
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.uniformisation import Uniformisation

MASKED = Masked(vocab_size=3, mask_id=2)
UNIFORM = Uniform(vocab_size=2)
WORLD = TinyJoint.random(2, 3, seed=5)


class TestOnMasks(SamplerContract):
    num_steps = 2

    def make(self) -> tuple[Uniformisation, DiscreteProcess]:
        process = Masked(vocab_size=4, mask_id=3)
        return Uniformisation(process=process, cutoff=0.25), process


class TestOnUniformNoise(SamplerContract):
    num_steps = 2

    def make(self) -> tuple[Uniformisation, DiscreteProcess]:
        process = Uniform(vocab_size=3)
        return Uniformisation(process=process, cutoff=0.25), process


@pytest.mark.parametrize(
    "process",
    [MASKED, UNIFORM, GIDD(vocab_size=3, mask_id=2, p_uniform=0.3)],
    ids=["masked", "uniform", "gidd"],
)
def test_draws_the_data_exactly_in_one_step(process: DiscreteProcess) -> None:
    """Where a single ancestral step leaves the sites independent."""
    sampler = Uniformisation(process=process, cutoff=0.01)  # type: ignore[arg-type]
    drawn = sample(sampler, WORLD.denoiser(process), (10_000, 3), num_steps=1, rng=Rng(1))
    target = WORLD.as_states(process)
    assert chi_square(state_index(drawn, process.vocab_size).bincount(minlength=len(target)), target) > FALSE_ALARM
    one = WORLD.sampler_law(Ancestral(process=process).transition, WORLD.denoiser(process), process, time_grid(1))
    assert total_variation(one, target) > 0.1


def test_the_grid_only_groups_jumps() -> None:
    """Any times: the same law, here half-way through."""
    x1 = UNIFORM.prior((10_000, 3), Rng(0))
    times = torch.tensor([1.0, 0.6, 0.55, 0.3], dtype=torch.float64)
    *_, last = trajectory(Uniformisation(process=UNIFORM, cutoff=0.01), WORLD.denoiser(UNIFORM), x1, times, rng=Rng(2))
    counts = state_index(last.canvas, 2).bincount(minlength=8)
    assert chi_square(counts, WORLD.noised(UNIFORM, 0.3)) > FALSE_ALARM


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
@pytest.mark.parametrize("times", [[1.0, 0.9, 0.8], [0.3, 0.15, 0.0]], ids=["noise", "data"])
def test_stretches_beyond_the_cutoff_are_reverse_steps_of_the_process(
    process: DiscreteProcess, times: list[float]
) -> None:
    """Steps that lie there, whole."""
    n, states = 50_000, enumerate_states(process.vocab_size, 3)
    start = WORLD.noised(process, times[0])
    exact = one_stage_law(Ancestral(process=process), WORLD, process, times, start)
    x, sampler = states[draw_states(start, n, Rng(0))], Uniformisation(process=process, cutoff=0.4)  # type: ignore[arg-type]
    *_, last = trajectory(sampler, WORLD.denoiser(process), x, torch.tensor(times, dtype=torch.float64), rng=Rng(1))
    counts = state_index(last.canvas, process.vocab_size).bincount(minlength=len(exact))
    assert chi_square(counts, exact) > FALSE_ALARM


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
def test_fixed_tokens_are_shown_as_they_are(process: DiscreteProcess) -> None:
    assert changes_shown(Uniformisation(process=process, cutoff=0.25), WORLD, process) == 0  # type: ignore[arg-type]


class Counted(TableDenoiser):
    """Counts the rows that it is asked about, and says the same of all tokens."""

    def __init__(self, probs: torch.Tensor) -> None:
        super().__init__(lambda x, t: probs.double().expand(*x.shape, -1))
        self.rows = 0

    def forward(self, xt: State, t: torch.Tensor, **cond: Any) -> Categorical:
        self.rows += len(t)
        return super().forward(xt, t, **cond)


def test_calls_of_uniform_noise_are_poisson() -> None:
    """Their mean is in closed form, whatever the network says; no time is at the cutoff, where rounding adds a step."""
    n, length, cut, v = 500, 5, 0.01, 7
    process, denoiser = Uniform(vocab_size=v), Counted(torch.ones(v) / v)
    times, x = torch.tensor([1 - cut, cut], dtype=torch.float64), process.prior((n, length), Rng(0))
    *_, last = trajectory(Uniformisation(process=process, cutoff=cut / 2), denoiser, x, times, rng=Rng(1))
    mean = n * length * (2 - 1 / v) * math.log(1 / cut - 1)
    assert abs(denoiser.rows - mean) < 5.3 * math.sqrt(mean)
    assert last.network_calls < 0.02 * denoiser.rows, "one call serves all rows"


def test_each_mask_costs_one_row() -> None:
    """Save those that are left at the end, which go together."""
    process, denoiser = MASKED, Counted(torch.tensor([0.5, 0.5, 0.0]))
    sample(Uniformisation(process=process), denoiser, (50, 5), num_steps=1, rng=Rng(1))
    assert 0.97 * 250 < denoiser.rows <= 250


def test_refuses() -> None:
    with pytest.raises(ValueError, match="cutoff"):
        Uniformisation(process=UNIFORM, cutoff=0.5)
    with pytest.raises(TypeError, match="process"):
        Uniformisation(process=Matrix(generator=GaussianRates(vocab_size=3, width=0.5)))  # type: ignore[arg-type]
