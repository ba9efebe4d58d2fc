"""Steps of two leaps, whose second rates combine those at both ends of the first."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unmask.deferred import ask
from unmask.denoiser import Denoiser
from unmask.jumps import WeightedSum, reverse_jumps
from unmask.law import SiteLaw, State
from unmask.leaping import LEAP, Leap, at_an_end
from unmask.loss import require
from unmask.process import DiscreteProcess
from unmask.processes.masked import Masked
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler

_FIRST, _SECOND = 1, 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The second leap.

    Args:
        share: of the step, that it takes.
        restarts: whether it starts from x_t again, and not from x*.
        stayed: weights of the rates at x* and of those at x_t, for a site with one token in both.
        left: the same for a site that has left its token on the way to x*.
    """

    share: float
    restarts: bool
    stayed: tuple[float, float]
    left: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class TwoStage(Sampler):
    """A leap from x_t to x* at r = t - theta (t - s), then a second one to x_s; a subclass gives its rates and start.

    Args:
        process: any noise on discrete sites.
        theta: where in the step the rates are taken again.
    """

    process: DiscreteProcess
    theta: float = 0.5

    def __post_init__(self) -> None:
        require(self, self.process, DiscreteProcess, "its steps follow the jump rates of discrete sites")

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """What the second leap is."""

    def prior(self, shape: Any, rng: Rng) -> State:
        return self.process.prior(shape, rng)

    def middle(self, t: Float[Tensor, " b"], s: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The time r of x*."""
        return t - self.theta * (t - s)

    def first(self, law: SiteLaw, x: Int64[Tensor, "b *s"], t: Tensor, s: Tensor) -> Leap:
        """The law of x* given x_t = x, for a law of x_0."""
        return Leap(reverse_jumps(self.process, law, x, t, self.theta * (t - s)), x, LEAP)

    def second(
        self, law: SiteLaw, later: SiteLaw, x: Int64[Tensor, "b *s"], star: Int64[Tensor, "b *s"], t: Tensor, s: Tensor
    ) -> Leap:
        """The law of x_s given x_t = x and x* = star, for the laws of x_0 given either."""
        plan, left = self.plan, x != star
        new = reverse_jumps(self.process, later, star, self.middle(t, s), plan.share * (t - s))
        old = reverse_jumps(self.process, law, x, t, plan.share * (t - s))
        ahead, behind = (torch.where(left, there, here) for there, here in zip(plan.left, plan.stayed, strict=True))
        begin = x if plan.restarts else star
        return Leap(WeightedSum([(new, ahead.double()), (old, behind.double())], begin), begin, LEAP)

    def step(
        self,
        denoiser: Denoiser,
        x: State,
        t: Tensor,
        s: Tensor,
        carry: Carry,
        rng: Rng,
        *,
        editable: State | None = None,
        **cond: Any,
    ) -> tuple[State, Carry]:
        tokens = self.process._tokens(x, type(self).__name__)
        allowed = torch.ones_like(tokens, dtype=torch.bool) if editable is None else editable
        assert isinstance(allowed, Tensor)
        if at_an_end(self.process, t, s):
            whole = self.process.reverse(ask(denoiser, tokens, t, **cond), tokens, t, s)
            after, commit = whole.only(allowed).draw(rng)
            return after, Carry(commit_log_prob=commit, remasked=self.process.remasked(after))
        alive = allowed  # rows without a site that can jump are not evaluated
        if isinstance(self.process, Masked):
            alive = allowed & (tokens == self.process.mask_id)
        law = ask(denoiser, tokens, t, sites=alive, **cond)
        star, scores = self.first(law, tokens, t, s).only(allowed).draw(rng.fold(_FIRST))
        later = ask(denoiser, star, self.middle(t, s), sites=alive, **cond)
        leap = self.second(law, later, tokens, star, t, s)
        after, fresh = leap.only(allowed).draw(rng.fold(_SECOND))
        commit = scores.where(fresh.isnan(), fresh)
        return after, Carry(commit_log_prob=commit, remasked=self.process.remasked(after))
