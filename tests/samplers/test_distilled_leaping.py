from __future__ import annotations

import math

import pytest
import torch

from contracts import SamplerContract
from unmask import Rng, sample, time_grid
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
    assert kl_divergence(exact, law_of(taught(base, 4, learn_times=False), 4)) < 1e-3
    assert kl_divergence(exact, law_of(base, 4)) > 5e-3


def test_refuses() -> None:
    base = Euler(process=MASKED)
    with pytest.raises(ValueError, match="strictly decreasing"):
        DistilledLeaping(base=base, times=(1.0, 0.5), factors=(1.0,))
    with pytest.raises(ValueError, match="factors"):
        DistilledLeaping(base=base, times=(1.0, 0.5, 0.0), factors=(1.0,))
    with pytest.raises(ValueError, match="fine_steps"):
        taught(base, 5, learn_times=False)
