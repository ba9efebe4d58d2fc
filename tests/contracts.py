"""One suite per abstraction. A method's test subclasses the suite of its kind and says what to make."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask import Categorical, Denoiser, DiscreteProcess, Loss, Rng, Sampler, Schedule, sample, time_grid, trajectory
from unmask.law import Law
from unmask.ops import one_hot
from unmask.oracles.statistics import chi_square, total_variation
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.process import Interpolating

FALSE_ALARM = 1e-7  # of each statistical test


def time(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def standard_errors(values: Tensor, target: float) -> float:
    """How many standard errors the mean lies above the target."""
    return float((values.mean() - target) / (values.std() / math.sqrt(len(values))))


def drawn_from(counts: Tensor, probs: Tensor) -> bool:
    """Whether the counts may have been drawn from the law, which may be one point."""
    return total_variation(counts / counts.sum(), probs) < 1e-12 or chi_square(counts, probs) > FALSE_ALARM


class ScheduleContract:
    def make(self) -> Schedule:
        raise NotImplementedError("return the schedule under test")

    grid = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)

    def test_starts_at_the_data_and_decreases(self) -> None:
        alpha = self.make().alpha(torch.linspace(0, 1, 201, dtype=torch.float64))
        assert float(alpha[0]) == pytest.approx(1.0, abs=1e-12)
        assert bool((alpha[1:] < alpha[:-1]).all())
        assert float(alpha[-1]) >= 0

    def test_noise_is_the_complement_without_cancellation(self) -> None:
        schedule = self.make()
        torch.testing.assert_close(schedule.noise(self.grid), 1 - schedule.alpha(self.grid), atol=1e-12, rtol=0)
        tiny = schedule.noise(time(1e-14, 2e-14, 4e-14))
        assert bool((tiny > 0).all())
        first, second = (float(a / b) for a, b in pairwise(tiny.flip(0)))  # a power law in t keeps its ratios
        assert first == pytest.approx(second, rel=1e-6)

    def test_slope_is_the_autodiff_slope(self) -> None:
        schedule = self.make()
        torch.testing.assert_close(schedule.alpha_dot(self.grid), Schedule.alpha_dot(schedule, self.grid))

    def test_inverse_is_the_bisected_inverse(self) -> None:
        schedule, levels = self.make(), self.grid
        torch.testing.assert_close(schedule.alpha(schedule.inverse(levels)), levels, atol=1e-9, rtol=0)
        torch.testing.assert_close(schedule.inverse(levels), Schedule.inverse(schedule, levels), atol=1e-9, rtol=0)


class DiscreteProcessContract:
    """Bayes, Chapman-Kolmogorov, rates, the bound and every override, on an enumerable world."""

    num_values = 3

    def make(self) -> DiscreteProcess:
        raise NotImplementedError("return the process under test, whose first `num_values` states are data")

    def world(self) -> TinyJoint:
        return TinyJoint.random(self.num_values, 3, seed=5)

    def kernel(self, s: float, t: float) -> Tensor:
        """K[y, x] = q(x_t = x | x_s = y)."""
        process = self.make()
        everything = torch.arange(process.vocab_size)
        return process.likelihood(everything, time(s)[0], time(t)[0]).T

    def test_kernels_are_stochastic_and_compose(self) -> None:
        for r, s, t in [(0.0, 0.3, 0.7), (0.2, 0.21, 0.9), (0.4, 0.7, 1.0)]:
            kernel = self.kernel(r, t)
            torch.testing.assert_close(kernel.sum(1), torch.ones(len(kernel)).double(), atol=1e-10, rtol=0)
            assert bool((kernel >= -1e-15).all())
            torch.testing.assert_close(kernel, self.kernel(r, s) @ self.kernel(s, t), atol=1e-10, rtol=0)

    def test_marginal_is_linear_and_agrees_with_likelihood(self) -> None:
        process = self.make()
        p0 = Rng(1).uniform((4, process.vocab_size))
        for t in (0.0, 0.35, 1.0):
            got = process.marginal(p0, time(t).expand(4))
            torch.testing.assert_close(got, p0 @ self.kernel(0.0, t), atol=1e-10, rtol=0)

    def test_corrupt_draws_the_marginal_and_prior_draws_the_prior(self) -> None:
        process, n = self.make(), 100_000
        for token in range(self.num_values):
            x0 = torch.full((n, 1), token)
            drawn = process.corrupt(x0, torch.full((n,), 0.4).double(), Rng(7).fold(token)).flatten()
            probs = process.marginal(one_hot(torch.tensor(token), process.vocab_size), time(0.4)[0])
            assert drawn_from(drawn.bincount(minlength=process.vocab_size), probs)
        drawn = process.prior((n, 1), Rng(8)).flatten().bincount(minlength=process.vocab_size)
        assert drawn_from(drawn, process.prior_probs)

    def test_reverse_is_bayes_on_the_exact_world(self) -> None:
        """With the exact law of x_0, `reverse` equals p(x_s^i | x_t), summed over everything else by brute force."""
        process, world, s, t = self.make(), self.world(), 0.3, 0.8
        states = enumerate_states(process.vocab_size, world.length)
        reachable = world.noised(process, t) > 0
        xt = states[reachable]
        law = process.reverse(
            world.denoiser(process)(xt, time(t).expand(len(xt))), xt, time(t).expand(len(xt)), time(s).expand(len(xt))
        )
        got = law.log_probs().exp()  # type: ignore[attr-defined]
        data = self.kernel(0.0, s)[world.sequences]  # (n, l, v): law of x_s^i given x_0
        later = self.kernel(s, t)  # (v, v)
        evidence = self.kernel(0.0, t)[world.sequences]  # (n, l, v): law of x_t^i given x_0
        for row, x in enumerate(xt.tolist()):
            for site in range(world.length):
                others = torch.stack([evidence[:, j, x[j]] for j in range(world.length) if j != site]).prod(0)
                weight = (world.probs * others)[:, None] * data[:, site] * later[:, x[site]]
                exact = weight.sum(0) / weight.sum()
                torch.testing.assert_close(got[row, site].double(), exact, atol=1e-10, rtol=0)

    def test_overrides_equal_the_derived_forms(self) -> None:
        process, world = self.make(), self.world()
        states = enumerate_states(process.vocab_size, world.length)
        for t, s in [(0.9, 0.4), (0.2, 0.0), (1.0, 0.5)]:
            xt = states[world.noised(process, t) > 1e-12]
            tt, ss = time(t).expand(len(xt)), time(s).expand(len(xt))
            law = world.denoiser(process)(xt, tt)
            mine, derived = process.reverse(law, xt, tt, ss), DiscreteProcess.reverse(process, law, xt, tt, ss)
            torch.testing.assert_close(
                mine.log_probs().exp(),
                derived.log_probs().exp(),
                atol=1e-10,
                rtol=0,  # type: ignore[attr-defined]
            )
            if t == 1:
                continue  # the forward rate diverges at the end point
            everything = torch.arange(process.vocab_size)
            torch.testing.assert_close(
                process.forward_rates(everything, time(t)[0]),
                DiscreteProcess.forward_rates(process, everything, time(t)[0]),
            )
            x0 = world.sequences[world.posterior(process, xt, tt).argmax(1)]
            torch.testing.assert_close(
                process.nelbo_rate(law, x0, xt, tt),
                DiscreteProcess.nelbo_rate(process, law, x0, xt, tt),
                atol=1e-10,
                rtol=1e-10,
            )

    def test_some_sites_are_asked_as_all_are(self) -> None:
        """`where` spares work and changes nothing, and what is not asked about is not evaluated."""
        process, world = self.make(), self.world()
        x0, tt = world.sample(32, Rng(3)), time(0.6).expand(32)
        xt = process.corrupt(x0, tt, Rng(4))
        law = world.denoiser(process)(xt, tt)
        where = Rng(5).uniform(xt.shape) < 0.4
        rates, bound = process.reverse_rates(law, xt, tt), process.nelbo_rate(law, x0, xt, tt)
        torch.testing.assert_close(process.reverse_rates(law, xt, tt, where), rates[where])
        torch.testing.assert_close(process.reverse_total(law, xt, tt, where), rates[where].sum(-1))
        torch.testing.assert_close(process.nelbo_rate(law, x0, xt, tt, where), bound.where(where, 0.0))
        torch.testing.assert_close(
            process.nelbo_rate(Elsewhere(law, where), x0, xt, tt, where), bound.where(where, 0.0)
        )

    def test_rates_are_the_slopes_of_the_kernels(self) -> None:
        process, world, t, h = self.make(), self.world(), 0.6, 1e-6
        identity = torch.eye(process.vocab_size).double()
        rates = process.forward_rates(torch.arange(process.vocab_size), time(t)[0])
        torch.testing.assert_close(rates, (self.kernel(t, t + h) - identity) / h, atol=1e-4, rtol=1e-4)
        xt = enumerate_states(process.vocab_size, world.length)
        xt = xt[world.noised(process, t) > 0]
        tt, ss = time(t).expand(len(xt)), time(t - h).expand(len(xt))
        law = world.denoiser(process)(xt, tt)
        jumps = process.reverse(law, xt, tt, ss).log_probs().exp() / h  # type: ignore[attr-defined]
        jumps = jumps.scatter(-1, xt[..., None], 0.0)
        torch.testing.assert_close(process.reverse_rates(law, xt, tt), jumps, atol=1e-4, rtol=1e-4)

    def test_the_bound_of_the_exact_denoiser_is_the_entropy(self) -> None:
        """E_{x_0, x_t} of the bound's integrand, over all states and by Gauss-Legendre in t, equals H(x_0)."""
        process, world = self.make(), self.world()
        states = enumerate_states(process.vocab_size, world.length)
        total = float((world.probs[:, None] * process.prior_kl(world.sequences)).sum())
        for t, weight in unit_interval_quadrature(40):
            tt = time(t)
            forward = self.kernel(0.0, t)[world.sequences]  # (n, l, v)
            site = torch.arange(world.length)
            joint = world.probs[:, None] * forward[:, site, states].prod(-1)  # (n, k) over x_0 and x_t
            pairs = states.repeat(len(world.sequences), 1)  # every x_t for every x_0
            x0 = world.sequences.repeat_interleave(len(states), 0)
            law = world.denoiser(process)(pairs, tt.expand(len(pairs)))
            rate = process.nelbo_rate(law, x0, pairs, tt.expand(len(pairs))).sum(1).nan_to_num()
            total += weight * float((joint.flatten() * rate).sum())
        assert total == pytest.approx(world.entropy, abs=1e-6)

    def test_the_bounds_integrand_is_the_slope_of_the_step_kl(self) -> None:
        """KL( q(x_s | x_t, x_0) || p(x_s | x_t) ) / (t - s) -> nelbo_rate, for a law that is *not* the exact one."""
        process, world, t, h = self.make(), self.world(), 0.6, 1e-6
        states = enumerate_states(process.vocab_size, world.length)
        xt = states[world.noised(process, t) > 0]
        tt, ss = time(t).expand(len(xt)), time(t - h).expand(len(xt))
        wrong = world.denoiser(process)(xt, tt).map(lambda log_probs: 0.4 * log_probs)
        x0 = world.sequences[world.posterior(process, xt, tt).argmax(1)]
        known = Categorical.from_logits(one_hot(x0, process.vocab_size).log())
        p = process.reverse(wrong, xt, tt, ss).log_probs()  # type: ignore[attr-defined]
        q = process.reverse(known, xt, tt, ss).log_probs()  # type: ignore[attr-defined]
        step = torch.where(q.isinf(), 0.0, q.exp() * (q - p)).sum(-1) / h
        torch.testing.assert_close(process.nelbo_rate(wrong, x0, xt, tt), step, atol=2e-3, rtol=2e-3)

    def test_gradients_are_finite(self) -> None:
        """Of the bound and of the reverse step's log-probability, the last step included."""
        process, world = self.make(), self.world()
        x0 = world.sample(32, Rng(3))
        tt = time(0.6).expand(32)
        xt = process.corrupt(x0, tt, Rng(4))
        for s in (0.3, 0.0):
            probs = world.conditionals(process, xt, tt)
            logits = probs.clamp(min=1e-30).log().requires_grad_(True)
            allowed = logits.masked_fill(probs == 0, -torch.inf)
            law = Categorical.from_logits(allowed)
            step = process.reverse(law, xt, tt, time(s).expand(32))
            total = step.log_prob(step.sample(Rng(5))).sum() + process.nelbo_rate(law, x0, xt, tt).sum()
            (gradient,) = torch.autograd.grad(total, logits)
            assert bool(gradient.isfinite().all())
            assert float(gradient.abs().max()) > 0

    def test_no_nan_at_the_ends_of_time(self) -> None:
        process, world = self.make(), self.world()
        for t, s in [(1e-12, 0.0), (1 - 1e-12, 0.5), (1.0, 1 - 1e-12)]:
            n = 64
            x0 = world.sample(n, Rng(3))
            xt = process.corrupt(x0, time(t).expand(n), Rng(4))
            law = process.reverse(
                world.denoiser(process)(xt, time(t).expand(n)), xt, time(t).expand(n), time(s).expand(n)
            )
            assert not bool(law.log_probs().isnan().any())  # type: ignore[attr-defined]
            assert law.log_prob(law.sample(Rng(5))).isfinite().all()

    def test_mixing_is_a_law(self) -> None:
        process = self.make()
        if isinstance(process, Interpolating):
            mixing = process.mixing(time(0.3))
            assert float(mixing.sum(-1).max()) == pytest.approx(1.0)

    def test_refuses_what_it_cannot_corrupt(self) -> None:
        with pytest.raises(TypeError, match="int64"):
            self.make().corrupt(torch.zeros(2, 3), time(0.5, 0.5), Rng(0))
        x = torch.zeros(2, 3, dtype=torch.int64)
        with pytest.raises(ValueError, match="end point x1"):
            self.make().corrupt(x, time(0.5, 0.5), Rng(0), x1=x)


