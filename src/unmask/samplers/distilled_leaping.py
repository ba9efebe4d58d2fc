"""Leaping samplers whose times and rates are learned from a sampler with many steps."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unmask.columns import respect_padding
from unmask.deferred import ask
from unmask.denoiser import Denoiser
from unmask.law import SiteLaw, State
from unmask.leap_fitting import fit_leap, shortest_chain
from unmask.leaping import Leaping
from unmask.loops import time_grid
from unmask.loss import require
from unmask.process import DiscreteProcess
from unmask.rng import Rng
from unmask.sampler import KernelSampler


@dataclass(frozen=True, kw_only=True)
class DistilledLeaping(KernelSampler):
    """`Euler` or `TauLeaping` with rates times c_k between the times tau_k and tau_(k+1).

    A step from t to s leaps for the integral of c over it, so that any grid of times is served, the learned one,
    `trajectory(sampler, denoiser, x, sampler.grid, ...)`, best. Factors of one are the base sampler. The steps at the
    ends of time, which are the process's own, have none.

    **Heuristic** in between: the factors make up for what rates lose by being held fixed in a few large steps.

    Args:
        base: the sampler.
        times: tau, strictly decreasing from 1 to 0.
        factors: c, one for each step between them, >= 0.

    Raises:
        ValueError: for other times or numbers.

    References:
        Fu, Guo, Liu, "Learnable sampler distillation for discrete diffusion models", 2025, arXiv:2509.19962 (there the
        factors learn by gradients to align scores, from relaxed starts; here `distil` maximises a likelihood).
    """

    base: Leaping
    times: tuple[float, ...]
    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        require(self, self.base, Leaping, "it scales the rates of Euler or tau-leaping")
        falling = all(a > b for a, b in itertools.pairwise(self.times))
        if not (len(self.times) >= 2 and falling and self.times[0] == 1 and self.times[-1] == 0):
            raise ValueError(f"DistilledLeaping: times={self.times}, wanted strictly decreasing ones from 1 to 0")
        if len(self.factors) != len(self.times) - 1 or not all(math.isfinite(c) and c >= 0 for c in self.factors):
            raise ValueError(
                f"DistilledLeaping: factors={self.factors}, wanted a finite number >= 0 for each of the "
                f"{len(self.times) - 1} steps"
            )

    @property
    def process(self) -> DiscreteProcess:
        """The noise."""
        return self.base.process

    @property
    def grid(self) -> Float[Tensor, " n"]:
        """The learned times, for `trajectory`."""
        return torch.tensor(self.times, dtype=torch.float64)

    def transition(self, denoiser: Denoiser, x: State, t: Tensor, s: Tensor, **cond: Any) -> SiteLaw:
        """The law of x_s given x_t = x."""
        duration = t - s
        for (high, low), factor in zip(itertools.pairwise(self.times), self.factors, strict=True):
            duration = duration + (factor - 1) * (t.clamp(low, high) - s.clamp(low, high))
        return self.base.leap(denoiser, x, t, s, duration, **cond)


def distil(
    base: Leaping,
    denoiser: Denoiser,
    x0: Int64[Tensor, "b *s"],
    /,
    *,
    num_steps: int,
    fine_steps: int,
    rng: Rng,
    learn_times: bool = True,
    **cond: Any,
) -> DistilledLeaping:
    """The factors, and if wanted the times, for which what a teacher makes is the most likely.

    With p_c the law of a leap with rates times c, and x_0 a draw of a teacher with many steps,

        minimise over tau_k and c_k   sum_k E KL( q(x at tau_(k+1) | x at tau_k, x_0) || p_{c_k}(. | x at tau_k) ),

    the variational bound of -log p(x_0) under the student: whose output it pulls towards the teacher's. Steps decouple:
    a line search for each factor, and dynamic programming over equally spaced times for the best tau. The network is
    called once for each of these.

    Args:
        base: the student's rule, and its process.
        denoiser: the model of both.
        x0: samples of the teacher, such as `Ancestral` with many steps; data does as well.
        num_steps: of the student.
        fine_steps: how many equal steps the times are chosen from; a multiple of num_steps if they are not learned.
        rng: of the noise.
        learn_times: False keeps equal steps.
        cond: for the denoiser; padding, which an attention_mask tells, does not count.

    Raises:
        ValueError: for numbers of steps that do not fit.
    """
    if not 1 <= num_steps <= fine_steps or (not learn_times and fine_steps % num_steps):
        raise ValueError(
            f"distil: num_steps={num_steps}, fine_steps={fine_steps}; wanted at least as many fine ones, and a "
            "multiple if the times are not learned"
        )
    rng, real = respect_padding(x0, rng, None, cond.get("attention_mask"))
    where = torch.ones_like(x0, dtype=torch.bool) if real is None else real
    assert isinstance(where, Tensor)
    times, stride = time_grid(fine_steps), None if learn_times else fine_steps // num_steps
    costs = torch.full((fine_steps + 1, fine_steps + 1), torch.inf, dtype=torch.float64)
    factors = torch.ones_like(costs)
    for i in range(0, fine_steps, stride or 1):
        t = times[i].expand(len(x0))
        x = base.process.corrupt(x0, t, rng)  # the same noise at all times: their costs are to be compared
        with torch.no_grad():
            law = ask(denoiser, x, t, **cond)
            for j in [i + stride] if stride else range(i + 1, fine_steps + 1):
                costs[i, j], factors[i, j] = fit_leap(base, law, x0, x, t, times[j].expand(len(x0)), where)
    knots = shortest_chain(costs, num_steps)
    return DistilledLeaping(
        base=base,
        times=tuple(float(times[i]) for i in knots),
        factors=tuple(float(factors[i, j]) for i, j in itertools.pairwise(knots)),
    )
