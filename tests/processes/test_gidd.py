from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import (
    FALSE_ALARM,
    BoundContract,
    DiscreteProcessContract,
    SamplerContract,
    time,
    unit_interval_quadrature,
)
from helpers import CountingHead
from unmask import Categorical, DiscreteProcess, Loss, Rng, sample, time_grid, trajectory
from unmask.denoisers.masked import MaskedDenoiser
from unmask.losses.nelbo import NELBO
from unmask.oracles.statistics import chi_square
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states
from unmask.processes.gidd import GIDD
from unmask.processes.masked import Masked
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.euler import Euler
from unmask.samplers.theta_trapezoidal import ThetaTrapezoidal
from unmask.samplers.uniformisation import Uniformisation

SETTINGS = [(0.2, 1.0), (0.5, 2.0), (0.0, 1.0)]


class TestGIDD(DiscreteProcessContract):
    @pytest.fixture(autouse=True, params=SETTINGS, ids=str)
    def _setting(self, request: pytest.FixtureRequest) -> None:
        self.p_uniform, self.gamma = request.param

    def make(self) -> GIDD:
        return GIDD(vocab_size=4, mask_id=3, p_uniform=self.p_uniform, gamma=self.gamma)

    def test_the_bound_of_the_exact_denoiser_is_the_entropy(self) -> None:
        """Sharper than the contract, whose nodes miss the hump's square roots: the integral from a to b is what x_t
        forgets of x_0 in that time, I(x_0; x_a) - I(x_0; x_b), and I goes from the entropy at t = 0 to 0 at t = 1."""
        process, world = self.make(), self.world()
        states = enumerate_states(process.vocab_size, world.length)
        n, k = len(world.sequences), len(states)
        x0, xt = world.sequences.repeat_interleave(k, 0), states.repeat(n, 1)

        def joint(t: float) -> Tensor:
            noised = self.kernel(0.0, t)[world.sequences][:, torch.arange(world.length), states].prod(-1)
            return world.probs[:, None] * noised

        def information(t: float) -> float:
            both = joint(t)
            return float(torch.special.xlogy(both, both / both.sum(0) / world.probs[:, None]).nansum())

        def rate(t: float) -> float:
            law = world.denoiser(process)(states, time(t).expand(k))
            rows = Categorical.from_logits(law.log_probs().repeat(n, 1, 1))
            return float((joint(t).flatten() * process.nelbo_rate(rows, x0, xt, time(t).expand(n * k)).sum(1)).nansum())

        ends = [1e-6, 1e-4, 1e-2, 0.2, 0.9, 0.999, 1 - 1e-5]
        assert information(0.0) == pytest.approx(world.entropy)
        assert information(1.0) == pytest.approx(0.0, abs=1e-12)
        for a, b in pairwise(ends):
            lost = 0.0
            for t, weight in unit_interval_quadrature(24):
                u = t ** (1 / 3)  # the plain Gauss-Legendre node, for a map that is flat at both ends
                step = a + (b - a) * u**3 * (10 - 15 * u + 6 * u**2)
                lost += weight * (b - a) * 10 * (1 - u) ** 2 * rate(step)
            assert lost == pytest.approx(information(a) - information(b), abs=1e-8)


class TestAncestralOverGIDD(SamplerContract):
    num_steps = 2

    def make(self) -> tuple[Ancestral, GIDD]:
        process = GIDD(vocab_size=4, mask_id=3, p_uniform=0.3)
        return Ancestral(process=process), process


class TestBound(BoundContract):
    def make(self) -> tuple[NELBO, GIDD]:
        process = GIDD(vocab_size=3, mask_id=2, p_uniform=0.3)
        return NELBO(process=process), process

    def estimate(self, loss: Loss, process: DiscreteProcess, world: TinyJoint, n: int) -> Tensor:
        return super().estimate(loss, process, world, 12_000)  # the integral above is the sharper test


