"""Forward processes: how data is corrupted, and the exact reverse step for any law of the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.blocks import map_sites
from unmask.columns import keep_fixed
from unmask.law import Categorical, Law, SiteLaw, State
from unmask.ops import draw_categorical, draw_repeatedly, expand_time, one_hot, safe_log
from unmask.rng import Rng
from unmask.schedule import Schedule

_DRAW, _KEPT = 1, 2


class Process(ABC):
    """A family of corruptions q(x_t | x_0), t from 0 (data) to 1 (noise).

    Times are float64 tensors of shape (b,) (one per row), () or (b, *s) (one per site).
    """

    @abstractmethod
    def prior(self, shape: Any, rng: Rng) -> State:
        """Draws of x_1, the noise from which sampling starts."""

    @abstractmethod
    def corrupt(self, x0: State, t: Tensor, rng: Rng, x1: State | None = None) -> State:
        """A draw of x_t given x_0 (and, for couplings and bridges, the end point x_1)."""

    def corrupt_canvas(
        self,
        x0: State,
        t: Tensor,
        rng: Rng,
        *,
        editable: State | None = None,
        attention_mask: Tensor | None = None,
    ) -> State:
        """`corrupt` at the editable sites, the others as they are; `editable` excludes padding.

        Noise whose sites know of each other (they take turns, or change places) has its own way.
        """
        return keep_fixed(x0, self.corrupt(x0, t, rng), editable)

    @abstractmethod
    def reverse(self, law: Law, xt: State, t: Tensor, s: Tensor) -> Law:
        """The exact law of x_s given x_t, s < t, for x_0 given x_t ~ `law`: q(x_s | x_t, x_0) averaged over it."""

    def remasked(self, x: State) -> State | None:
        """Where x, the state after a reverse step, holds a mask that the step may have put there; None: never."""
        return None


class DiscreteProcess(Process):
    """Independent Markov noise on sites with `vocab_size` states, defined by two vectors.

    A subclass gives `marginal` and `likelihood`; corruption, the reverse step, rates and the likelihood bound follow.
    Times broadcast against the leading dimensions of their tensor argument.
    """

    vocab_size: int

    @abstractmethod
    def marginal(self, p0: Float[Tensor, "*s v"], t: Tensor) -> Float[Tensor, "*s v"]:
        """The law of x_t when x_0 has weights p0: sum_x p0[x] q(x_t = . | x_0 = x); linear in p0."""

    @abstractmethod
    def likelihood(self, xt: Int64[Tensor, "*s"], s: Tensor, t: Tensor) -> Float[Tensor, "*s v"]:
        """The vector y -> q(x_t = xt | x_s = y)."""

    # -- derived: corruption ------------------------------------------------------------------------------------------

    @property
    def prior_probs(self) -> Float[Tensor, " v"]:
        """The law of a site of x_1, the limit of `marginal` at t = 1 from the uniform law."""
        uniform = torch.full((self.vocab_size,), 1.0 / self.vocab_size, dtype=torch.float64)
        return self.marginal(uniform, torch.tensor(1.0, dtype=torch.float64))

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        u = rng.fold(_DRAW).uniform(shape)
        return draw_repeatedly(self.prior_probs.log(), u.flatten()).reshape(u.shape)

    def corrupt(self, x0: State, t: Tensor, rng: Rng, x1: State | None = None) -> Tensor:
        tokens = self._uncoupled(x0, x1)
        probs = self.marginal(one_hot(tokens, self.vocab_size), expand_time(t, tokens))
        return draw_categorical(probs.log(), rng.fold(_DRAW).uniform(tokens.shape, tokens.device))

    # -- derived: the reverse step ------------------------------------------------------------------------------------

    def reverse(self, law: Law, xt: State, t: Tensor, s: Tensor) -> Law:
        """p(x_s = y | x_t) = q(x_t | y) sum_x w[x] q(y | x), with w[x] = p(x_0 = x | x_t) / q(x_t | x_0 = x).

        Values of x_0 that cannot have led to x_t are dropped and the rest renormalised.
        """
        tokens, sites = self._tokens(xt, "reverse"), self._sites(law, "reverse")
        t_site, s_site = (expand_time(v, tokens).expand(tokens.shape).flatten() for v in (t, s))

        def log_weights(index: Tensor) -> Tensor:
            where = torch.zeros(tokens.numel(), dtype=torch.bool, device=tokens.device)
            where[index] = True  # a mask visits sites in ascending order, as `index` does
            x, tt, ss = tokens.flatten()[index], t_site[index], s_site[index]
            p0 = sites.log_probs(where.reshape(tokens.shape)).double().exp()
            weights = self._over_likelihood(p0, x, tt)
            return safe_log(self.likelihood(x, ss, tt) * self.marginal(weights, ss))

        return Categorical(tokens.shape, self.vocab_size, log_weights, device=tokens.device, rest=tokens)

    def _over_likelihood(self, p0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        evidence = self.likelihood(x, torch.zeros_like(t), t)
        possible = evidence > 0
        return torch.where(possible, p0 / evidence.where(possible, 1.0), 0.0)

    # -- derived: rates and the bound ---------------------------------------------------------------------------------

    def _rates_into(self, x: Int64[Tensor, "*s"], t: Tensor) -> Float[Tensor, "*s v"]:
        """R_t(y -> x) for every y: the slope of q(x_t' = x | x_t = y) in t' at t' = t, by forward autodiff."""
        tt = expand_time(t, x).expand(x.shape).clone()  # forward autodiff needs its own memory
        slope: Tensor = torch.func.jvp(lambda later: self.likelihood(x, tt, later), (tt,), (torch.ones_like(tt),))[1]
        return slope

    def forward_rates(self, x: Int64[Tensor, "*s"], t: Tensor) -> Float[Tensor, "*s v"]:
        """R_t(x -> y), the jump rates of the forward process per unit time; rows sum to zero.

        Costs a (v, v) matrix per distinct time; processes with closed forms override it.
        """
        targets = torch.arange(self.vocab_size, device=x.device).expand(*x.shape, self.vocab_size)
        into = self._rates_into(targets, expand_time(t, x).expand(x.shape)[..., None])
        return into.gather(-1, x[..., None, None].expand(*into.shape[:-1], 1)).squeeze(-1)

    def reverse_rates(
        self, law: Law, xt: Int64[Tensor, "b *s"], t: Tensor, where: Bool[Tensor, "b *s"] | None = None
    ) -> Float[Tensor, "*n v"]:
        """R_t(x_t -> y) of the reversed process, y != x_t: R_t(y -> x_t) sum_x w[x] q_t(y | x); zero at y = x_t.

        Shape (n, v) at the sites of `where`, (b, *s, v) when it is None.
        """
        p0 = self._sites(law, "reverse_rates").log_probs(where).double().exp()
        tt = expand_time(t, xt).expand(xt.shape)
        return self._reverse_rates(p0, xt, tt) if where is None else self._reverse_rates(p0, xt[where], tt[where])

    def reverse_total(
        self, law: Law, xt: Int64[Tensor, "b *s"], t: Tensor, where: Bool[Tensor, "b *s"]
    ) -> Float[Tensor, " n"]:
        """The rate at which the reversed process leaves x_t, the sum of `reverse_rates`, at the n sites of `where`."""
        return map_sites(lambda part: self.reverse_rates(law, xt, t, part).sum(-1), where, self.vocab_size)

    def _reverse_rates(self, p0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        rates = self._rates_into(xt, t) * self.marginal(self._over_likelihood(p0, xt, t), t)
        return rates.scatter(-1, xt[..., None], 0.0)

    def nelbo_rate(
        self,
        law: Law,
        x0: Int64[Tensor, "b *s"],
        xt: Int64[Tensor, "b *s"],
        t: Tensor,
        where: Bool[Tensor, "b *s"] | None = None,
    ) -> Float[Tensor, "b *s"]:
        """The integrand of the continuous-time bound at each site (zero outside `where`), nats per unit time:

            sum_{y != x_t}  r(y) - r*(y) + r*(y) log( r*(y) / r(y) ),

        where r is the model's reverse rate and r* the one that knows x_0. Then -log p(x_0) <= prior KL + E_t of its
        sum.

        References:
            Campbell et al., "A continuous time framework for discrete denoising models", 2022, arXiv:2205.14987.
        """
        times = expand_time(t, xt).expand(xt.shape)

        def rate(part: Tensor) -> Tensor:
            model = self.reverse_rates(law, xt, t, part)
            truth = self._reverse_rates(one_hot(x0[part], self.vocab_size), xt[part], times[part])
            gained = torch.where(truth > 0, truth * model.where(truth > 0, 1.0).log(), 0.0)  # 0 log 0 has a NaN slope
            return (model - truth + torch.special.xlogy(truth, truth) - gained).sum(-1)

        return self._blockwise(rate, xt, where)

    def _blockwise(self, rate: Callable[[Tensor], Tensor], xt: Tensor, where: Tensor | None) -> Float[Tensor, "b *s"]:
        """`rate`, which maps a mask (b, *s) of n sites to numbers (n,), at the sites of `where`; zero elsewhere."""
        sites = torch.ones_like(xt, dtype=torch.bool) if where is None else where
        values = map_sites(rate, sites, self.vocab_size)
        return torch.zeros(xt.shape, dtype=values.dtype, device=xt.device).masked_scatter(sites, values)

    def prior_kl(self, x0: Int64[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        """KL( q(x_1 | x_0) || prior ) at each site, nats: zero when the end point has forgotten the data."""
        prior, last = self.prior_probs.to(x0.device), torch.ones((), dtype=torch.float64, device=x0.device)

        def divergence(part: Tensor) -> Tensor:
            end = self.marginal(one_hot(x0[part], self.vocab_size), last)
            return (torch.special.xlogy(end, end) - torch.special.xlogy(end, prior)).sum(-1)

        return self._blockwise(divergence, x0, None)

    def _uncoupled(self, x0: State, x1: State | None) -> Tensor:
        """The tokens of x0, when no end point is asked for: ignoring one would silently train the wrong coupling."""
        if x1 is not None:
            raise ValueError(
                f"{type(self).__name__}.corrupt: met an end point x1, but this noise is drawn independently; omit x1"
            )
        return self._tokens(x0, "corrupt")

    # -- checks -------------------------------------------------------------------------------------------------------

    def _tokens(self, x: State, operation: str) -> Tensor:
        if isinstance(x, dict) or x.dtype != torch.int64:
            met = "a dict" if isinstance(x, dict) else f"a {x.dtype} tensor"
            raise TypeError(f"{type(self).__name__}.{operation}: met {met}, wanted an int64 tensor of tokens")
        return x

    def _sites(self, law: Law, operation: str) -> SiteLaw:
        if not isinstance(law, SiteLaw):
            raise TypeError(
                f"{type(self).__name__}.{operation}: met a {type(law).__name__}, wanted a discrete law of sites like "
                "Categorical; pair the process with a denoiser of its own kind"
            )
        return law


class Interpolating(DiscreteProcess):
    """Noise that mixes the data with a moving law: q(x_t | x_0) = alpha_t 1[x_t = x_0] + (1 - alpha_t) pi_t[x_t].

    A subclass gives `schedule`, `vocab_size` and `mixing(t)`; the kernel follows,
    q(x_t | x_s) = a 1[x_t = x_s] + (1 - alpha_t) pi_t - a (1 - alpha_s) pi_s, with a = alpha_t / alpha_s.

    References:
        von Rutte et al., "Generalized interpolating discrete diffusion", 2025, arXiv:2503.04482.
    """

    schedule: Schedule

    @abstractmethod
    def mixing(self, t: Tensor) -> Float[Tensor, "*s v"]:
        """The law pi_t that replaces the data, shape of t plus (v,) (a constant may be just (v,))."""

    def draw_mixing(self, t: Tensor, u: Float[Tensor, "*s"]) -> Int64[Tensor, "*s"]:
        """Draws from pi_t by inverse CDF, one uniform a site; sites that share a time (t of shape () or (b, 1, ..., 1))
        share its CDF, too."""
        rows = self.mixing(t).to(u.device).reshape(-1, self.vocab_size)  # one law for all sites, a row, or a site
        return draw_repeatedly(rows.log(), u.reshape(len(rows), -1)).reshape(u.shape)

    def corrupt(self, x0: State, t: Tensor, rng: Rng, x1: State | None = None) -> Tensor:
        """Each token is kept with probability alpha_t, else drawn from pi_t; no (b, *s, v) tensor is made."""
        tokens = self._uncoupled(x0, x1)
        t = expand_time(t, tokens)
        kept = rng.fold(_KEPT).uniform(tokens.shape, tokens.device) >= self.schedule.noise(t)
        return tokens.where(kept, self.draw_mixing(t, rng.fold(_DRAW).uniform(tokens.shape, tokens.device)))

    def marginal(self, p0: Float[Tensor, "*s v"], t: Tensor) -> Float[Tensor, "*s v"]:
        t = expand_time(t, p0[..., 0])
        alpha, noise = self.schedule.alpha(t)[..., None], self.schedule.noise(t)[..., None]
        return alpha * p0 + noise * self.mixing(t).to(p0) * p0.sum(-1, keepdim=True)

    def likelihood(self, xt: Int64[Tensor, "*s"], s: Tensor, t: Tensor) -> Float[Tensor, "*s v"]:
        s, t = expand_time(s, xt).expand(xt.shape), expand_time(t, xt).expand(xt.shape)
        kept = self.schedule.alpha(t) / self.schedule.alpha(s)
        jump = self._noise_at(xt, t) - kept * self._noise_at(xt, s)
        return jump[..., None] + kept[..., None] * one_hot(xt, self.vocab_size)

    def _rates_into(self, x: Int64[Tensor, "*s"], t: Tensor) -> Float[Tensor, "*s v"]:
        """R(y -> x) = alpha' / alpha (1[y = x] - (1 - alpha) pi[x]) + d/dt (1 - alpha) pi[x]: one slope a site."""
        tt = expand_time(t, x).expand(x.shape).clone()
        both: tuple[Tensor, ...] = torch.func.jvp(lambda time: self._noise_at(x, time), (tt,), (torch.ones_like(tt),))
        jump, slope = both
        loss = self.schedule.alpha_dot(tt) / self.schedule.alpha(tt)
        rates: Tensor = (slope - loss * jump)[..., None] + loss[..., None] * one_hot(x, self.vocab_size)
        return rates

    def prior_kl(self, x0: Int64[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        """Zero where alpha(1) = 0, since x_1 then knows nothing of x_0; dense in the vocabulary otherwise."""
        left = self.schedule.alpha(torch.ones((), dtype=torch.float64))
        return torch.zeros(x0.shape, dtype=torch.float64, device=x0.device) if left == 0 else super().prior_kl(x0)

    def _noise_at(self, x: Tensor, t: Tensor) -> Tensor:
        mixing = self.mixing(t).to(device=x.device).expand(*x.shape, self.vocab_size)
        return self.schedule.noise(t) * mixing.gather(-1, x[..., None]).squeeze(-1)
