from __future__ import annotations

import pytest
import torch

from contracts import FALSE_ALARM, SamplerContract
from ctmc_worlds import TOY, TOY_PROCESS, changes_shown, inner, one_stage_law, orders, start_law, two_stage_law
from helpers import CountingHead
from unmask import Rng, sample, time_grid, trajectory
from unmask.denoisers.masked import MaskedDenoiser
from unmask.oracles.statistics import chi_square, kl_divergence, total_variation
from unmask.oracles.tiny_joint import TinyJoint, state_index
from unmask.process import DiscreteProcess
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.tau_leaping import TauLeaping
from unmask.samplers.theta_trapezoidal import ThetaTrapezoidal

MASKED = Masked(vocab_size=4, mask_id=3)
UNIFORM = Uniform(vocab_size=3)
PAIR = TinyJoint.random(3, 2, seed=5)


class TestOnMasks(SamplerContract):
    def make(self) -> tuple[ThetaTrapezoidal, DiscreteProcess]:
        return ThetaTrapezoidal(process=MASKED), MASKED


class TestOnUniformNoise(SamplerContract):
    def make(self) -> tuple[ThetaTrapezoidal, DiscreteProcess]:
        return ThetaTrapezoidal(process=UNIFORM, theta=0.3), UNIFORM


@pytest.mark.parametrize("theta", [0.3, 0.5])
def test_second_order_on_the_chain_of_fifteen_states(theta: float) -> None:
    """At equal network calls: TV of order two where tau-leaping has one; KL, its square, of four and two."""
    start, target = TOY.noised(TOY_PROCESS, 0.9), TOY.noised(TOY_PROCESS, 0.1)
    sampler = ThetaTrapezoidal(process=TOY_PROCESS, theta=theta)
    ours = [two_stage_law(sampler, TOY, TOY_PROCESS, inner(n), start) for n in (8, 16, 32)]
    leaps = [one_stage_law(TauLeaping(process=TOY_PROCESS), TOY, TOY_PROCESS, inner(2 * n), start) for n in (8, 16, 32)]
    for distance, order in ((total_variation, 1), (kl_divergence, 2)):
        assert orders([distance(target, law) for law in leaps]) == pytest.approx([order] * 2, abs=0.12)
        assert orders([distance(target, law) for law in ours]) == pytest.approx([2 * order] * 2, abs=0.27 * order)
    early, late = orders([total_variation(target, law) for law in ours])
    assert late > early, "towards two; with the old rates of a token that was left, away from it"
    assert total_variation(target, ours[-1]) < 0.2 * total_variation(target, leaps[-1])


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
def test_beats_tau_leaping_on_dependent_sites_at_equal_calls(process: DiscreteProcess) -> None:
    start, target = start_law(PAIR, process), PAIR.as_states(process)
    ours = [
        total_variation(two_stage_law(ThetaTrapezoidal(process=process), PAIR, process, n, start), target)
        for n in (8, 16, 32)
    ]
    leaps = [
        total_variation(one_stage_law(TauLeaping(process=process), PAIR, process, 2 * n, start), target)
        for n in (8, 16, 32)
    ]
    assert min(orders(ours)) > 1.5 > 1.1 > max(orders(leaps))
    assert ours[-1] < 0.25 * leaps[-1]


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
def test_draws_have_the_law_of_the_recursion(process: DiscreteProcess) -> None:
    sampler, n = ThetaTrapezoidal(process=process, theta=0.4), 100_000
    exact = two_stage_law(sampler, PAIR, process, 4, start_law(PAIR, process))
    drawn = sample(sampler, PAIR.denoiser(process), (n, 2), num_steps=4, rng=Rng(1))
    counts = state_index(drawn, process.vocab_size).bincount(minlength=len(exact))
    assert chi_square(counts, exact) > FALSE_ALARM


def test_one_step_is_the_reverse_step_of_the_process() -> None:
    law = two_stage_law(ThetaTrapezoidal(process=UNIFORM), PAIR, UNIFORM, 1, start_law(PAIR, UNIFORM))
    sites = PAIR.conditionals(UNIFORM, torch.zeros(1, 2, dtype=torch.int64), time_grid(1)[:1])[0]
    torch.testing.assert_close(law, torch.outer(sites[0], sites[1]).flatten())


def test_asks_at_most_twice_a_step_and_only_where_a_jump_is_possible() -> None:
    net, masked = CountingHead(vocab_size=50), Masked(vocab_size=50, mask_id=49)
    denoiser = MaskedDenoiser(net, vocab_size=50, mask_id=49)
    canvas = torch.full((2, 200), 49)
    *_, last = trajectory(ThetaTrapezoidal(process=masked), denoiser, canvas, time_grid(50), rng=Rng(0))
    assert last.network_calls <= 2 * 50
    assert net.rows_seen < 3 * 400, "far fewer head rows than masks seen, 400 * 50"


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
def test_fixed_tokens_are_shown_as_they_are(process: DiscreteProcess) -> None:
    assert changes_shown(ThetaTrapezoidal(process=process), PAIR, process) == 0


@pytest.mark.parametrize("theta", [0.0, 1.0, -1.0, float("nan")])
def test_refuses(theta: float) -> None:
    with pytest.raises(ValueError, match="theta"):
        ThetaTrapezoidal(process=MASKED, theta=theta)