def tokens_and_law(process: GIDD, n: int = 200) -> tuple[Tensor, Tensor, Tensor, Categorical]:
    """Noised tokens at random times, and a law that is not the exact one."""
    data, t = process.vocab_size - 1, Rng(1).uniform((n,))
    x0 = (Rng(0).uniform((n, 3)) * data).long()
    logits = Rng(2).normal((n, 3, process.vocab_size)).index_fill(2, torch.tensor([process.mask_id]), -torch.inf)
    return x0, process.corrupt(x0, t, Rng(3)), t, Categorical.from_logits(2 * logits)


def test_without_uniform_tokens_it_is_masked_diffusion() -> None:
    """The bound's integrand and the reverse step, for a wrong law; and nobody asks about tokens."""
    hybrid, masked = GIDD(vocab_size=6, mask_id=5, p_uniform=0.0), Masked(vocab_size=6, mask_id=5)
    x0, xt, t, law = tokens_and_law(hybrid)
    law = law.with_known(xt, xt != 5)
    assert set((xt == x0).int().add(2 * (xt == 5)).unique().tolist()) == {1, 2}
    torch.testing.assert_close(hybrid.nelbo_rate(law, x0, xt, t), masked.nelbo_rate(law, x0, xt, t))
    step = [process.reverse(law, xt, t, 0.4 * t).log_probs().exp() for process in (hybrid, masked)]  # type: ignore[attr-defined]
    torch.testing.assert_close(step[0], step[1], atol=1e-12, rtol=0)
    net = CountingHead(6)
    hybrid.nelbo_rate(MaskedDenoiser(net, vocab_size=6, mask_id=5)(xt, t), x0, xt, t)
    assert net.rows_seen == int((xt == 5).sum())


@pytest.mark.parametrize("setting", SETTINGS[:2])
def test_rates_and_kernels_agree_with_autodiff(setting: tuple[float, float]) -> None:
    process = GIDD(vocab_size=5, mask_id=1, p_uniform=setting[0], gamma=setting[1])
    x, t = torch.arange(5).repeat(3), torch.tensor([0.1, 0.5, 0.93]).double().repeat_interleave(5)
    derived = DiscreteProcess._rates_into(process, x, t)
    torch.testing.assert_close(process._rates_into(x, t), derived)
    assert bool((derived >= 0).sum(1).eq(4).all()), "jumps have rates >= 0"
    for s, later in [(0.0, 0.4), (0.3, 0.8)]:
        mine = process.likelihood(x, time(s)[0], time(later)[0])
        kept = process.schedule.alpha(time(later)) / process.schedule.alpha(time(s))
        noise = [process.schedule.noise(time(v)) * process.mixing(time(v)[0])[x] for v in (s, later)]
        jump = noise[1] - kept * noise[0]
        torch.testing.assert_close(mine, jump[:, None] + kept * torch.eye(5).double()[x])


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_half_way_the_uniform_share_is_as_named(gamma: float) -> None:
    process = GIDD(vocab_size=5, mask_id=1, p_uniform=0.3, gamma=gamma)
    half = process.schedule.noise(time(0.5)) * process.mixing(time(0.5)[0])
    assert float(half.sum() - half[1]) == pytest.approx(0.3)
    assert float(process.mixing(time(1.0)[0])[1]) == 1.0