def unit_interval_quadrature(n: int) -> list[tuple[float, float]]:
    """Nodes and weights on (0, 1): Gauss-Legendre in u with t = u^3, which resolves t log t at the data end."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / (4 * k**2 - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    u = (values + 1) / 2
    return list(zip((u**3).tolist(), (3 * u**2 * vectors[0] ** 2).tolist(), strict=True))


class BoundContract:
    """A number called a bound is never below the entropy for the exact denoiser, and equals it where theory says so."""

    tight = True  # the expectation equals the entropy for the exact denoiser

    def make(self) -> tuple[Loss, DiscreteProcess]:
        raise NotImplementedError("return the loss and the process its denoiser is exact for")

    def worlds(self) -> list[TinyJoint]:
        parity = torch.zeros(2, 2)
        parity[0, 0] = parity[1, 1] = 0.5  # two perfectly correlated bits: H = ln 2, where coupled losses cheat
        return [TinyJoint(parity), TinyJoint.random(2, 4, seed=2)]

    def exact_denoiser(self, world: TinyJoint, process: DiscreteProcess) -> Denoiser:
        return world.denoiser(process)

    def test_expectation_against_the_entropy(self) -> None:
        loss, process = self.make()
        assert loss.bound, f"{type(loss).__name__} does not call itself a bound"
        for world in self.worlds():
            values = self.estimate(loss, process, world, 60_000)
            above = standard_errors(values, world.entropy)
            assert above > -5.3, f"{above:.1f} standard errors below the entropy: not a bound"
            if self.tight:
                assert above < 5.3, f"{above:.1f} standard errors above the entropy it should equal"

    def estimate(self, loss: Loss, process: DiscreteProcess, world: TinyJoint, n: int) -> Tensor:
        """Per-example values, each with its own time shift so that they are independent."""
        x0 = world.sample(n, Rng(11))
        denoiser = self.exact_denoiser(world, process)
        chunks = [
            loss(denoiser, part, Rng(12).fold(k).rows(torch.arange(len(part)) + k * 1000))
            for k, part in enumerate(x0.split(600))
        ]
        means = torch.stack([c.mean() for c in chunks])  # batches share a time shift: their means are independent
        return means

    def test_rows_do_not_depend_on_their_batch(self) -> None:
        loss, process = self.make()
        world = self.worlds()[1]
        denoiser, x0, rows = self.exact_denoiser(world, process), world.sample(16, Rng(1)), torch.arange(40, 56)
        together = loss(denoiser, x0, Rng(3).rows(rows))
        assert together.shape == (16,)
        apart = torch.cat([loss(denoiser, x0[i : i + 1], Rng(3).rows(rows[i : i + 1])) for i in range(16)])
        torch.testing.assert_close(together, apart, atol=1e-9, rtol=1e-9)


class Elsewhere(Categorical):
    """A law that fails when it is asked about a site outside `where`."""

    def __init__(self, law: Categorical, where: Tensor) -> None:
        allowed = where.flatten()

        def log_weights(index: Tensor) -> Tensor:
            assert bool(allowed[index].all()), "a site was evaluated that nobody asked about"
            return law.rows(index)

        super().__init__(law.shape, law.vocab_size, log_weights)


class SamplerContract:
    """Editable sets, invariance to batching, padding and repetition, and the claimed law."""

    num_steps = 6

    def make(self) -> tuple[Sampler, DiscreteProcess]:
        raise NotImplementedError("return the sampler and its process")

    def world(self) -> TinyJoint:
        return TinyJoint.random(3, 3, seed=5)

    def model(self) -> tuple[Sampler, DiscreteProcess, Denoiser]:
        sampler, process = self.make()
        return sampler, process, self.world().denoiser(process)

    def test_same_seed_same_row_same_tokens(self) -> None:
        sampler, _, denoiser = self.model()
        length, rows = self.world().length, torch.arange(7, 13)
        together = sample(sampler, denoiser, (6, length), num_steps=self.num_steps, rng=Rng(2).rows(rows))
        for i in range(6):
            alone = sample(sampler, denoiser, (1, length), num_steps=self.num_steps, rng=Rng(2).rows(rows[i : i + 1]))
            assert torch.equal(together[i : i + 1], alone)
        other = sample(sampler, denoiser, (6, length), num_steps=self.num_steps, rng=Rng(3).rows(rows))
        assert not torch.equal(together, other)

    def test_fixed_tokens_never_change(self) -> None:
        sampler, process, denoiser = self.model()
        n = 64
        canvas = self.world().sample(n, Rng(4))
        editable = Rng(5).uniform(canvas.shape) < 0.5
        seen = canvas
        for event in trajectory(
            sampler,
            denoiser,
            torch.where(editable, process.prior(canvas.shape, Rng(6)), canvas),
            time_grid(self.num_steps),
            rng=Rng(7),
            editable=editable,
        ):
            seen = event.canvas
            assert torch.equal(seen[~editable], canvas[~editable])
            assert not bool((event.newly_set & ~editable).any())
            assert bool((seen[event.newly_set] < self.world().num_values).all()), "a mask is reported as newly set"
            if event.commit_log_prob is not None:
                assert torch.equal(~event.commit_log_prob.isnan(), event.newly_set)
        assert bool((seen < self.world().num_values).all()), "ends on data"
        assert not torch.equal(seen, canvas)

    def test_the_model_is_shown_fixed_tokens_as_they_are(self) -> None:
        """In every call of every step, those in the middle of a step included."""
        sampler, process, denoiser = self.model()
        canvas = process.prior((64, self.world().length), Rng(6))
        canvas[:, 1] = 2
        editable = torch.ones_like(canvas, dtype=torch.bool)
        editable[:, 1] = False
        seen: list[Tensor] = []

        class Watched(Denoiser):
            def forward(self, xt: Any, t: Tensor, **cond: Any) -> Law:
                seen.append(xt)
                law: Law = denoiser(xt, t, **cond)
                return law

        sample(sampler, Watched(), canvas, num_steps=self.num_steps, rng=Rng(7), editable=editable)
        assert all(bool((x[:, 1] == 2).all()) for x in seen)

    def test_padding_amount_and_side_change_nothing(self) -> None:
        sampler, process = self.make()
        denoiser, real = PaddedChain(process.vocab_size), 5

        def run(left: int, right: int) -> Tensor:
            mask = torch.tensor([False] * left + [True] * real + [False] * right).expand(8, -1)
            canvas = torch.zeros(mask.shape, dtype=torch.int64)
            out = sample(
                sampler, denoiser, canvas, num_steps=self.num_steps, rng=Rng(9), editable=mask, attention_mask=mask
            )
            assert bool((out[~mask] == 0).all()), "padding was edited"
            return out[:, left : left + real]

        for left, right in [(3, 0), (0, 4), (2, 2)]:
            assert torch.equal(run(0, 0), run(left, right))

    def test_empirical_law_is_the_recursion_law(self) -> None:
        sampler, process, denoiser = self.model()
        transition: Callable | None = getattr(sampler, "transition", None)
        if transition is None:
            pytest.skip("the kernel is not site-wise: the sampler's own test checks its law")
        world, n = self.world(), 100_000
        exact = world.sampler_law(transition, denoiser, process, time_grid(self.num_steps))
        drawn = sample(sampler, denoiser, (n, world.length), num_steps=self.num_steps, rng=Rng(1))
        counts = state_index(drawn, process.vocab_size).bincount(minlength=len(exact))
        assert chi_square(counts, exact) > FALSE_ALARM


class PaddedChain(Denoiser):
    """A tiny position-aware denoiser that reads its neighbours and ignores padding: for invariance tests only."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, xt: Tensor, t: Tensor, *, attention_mask: Tensor | None = None, **cond: object) -> Categorical:
        real = torch.ones_like(xt, dtype=torch.bool) if attention_mask is None else attention_mask
        value = torch.where(real, xt, 0)
        total = value.sum(1, keepdim=True).double()
        place = (real.cumsum(1) - 1).clamp(min=0).double()
        grid = torch.arange(self.vocab_size).double()
        logits = torch.sin(grid * (1 + place[..., None]) + total[..., None])
        logits = logits.index_fill(-1, torch.tensor([self.vocab_size - 1]), -torch.inf)
        law = Categorical.from_logits(logits)
        return law.with_known(xt, xt < self.vocab_size - 1)


