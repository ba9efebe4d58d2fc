"""How many jumps the sites of the reversed process expect: what all solvers of its rates are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.blocks import map_sites
from unmask.law import SiteLaw
from unmask.ops import draw_categorical, expand_time, safe_log
from unmask.process import DiscreteProcess, Interpolating
from unmask.processes.masked import Masked
from unmask.rng import Rng


class Jumps(ABC):
    """The number of jumps that each site expects, by target, with as little asked of the model as can be.

    Args:
        ceiling: what they sum to at most, (b, *s), known without the model; infinite where nothing is known.
        vocab_size: number of targets, v.
    """

    def __init__(self, ceiling: Float[Tensor, "b *s"], vocab_size: int) -> None:
        self.ceiling, self.vocab_size = ceiling, vocab_size

    @abstractmethod
    def at(self, where: Bool[Tensor, "b *s"]) -> Float[Tensor, "n v"]:
        """Expected jumps to each target at the sites of `where`, float64; none to the site's own token."""

    def draw(
        self, where: Bool[Tensor, "b *s"], u: Float[Tensor, "b *s"], chance: Callable[[Tensor], Tensor], rng: Rng
    ) -> tuple[Bool[Tensor, "b *s"], Int64[Tensor, " n"], Float[Tensor, " n"]]:
        """Which sites of `where` jump, where to, and the logarithm of the target's share.

        Args:
            u: uniforms; a site that expects M jumps makes one if its own is below chance(M).
            chance: M -> probability.
            rng: of the targets.
        """

        def drawn(part: Tensor) -> Tensor:
            expected = self.at(part)
            total = expected.sum(-1)
            hit = u[part] < chance(total)
            index = part.flatten().nonzero().squeeze(1)[hit]
            values = draw_categorical(safe_log(expected[hit]), rng.uniform_at(index, part.shape))
            share = expected[hit].gather(1, values[:, None]).squeeze(1) / total[hit]
            found = torch.zeros(len(total), 3, dtype=torch.float64, device=total.device)
            found[hit] = torch.stack([torch.ones_like(share), values.double(), share.log()], 1)
            return found

        found = map_sites(drawn, where, self.vocab_size)
        hit = found[:, 0] > 0
        return where.masked_scatter(where, hit), found[hit, 1].long(), found[hit, 2]


