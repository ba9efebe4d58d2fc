from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from contracts import SamplerContract
from helpers import padded
from unmask import Categorical, Denoiser, Rng, sample, time_grid
from unmask.leap_fitting import fit_leap, golden_section, shortest_chain
from unmask.oracles.statistics import kl_divergence, total_variation
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states
from unmask.process import DiscreteProcess
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.distilled_leaping import DistilledLeaping, distil
from unmask.samplers.euler import Euler
from unmask.samplers.tau_leaping import TauLeaping
from unmask.schedules.cosine import Cosine

MASKED = Masked(vocab_size=4, mask_id=3, schedule=Cosine())
UNIFORM = Uniform(vocab_size=3)
BASES = [Euler(process=MASKED), TauLeaping(process=MASKED), Euler(process=UNIFORM), TauLeaping(process=UNIFORM)]
NAMES = ["Euler, masks", "tau, masks", "Euler, uniform", "tau, uniform"]
WORLD = TinyJoint.random(3, 3, seed=5)
FACTORS = (0.5, 1.5, 0.8, 2.0)


class TestContract(SamplerContract):
    num_steps = 4

    def make(self) -> tuple[DistilledLeaping, DiscreteProcess]:
        base = TauLeaping(process=UNIFORM)
        return DistilledLeaping(base=base, times=(1.0, 0.7, 0.4, 0.1, 0.0), factors=FACTORS), UNIFORM


@pytest.mark.parametrize("base", BASES, ids=NAMES)
def test_factors_of_one_are_the_base_sampler(base: Euler | TauLeaping) -> None:
    sampler = DistilledLeaping(base=base, times=(1.0, 0.33, 0.0), factors=(1.0, 1.0))
    denoiser = WORLD.denoiser(base.process)
    ours, theirs = (sample(s, denoiser, (200, 3), num_steps=5, rng=Rng(1)) for s in (sampler, base))
    assert isinstance(ours, torch.Tensor)
    assert isinstance(theirs, torch.Tensor)
    assert torch.equal(ours, theirs)


def test_a_factor_scales_the_rates_where_it_holds() -> None:
    """A step over two stretches leaps for 0.1 * 1.5 + 0.2 * 0.8 at its own rates."""
    base = TauLeaping(process=UNIFORM)
    sampler = DistilledLeaping(base=base, times=(1.0, 0.7, 0.4, 0.1, 0.0), factors=FACTORS)
    x, denoiser = enumerate_states(3, 3), WORLD.denoiser(UNIFORM)
    t, s = (torch.full((27,), v, dtype=torch.float64) for v in (0.5, 0.2))
    ours = sampler.transition(denoiser, x, t, s).log_probs()
    leap = base.leap(denoiser, x, t, s, torch.full((27,), 0.1 * 1.5 + 0.2 * 0.8, dtype=torch.float64))
    torch.testing.assert_close(ours, leap.log_probs())


@pytest.mark.parametrize("base", BASES, ids=NAMES)
def test_the_fit_is_the_least_divergence_of_a_leap(base: Euler | TauLeaping) -> None:
    """From the step that knows x_0, by the laws of both, with the factor that was found and with others."""
    process, denoiser = base.process, WORLD.denoiser(base.process)
    t, s = (torch.full((50,), v, dtype=torch.float64) for v in (0.6, 0.4))
    x0 = WORLD.sample(50, Rng(4))
    x, where = process.corrupt(x0, t, Rng(5)), Rng(6).uniform(x0.shape) < 0.7
    known = Categorical.from_logits(torch.nn.functional.one_hot(x0, process.vocab_size).double().log())
    truth = process.reverse(known, x, t, s).log_probs()  # type: ignore[attr-defined]

    def divergence(factor: float) -> float:
        logs = base.leap(denoiser, x, t, s, factor * (t - s)).log_probs()
        q = truth.exp()
        return float((torch.special.xlogy(q, q) - torch.where(q > 0, q * logs, 0.0)).sum(-1)[where].sum())

    cost, factor = fit_leap(base, denoiser(x, t), x0, x, t, s, where)
    assert cost == pytest.approx(divergence(factor), rel=1e-9)
    assert cost < min(divergence(0.95 * factor), divergence(1.05 * factor))


