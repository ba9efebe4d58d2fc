import pytest
import torch
from torch import Tensor

from contracts import PaddedChain, time
from helpers import padded
from planned_world import joint_with_noise
from unmask import Denoiser, Rng, sample
from unmask.denoisers.planned import GivenNoise, Planner
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.process import Interpolating
from unmask.processes.gidd import GIDD
from unmask.processes.marginal import Marginal
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.planned_denoising import PlannedDenoising

WORLD = TinyJoint.random(3, 3, seed=5)
PROCESSES = [
    Uniform(vocab_size=3),
    Marginal(frequencies=(0.5, 0.3, 0.2)),
    Masked(vocab_size=4, mask_id=3),
    GIDD(vocab_size=4, mask_id=3, p_uniform=0.3),
]


def parts(process: Interpolating, t: float) -> tuple[Tensor, Tensor, Tensor]:
    """p(z_i = 1 | x_t) (k, l), p(x_0^i = y | x_t, z_i = 1) (k, l, v) and the reachable states, from the classes."""
    states = enumerate_states(process.vocab_size, 3)
    states = states[WORLD.noised(process, t) > 0]
    times, denoiser = time(t).expand(len(states)), WORLD.denoiser(process)
    noisy = Planner(denoiser, process)(states, times).log_probs().exp()[..., 1]
    return noisy, GivenNoise(denoiser, process)(states, times).log_probs().exp(), states


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("t", [0.1, 0.6])
def test_planner_times_denoiser_is_the_exact_posterior_of_noise_and_value(process: Interpolating, t: float) -> None:
    noisy, values, _ = parts(process, t)
    joint, patterns, _ = joint_with_noise(WORLD, process, t)
    kept = WORLD.noised(process, t) > 0
    joint = joint[..., kept] / joint[..., kept].sum((0, 1))
    for site in range(3):
        at = patterns[:, site]
        torch.testing.assert_close(noisy[:, site], joint[:, at].sum((0, 1)), atol=1e-10, rtol=0)
        for value in range(3):
            both = joint[WORLD.sequences[:, site] == value][:, at].sum((0, 1))
            torch.testing.assert_close(noisy[:, site] * values[:, site, value], both, atol=1e-10, rtol=0)


def slope(process: Interpolating, rates: Tensor) -> Tensor:
    """d p_t / dt of states when site rates (k, l, v) move them in reverse, from their outflow and inflow."""
    states = enumerate_states(process.vocab_size, 3)
    out = torch.zeros(len(states)).double()
    for site in range(3):
        for value in range(process.vocab_size):
            to = states.clone()
            to[:, site] = value
            flow = torch.where(states[:, site] == value, 0.0, rates[:, site, value])
            out = out + flow
            out = out.index_add(0, state_index(to, process.vocab_size), -flow)
    return out


@pytest.mark.parametrize("t", [0.2, 0.7])
def test_planner_times_denoiser_is_an_exact_reverse_rate(t: float) -> None:
    """With uniform noise: hazard x planner x denoiser moves the law of x_t as time does, exactly, and so does the rate
    of the time-reversed noise; what they differ by keeps it (detailed balance)."""
    process = Uniform(vocab_size=3)
    noisy, values, states = parts(process, t)
    hazard = -process.schedule.alpha_dot(time(t)[0]) / process.schedule.noise(time(t)[0])
    rates = hazard * noisy[..., None] * values
    law = WORLD.noised(process, t)
    instant = torch.func.jvp(lambda at: marginal(process, at), (time(t)[0],), (torch.ones(()).double(),))[1]
    torch.testing.assert_close(slope(process, law[:, None, None] * rates), instant, atol=1e-10, rtol=0)
    reversed_noise = process.reverse_rates(WORLD.denoiser(process)(states, time(t).expand(27)), states, time(t))
    torch.testing.assert_close(slope(process, law[:, None, None] * reversed_noise), instant, atol=1e-10, rtol=0)
    surplus = (reversed_noise - rates).scatter(2, states[..., None], 0.0)
    assert float(surplus.min()) >= 0
    assert float(surplus.max()) > 0.1
    for site in range(3):
        for value in range(3):
            to = states.clone()
            to[:, site] = value
            there = state_index(to, 3)
            back = surplus[there, site, states[:, site]]
            torch.testing.assert_close(law * surplus[:, site, value], law[there] * back, atol=1e-10, rtol=0)


def marginal(process: Interpolating, t: Tensor) -> Tensor:
    """The law of x_t over all states, differentiable in t."""
    sites = process.marginal(torch.eye(3).double(), t.expand(3))[WORLD.sequences]
    law = WORLD.probs[:, None]
    for i in range(3):
        law = (law[:, :, None] * sites[:, i, None, :]).flatten(1)
    return law.sum(0)


@pytest.mark.parametrize("t", [1e-12, 1 - 1e-12, 1.0])
def test_no_nan_at_the_ends_of_time(t: float) -> None:
    for process in PROCESSES:
        xt = process.corrupt(WORLD.sample(64, Rng(1)), time(t).expand(64), Rng(2))
        times, denoiser = time(t).expand(64), WORLD.denoiser(process)
        planned, values = Planner(denoiser, process)(xt, times), GivenNoise(denoiser, process)(xt, times)
        assert not bool(planned.log_probs().isnan().any())
        assert bool((planned.log_probs().exp().sum(-1) - 1 < 1e-12).all())
        if t > 0.5:
            torch.testing.assert_close(planned.log_probs()[..., 1].exp(), torch.ones(64, 3).double())
            assert not bool(values.log_probs().isnan().any())


def test_a_token_where_all_is_noise_cannot_be_noise() -> None:
    """A given token on a canvas of masks at t = 1: neither part makes a NaN of it."""
    x, process = torch.tensor([[3, 1, 3]]), PROCESSES[2]
    planned, values = (kind(WORLD.denoiser(process), process)(x, time(1.0)) for kind in (Planner, GivenNoise))
    torch.testing.assert_close(planned.log_probs().exp()[0, :, 1], torch.tensor([1.0, 0.0, 1.0]).double())
    torch.testing.assert_close(values.log_probs().exp()[0, 1], torch.tensor([0.0, 1.0, 0.0, 0.0]).double())


def test_conditions_reach_the_network_and_padding_changes_nothing() -> None:
    process, tokens = Uniform(vocab_size=4), (Rng(3).uniform((4, 5)) * 4).long()
    for kind in (Planner, GivenNoise):
        law = kind(PaddedChain(4), process)(tokens, time(0.4).expand(4)).log_probs()
        for left, right in [(3, 0), (1, 2)]:
            wide, mask = padded(tokens, left, right)
            more = kind(PaddedChain(4), process)(wide, time(0.4).expand(4), attention_mask=mask).log_probs(mask)
            torch.testing.assert_close(more, law.flatten(0, 1))


def test_finished_rows_are_not_evaluated() -> None:
    process, seen = Uniform(vocab_size=3), []

    class Watched(Denoiser):
        def forward(self, xt, t, **cond):  # type: ignore[no-untyped-def]
            seen.append(len(xt))
            return WORLD.denoiser(process)(xt, t)

    sampler = PlannedDenoising(process=process, planner=Planner(Watched(), process), tolerance=0.5)
    sample(sampler, GivenNoise(WORLD.denoiser(process), process), (64, 3), num_steps=40, rng=Rng(0))
    assert seen[0] == 64
    assert seen[-1] < 16
