from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import FALSE_ALARM, PaddedChain, SamplerContract
from ctmc_worlds import orders
from order_worlds import Lookup, words
from unmask import Categorical, Denoiser, Rng, sample, time_grid, trajectory
from unmask.denoisers.planned import GivenNoise, Planner
from unmask.oracles.statistics import chi_square, total_variation
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.process import Interpolating
from unmask.processes.gidd import GIDD
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.planned_denoising import Plan, PlannedDenoising
from unmask.samplers.tau_leaping import TauLeaping

UNIFORM, MASKED = Uniform(vocab_size=3), Masked(vocab_size=4, mask_id=3)


class Somewhere(Denoiser):
    """The exact law on the contract's world, made once for each canvas; on longer canvases, the contract's chain."""

    def __init__(self, world: TinyJoint, process: Interpolating) -> None:
        super().__init__()
        self.length, self.exact, self.chain = world.length, world.denoiser(process), PaddedChain(process.vocab_size)
        self.states = process.vocab_size

    def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
        if xt.shape[1] != self.length:
            return self.chain(xt, t, **cond)
        if len(xt) < 1000 or not bool((t == t[0]).all()):
            return self.exact(xt, t)
        canvases = enumerate_states(self.states, self.length)
        table = self.exact(canvases, t[:1].expand(len(canvases))).log_probs()
        return Categorical.from_logits(table[state_index(xt, self.states)])


class Planned(SamplerContract):
    num_steps = 4
    process: Interpolating
    settings: dict[str, Any]

    def make(self) -> tuple[PlannedDenoising, Interpolating]:
        planner = Planner(Somewhere(self.world(), self.process), self.process)
        return PlannedDenoising(**{"process": self.process, "planner": planner, **self.settings}), self.process

    def model(self) -> tuple[PlannedDenoising, Interpolating, Denoiser]:  # type: ignore[override]
        sampler, process = self.make()
        return sampler, process, GivenNoise(Somewhere(self.world(), process), process)


class Adaptive(Planned):
    def test_empirical_law_is_the_recursion_law(self) -> None:
        sampler, _, denoiser = self.model()
        x, t = torch.zeros(1, 3).long(), torch.ones(1).double()
        with pytest.raises(ValueError, match="adaptive"):
            sampler.transition(denoiser, x, t, t / 2)


class TestAdaptiveUniform(Adaptive):
    process, settings = UNIFORM, {}


class TestAdaptiveMasked(Adaptive):
    process, settings = MASKED, {"tolerance": 1.0, "moves": 2}


class TestGridUniform(Planned):
    """One denoiser in both parts."""

    process, settings = UNIFORM, {"adaptive": False, "planner": None}

    def model(self) -> tuple[PlannedDenoising, Interpolating, Denoiser]:  # type: ignore[override]
        return *self.make(), Somewhere(self.world(), self.process)


class TestGridMasked(Planned):
    process, settings = MASKED, {"adaptive": False}


class TestMaskDenoiser(Adaptive):
    """A planner of uniform noise, a denoiser of masks."""

    process, settings = UNIFORM, {"mask_id": 3}

    def model(self) -> tuple[PlannedDenoising, Interpolating, Denoiser]:  # type: ignore[override]
        return *self.make(), Lookup(self.world(), 3)


def test_on_the_grid_the_law_of_the_data_is_reached_at_first_order() -> None:
    world, process = TinyJoint.random(2, 3, seed=4), Uniform(vocab_size=2)
    sampler = PlannedDenoising(process=process, planner=Planner(world.denoiser(process), process), adaptive=False)
    denoiser, errors = GivenNoise(world.denoiser(process), process), []
    for num_steps in (8, 16, 32):
        law = world.sampler_law(sampler.transition, denoiser, process, time_grid(num_steps))
        errors.append(total_variation(law, world.probs))
    assert errors[-1] < 0.015
    assert all(0.8 < slope < 1.3 for slope in orders(errors)), errors


def test_one_denoiser_may_play_both_parts() -> None:
    world, process = TinyJoint.random(2, 3, seed=4), Uniform(vocab_size=2)
    exact = world.denoiser(process)
    two = PlannedDenoising(process=process, planner=Planner(exact, process))
    one = PlannedDenoising(process=process)
    apart = list(trajectory(two, GivenNoise(exact, process), world.sample(12, Rng(1)), time_grid(5), rng=Rng(2)))
    joint = list(trajectory(one, exact, world.sample(12, Rng(1)), time_grid(5), rng=Rng(2)))
    for first, second in zip(apart, joint, strict=True):
        assert torch.equal(first.canvas, second.canvas)  # type: ignore[arg-type]
    assert joint[-1].network_calls == apart[-1].network_calls + 5, "the planner's calls are counted, too"


