"""The best factor of a leap's rates for given data, and the best chain of leaps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.blocks import map_sites
from unmask.jumps import reverse_jumps
from unmask.law import Categorical, SiteLaw
from unmask.leaping import Leaping, at_an_end
from unmask.ops import one_hot

_LARGEST, _ROUNDS = 8.0, 20  # of the factors, and of the search for one
_LEAST = 1e-12  # what the student cannot do costs as much as what it does so rarely
_GOLDEN = (math.sqrt(5) - 1) / 2


def fit_leap(
    base: Leaping,
    law: SiteLaw,
    x0: Int64[Tensor, "b *s"],
    x: Int64[Tensor, "b *s"],
    t: Float[Tensor, " b"],
    s: Float[Tensor, " b"],
    where: Bool[Tensor, "b *s"],
) -> tuple[float, float]:
    """The lowest divergence of a step from x at t to s, summed over the sites of `where`, and its factor, by golden
    sections of the factor's logarithm; a process's own reverse step has none."""
    process = base.process
    known = Categorical(
        x0.shape, process.vocab_size, lambda index: one_hot(x0.flatten()[index], process.vocab_size).log()
    )
    truth = process._sites(process.reverse(known, x, t, s), "distil")
    own = process._sites(process.reverse(law, x, t, s), "distil") if at_an_end(process, t, s) else None
    jumps = reverse_jumps(process, law, x, t, t - s)

    def parts(where: Tensor) -> Tensor:
        """(probability of staying, expected jumps, divergence as far as no factor changes it) at each site."""
        q, token = truth.log_probs(where).double().exp(), x[where][:, None]
        if own is not None:
            p = own.log_probs(where).double().exp()
            return torch.stack([q[:, 0], q[:, 0], _divergence(q, p)], 1)
        expected = jumps.at(where)
        total = expected.sum(1)
        shares = expected / total.where(total > 0, 1.0)[:, None]
        return torch.stack([q.gather(1, token).squeeze(1), total, _divergence(q.scatter(1, token, 0.0), shares)], 1)

    stay, total, rest = map_sites(parts, where, process.vocab_size).unbind(1)
    if own is not None:
        return float(rest.sum()), 1.0

    def cost(log_factor: float) -> float:
        chance = base.rule.chance(math.exp(log_factor) * total)
        return float((_divergence(stay[:, None], 1 - chance[:, None]) - _logs(1 - stay, chance)).sum())

    best, least = golden_section(cost, -math.log(_LARGEST), math.log(_LARGEST))
    return least + float(rest.sum()), math.exp(best)


def golden_section(fn: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """Where a function with one valley is least, and its value there; one new value a round."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = fn(left), fn(right)
    for _ in range(_ROUNDS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = fn(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = fn(right)
    return (left, at_left) if at_left <= at_right else (right, at_right)


def _logs(q: Tensor, p: Tensor) -> Tensor:
    """q log p, for p not below a least probability."""
    return torch.special.xlogy(q, p.clamp(min=_LEAST))


def _divergence(q: Float[Tensor, "n v"], p: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
    return (torch.special.xlogy(q, q) - _logs(q, p)).sum(1)


def shortest_chain(costs: Float[Tensor, "n n"], num_steps: int) -> list[int]:
    """The cheapest chain of so many steps from the first time to the last."""
    best, came = costs[0], []
    for _ in range(num_steps - 1):
        through = best[:, None] + costs
        best, previous = through.min(0)
        came.append(previous)
    knots = [len(costs) - 1]
    for previous in reversed(came):
        knots.append(int(previous[knots[-1]]))
    return [0, *reversed(knots)]
