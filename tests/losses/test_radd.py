import itertools
import math

import pytest
import torch
from torch import Tensor

from contracts import BoundContract, standard_errors, time, unit_interval_quadrature
from helpers import CountingHead
from masked_bounds import MaskedCalls
from unmask import Categorical, Denoiser, DiscreteProcess, Loss, Rng, Schedule, time_grid, trajectory
from unmask.denoisers.masked import MaskedDenoiser
from unmask.denoisers.score import law_log_scores
from unmask.losses.any_order import AnyOrderNLL
from unmask.losses.masked_nelbo import MaskedNELBO
from unmask.losses.radd import LambdaDCE, masked_log_scores
from unmask.losses.score_entropy import score_entropy_rate
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.processes.masked import Masked
from unmask.samplers.ancestral import Ancestral
from unmask.schedules.cosine import Cosine
from unmask.schedules.linear import Linear

WORLD = TinyJoint.random(2, 3, seed=2)


def process_of(schedule: Schedule) -> Masked:
    return Masked(vocab_size=3, mask_id=2, schedule=schedule)


class TestLambdaDCE(BoundContract):
    def make(self) -> tuple[LambdaDCE, Masked]:
        process = process_of(Cosine())
        return LambdaDCE(process=process), process

    def estimate(self, loss: Loss, process: DiscreteProcess, world: TinyJoint, n: int) -> Tensor:
        return super().estimate(loss, process, world, 18_000)


class TestCalls(MaskedCalls):
    kind = LambdaDCE


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=str)
@pytest.mark.parametrize("t", [1e-6, 0.4, 0.99])
def test_the_score_is_a_time_factor_times_time_free_conditionals(schedule: Schedule, t: float) -> None:
    """Against p_t(y) / p_t(x_t) from the enumerated noised law; the conditionals are taken at another time."""
    process = process_of(schedule)
    noised, states = WORLD.noised(process, t), enumerate_states(3, 3)
    masked = states == 2
    law = WORLD.denoiser(process)(states, time(0.123).expand(len(states)))
    got = masked_log_scores(process, law, states, time(t).expand(len(states)), masked).exp()
    row, site = masked.nonzero().T
    swapped = states[row].repeat(3, 1, 1)
    swapped[:, torch.arange(len(row)), site] = torch.arange(3)[:, None]
    exact = (noised[state_index(swapped.flatten(0, 1), 3)].reshape(3, -1) / noised[row]).T
    torch.testing.assert_close(got, exact, atol=0, rtol=1e-10)
    generic = law_log_scores(process, law, states, time(t).expand(len(states)), masked).exp()
    torch.testing.assert_close(got, generic, atol=0, rtol=1e-10)


def log_conditionals(tempered: float) -> dict[tuple[int, ...], Tensor]:
    """log p(x_0^i = . | x_t) for every x_t, from the exact joint raised to a power (1: the data's)."""
    world = TinyJoint(WORLD.probs.reshape(2, 2, 2) ** tempered)
    states = enumerate_states(3, 3)
    laws = world.conditionals(process_of(Linear()), states, time(0.5).expand(len(states)))
    return {tuple(x.tolist()): law.log() for x, law in zip(states, laws, strict=True)}


def masks_of(x0: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(m, x0.masked_fill(m, 2)) for m in map(torch.tensor, itertools.product([False, True], repeat=3))]


def by_enumeration(tempered: float, schedule: Schedule) -> dict[str, float]:
    """The four losses averaged over data, masks and time without any draw."""
    table, process = log_conditionals(tempered), process_of(schedule)
    cases = [(p, x0, *case) for p, x0 in zip(WORLD.probs, WORLD.sequences, strict=True) for case in masks_of(x0)]
    p, x0, mask, xt = (torch.stack(column) for column in zip(*cases, strict=True))
    log_probs, k = torch.stack([table[tuple(x.tolist())] for x in xt]), mask.sum(1).double()
    nll = -(log_probs.gather(-1, x0[..., None])[..., 0].where(mask, 0.0)).sum(1)
    subsets = torch.tensor([math.comb(3, n) for n in range(4)])[k.long()]
    totals = {"any order": float((p * nll * torch.where(k > 0, 1 / (k * subsets), 0.0)).sum())}
    totals |= dict.fromkeys(("score entropy", "t", "lambda"), 0.0)
    law = Categorical.from_logits(log_probs)
    for node, weight in unit_interval_quadrature(20):
        t = time(node)
        noise = float(process.schedule.noise(t))
        chance = p * weight * noise**k * (1 - noise) ** (3 - k)
        totals["t"] += float((chance * process.hazard(t) * nll).sum())
        totals["lambda"] += float((p * weight * node**k * (1 - node) ** (3 - k) * nll / node).sum())
        rate = score_entropy_rate(process, law, x0, xt, t.expand(len(xt)), mask)
        totals["score entropy"] += float((chance * rate.sum(1)).sum())
    return totals


