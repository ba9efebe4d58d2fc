"""The uniform process: its closed forms against the derived ones, and its behaviour at the ends."""

from __future__ import annotations

import pytest
import torch

from contracts import DiscreteProcessContract, SamplerContract, time
from unmask import Categorical, DiscreteProcess, Rng, Schedule
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.schedules.cosine import Cosine
from unmask.schedules.linear import Linear
from unmask.schedules.polynomial import Polynomial


class TestUniform(DiscreteProcessContract):
    @pytest.fixture(
        autouse=True, params=[Linear(), Cosine(), Polynomial(power=2.0)], ids=["linear", "cosine", "polynomial"]
    )
    def _schedule(self, request: pytest.FixtureRequest) -> None:
        self.schedule: Schedule = request.param

    def make(self) -> Uniform:
        return Uniform(vocab_size=3, schedule=self.schedule)


class TestAncestralSampling(SamplerContract):
    """Its prior is random, too: padding must not move that."""

    num_steps = 2

    def make(self) -> tuple[Ancestral, Uniform]:
        process = Uniform(vocab_size=3)
        return Ancestral(process=process), process


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [2, 17, 50_000])
@pytest.mark.parametrize("t", [0.0, 1e-12, 1e-6, 0.5, 1 - 1e-6, 1 - 1e-12, 1.0])
def test_the_bound_and_its_gradient_are_finite(t: float, vocab_size: int, dtype: torch.dtype) -> None:
    process = Uniform(vocab_size=vocab_size)
    logits = Rng(1).normal((4, 3, vocab_size)).to(dtype).requires_grad_(True)
    x0 = torch.tensor([[0, 1, 1]]).expand(4, -1)
    xt = torch.tensor([[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0]])
    law = Categorical.from_logits(logits)
    rate = process.nelbo_rate(law, x0, xt, time(t).expand(4))
    assert bool(rate.isfinite().all())
    assert float(rate.detach().min()) > -1e-4
    (gradient,) = torch.autograd.grad(rate.sum(), logits)
    assert bool(gradient.isfinite().all())
    if t > 0:
        step = process.reverse(law, xt, time(t).expand(4), time(t / 2).expand(4))
        assert bool(step.log_prob(step.sample(Rng(2))).isfinite().all())


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 8.0])
@pytest.mark.parametrize("t", [1e-6, 0.01, 0.5, 0.99, 1 - 1e-6])
def test_float32_logits_of_a_large_vocabulary_give_the_derived_bound(t: float, sharpness: float) -> None:
    """Products in place of logarithms and sums in float32, against every rate in float64."""
    process, v = Uniform(vocab_size=5000), 5000
    logits = sharpness * Rng(1).normal((4, 3, v))
    x0, xt = (Rng(k).uniform((4, 3)).mul(v).long() for k in (2, 3))
    xt[:2] = x0[:2]
    logits.scatter_add_(-1, xt[..., None], torch.tensor(v * (1 - t) / t).log1p().expand(4, 3, 1).double())
    exact = DiscreteProcess.nelbo_rate(process, Categorical.from_logits(logits), x0, xt, time(t).expand(4))
    mine = process.nelbo_rate(Categorical.from_logits(logits.float()), x0, xt, time(t).expand(4))
    torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-5)


def test_the_ends_of_time_are_the_limits_of_the_bound() -> None:
    """At t = 0 a law that knows the token pays nothing; at t = 1, what it pays just before."""
    process, none = Uniform(vocab_size=4), -torch.inf
    sure = Categorical.from_logits(torch.tensor([[[0.0, none, none, none]]]).double())
    assert float(process.nelbo_rate(sure, torch.tensor([[0]]), torch.tensor([[0]]), time(0.0))) == 0
    law = Categorical.from_logits(torch.tensor([[[0.0, -1.0, 0.5, 0.2]]]).double())
    for x0 in (torch.tensor([[0]]), torch.tensor([[1]])):
        rates = [process.nelbo_rate(law, x0, torch.tensor([[0]]), time(t)) for t in (1.0, 1 - 1e-9)]
        torch.testing.assert_close(rates[0], rates[1], rtol=1e-4, atol=1e-4)


def test_the_blocks_do_not_change_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Uniform(vocab_size=5)
    logits = Rng(1).normal((6, 4, 5)).requires_grad_(True)
    x0, xt = (process.prior((6, 4), Rng(k)) for k in (2, 3))
    t = Rng(4).uniform((6,))

    def value() -> tuple[torch.Tensor, torch.Tensor]:
        rate = process.nelbo_rate(Categorical.from_logits(logits), x0, xt, t)
        return rate, torch.autograd.grad(rate.sum(), logits)[0]

    whole = value()
    monkeypatch.setattr("unmask.blocks._MAX_ENTRIES", 15)
    for a, b in zip(whole, value(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_nearly_clean_token_costs_what_it_should() -> None:
    """At t = 1e-9 a law that knows the noise level is charged what the derived bound says, to seven digits."""
    process, t = Uniform(vocab_size=4), time(1e-9)
    noise = torch.tensor([1.0, 1e-9, 2e-9, 3e-9]).double()
    law = Categorical.from_logits(noise.log()[None, None])
    for x0 in (0, 1):
        args = law, torch.tensor([[x0]]), torch.tensor([[0]]), t
        derived = DiscreteProcess.nelbo_rate(process, *args)
        torch.testing.assert_close(process.nelbo_rate(*args), derived, rtol=1e-7, atol=0)


@pytest.mark.parametrize("t", [1e-15, 1e-12])
def test_a_sure_network_has_a_finite_bound_and_gradient(t: float) -> None:
    """All of its mass on one token, float32: neither the value nor what `where` does not choose may be NaN."""
    process, logits = Uniform(vocab_size=50_000), torch.full((1, 3, 50_000), -200.0)
    logits[..., 1] = 0.0
    logits.requires_grad_(True)
    law = Categorical.from_logits(logits)
    rate = process.nelbo_rate(law, torch.tensor([[2, 1, 1]]), torch.tensor([[1, 1, 2]]), time(t))
    assert bool(rate.isfinite().all())
    (gradient,) = torch.autograd.grad(rate.sum(), logits)
    assert bool(gradient.isfinite().all())


def test_steps_at_tiny_times_keep_the_chance_of_a_jump() -> None:
    """1 - alpha_t / alpha_s as a difference would be off by 1e-4 here."""
    process = Uniform(vocab_size=3)
    law = Categorical.from_logits(torch.tensor([[[0.0, -torch.inf, -torch.inf]]]).double())  # x_0 = 0, x_t = 1
    t, s = 1e-12, 0.3e-12
    stays = process.reverse(law, torch.tensor([[1]]), time(t), time(s)).log_probs()[0, 0, 1].exp()  # type: ignore[attr-defined]
    assert float(stays) == pytest.approx(s / t, rel=1e-10)


def test_too_few_states_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        Uniform(vocab_size=1)
