from __future__ import annotations

import pytest
import torch

from contracts import FALSE_ALARM, SamplerContract
from ctmc_worlds import orders
from helpers import CountingHead
from unmask import Rng, Schedule, sample, time_grid, trajectory
from unmask.denoisers.categorical import CategoricalDenoiser
from unmask.denoisers.masked import MaskedDenoiser
from unmask.jumps import reverse_ceiling
from unmask.oracles.statistics import chi_square, total_variation
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.process import DiscreteProcess
from unmask.processes.gidd import GIDD
from unmask.processes.masked import Masked
from unmask.processes.matrix import GaussianRates, Matrix
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.euler import Euler
from unmask.schedules.cosine import Cosine

MASKED = Masked(vocab_size=4, mask_id=3)
UNIFORM = Uniform(vocab_size=3)
WORLD = TinyJoint.random(3, 3, seed=5)


BANDED = Matrix(generator=GaussianRates(vocab_size=3, width=0.5))


class TestEulerOnMasks(SamplerContract):
    def make(self) -> tuple[Euler, DiscreteProcess]:
        return Euler(process=MASKED), MASKED


class TestEulerOnUniformNoise(SamplerContract):
    num_steps = 4

    def make(self) -> tuple[Euler, DiscreteProcess]:
        return Euler(process=UNIFORM), UNIFORM


class TestEulerOnAnyMatrix(SamplerContract):
    """No ceiling of the rates is known: every site is evaluated."""

    num_steps = 4

    def make(self) -> tuple[Euler, DiscreteProcess]:
        return Euler(process=BANDED), BANDED


@pytest.mark.parametrize("process", [MASKED, UNIFORM, BANDED], ids=["masked", "uniform", "matrix"])
def test_first_order(process: DiscreteProcess) -> None:
    """The total variation from the data, by recursion, halves with the step."""
    errors = []
    for n in (16, 32, 64):
        law = WORLD.sampler_law(Euler(process=process).transition, WORLD.denoiser(process), process, time_grid(n))
        errors.append(total_variation(law, WORLD.as_states(process)))
    assert errors[0] > 0.005
    assert orders(errors) == pytest.approx([1.0, 1.0], abs=0.1)


def test_is_ancestral_for_masks_with_a_linear_schedule_and_not_for_another() -> None:
    def law(sampler: Euler | Ancestral, process: Masked, num_steps: int) -> torch.Tensor:
        return WORLD.sampler_law(sampler.transition, WORLD.denoiser(process), process, time_grid(num_steps))

    for n in (1, 3, 10):
        torch.testing.assert_close(law(Euler(process=MASKED), MASKED, n), law(Ancestral(process=MASKED), MASKED, n))
    cosine = Masked(vocab_size=4, mask_id=3, schedule=Cosine())
    assert total_variation(law(Euler(process=cosine), cosine, 4), law(Ancestral(process=cosine), cosine, 4)) > 0.003


def test_no_step_is_wasted_where_there_are_no_rates() -> None:
    """A cosine schedule has none at t = 1: that step is the process's own, and the first tokens appear in it."""
    cosine = Masked(vocab_size=4, mask_id=3, schedule=Cosine())
    x, one, half = torch.full((1, 3), 3), torch.ones(1).double(), torch.full((1,), 0.5).double()
    ours, own = (
        rule(process=cosine).transition(WORLD.denoiser(cosine), x, one, half).log_probs() for rule in (Euler, Ancestral)
    )
    assert float(ours[..., 3].exp().max()) < 0.8
    torch.testing.assert_close(ours, own)


@pytest.mark.parametrize(
    "process", [MASKED, UNIFORM, GIDD(vocab_size=4, mask_id=3, p_uniform=0.3)], ids=["masked", "uniform", "gidd"]
)
def test_ceilings_hold_and_are_reached(process: DiscreteProcess) -> None:
    x = torch.arange(process.vocab_size)[None]
    for t in (0.02, 0.5, 0.97):
        tt = torch.tensor([t], dtype=torch.float64)
        worlds = [
            process._reverse_rates(one.expand(1, len(x[0]), -1), x, tt[:, None].expand(x.shape)).sum(-1)
            for one in torch.eye(process.vocab_size, dtype=torch.float64)[:3]
        ]
        totals = torch.stack(worlds)
        possible = process.likelihood(x, torch.zeros_like(tt)[:, None], tt[:, None])[0, :, :3].T[:, None] > 0
        worst = totals.where(possible, 0.0).amax(0)
        torch.testing.assert_close(reverse_ceiling(process, x, tt), worst)