def test_the_shortest_chain_is_the_cheapest_of_all() -> None:
    costs = Rng(1).uniform((8, 8)).where(torch.ones(8, 8).triu(1) > 0, torch.inf)
    for num_steps in (1, 2, 4, 7):
        chains = ([0, *middle, 7] for middle in itertools.combinations(range(1, 7), num_steps - 1))
        cheapest = min(chains, key=lambda chain: sum(float(costs[i, j]) for i, j in itertools.pairwise(chain)))
        assert shortest_chain(costs, num_steps) == cheapest


def test_golden_sections_find_the_bottom_of_a_valley() -> None:
    seen = []

    def valley(place: float) -> float:
        seen.append(place)
        return (place - 0.7) ** 2

    best, least = golden_section(valley, -2.0, 2.0)
    assert best == pytest.approx(0.7, abs=2e-4)
    assert least == (best - 0.7) ** 2
    assert len(seen) == len(set(seen)) == 22


class Padded(Denoiser):
    """The exact denoiser of what stands between padding; it says anything of padding."""

    def forward(self, xt: Tensor, t: Tensor, *, attention_mask: Tensor, **cond: object) -> Categorical:  # type: ignore[override]
        out = torch.rand(*xt.shape, 4, dtype=torch.float64)
        inside = WORLD.conditionals(MASKED, xt[attention_mask].reshape(-1, 3), t)
        return Categorical.from_logits(out.masked_scatter(attention_mask[..., None], inside).log())


def test_padding_teaches_nothing() -> None:
    x0, base = WORLD.sample(100, Rng(7)), TauLeaping(process=MASKED)

    def learned(left: int, right: int) -> DistilledLeaping:
        tokens, mask = padded(x0, left, right)
        return distil(base, Padded(), tokens, num_steps=3, fine_steps=6, rng=Rng(8), attention_mask=mask)

    plain = learned(0, 0)
    for left, right in [(2, 0), (1, 2)]:
        ours = learned(left, right)
        assert ours.times == plain.times
        assert ours.factors == pytest.approx(plain.factors, rel=1e-9)


def law_of(sampler: Euler | TauLeaping | DistilledLeaping | Ancestral, num_steps: int) -> torch.Tensor:
    process = sampler.base.process if isinstance(sampler, DistilledLeaping) else sampler.process
    assert isinstance(process, DiscreteProcess)
    times = sampler.grid if isinstance(sampler, DistilledLeaping) else time_grid(num_steps)
    return WORLD.sampler_law(sampler.transition, WORLD.denoiser(process), process, times)


def taught(base: Euler | TauLeaping, num_steps: int, *, learn_times: bool) -> DistilledLeaping:
    denoiser = WORLD.denoiser(base.process)
    x0 = sample(Ancestral(process=base.process), denoiser, (1000, 3), num_steps=32, rng=Rng(2))
    assert isinstance(x0, torch.Tensor)
    return distil(base, denoiser, x0, num_steps=num_steps, fine_steps=16, rng=Rng(3), learn_times=learn_times)


@pytest.mark.parametrize(
    ("base", "num_steps", "share"),
    [(Euler(process=UNIFORM), 4, 0.6), (TauLeaping(process=UNIFORM), 8, 0.6), (TauLeaping(process=MASKED), 4, 0.75)],
    ids=["Euler, uniform", "tau, uniform", "tau, masks"],
)
def test_learned_times_and_factors_lower_the_error(base: Euler | TauLeaping, num_steps: int, share: float) -> None:
    target, plain = WORLD.as_states(base.process), law_of(base, num_steps)
    ours = law_of(taught(base, num_steps, learn_times=True), num_steps)
    assert kl_divergence(target, ours) < share * kl_divergence(target, plain)
    assert total_variation(target, ours) < math.sqrt(share) * total_variation(target, plain)


def test_factors_of_masks_are_known() -> None:
    """What is lost by holding the hazard fixed is made up exactly: the law is that of ancestral steps."""
    base = TauLeaping(process=MASKED)
    exact = law_of(Ancestral(process=MASKED), 4)
    assert kl_divergence(exact, law_of(taught(base, 4, learn_times=False), 4)) < 1e-9
    assert kl_divergence(exact, law_of(base, 4)) > 3e-3


def test_refuses() -> None:
    base = Euler(process=MASKED)
    with pytest.raises(ValueError, match="strictly decreasing"):
        DistilledLeaping(base=base, times=(1.0, 0.5), factors=(1.0,))
    with pytest.raises(ValueError, match="factors"):
        DistilledLeaping(base=base, times=(1.0, 0.5, 0.0), factors=(1.0,))
    with pytest.raises(ValueError, match="fine_steps"):
        taught(base, 5, learn_times=False)