class StateContract:
    """`SamplerContract` for states that are not one tensor of tokens: vectors at sites, or columns of several kinds.

    A state has `length` sites; further dimensions of a column are channels. The model reads all real sites.
    """

    num_steps = 5

    def make(self) -> tuple[Sampler, Denoiser]:
        raise NotImplementedError("return the sampler and a model of any length, which reads no padding")

    def shape(self, rows: int, length: int) -> Any:
        raise NotImplementedError("return the shape, or the dict of shapes, of a state")

    def attention_mask(self, real: Tensor) -> Tensor:
        """That of a state, given the sites (b, l) that are real."""
        return real

    def at(self, real: Tensor, x: Any) -> dict[str, Tensor]:
        """What the sites of a state hold, as many in each row: (b, k, ...)."""
        columns = x if isinstance(x, dict) else {"x": x}
        return {k: v[real].reshape(len(v), -1, *v.shape[2:]) for k, v in columns.items()}

    def everywhere(self, sites: Tensor, x: Any) -> Any:
        """Sites (b, l) as a boolean state."""

        def channels(v: Tensor) -> Tensor:
            return sites.reshape(*sites.shape, *[1] * (v.ndim - 2)).expand_as(v)

        return {k: channels(v) for k, v in x.items()} if isinstance(x, dict) else channels(x)

    def run(self, canvas: Any, rng: Rng, **told: Any) -> Any:
        sampler, denoiser = self.make()
        return sample(sampler, denoiser, canvas, num_steps=self.num_steps, rng=rng, **told)

    def same(self, a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
        return all(torch.allclose(v.double(), b[k].double(), atol=1e-6, rtol=1e-6) for k, v in a.items())

    def test_same_seed_same_row_same_state(self) -> None:
        rows, every = torch.arange(7, 13), torch.ones(6, 4, dtype=torch.bool)
        together = self.at(every, self.run(self.shape(6, 4), Rng(2).rows(rows)))
        for i in range(6):
            alone = self.at(every[:1], self.run(self.shape(1, 4), Rng(2).rows(rows[i : i + 1])))
            assert self.same(alone, {k: v[i : i + 1] for k, v in together.items()})
        assert not self.same(together, self.at(every, self.run(self.shape(6, 4), Rng(3).rows(rows))))

    def test_fixed_sites_never_change_and_are_shown_as_they_are(self) -> None:
        sampler, denoiser = self.make()
        canvas = sampler.prior(self.shape(8, 4), Rng(6))
        fixed = Rng(5).uniform((8, 4)) < 0.5
        fixed[:, 0], fixed[:, 1] = True, False
        wanted, shown = self.at_fixed(fixed, canvas), []

        class Watched(Denoiser):
            def forward(self, xt: Any, t: Tensor, **cond: Any) -> Law:
                shown.append(xt)
                law: Law = denoiser(xt, t, **cond)
                return law

        out = sample(
            sampler,
            Watched(),
            canvas,
            num_steps=self.num_steps,
            rng=Rng(7),
            editable=self.everywhere(~fixed, canvas),
        )
        assert shown
        for state in (*shown, out):
            assert all(torch.equal(v, wanted[k]) for k, v in self.at_fixed(fixed, state).items())
        every = torch.ones_like(fixed)
        assert not self.same(self.at(every, out), self.at(every, canvas))

    def at_fixed(self, fixed: Tensor, x: Any) -> dict[str, Tensor]:
        columns = x if isinstance(x, dict) else {"x": x}
        return {k: v[fixed] for k, v in columns.items()}

    def test_padding_amount_and_side_change_nothing(self) -> None:
        sampler, _ = self.make()

        def padded(left: int, right: int) -> dict[str, Tensor]:
            real = torch.tensor([False] * left + [True] * 4 + [False] * right).expand(6, -1)
            canvas = sampler.prior(self.shape(6, real.shape[1]), Rng(1))
            out = self.run(canvas, Rng(9), attention_mask=self.attention_mask(real))
            if left + right:
                assert self.same(self.at(~real, out), self.at(~real, canvas)), "padding was edited"
            return self.at(real, out)

        for left, right in [(3, 0), (0, 4), (2, 2)]:
            assert self.same(padded(0, 0), padded(left, right))


class PaddedVectors(Denoiser):
    """`PaddedChain` for vectors (b, l, c) at sites: v logits each, from the mean of the row's real vectors."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, xt: Tensor, t: Tensor, *, attention_mask: Tensor | None = None, **cond: object) -> Categorical:
        real = torch.ones(xt.shape[:2], dtype=torch.bool) if attention_mask is None else attention_mask
        seen = xt.double().where(real[..., None], 0.0)
        total = seen.sum((1, 2))[:, None, None] + seen.sum(2, keepdim=True)
        place = (real.cumsum(1) - 1).clamp(min=0).double()
        return Categorical.from_logits(torch.sin(torch.arange(self.vocab_size) * (1 + place[..., None]) + total))
