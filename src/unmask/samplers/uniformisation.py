"""Exact simulation of the reverse chain, jump by jump."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.deferred import ask
from unmask.denoiser import Denoiser
from unmask.jumps import mixing_rate, reverse_jumps
from unmask.law import State
from unmask.loss import require
from unmask.ops import expand_time
from unmask.process import Interpolating
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler

_START, _END, _FIRST, _JUMP, _WAIT, _ACCEPT, _VALUES = 1, 2, 3, 4, 5, 6, 7
_BISECTIONS = 32


@dataclass(frozen=True, kw_only=True)
class Uniformisation(Sampler):
    """Jumps of the reversed process at their own times: candidates come faster than any law asks for, and are thinned.

    Whatever x_0, a token x leaves at a rate below that of the clock

        Phi_x(t) = log( (1 - alpha_t) pi_t[x] / alpha_t ),

    whose ticks have a closed count: a site waits from t to the tau < t with Phi_x(t) - Phi_x(tau) = E, E ~ Exp(1). Of
    these candidates one that even the worst x_0 would refuse costs nothing; any other costs one network call of its
    row, and jumps with the chance (total rate at x, tau) / (rate of the clock), in proportion to the rates. Rows walk
    on their own clocks, and a call serves all rows that have a candidate. The grid only groups jumps into steps.

    **Exact**: the law of the model's reverse chain from alpha = c to alpha = 1 - c, c the cutoff. The stretches beyond,
    where the clock ticks without end, are one reverse step of the process each, sites independent: an error of order
    (length c)^2. Calls a row: one a mask for masked noise (`FirstHitting` is the simpler exact sampler there), and for
    uniform noise a Poisson number with mean length (2 - 1 / v) log(1 / c - 1).

    Args:
        process: noise that mixes data with a law.
        cutoff: c, in (0, 1/2).

    Raises:
        TypeError: for another process.
        ValueError: for a cutoff out of range.

    References:
        Chen, Ying, "Convergence analysis of discrete diffusion model: exact implementation through uniformization",
        2024, arXiv:2402.08095 (there with one constant bound in each of several windows); Lewis, Shedler, "Simulation
        of nonhomogeneous Poisson processes by thinning", 1979.
    """

    process: Interpolating
    cutoff: float = 1e-3

    def __post_init__(self) -> None:
        require(
            self, self.process, Interpolating, "the bound of the rates is known for noise that mixes data with a law"
        )
        if not 0 < self.cutoff < 0.5:
            raise ValueError(f"Uniformisation: cutoff={self.cutoff}, wanted a share strictly between 0 and 1/2")

    def prior(self, shape: Any, rng: Rng) -> State:
        return self.process.prior(shape, rng)

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
        tokens = self.process._tokens(x, "Uniformisation")
        allowed = torch.ones_like(tokens, dtype=torch.bool) if editable is None else editable
        assert isinstance(allowed, Tensor)
        walk = _Walk(denoiser=denoiser, process=self.process, rng=rng, cond=cond, x=tokens, allowed=allowed)
        first, last = self.process.schedule.inverse(t.new_tensor([self.cutoff, 1 - self.cutoff]))
        top, bottom = torch.minimum(t, first), torch.maximum(s, last)
        walk.leap(t, torch.maximum(s, top), rng.fold(_START))
        walk.jump(top, bottom)
        walk.leap(torch.minimum(t, bottom), s, rng.fold(_END))
        return walk.x, Carry(commit_log_prob=walk.commit, remasked=self.process.remasked(walk.x))


class _Walk:
    """The state of a batch on its way through a step."""

    def __init__(
        self,
        *,
        denoiser: Denoiser,
        process: Interpolating,
        rng: Rng,
        cond: dict[str, Any],
        x: Int64[Tensor, "b *s"],
        allowed: Bool[Tensor, "b *s"],
    ) -> None:
        self.denoiser, self.process, self.rng, self.cond = denoiser, process, rng, cond
        self.x, self.allowed = x, allowed
        self.commit = torch.full(x.shape, torch.nan, device=x.device)

    def leap(self, t: Float[Tensor, " b"], s: Float[Tensor, " b"], rng: Rng) -> None:
        """The process's own reverse step, in rows where s < t."""
        where = self.allowed & expand_time(s < t, self.x)
        if bool(where.any()):
            law = ask(self.denoiser, self.x, t, **self.cond)
            tokens, scores = self.process.reverse(law, self.x, t, s).only(where).draw(rng)
            assert isinstance(tokens, Tensor)
            assert isinstance(scores, Tensor)
            self.x, self.commit = tokens, self.commit.where(scores.isnan(), scores.to(self.commit.dtype))

    def jump(self, top: Float[Tensor, " b"], bottom: Float[Tensor, " b"]) -> None:
        """All jumps from `top` down to `bottom`, in each row the latest candidate first."""
        start, end = (expand_time(time, self.x).expand(self.x.shape).flatten(1) for time in (top, bottom))
        waits = -self.rng.fold(_FIRST).uniform(self.x.shape, self.x.device).log().flatten(1)
        ticks = self._tick(self.x.flatten(1), start, end, waits).masked_fill(~self.allowed.flatten(1), -torch.inf)
        count = 0
        while True:
            time, site = ticks.max(1)
            live = time > bottom
            if not bool(live.any()):
                return
            self._try(live, site, time.where(live, top), self.rng.fold(_JUMP, count))
            token = self.x.flatten(1).gather(1, site[:, None]).squeeze(1)
            waits = -self.rng.fold(_JUMP, count, _WAIT).uniform(live.shape, live.device).log()
            ticks[live, site[live]] = self._tick(token[live], time[live], bottom[live], waits[live])
            count += 1

    def _try(self, live: Tensor, site: Tensor, time: Tensor, rng: Rng) -> None:
        """The candidate jump of each live row: made with the chance (rate of the model) / (rate of the clock)."""
        token = self.x.flatten(1).gather(1, site[:, None]).squeeze(1)
        level, inward = mixing_rate(self.process, token, time)
        u = rng.fold(_ACCEPT).uniform(live.shape, live.device)
        chosen = torch.zeros_like(self.x, dtype=torch.bool).flatten(1)
        chosen = chosen.scatter(1, site[:, None], (live & (u < 1 - level))[:, None]).reshape(self.x.shape)
        if not bool(chosen.any()):
            return
        law = ask(self.denoiser, self.x, time, sites=chosen, **self.cond)
        rates = reverse_jumps(self.process, law, self.x, time, torch.ones_like(time))
        threshold = expand_time(u * inward / level, self.x).expand(self.x.shape)
        jumped, values, scores = rates.draw(chosen, threshold, lambda total: total, rng.fold(_VALUES))
        self.x = self.x.masked_scatter(jumped, values)
        self.commit = self.commit.masked_scatter(jumped, scores.to(self.commit.dtype))

    def _tick(self, x: Tensor, start: Tensor, end: Tensor, waits: Tensor) -> Tensor:
        """The time tau of Phi_x(tau) = Phi_x(start) - wait, -inf where it is below the end."""
        goal = self._clock(x, start) - waits
        late = self._clock(x, end) < goal  # False for tokens that are never noise: both are -inf
        high, low = start, end
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            above = self._clock(x, middle) > goal
            high, low = middle.where(above, high), low.where(above, middle)
        return high.where(late, -torch.inf)

    def _clock(self, x: Tensor, t: Tensor) -> Tensor:
        return (self.process._noise_at(x, t) / self.process.schedule.alpha(t)).log()
