"""Interleaved Gibbs sampling of tokens and real numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from unmask.columns import by_column
from unmask.denoiser import Denoiser
from unmask.law import ProductLaw, SiteLaw, State
from unmask.loss import require
from unmask.processes.interleaved import TOKENS, VALUES, Interleaved
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler


@dataclass(frozen=True, kw_only=True)
class InterleavedSteps(Sampler):
    """Undo the visits between t and s one by one: a token is drawn given all others, a number takes `num_substeps`
    Gaussian steps given all others,

        y_u' ~ N( a^(u - u') s'^2 / s^2 y_u + a^u' (1 - a^(2(u - u'))) / s^2 mean,   s'^2 (1 - a^(2(u - u'))) / s^2 ),

    with s^2 = 1 - a^2u, s'^2 = 1 - a^2u', the network's mean of y_0, and u the squares of equally spaced numbers, since
    it is near u = 0 that y_u settles.

    **Exact** for exact conditionals in the limit of many substeps, up to what the chain's end still holds of the data.
    Every grid of times gives the same law, for it only groups the visits. Elements that are not editable are handed to
    the denoiser as `given`; exact for one that was trained with given elements.

    Args:
        process: the noise.
        num_substeps: of a visit to a number, >= 1; a network call each. (A visit to a token is one.)

    Raises:
        ValueError: for num_substeps < 1.

    References:
        Anil et al., "Interleaved Gibbs diffusion for constrained generation", 2025, arXiv:2502.13450.
    """

    process: Interleaved
    num_substeps: int = 4

    def __post_init__(self) -> None:
        require(self, self.process, Interleaved, "it walks that process's rounds")
        if self.num_substeps < 1:
            raise ValueError(f"InterleavedSteps: num_substeps={self.num_substeps}, wanted at least 1")

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
        process, turns, now = self.process, self.process.tokens, dict(self.process.columns(x, "InterleavedSteps"))
        real = process.real(now, cond.get("attention_mask"), "InterleavedSteps")
        given = self._given(now, editable) & real
        last, first = turns.step_of(t, real), turns.step_of(s, real)
        for done in range(int((last - first).max())):
            step = (last - done).clamp(min=0)
            where = process.split(turns.visited(step, real) & ~given & (step > first)[:, None], now)
            time, part = turns.time_of(step, real), rng.fold(done)
            if bool(where[TOKENS].any()):
                law = self._law(denoiser, now, time, given, None, cond).column(TOKENS)
                assert isinstance(law, SiteLaw)
                drawn, _ = law.sample_at(where[TOKENS], part.column(TOKENS))
                now[TOKENS] = now[TOKENS].masked_scatter(where[TOKENS], drawn)
            if bool(where[VALUES].any()):
                self._undo(denoiser, now, where[VALUES], time, given, part.column(VALUES), cond)
        return now, Carry()

    def _undo(
        self,
        denoiser: Denoiser,
        now: dict[str, Tensor],
        where: Bool[Tensor, "b m"],
        time: Tensor,
        given: Tensor,
        rng: Rng,
        cond: dict[str, Any],
    ) -> None:
        """Take the visit to the numbers of `where` back, in place of `now`."""
        a = self.process.retention
        for index in range(self.num_substeps):
            u, after = ((1 - k / self.num_substeps) ** 2 for k in (index, index + 1))
            law = self._law(denoiser, now, time, given, torch.full_like(time, u), cond)
            mean = law.column(VALUES).mean
            assert isinstance(mean, Tensor)
            y, spread, left, step = now[VALUES].double(), 1 - a ** (2 * u), 1 - a ** (2 * after), a ** (u - after)
            loc = step * left / spread * y + a**after * (1 - step**2) / spread * mean.double()
            noise = rng.fold(index).normal(y.shape, y.device)
            moved = loc + (left * (1 - step**2) / spread) ** 0.5 * noise
            now[VALUES] = now[VALUES].where(~where, moved.to(now[VALUES].dtype))

    def _law(
        self,
        denoiser: Denoiser,
        x: dict[str, Tensor],
        time: Tensor,
        given: Tensor,
        u: Tensor | None,
        cond: dict[str, Any],
    ) -> ProductLaw:
        law = denoiser(x, time, u=u, given=given, **cond)
        if not isinstance(law, ProductLaw):
            raise TypeError(f"InterleavedSteps: met a {type(law).__name__}, wanted the law of an InterleavedDenoiser")
        return law

    def _given(self, x: dict[str, Tensor], editable: State | None) -> Bool[Tensor, "b n"]:
        allowed = by_column(x, editable)
        free = [allowed.get(k, torch.ones_like(x[k], dtype=torch.bool)) for k in (TOKENS, VALUES)]
        return ~torch.cat(free, 1)