def test_the_bound_is_the_papers_kl_and_itakura_saito() -> None:
    """With u ~ law / q(x_t | x_0), written out densely, against the rates of Campbell et al."""
    process = GIDD(vocab_size=6, mask_id=2, p_uniform=0.3)
    x0, xt, t, law = tokens_and_law(process)
    q = process.marginal(torch.eye(6).double()[x0], t)
    evidence = process.likelihood(xt, torch.zeros_like(t), t)
    u = law.log_probs().exp() / evidence
    p = process.marginal(u / u.sum(-1, keepdim=True), t)
    ratio = (q / p).gather(-1, xt[..., None]).squeeze(-1)
    both = (q * (q / p).log()).sum(-1) + ratio - ratio.log() - 1
    torch.testing.assert_close(process.divergence(law, x0, xt, t), both, atol=1e-12, rtol=1e-9)
    weight = process._into(xt, t[:, None].expand_as(xt)) / q.gather(-1, xt[..., None]).squeeze(-1)
    torch.testing.assert_close(process.bound_weight(x0, xt, t), weight)
    torch.testing.assert_close(process.nelbo_rate(law, x0, xt, t), DiscreteProcess.nelbo_rate(process, law, x0, xt, t))


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 8.0])
@pytest.mark.parametrize("t", [1e-6, 0.01, 0.5, 0.99, 1 - 1e-6])
def test_float32_logits_of_a_large_vocabulary_give_the_derived_bound(t: float, sharpness: float) -> None:
    """Products in place of logarithms and sums in float32, against every rate in float64."""
    v = 5000
    process, tt = GIDD(vocab_size=v, mask_id=7, p_uniform=0.2), time(t).expand(4)
    logits = sharpness * Rng(1).normal((4, 3, v))
    x0, xt = (8 + (Rng(k).uniform((4, 3)) * (v - 8)).long() for k in (2, 3))
    xt[:2] = x0[:2]
    xt[:, 0] = 7
    certainty = process.schedule.alpha(tt) / process._token_noise(tt)
    gain = certainty.log1p()[:, None] * (xt != 7)
    logits = logits.scatter_add(-1, xt[..., None], gain[..., None]).index_fill(2, torch.tensor([7]), -torch.inf)
    exact = DiscreteProcess.nelbo_rate(process, Categorical.from_logits(logits), x0, xt, tt)
    mine = process.nelbo_rate(Categorical.from_logits(logits.float()), x0, xt, tt)
    torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-5)


def test_the_blocks_do_not_change_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    process = GIDD(vocab_size=6, mask_id=5, p_uniform=0.3)
    x0, xt, t, law = tokens_and_law(process, 20)
    logits = law.log_probs().requires_grad_(True)

    def run() -> tuple[Tensor, Tensor]:
        value = process.nelbo_rate(Categorical.from_logits(logits), x0, xt, t)
        return value, torch.autograd.grad(value.sum(), logits)[0]

    whole = run()
    monkeypatch.setattr("unmask.blocks._MAX_ENTRIES", 7 * 6)
    parts = run()
    torch.testing.assert_close(parts, whole)
    assert bool(parts[1].isfinite().all())


@pytest.mark.parametrize("t", [0.0, 1e-12, 1 - 1e-12, 1.0])
def test_a_sure_and_wrong_network_has_a_finite_bound_and_gradient(t: float) -> None:
    """All of its mass on one token: neither the value nor what `where` does not choose may be NaN."""
    process = GIDD(vocab_size=50_000, mask_id=0, p_uniform=0.1)
    logits = torch.full((1, 3, 50_000), -200.0).double()
    logits[..., 0], logits[..., 1] = -torch.inf, 0.0
    logits.requires_grad_(True)
    rate = process.nelbo_rate(
        Categorical.from_logits(logits), torch.tensor([[2, 2, 1]]), torch.tensor([[1, 2, 0]]), time(t)
    )
    assert bool(rate.isfinite().all())
    (gradient,) = torch.autograd.grad(rate.sum(), logits)
    assert not bool(gradient.isnan().any())


def test_the_model_is_asked_where_noise_may_have_come_in() -> None:
    """T steps from all masks: each token is drawn about once as data and once an excursion, not T times."""
    net, process = CountingHead(6), GIDD(vocab_size=6, mask_id=5, p_uniform=0.2)

    class Everywhere(MaskedDenoiser):
        def forward(self, xt: Tensor, t: Tensor, **cond: object) -> Categorical:  # type: ignore[override]
            return Categorical.from_hidden(self.net(xt, t), self.net.head, vocab_size=6, forbidden=5)  # type: ignore[arg-type]

    out = sample(
        Ancestral(process=process), Everywhere(net, vocab_size=6, mask_id=5), (20, 40), num_steps=64, rng=Rng(0)
    )
    assert bool((out != 5).all())  # type: ignore[operator]
    assert 1 < net.rows_seen / (20 * 40) < 8


