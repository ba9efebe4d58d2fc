"""Sequential Monte Carlo: an unbiased normaliser, the tilted law as particles grow, and rows for themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contracts import PaddedChain
from unmask import Rng, time_grid
from unmask.guidance.classifier import ClassifierGuided
from unmask.guidance.smc import TwistedSMC
from unmask.oracles.statistics import total_variation
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.process import DiscreteProcess
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.unmask import Unmask

WORLD = TinyJoint.random(3, 3, seed=2)
MASKED, UNIFORM = Masked(vocab_size=4, mask_id=3), Uniform(vocab_size=3)
STEPS = 4


def reward(x: Tensor) -> Tensor:
    """Likes twos, and dislikes neighbours that are equal: no single site tells."""
    return (x == 2).double().sum(1) - 1.5 * (x[:, 1:] == x[:, :-1]).double().sum(1)


def tilted(process: DiscreteProcess) -> tuple[Tensor, float]:
    """The sampler's own law tilted, by its exact recursion, and log Z."""
    transition = Ancestral(process=process).transition
    law = WORLD.sampler_law(transition, WORLD.denoiser(process), process, time_grid(STEPS))
    states = enumerate_states(process.vocab_size, 3)
    clean = (states < 3).all(1)
    weights = law[clean] * reward(states[clean]).exp()
    return weights / weights.sum(), float(weights.sum().log())


def smc(process: DiscreteProcess, particles: int, **told: float) -> TwistedSMC:
    return TwistedSMC(sampler=Ancestral(process=process), num_particles=particles, **told)  # type: ignore[arg-type]


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
@pytest.mark.parametrize("guided", [False, True])
def test_the_normaliser_is_unbiased_with_few_particles(process: DiscreteProcess, guided: bool) -> None:
    """4 particles, resampled always; with a proposal that leans to twos, too, whose weights must pay for it."""
    rows, denoiser = 4000, WORLD.denoiser(process)

    def leaning(x: Tensor, t: Tensor, **_: object) -> Tensor:
        return 0.6 * (x == 2).double().sum(1)

    proposal = ClassifierGuided(denoiser, leaning) if guided else None
    found = smc(process, 4, threshold=1.0).sample(
        denoiser, reward, (rows, 3), num_steps=STEPS, rng=Rng(3), proposal=proposal
    )
    estimates, (_, log_z) = found.log_normaliser.exp(), tilted(process)
    assert abs(float(estimates.mean()) - math.exp(log_z)) < 5.3 * float(estimates.std()) / rows**0.5


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
def test_draws_approach_the_tilted_law_as_particles_grow(process: DiscreteProcess) -> None:
    law, rows = tilted(process)[0], 4000
    errors = []
    for particles in (1, 4, 16, 64):
        found = smc(process, particles).sample(
            WORLD.denoiser(process), reward, (rows, 3), num_steps=STEPS, rng=Rng(particles)
        )
        drawn = state_index(found.draw(Rng(5)), 3).bincount(minlength=27).double() / rows
        errors.append(total_variation(drawn, law))
    print(errors)
    assert errors[0] > 2 * errors[1] > 3 * errors[2]
    assert errors[3] < 0.03  # as many draws of the law itself: 0.02


def test_weighted_particles_need_no_resampling_but_it_spreads_them() -> None:
    """Without resampling it is importance sampling; with it, more particles count in the end."""
    sharp = {"temperature": 0.4}
    never, often = (
        smc(MASKED, 32, threshold=share, **sharp).sample(
            WORLD.denoiser(MASKED), reward, (300, 3), num_steps=STEPS, rng=Rng(1)
        )
        for share in (0.0, 0.7)
    )
    assert bool(((never.effective >= 1 - 1e-9) & (never.effective <= 32 + 1e-9)).all())
    assert float(often.effective[-1].mean()) > 1.3 * float(never.effective[-1].mean())
    torch.testing.assert_close(often.log_weights.exp().sum(1), torch.ones(300).double())
    assert never.network_calls == STEPS + STEPS - 1


def test_rows_fixed_sites_and_padding() -> None:
    denoiser, canvas = WORLD.denoiser(MASKED), WORLD.sample(6, Rng(1))
    editable = torch.tensor([[True, False, True]]).expand(6, -1)
    told = {"num_steps": STEPS, "editable": editable}
    together = smc(MASKED, 5).sample(denoiser, reward, canvas, rng=Rng(2).rows(torch.arange(6)), **told)  # type: ignore[arg-type]
    assert torch.equal(together.x[:, :, 1], canvas[:, 1, None].expand(-1, 5))
    for i in range(6):
        told["editable"] = editable[i : i + 1]
        alone = smc(MASKED, 5).sample(denoiser, reward, canvas[i : i + 1], rng=Rng(2).rows(torch.tensor([i])), **told)  # type: ignore[arg-type]
        assert torch.equal(alone.x[0], together.x[i])
        torch.testing.assert_close(alone.log_normaliser[0], together.log_normaliser[i])

    real = torch.tensor([[False, True, True, True]]).expand(4, -1)
    wide = smc(MASKED, 3).sample(
        PaddedChain(4),
        lambda x: reward(x[:, 1:]),
        torch.zeros(4, 4, dtype=torch.int64),
        num_steps=3,
        rng=Rng(7),
        attention_mask=real,
    )
    narrow = smc(MASKED, 3).sample(PaddedChain(4), reward, (4, 3), num_steps=3, rng=Rng(7))
    assert torch.equal(wide.x[:, :, 1:], narrow.x)
    assert not bool(wide.x[:, :, 0].any())


def test_impossible_states_get_no_weight() -> None:
    def no_twos(x: Tensor) -> Tensor:
        return torch.where((x == 2).any(1), -torch.inf, 0.0)

    found = smc(MASKED, 24).sample(WORLD.denoiser(MASKED), no_twos, (400, 3), num_steps=STEPS, rng=Rng(4))
    alive = found.log_normaliser.isfinite()
    assert float(alive.double().mean()) > 0.9
    assert not bool((found.draw(Rng(1))[alive] == 2).any())


def test_refuses() -> None:
    with pytest.raises(ValueError, match="num_particles=0"):
        smc(MASKED, 0)
    with pytest.raises(ValueError, match="temperature=0"):
        smc(MASKED, 2, temperature=0.0)
    planned = TwistedSMC(sampler=Unmask(process=MASKED), num_particles=2)
    denoiser = WORLD.denoiser(MASKED)
    with pytest.raises(TypeError, match="site-wise transition"):
        planned.sample(denoiser, reward, (2, 3), num_steps=2, rng=Rng(0), proposal=denoiser)
    with pytest.raises(ValueError, match="came as"):
        smc(MASKED, 2).sample(denoiser, lambda x: x.double(), (2, 3), num_steps=2, rng=Rng(0))
