"""Estimators of the any-order bound of the masked process, which count the masked sites."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.denoisers.autoregressive import AutoregressiveDenoiser
from unmask.loss import row_positions
from unmask.losses.any_order import random_subsets
from unmask.metrics.estimators import Estimator, Replicates, Target, per_row, shares, stratified
from unmask.process import Process
from unmask.processes.masked import Masked
from unmask.rng import Rng

MAX_EXACT_SITES = 12


class MaskedEstimator(Estimator):
    """An estimator that counts masked sites, so it needs the masked process."""

    def refusal(self, denoiser: Denoiser, process: Process) -> str | None:
        if isinstance(process, Masked) or isinstance(denoiser, AutoregressiveDenoiser):
            return super().refusal(denoiser, process)
        return f"it counts masked sites, but the process is {type(process).__name__}; use LowDiscrepancyTime()"


@dataclass(frozen=True, kw_only=True)
class StratifiedMasks(MaskedEstimator):
    """The any-order bound, the number n of masked sites spread evenly over 1..L within a replicate:

        -log p(x) <= 1/L sum_{n=1}^L E_{|M| = n} [ L/n sum_{i in M} -log p(x^i | x outside M) ].

    A network that reads the time is shown the one at which n masks are expected. For a network that ignores it, this
    is the continuous-time bound of every schedule.

    References:
        Uria, Murray, Larochelle, 2014, arXiv:1310.1757; Hoogeboom et al., 2021, arXiv:2110.02037;
        Ou et al., 2024, arXiv:2406.03736.
    """

    def estimate(self, target: Target, num_calls: int, rng: Rng) -> Replicates:
        length = target.lengths
        parts = []
        for r, calls in enumerate(shares(num_calls)):
            total = torch.zeros(target.x.shape, dtype=torch.float64, device=target.x.device)
            for u, stream in stratified(target, calls, rng.fold(r)):
                count = torch.minimum(torch.floor(u * length).long() + 1, length)
                _, cost = masked_cost(target, count, stream)
                total += per_row(length / count.clamp(min=1), cost) * cost
            parts.append(total / calls)
        return Replicates(site_nats=torch.stack(parts), num_calls=num_calls)


@dataclass(frozen=True, kw_only=True)
class ContextGain(MaskedEstimator):
    """The any-order bound as the cost without context, which is exact, less the gain from context, which is sampled.

    With c_i = -log p(x^i | all masked), from one call that all draws share, and c_i(M) = -log p(x^i | x outside M),

        bound = sum_i c_i - sum_{n=1}^{L-1} 1/n E_{|M| = n} sum_{i in M} [ c_i - c_i(M) ].

    Two things lower the variance against `StratifiedMasks`. Rare tokens cost much under any mask, and whether the
    draws happen to hit one no longer matters: c_i is a control variate of mean known exactly. And n is drawn with
    probability q(n) ~ n^(-1/2), spread evenly within a replicate: the term of n has a standard deviation of about this
    shape (n near-independent gains, weighted 1/n), and calls in proportion to the deviation are the best allocation.

    References:
        Hoogeboom et al., 2021, arXiv:2110.02037 (the bound); Neyman, "On the two different aspects of the
        representative method", Journal of the Royal Statistical Society 1934 (the allocation).
    """

    min_calls: ClassVar[int] = 3

    def estimate(self, target: Target, num_calls: int, rng: Rng) -> Replicates:
        length = target.lengths
        bare = target.cost(target.real, torch.ones(len(length), dtype=torch.float64, device=target.x.device))
        control = bare.where(bare.isfinite(), 0.0)  # an impossible token costs infinity, not NaN
        probs = self._allocation(length, target.x[0].numel())
        cdf = probs.cumsum(1)
        parts = []
        for r, calls in enumerate(shares(num_calls - 1)):
            gain = torch.zeros_like(bare)
            for u, stream in stratified(target, calls, rng.fold(r)):
                found = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True).squeeze(1) + 1
                count = torch.minimum(found, length - 1).clamp(min=0)
                where, cost = masked_cost(target, count, stream)
                place = count.clamp(min=1)
                weight = 1.0 / (place * probs.gather(1, place[:, None] - 1).squeeze(1))
                gain += per_row(weight, cost) * (control - cost).where(where, 0.0)
            parts.append(bare - gain / calls)
        return Replicates(site_nats=torch.stack(parts), num_calls=num_calls)

    @staticmethod
    def _allocation(length: Tensor, width: int) -> Float64[Tensor, "b n"]:
        """q(n) for n = 1..L-1 of each row, in columns n - 1; a row of one site has an unused 1."""
        n = torch.arange(1, max(width, 2), dtype=torch.float64, device=length.device)
        weight = n.rsqrt().where(n < length[:, None].clamp(min=2), 0.0)
        return weight / weight.sum(1, keepdim=True)


def masked_cost(target: Target, count: Tensor, rng: Rng) -> tuple[Bool[Tensor, "b *s"], Float64[Tensor, "b *s"]]:
    """A uniformly random set of `count` (b,) real sites per row, and what its tokens cost given the others."""
    where = random_subsets(target.real, count, row_positions(target.attention_mask, rng))
    visible = 1.0 - count.double() / target.lengths.clamp(min=1)
    return where, target.cost(where, target.masked.schedule.inverse(visible))


@dataclass(frozen=True, kw_only=True)
class ExactBound(MaskedEstimator):
    """The exact value of the any-order bound by enumerating all 2^L - 1 masks; for at most 12 real sites a row.

    It is still a bound of -log p, only without sampling error. A mask of n sites has weight 1 / (n C(L, n)).
    """

    min_calls: ClassVar[int] = 1

    def estimate(self, target: Target, num_calls: int, rng: Rng) -> Replicates:
        longest = int(target.lengths.max())
        if longest > MAX_EXACT_SITES:
            raise ValueError(
                f"ExactBound: a row has {longest} sites, so 2^{longest} masks; wanted at most {MAX_EXACT_SITES}. "
                "Use ContextGain()"
            )
        rank = (target.real.flatten(1).cumsum(1) - 1).clamp(min=0).reshape(target.real.shape)
        total = torch.zeros(target.x.shape, dtype=torch.float64, device=target.x.device)
        for mask in range(1, 2**longest):
            where = target.real & ((mask >> rank) & 1).bool()
            count = mask.bit_count()
            rows = [
                1.0 / (count * math.comb(length, count)) if mask < 2**length else 0.0
                for length in target.lengths.tolist()
            ]
            visible = 1.0 - where.flatten(1).sum(1).double() / target.lengths.clamp(min=1)
            weight = torch.tensor(rows, dtype=torch.float64, device=total.device)
            total += per_row(weight, total) * target.cost(where, target.masked.schedule.inverse(visible))
        return Replicates(site_nats=total[None], num_calls=2**longest - 1, deterministic=True)