def test_with_masks_the_grid_is_ancestral_sampling() -> None:
    world, process = TinyJoint.random(3, 3, seed=5), MASKED
    planner = Planner(world.denoiser(process), process)
    sampler = PlannedDenoising(process=process, planner=planner, adaptive=False)
    plain = Ancestral(process=process)
    for steps in (2, 5):
        one = world.sampler_law(
            sampler.transition, GivenNoise(world.denoiser(process), process), process, time_grid(steps)
        )
        two = world.sampler_law(plain.transition, world.denoiser(process), process, time_grid(steps))
        torch.testing.assert_close(one, two, atol=1e-12, rtol=0)


def test_masks_are_noise_whatever_a_planner_says() -> None:
    """A planner that doubts all sites alike: tokens are mended now and then, masks as in ancestral sampling."""

    class Even(Denoiser):
        def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
            return Categorical.from_logits(torch.zeros(*xt.shape, 2).double())

    class Values(Denoiser):
        def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
            return Categorical.from_logits(torch.tensor([0.5, 0.3, 0.2, 0.0]).double().log().expand(*xt.shape, 4))

    sampler, denoiser = PlannedDenoising(process=MASKED, planner=Even(), adaptive=False), Values()
    x = torch.tensor([[3, 1, 3, 0]]).expand(20_000, -1)
    t, s = torch.full((20_000,), 0.8).double(), torch.full((20_000,), 0.2).double()
    law = sampler.transition(denoiser, x[:1], t[:1], s[:1]).log_probs().exp()[0]
    torch.testing.assert_close(law[[0, 2], 3], torch.full((2,), 0.25).double())
    torch.testing.assert_close(law[1, 0], torch.tensor(0.5 * 0.75 * 0.5).double())
    after, _ = sampler.step(denoiser, x, t, s, sampler.init(x), Rng(3))
    for site in range(4):
        assert chi_square(after[:, site].bincount(minlength=4), law[site]) > FALSE_ALARM  # type: ignore[index]


def test_the_adaptive_law_is_near_the_data_and_says_so_by_its_distance() -> None:
    """Heuristic: with uniform noise a distance stays; with masks, one reveal at a time is exact."""
    n, gaps = 8_000, {}
    for process, values in ((Uniform(vocab_size=2), 2), (Masked(vocab_size=3, mask_id=2), 3)):
        world = TinyJoint.random(2, 3, seed=4)
        exact = Lookup(world, 3) if values == 3 else world.denoiser(process)
        sampler = PlannedDenoising(process=process, planner=Planner(exact, process))
        drawn = sample(sampler, GivenNoise(exact, process), (n, 3), num_steps=16, rng=Rng(0))
        counts = state_index(drawn, 2).bincount(minlength=8)  # type: ignore[arg-type]
        gaps[values] = total_variation(counts / n, world.probs)
    assert 0.02 < gaps[2] < 0.2
    assert gaps[3] < 0.03