@pytest.mark.parametrize("t", [1.0, 0.9])
def test_too_large_a_step_jumps_for_sure(t: float) -> None:
    """One step from t to nearly 0: no probability is negative, and a site that expects two jumps makes one."""
    states = enumerate_states(3, 3)
    rows = torch.full((27,), t, dtype=torch.float64), torch.full((27,), 1e-6, dtype=torch.float64)
    log_probs = Euler(process=UNIFORM).transition(WORLD.denoiser(UNIFORM), states, *rows).log_probs()
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(27, 3).double())
    if t < 1:
        stays = log_probs.exp().gather(-1, states[..., None])
        assert float(stays.min()) == 0


def test_values_are_asked_only_where_a_jump_is_possible() -> None:
    net = CountingHead(vocab_size=50)
    masked = Masked(vocab_size=50, mask_id=49)
    sample(Euler(process=masked), MaskedDenoiser(net, vocab_size=50, mask_id=49), (4, 30), num_steps=10, rng=Rng(0))
    assert net.rows_seen == 4 * 30, "one head row for each mask, in the step that reveals it"
    net, noise = CountingHead(vocab_size=50), Uniform(vocab_size=50)
    denoiser = CategoricalDenoiser(net, vocab_size=50)
    sample(Euler(process=noise), denoiser, (4, 100), num_steps=100, rng=Rng(0))
    assert net.rows_seen < 0.25 * 4 * 100 * 100, "the ceiling leaves most sites alone"


def test_no_call_when_nothing_can_jump() -> None:
    net = CountingHead(vocab_size=6)
    masked = Masked(vocab_size=6, mask_id=5)
    denoiser = MaskedDenoiser(net, vocab_size=6, mask_id=5)
    *_, last = trajectory(Euler(process=masked), denoiser, torch.full((1, 4), 5), time_grid(64), rng=Rng(0))
    assert last.network_calls <= 4


@pytest.mark.parametrize("process", [UNIFORM, BANDED], ids=["ceilings", "no ceilings"])
def test_draws_from_the_law_that_it_scores(process: DiscreteProcess) -> None:
    """One step in the middle of time, where ceilings thin out the sites."""
    x = torch.tensor([0, 1, 2]).expand(200_000, 3)
    rows = torch.full((len(x),), 0.6, dtype=torch.float64), torch.full((len(x),), 0.35, dtype=torch.float64)
    denoiser = WORLD.denoiser(process)
    law = Euler(process=process).transition(denoiser, x[:1], rows[0][:1], rows[1][:1])
    sites = law.log_probs()[0].exp()
    joint = torch.einsum("a,b,c->abc", *sites).flatten()
    drawn, _ = Euler(process=process).transition(denoiser, x, *rows).draw(Rng(3))
    assert chi_square(state_index(drawn, 3).bincount(minlength=27), joint) > FALSE_ALARM


class Root(Schedule):
    """alpha = (1 - t)^(1/2): masks are revealed at an infinite rate at t = 1."""

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return (1 - t).sqrt()


def test_infinite_rates_at_the_start_are_left_to_the_process() -> None:
    process, x = Masked(vocab_size=4, mask_id=3, schedule=Root()), torch.full((1, 3), 3)
    ends = torch.ones(1, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)
    ours, exact = (
        sampler.transition(WORLD.denoiser(process), x, *ends).log_probs()  # type: ignore[attr-defined]
        for sampler in (Euler(process=process), Ancestral(process=process))
    )
    torch.testing.assert_close(ours, exact)


def test_refuses() -> None:
    with pytest.raises(TypeError, match="wanted DiscreteProcess"):
        Euler(process=object())  # type: ignore[arg-type]
    t, s = torch.tensor([[0.5, 0.5], [0.2, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="some at an end of time"):
        Euler(process=UNIFORM).transition(WORLD.denoiser(UNIFORM), torch.zeros(2, 3, dtype=torch.int64), t, s)
