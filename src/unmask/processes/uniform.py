"""The uniform process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.blocks import mask_of
from unmask.law import Categorical, Law, State
from unmask.ops import expand_time, one_hot, safe_log
from unmask.process import Interpolating
from unmask.rng import Rng
from unmask.schedule import Schedule
from unmask.schedules.linear import Linear
from unmask.sums import apart, most_in_pairs, sum_log1p

_PRIOR = 1
_FIRST, _LAST = 1e-30, 1 - 1e-12  # at the very ends of time the bound's integrand is a limit: evaluated a hair inside


@dataclass(frozen=True, kw_only=True)
class Uniform(Interpolating):
    """Each token is replaced by a uniformly random one with probability 1 - alpha(t); it may change again and again.

    q(x_t | x_0) = alpha_t 1[x_t = x_0] + (1 - alpha_t) / v.

    With b = (1 - alpha) / v, g = alpha / b and k = 1 / (1 + g), the reverse rate of x_t -> y, for p the law of x_0, is

        r(y) = (-alpha' / alpha) / v  (A + g p[y]),      A = 1 - (1 - k) p[x_t],      y != x_t,

    so that the bound needs one pass over the probabilities. A network trained with it must say how sure it is that a
    token is clean, to a precision of 1 - alpha: wrap it in `PlugIn`, which knows that from the time.

    Args:
        vocab_size: number of states, v; all of them are data.
        schedule: alpha(t).

    Raises:
        ValueError: for fewer than two states.

    References:
        Austin et al., 2021, arXiv:2107.03006 (uniform kernels); Schiff et al., "Simple guidance mechanisms for discrete
        diffusion models", 2024, arXiv:2412.10193 (the continuous-time bound, with a plug-in posterior); Sahoo et al.,
        "The diffusion duality", 2025, arXiv:2506.10892.
    """

    vocab_size: int
    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        if self.vocab_size < 2:
            raise ValueError(f"Uniform: vocab_size={self.vocab_size}, wanted at least 2 states")

    def mixing(self, t: Tensor) -> Float[Tensor, "*s v"]:
        return torch.full((self.vocab_size,), 1.0 / self.vocab_size, dtype=torch.float64, device=t.device)

    # -- closed forms of what the two vectors imply; the process contract compares them with the derived ones

    def draw_mixing(self, t: Tensor, u: Float[Tensor, "*s"]) -> Int64[Tensor, "*s"]:
        return (u * self.vocab_size).long()

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return (rng.fold(_PRIOR).uniform(shape) * self.vocab_size).long()

    def forward_rates(self, x: Int64[Tensor, "*s"], t: Tensor) -> Float[Tensor, "*s v"]:
        rate = -self.schedule.alpha_dot(t) / self.schedule.alpha(t)
        return expand_time(rate, x)[..., None] * (1.0 / self.vocab_size - one_hot(x, self.vocab_size))

    def reverse(self, law: Law, xt: State, t: Tensor, s: Tensor) -> Law:
        """p(x_s = y | x_t) proportional to ((1 - a) / v + a 1[y = x_t]) (alpha_s p[y] k^1[y = x_t] + b_s A), a =
        alpha_t / alpha_s."""
        tokens, sites = self._tokens(xt, "reverse"), self._sites(law, "reverse")
        alpha_t, noise_t, alpha_s, noise_s = (
            expand_time(value, tokens).expand(tokens.shape).flatten()
            for value in (
                self.schedule.alpha(t),
                self.schedule.noise(t),
                self.schedule.alpha(s),
                self.schedule.noise(s),
            )
        )
        stay = noise_t / (self.vocab_size * alpha_t + noise_t)  # k
        kept = alpha_t / alpha_s
        left = noise_t - kept * noise_s  # 1 - kept, without cancellation at small times

        def log_weights(index: Tensor) -> Tensor:
            x = tokens.flatten()[index][:, None]
            p = sites.log_probs(mask_of(index, tokens.shape)).double().exp()
            own = p.gather(1, x) * stay[index, None]
            p = p.scatter(1, x, own)
            base = noise_s[index, None] / self.vocab_size * p.sum(1, keepdim=True)  # b_s A
            weights = (alpha_s[index, None] * p + base) * left[index, None] / self.vocab_size
            own = own * alpha_s[index, None] + base
            return safe_log(weights.scatter_add(1, x, own * kept[index, None]))

        return Categorical(tokens.shape, self.vocab_size, log_weights, device=tokens.device, rest=tokens)

    def reverse_rates(
        self, law: Law, xt: Int64[Tensor, "b *s"], t: Tensor, where: Bool[Tensor, "b *s"] | None = None
    ) -> Float[Tensor, "*n v"]:
        p = self._sites(law, "reverse_rates").log_probs(where).double().exp()
        t = expand_time(t, xt).expand(xt.shape)
        x, t = (xt, t) if where is None else (xt[where], t[where])
        g, k, unit = (value[..., None] for value in self._scales(t))
        level = 1 - (1 - k) * p.gather(-1, x[..., None])
        return (unit * (level + g * p)).scatter(-1, x[..., None], 0.0)

    def reverse_total(
        self, law: Law, xt: Int64[Tensor, "b *s"], t: Tensor, where: Bool[Tensor, "b *s"]
    ) -> Float[Tensor, " n"]:
        """The forward rate of a jump times (v - 1) (1 - (1 - k) p[x_t]) + g (1 - p[x_t]): only p[x_t] is asked for."""
        own = self._sites(law, "reverse_total").token_log_prob(xt, where).double()
        g, k, unit = self._scales(expand_time(t, xt).expand(xt.shape)[where])
        others = -torch.expm1(own)
        return unit * ((self.vocab_size - 1) * (others + k * own.exp()) + g * others)

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """g, k and the forward rate of each jump, at times t."""
        alpha, noise = self.schedule.alpha(t), self.schedule.noise(t)
        g = self.vocab_size * alpha / noise
        return g, 1 / (1 + g), -self.schedule.alpha_dot(t) / (alpha * self.vocab_size)

    def nelbo_rate(
        self,
        law: Law,
        x0: Int64[Tensor, "b *s"],
        xt: Int64[Tensor, "b *s"],
        t: Tensor,
        where: Bool[Tensor, "b *s"] | None = None,
    ) -> Float[Tensor, "b *s"]:
        """One pass over the probabilities, in blocks of sites; at the very ends of time, its limit.

        With o = sum_{y != x_t} p[y], S = sum_{y != x_t} log(1 + g p[y] / A), and times the rate of a jump:

            x_0 = x_t:  g o + (v - 1) (1 - k) o - (v - 1) k log(1 + g o) - k S,
            otherwise:  -g p[x_t] - (v - 1) ((1 - k) p[x_t] + log A) + (1 + g) log(1 + g) - S - g log(A + g p[x_0]).
        """
        sites = self._sites(law, "nelbo_rate")
        t = expand_time(t, xt).clamp(_FIRST, _LAST).expand(xt.shape)
        return self._blockwise(lambda part: self._rate(sites.log_weights(part), x0[part], xt[part], t[part]), xt, where)

    def _rate(self, log_weights: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Float[Tensor, " n"]:
        g, k, unit = self._scales(t)
        clean = x0 == xt
        chosen, rest = apart(log_weights, xt, x0)
        own, right = (column.exp() for column in chosen)
        # not total - own: that would cancel where the token is almost surely clean
        others = rest.sum(1).double() + right.where(~clean, 0.0)
        total = own + others
        own, others, right = own / total, others / total, right / total
        lost = g * k * own  # (1 - k) p[x_t]
        level = others + k * own
        log_level = torch.where(lost < 0.5, torch.log1p(-lost.clamp(max=0.5)), level.log())
        odds = torch.log1p(g * right / level)  # of a jump to x_0
        largest = g.clamp(max=most_in_pairs(rest.dtype))
        gain = (largest / (level * total)).clamp(max=torch.finfo(rest.dtype).max).to(rest.dtype)
        spread = sum_log1p(rest, gain, float(largest.max())).double() + odds.where(~clean, 0.0)
        jumps = self.vocab_size - 1
        same = g * others + jumps * k * (g * others - torch.log1p(g * others)) - k * spread
        moved = -g * own - jumps * (lost + log_level) + (1 + g) * torch.log1p(g) - spread - g * (log_level + odds)
        return unit * torch.where(clean, same, moved)