class _OfRates(Jumps):
    """Rates that act for a while."""

    def __init__(self, process: DiscreteProcess, law: SiteLaw, x: Tensor, t: Tensor, duration: Tensor) -> None:
        self.process, self.law, self.x, self.t = process, law, x, t
        self.span = expand_time(duration, x).expand(x.shape)
        super().__init__(reverse_ceiling(process, x, t) * self.span, process.vocab_size)

    def at(self, where: Tensor) -> Tensor:
        return self.process.reverse_rates(self.law, self.x, self.t, where) * self.span[where][:, None]

    def total(self, where: Tensor) -> Tensor:
        """The sums of `at`."""
        return self.process.reverse_total(self.law, self.x, self.t, where) * self.span[where]

    def draw(
        self, where: Tensor, u: Tensor, chance: Callable[[Tensor], Tensor], rng: Rng
    ) -> tuple[Tensor, Tensor, Tensor]:
        where = where.masked_scatter(where, u[where] < chance(self.total(where)))  # the targets only where there is one
        return self._values(where, rng)

    def _values(self, where: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        return super().draw(where, torch.zeros_like(where, dtype=torch.float64), torch.ones_like, rng)


class _OfMasks(_OfRates):
    """Masks are revealed at their hazard, whatever the model says; it is asked for the values of those that are."""

    def at(self, where: Tensor) -> Tensor:
        values = self.law.log_probs(where).double().exp() * self.ceiling[where][:, None]
        return values.scatter(-1, self.x[where][:, None], 0.0)

    def total(self, where: Tensor) -> Tensor:
        return self.ceiling[where]

    def _values(self, where: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        if not bool(where.any()):
            return super()._values(where, rng)
        return (where, *self.law.sample_at(where, rng))


def reverse_jumps(
    process: DiscreteProcess,
    law: SiteLaw,
    x: Int64[Tensor, "b *s"],
    t: Float[Tensor, " b"],
    duration: Float[Tensor, " b"],
) -> Jumps:
    """The jumps that the reversed process expects in `duration`, at its rates for x at time t."""
    kind = _OfMasks if isinstance(process, Masked) else _OfRates
    return kind(process, law, x, t, duration)


class Forward(Jumps):
    """The jumps that the forward process expects in `duration` (b,), at its rates at time t (b,)."""

    def __init__(self, process: DiscreteProcess, x: Int64[Tensor, "b *s"], t: Tensor, duration: Tensor) -> None:
        self.process, self.x = process, x
        self.t, self.span = (expand_time(time, x).expand(x.shape) for time in (t, duration))
        rate = torch.full(x.shape, torch.inf, dtype=torch.float64, device=x.device)
        if isinstance(process, Interpolating):
            total = -process.schedule.alpha_dot(self.t) / process.schedule.alpha(self.t)
            rate = (total - mixing_rate(process, x, self.t)[1]).clamp(min=0.0)
        super().__init__(rate * self.span, process.vocab_size)

    def at(self, where: Tensor) -> Tensor:
        x = self.x[where]
        rates = self.process.forward_rates(x, self.t[where]).to(torch.float64)
        return rates.scatter(-1, x[:, None], 0.0) * self.span[where][:, None]


class WeightedSum(Jumps):
    """(sum_k w_k jumps_k)_+, each term evaluated only where it is not zero for sure.

    Args:
        terms: (jumps, weight (b, *s)).
        begin: where the leap starts, (b, *s).
    """

    def __init__(self, terms: Sequence[tuple[Jumps, Float[Tensor, "b *s"]]], begin: Int64[Tensor, "b *s"]) -> None:
        self.terms, self.begin = terms, begin
        ceilings = [torch.where(weight > 0, weight * jumps.ceiling, 0.0) for jumps, weight in terms]
        super().__init__(torch.stack(ceilings).sum(0), terms[0][0].vocab_size)

    def at(self, where: Tensor) -> Tensor:
        out = torch.zeros(int(where.sum()), self.vocab_size, dtype=torch.float64, device=where.device)
        for jumps, weight in self.terms:
            used = where & (weight != 0) & (jumps.ceiling != 0)
            out[used[where]] += weight[used][:, None] * jumps.at(used)
        return out.clamp_(min=0.0).scatter_(-1, self.begin[where][:, None], 0.0)


def reverse_ceiling(process: DiscreteProcess, x: Int64[Tensor, "b *s"], t: Tensor) -> Float[Tensor, "b *s"]:
    """The largest total rate at which the reversed process can leave each token, whatever the law of x_0.

    The total is an average over x_0 of sum_y R(y -> x) q(y | x_0) / q(x | x_0). For noise that mixes data with a law,
    with n = (1 - alpha) pi[x], the worst x_0 is any but x itself: (n' - n alpha' / alpha) (1 - n) / n. For masks this
    is the hazard. Other processes: infinite.
    """
    tt = expand_time(t, x)
    if isinstance(process, Masked):
        return torch.where(x == process.mask_id, process.hazard(tt), 0.0)  # no product: 0 times infinity
    if not isinstance(process, Interpolating):
        return torch.full(x.shape, torch.inf, dtype=torch.float64, device=x.device)
    level, inward = mixing_rate(process, x, tt)
    possible = level > 0
    worst = inward * (1 - level) / level.where(possible, 1.0)
    return worst.where(possible, 0.0).nan_to_num(nan=torch.inf, posinf=torch.inf)


def mixing_rate(process: Interpolating, x: Int64[Tensor, "b *s"], t: Tensor) -> tuple[Tensor, Tensor]:
    """n = (1 - alpha) pi[x], and the rate n' - n alpha' / alpha of a forward jump to x from any other token."""
    tt = t.expand(x.shape).clone()  # forward autodiff needs its own memory
    level, slope = torch.func.jvp(lambda time: process._noise_at(x, time), (tt,), (torch.ones_like(tt),))[:2]
    return level, slope - process.schedule.alpha_dot(tt) / process.schedule.alpha(tt) * level