@pytest.mark.parametrize(("tempered", "schedule"), [(1.0, Cosine()), (0.4, Linear())])
def test_the_four_losses_agree_by_enumeration(tempered: float, schedule: Schedule) -> None:
    """Equal to each other for any conditionals, and to the entropy for the exact ones."""
    totals = by_enumeration(tempered, schedule)
    assert max(totals.values()) - min(totals.values()) < 1e-10
    if tempered == 1.0:
        assert totals["lambda"] == pytest.approx(WORLD.entropy, abs=1e-10)
    else:
        assert totals["lambda"] > WORLD.entropy + 0.05


def test_the_estimators_agree_in_expectation() -> None:
    """The code of each on draws, for a network that is not exact (score entropy equals the second draw by draw)."""
    process = Masked(vocab_size=6, mask_id=5, schedule=Cosine())
    denoiser = MaskedDenoiser(CountingHead(vocab_size=6), vocab_size=6, mask_id=5)
    x0 = torch.randint(0, 5, (2_000, 6), generator=torch.Generator().manual_seed(1))
    losses = [kind(process=process) for kind in (LambdaDCE, MaskedNELBO, AnyOrderNLL)]
    means = torch.stack(
        [
            torch.stack([loss(denoiser, part, Rng(k).fold(n)).mean() for n, part in enumerate(x0.split(100))])
            for k, loss in enumerate(losses)
        ]
    )
    anchor = means[2]  # the least variance
    for other in means[:2]:
        assert abs(standard_errors(other - anchor, 0.0)) < 5.3


class CachedOutput(Denoiser):
    """Keeps the law of the last canvas, and gives it again while the canvas is the same: RADD's cache."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, xt: Tensor, t: Tensor, **cond: object) -> object:
        if self.calls == 0 or not torch.equal(xt, self.last):
            self.last, self.law = xt, self.inner(xt, t, **cond)
            self.calls += 1
        return self.law


@pytest.mark.parametrize(("length", "num_steps"), [(5, 12)])
def test_cached_sampling_gives_the_same_tokens_in_the_predicted_calls(length: int, num_steps: int) -> None:
    """Calls: T (1 - (1 - 1/T)^L) on average for linear alpha, with a cache or by skipping steps that set nothing."""
    process = Masked(vocab_size=6, mask_id=5)
    inner, sampler = MaskedDenoiser(CountingHead(vocab_size=6), vocab_size=6, mask_id=5), Ancestral(process=process)
    start, times = torch.full((1, length), 5), time_grid(num_steps)
    for seed in range(2):
        cached, canvas, plain = CachedOutput(inner), start, start
        for index, (t, s) in enumerate(itertools.pairwise(times[:, None])):
            rng = Rng(seed).fold(2, index)  # the loop's own stream
            plain = process.reverse(inner(plain, t), plain, t, s).sample(rng)
            canvas = process.reverse(cached(canvas, t), canvas, t, s).sample(rng)
            assert torch.equal(plain, canvas)
        *_, last = trajectory(sampler, inner, start, times, rng=Rng(seed))
        assert torch.equal(last.canvas, plain)
        # a cache is asked once for each canvas met before a step, the loop once for each change
        assert cached.calls - last.network_calls in (0, 1)
    calls = [list(trajectory(sampler, inner, start, times, rng=Rng(k)))[-1].network_calls for k in range(16)]
    steps = num_steps
    expected = steps * (1 - (1 - 1 / steps) ** length)
    square = steps * (1 - 1 / steps) ** length + steps * (steps - 1) * (1 - 2 / steps) ** length
    deviation = (square - (steps * (1 - 1 / steps) ** length) ** 2) ** 0.5
    assert abs(sum(calls) / 16 - expected) < 5.3 * deviation / 16**0.5


def test_scores_of_unmasked_tokens_are_refused() -> None:
    law = WORLD.denoiser(process_of(Linear()))(torch.tensor([[0, 2, 2]]), time(0.5))
    with pytest.raises(ValueError, match="not masked"):
        masked_log_scores(
            process_of(Linear()), law, torch.tensor([[0, 2, 2]]), time(0.5), torch.ones(1, 3, dtype=torch.bool)
        )
