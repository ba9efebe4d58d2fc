"""Sequential Monte Carlo: an unbiased normaliser, the tilted law as particles grow, and rows for themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import FALSE_ALARM, PaddedChain
from unmask import Carry, Categorical, Denoiser, Rng, State, sample, time_grid, trajectory
from unmask.guidance.classifier import ClassifierGuided
from unmask.guidance.smc import Particles, TwistedSMC
from unmask.oracles.statistics import chi_square, total_variation
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.process import DiscreteProcess
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.first_hitting import FirstHitting
from unmask.samplers.planned_denoising import PlannedDenoising
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
    law, errors = tilted(process)[0], []
    for particles, rows in ((1, 4000), (4, 3000), (16, 1500), (128, 500)):
        found = smc(process, particles).sample(
            WORLD.denoiser(process), reward, (rows, 3), num_steps=STEPS, rng=Rng(particles)
        )
        weighted = torch.zeros(27, dtype=torch.float64)  # what `draw` draws from, on average over rows
        weighted.index_add_(0, state_index(found.x.flatten(0, 1), 3), found.log_weights.exp().flatten() / rows)
        errors.append(total_variation(weighted, law))
    print(errors)
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 7 * errors[3]


def test_a_draw_is_a_particle_by_its_weight() -> None:
    rows, x = 40_000, torch.tensor([[[0], [1], [2], [2]]])
    log_weights = torch.tensor([[0.1, 0.0, 0.3, 0.6]]).double().log()
    found = Particles(
        x=x.expand(rows, -1, -1),
        log_weights=log_weights.expand(rows, -1),
        log_normaliser=torch.zeros(rows),
        effective=torch.ones(1, rows),
        network_calls=0,
    )
    counts = found.draw(Rng(1)).flatten().bincount(minlength=3)
    assert chi_square(counts, torch.tensor([0.1, 0.0, 0.9]).double()) > FALSE_ALARM


class Remembering(Ancestral):
    """Ancestral steps that remember the canvas they left, and find it there when they go on."""

    def init(self, x: State) -> Carry:
        return Canvas(canvas=x)

    def step(self, denoiser: Denoiser, x: State, t: Tensor, s: Tensor, carry: Carry, rng: Rng, **cond: Any) -> Any:
        assert isinstance(carry, Canvas)
        assert torch.equal(carry.canvas, x)  # type: ignore[arg-type]
        after, _ = super().step(denoiser, x, t, s, carry, rng, **cond)
        return after, Canvas(canvas=after)


@dataclass(frozen=True, kw_only=True, eq=False)
class Canvas(Carry):
    canvas: Any


def test_what_a_sampler_remembers_goes_with_its_particle_and_one_particle_is_the_sampler() -> None:
    """Masks and canvases of sharp rewards, resampled always."""
    denoiser = WORLD.denoiser(UNIFORM)
    run = TwistedSMC(sampler=Remembering(process=UNIFORM), num_particles=8, threshold=1.0, temperature=0.1)
    found = run.sample(denoiser, reward, (50, 3), num_steps=STEPS, rng=Rng(1))
    assert float(found.effective[:-1].amin()) < 4, "some rows were resampled"
    single = smc(UNIFORM, 1).sample(denoiser, reward, (50, 3), num_steps=STEPS, rng=Rng(6))
    plain = sample(Ancestral(process=UNIFORM), denoiser, (50, 3), num_steps=STEPS, rng=Rng(6))
    assert torch.equal(single.x.squeeze(1), plain)  # type: ignore[arg-type]


def test_several_draws_steady_the_potential_and_are_counted() -> None:
    """Potentials of 8 draws each: as unbiased, with less spread; the reward is asked as often as promised."""
    rows, spread, asked = 2000, {}, []

    def watched(x: Tensor) -> Tensor:
        asked.append(len(x))
        return reward(x)

    for draws in (1, 8):
        asked.clear()
        run = smc(MASKED, 4, threshold=1.0, temperature=0.5, num_draws=draws)
        found = run.sample(WORLD.denoiser(MASKED), watched, (rows, 3), num_steps=STEPS, rng=Rng(9))
        assert sum(asked) == rows * (4 * draws * (STEPS - 1) + 4)
        estimates, states = found.log_normaliser.exp(), WORLD.sequences
        law = WORLD.sampler_law(Ancestral(process=MASKED).transition, WORLD.denoiser(MASKED), MASKED, time_grid(STEPS))[
            (enumerate_states(4, 3) < 3).all(1)
        ]
        z = float((law * (reward(states) / 0.5).exp()).sum())
        assert abs(float(estimates.mean()) - z) < 5.3 * float(estimates.std()) / rows**0.5
        spread[draws] = float(estimates.std())
    assert spread[8] < 0.85 * spread[1]


def test_a_potential_is_the_mean_of_its_draws() -> None:
    """log G from the rewards as they were asked for, against the effective number that it leaves."""
    seen = []

    def watched(x: Tensor) -> Tensor:
        seen.append(2 * reward(x))
        return seen[-1]

    run = smc(MASKED, 6, threshold=0.0, num_draws=3)
    found = run.sample(WORLD.denoiser(MASKED), watched, (20, 3), num_steps=2, rng=Rng(9))
    share = torch.stack(seen[:3]).exp().mean(0).reshape(20, 6)
    torch.testing.assert_close(found.effective[0], share.sum(1).square() / share.square().sum(1))


def test_fixed_sites_are_kept_in_every_question_and_cost_a_proposal_nothing() -> None:
    """Uniform noise, whose law doubts them: the reward sees them as they are. A proposal that leans at them alone moves
    the others as the model does, so that all weights are even."""
    canvas = torch.tensor([[0, 2, 1]]).expand(40, -1)
    editable = torch.tensor([[True, False, True]]).expand(40, -1)

    def nothing(x: Tensor) -> Tensor:
        assert bool((x[:, 1] == 2).all())
        return torch.zeros(len(x)).double()

    class Leaning(Denoiser):
        def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
            logits = WORLD.denoiser(UNIFORM)(xt, t, **cond).log_probs().clone()
            logits[:, 1, 0] += 2.0
            return Categorical.from_logits(logits)

    found = smc(UNIFORM, 4).sample(
        WORLD.denoiser(UNIFORM), nothing, canvas, num_steps=3, rng=Rng(1), proposal=Leaning(), editable=editable
    )
    torch.testing.assert_close(found.log_normaliser, torch.zeros(40).double(), atol=1e-12, rtol=0)


def test_calls_of_the_network_are_counted_where_they_are_made() -> None:
    """Two a step of a denoiser that plans, too; those of a proposal as well."""
    denoiser = WORLD.denoiser(UNIFORM)
    run = TwistedSMC(sampler=PlannedDenoising(process=UNIFORM, adaptive=False), num_particles=2)
    found = run.sample(denoiser, reward, (3, 3), num_steps=STEPS, rng=Rng(0))
    plain = list(trajectory(run.sampler, denoiser, UNIFORM.prior((6, 3), Rng(0)), time_grid(STEPS), rng=Rng(0)))
    assert found.network_calls == plain[-1].network_calls + STEPS - 1 > 2 * STEPS
    both = smc(UNIFORM, 2).sample(denoiser, reward, (3, 3), num_steps=STEPS, rng=Rng(0), proposal=denoiser)
    assert both.network_calls == 2 * STEPS + STEPS - 1


def test_positions_may_be_named() -> None:
    places = torch.arange(3).flip(0).expand(4, -1)
    named = smc(MASKED, 5, threshold=1.0).sample(
        PaddedChain(4), reward, (4, 3), num_steps=STEPS, rng=Rng(2).positions(places)
    )
    plain = smc(MASKED, 5, threshold=1.0).sample(PaddedChain(4), reward, (4, 3), num_steps=STEPS, rng=Rng(2))
    assert named.x.shape == plain.x.shape
    assert named.draw(Rng(2).positions(places)).shape == (4, 3)
    assert not torch.equal(named.x, plain.x)


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
    with pytest.raises(TypeError, match="columns"):
        smc(MASKED, 2).sample(denoiser, reward, {"a": (2, 3)}, num_steps=2, rng=Rng(0))
    keeping = TwistedSMC(sampler=FirstHitting(process=MASKED, order=2), num_particles=4, threshold=1.0)
    with pytest.raises(TypeError, match="remembers law"):
        keeping.sample(denoiser, reward, (8, 3), num_steps=3, rng=Rng(0))
    with pytest.raises(ValueError, match="came as"):
        smc(MASKED, 2).sample(denoiser, lambda x: x.double(), (2, 3), num_steps=2, rng=Rng(0))