def test_one_thinned_step_has_the_law_it_states() -> None:
    """From every state, between two inner times, for a law that is not the exact one; the mask stands in the middle.
    Only sites drawn anew have a score."""
    process, n, t, s = GIDD(vocab_size=4, mask_id=1, p_uniform=0.4), 50_000, time(0.7), time(0.35)
    probs = torch.tensor([0.2, 0.0, 0.7, 0.1]).double()
    for z in range(4):
        xt = torch.full((n, 1), z)
        step = process.reverse(Categorical.from_logits(probs.log().expand(n, 1, 4)), xt, t, s)
        drawn, scores = step.draw(Rng(z))
        law = step.log_probs()[0, 0].exp()  # type: ignore[attr-defined]
        assert chi_square(drawn.flatten().bincount(minlength=4), law) > FALSE_ALARM  # type: ignore[union-attr]
        stay, share = (float(v) for v in (process._forgotten(xt[0], s, t), process.noise_share(xt[0], t)))
        anew = (1 - stay) * (1 - float(probs[z]) * (1 - share))
        assert abs(float((~scores.isnan()).double().mean()) - anew) < 5.3 * 0.5 / n**0.5  # type: ignore[union-attr]
    drawn = process.draw_mixing(time(0.3), Rng(9).uniform((n,))).bincount(minlength=4)
    assert chi_square(drawn, process.mixing(time(0.3)[0])) > FALSE_ALARM


class Bfloat(CountingHead):
    def forward(self, tokens: Tensor, t: Tensor, **cond: object) -> Tensor:
        return self.table[tokens].bfloat16()

    def head(self, hidden: Tensor) -> Tensor:
        return hidden @ self.weight.T.bfloat16()


@pytest.mark.parametrize("p_uniform", [0.0, 0.2])
def test_a_large_vocabulary_at_extreme_times_in_bfloat16(p_uniform: float) -> None:
    v = 50_000
    process, net = GIDD(vocab_size=v, mask_id=0, p_uniform=p_uniform), Bfloat(v)
    tokens = torch.tensor([[0, 0, 25_000, 7]]) if p_uniform else torch.zeros(1, 4, dtype=torch.int64)
    law = Categorical.from_hidden(net(tokens, time(0.5)), net.head, vocab_size=v, forbidden=0)
    x0 = torch.tensor([[1, v - 1, 25_000, 8]])
    for t, s in [(1e-12, 0.0), (1 - 1e-12, 1e-12), (1.0, 1 - 1e-12)]:
        step = process.reverse(law, tokens, time(t), time(s))
        assert bool(step.sample(Rng(1)).lt(v).all())  # type: ignore[union-attr]
        assert not bool(step.log_probs().isnan().any())  # type: ignore[attr-defined]
        assert bool(process.nelbo_rate(law, x0, tokens, time(t)).isfinite().all())
    assert int(process.corrupt(torch.ones(4, 9, dtype=torch.int64), Rng(5).uniform((4,)), Rng(6)).max()) < v
    assert process.prior_kl(x0).tolist() == [[0.0] * 4]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"mask_id": 4}, "mask_id=4"), ({"p_uniform": 1.0}, "p_uniform=1.0"), ({"gamma": 2.5}, "gamma=2.5")],
)
def test_refuses(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GIDD(**{"vocab_size": 4, "mask_id": 3, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", [Ancestral, Euler, ThetaTrapezoidal, Uniformisation])
def test_tokens_that_become_masks_again_are_reported_as_such(sampler: Any) -> None:
    """By every sampler whose steps may do so."""
    process = GIDD(vocab_size=4, mask_id=3, p_uniform=0.6)
    denoiser = TinyJoint.random(3, 3, seed=5).denoiser(process)
    x, count = process.prior((400, 3), Rng(1)), 0
    for event in trajectory(sampler(process=process), denoiser, x, time_grid(6), rng=Rng(2)):
        assert isinstance(event.canvas, Tensor)
        changed = event.canvas != x
        assert torch.equal(event.remasked, changed & (event.canvas == 3))
        assert torch.equal(event.newly_set, changed & (event.canvas != 3))
        assert torch.equal(~event.commit_log_prob.isnan(), event.newly_set)
        x, count = event.canvas, count + int(event.remasked.sum())
    assert count > 0