class Rows(Denoiser):
    """Counts the rows that were evaluated, a batch's calls if each row were alone."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
        self.seen += len(xt)
        law: Categorical = self.inner(xt, t, **cond)
        return law


@pytest.mark.parametrize("seed", range(3))
def test_wrong_tokens_that_come_late_are_mended_with_fewer_calls_than_tau_leaping(seed: int) -> None:
    """Four of 24 tokens are wrong at t = 0.02, when 0.5 are expected. The planner turns its clock back and mends what
    the world's law lost, all of it; jumps by the clock mend less in twice as many calls (all networks counted).

    A clock that is told the truth, t = 0.22, makes up for it: the planner's gain is that nobody need tell.
    """
    world, process, n, late, tokens = words(0.002), Uniform(vocab_size=4), 200, 0.02, 4
    clean = world.sample(n, 24, Rng(seed))
    hit = Rng(seed).fold(8).uniform(clean.shape).argsort(1).argsort(1) < tokens
    other = (clean + 1 + (Rng(seed).fold(9).uniform(clean.shape) * 3).long()) % 4
    bad = torch.where(hit, other, clean)
    lost = float((world.log_prob(clean) - world.log_prob(bad)).mean())

    def mended(sampler: Any, wrap: bool, start: float, num_steps: int) -> tuple[float, float]:
        rows, x = Rows(world.denoiser(process)), bad
        denoiser: Denoiser = GivenNoise(rows, process) if wrap else rows
        if wrap:
            sampler = PlannedDenoising(process=process, planner=Planner(rows, process), tolerance=0.5)
        for event in trajectory(sampler, denoiser, x, start * time_grid(num_steps), rng=Rng(seed + 5)):
            x = event.canvas  # type: ignore[assignment]
        return float((world.log_prob(x) - world.log_prob(bad)).mean()) / lost, rows.seen / n

    planned, calls = mended(None, True, late, 16)
    by_clock, more = mended(TauLeaping(process=process), False, late, 24)
    told, _ = mended(TauLeaping(process=process), False, 4 / 24 * 4 / 3, 12)
    print(f"seed {seed}: planned {planned:.3f} in {calls:.1f} calls, tau-leaping {by_clock:.3f} in {more}, told {told}")
    assert planned > 0.995
    assert calls < 12 < more == 24
    assert by_clock < 0.985
    assert told > 0.99


def test_the_clock_is_the_planners() -> None:
    """After a step the row's time has the noise n / m times u^(1 / n), below what the planner found; a finished row
    keeps its time and its tokens."""
    process = Uniform(vocab_size=4)
    probability = 0.75

    class Half(Denoiser):
        def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
            noisy = torch.where((xt == 0).all(1), 1e-3, probability)[:, None].expand(xt.shape).double()
            return Categorical.from_logits(torch.stack([1 - noisy, noisy], -1).log())

    sampler = PlannedDenoising(process=process, planner=Half())
    x = torch.tensor([[0] * 4, [1] * 4]).repeat(2000, 1)
    t = torch.full((4000,), 0.3).double()
    after, carry = sampler.step(PaddedChain(4), x, t, 0.9 * t, Plan(), Rng(0))
    assert carry.done is not None
    assert carry.time is not None
    assert carry.done.tolist() == [True, False] * 2000
    assert torch.equal(after[::2], x[::2])
    torch.testing.assert_close(carry.time[::2], t[::2])
    share = carry.time[1::2] / probability  # u^(1/3), whose mean is 3/4
    assert bool((share < 1).all())
    assert abs(float(share.mean()) - 0.75) < 5.3 * 0.19 / 2000**0.5


def test_a_row_may_be_finished_while_another_is_not_and_several_sites_move_at_once() -> None:
    process = Masked(vocab_size=3, mask_id=2)
    world = TinyJoint.random(2, 4, seed=1)
    denoiser = Lookup(world, 4)
    for moves, wanted in [(1, [3, 2, 1, 0]), (3, [1, 0, 0, 0])]:
        sampler = PlannedDenoising(process=process, planner=Planner(denoiser, process), moves=moves)
        events = list(trajectory(sampler, denoiser, process.prior((8, 4), Rng(0)), time_grid(4), rng=Rng(1)))
        left = [int((event.canvas == 2).sum(1).max()) for event in events]  # type: ignore[union-attr]
        assert left == wanted
    sampler = PlannedDenoising(process=process, planner=Planner(denoiser, process))
    short = list(trajectory(sampler, denoiser, process.prior((8, 4), Rng(0)), time_grid(2), rng=Rng(1)))
    assert not bool((short[-1].canvas == 2).any()), "all masks are filled in the last step"  # type: ignore[union-attr]
    calls = [event.network_calls for event in trajectory(sampler, denoiser, short[-1].canvas, time_grid(3), rng=Rng(2))]
    assert calls == [0, 0, 0], "a finished canvas costs the denoiser nothing"


def test_the_denoiser_of_masks_sees_masks_where_the_planner_says_noise() -> None:
    process, shown = Uniform(vocab_size=3), []

    class Sure(Denoiser):
        def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
            noisy = torch.tensor([1.0, 1.0, 0.0, 0.0]).double().expand(xt.shape)
            return Categorical.from_logits(torch.stack([1 - noisy, noisy], -1).log())

    class Watched(PaddedChain):
        def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
            shown.append(xt)
            return super().forward(xt, t, **cond)

    sampler = PlannedDenoising(process=process, planner=Sure(), mask_id=3)
    sample(sampler, Watched(4), (8, 4), num_steps=1, rng=Rng(0))
    assert bool((shown[0][:, :2] == 3).all())
    assert bool((shown[0][:, 2:] < 3).all())


def test_refuses() -> None:
    planner = Planner(PaddedChain(3), UNIFORM)
    for settings, message in [
        ({"moves": 0}, "moves"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": 2.0}, "toler"),
    ]:
        with pytest.raises(ValueError, match=message):
            PlannedDenoising(process=UNIFORM, planner=planner, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without a planner"):
        PlannedDenoising(process=UNIFORM, mask_id=3)
    with pytest.raises(ValueError, match="moves with time"):
        PlannedDenoising(process=GIDD(vocab_size=4, mask_id=3, p_uniform=0.3), planner=planner)
    with pytest.raises(TypeError, match="Interpolating"):
        PlannedDenoising(process=object(), planner=planner)  # type: ignore[arg-type]
