"""Euler sampling of the marginal velocity, with correctors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.deferred import ask
from unmask.denoiser import Denoiser
from unmask.law import LogProbMap, SiteLaw, State, StepLaw
from unmask.loss import require
from unmask.ops import draw_categorical, draw_repeatedly, expand_time, one_hot
from unmask.processes.mixture_path import MixturePath
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler

_WHICH, _VALUES, _FIXED = 1, 2, 3
_ADVANCE, _CORRECT = 1, 2


@dataclass(frozen=True, kw_only=True)
class FlowEuler(Sampler):
    """Euler steps of the mixture path's velocities, all sites at once:

        p(x_s = y | x_t) = 1[y = x_t] + (t - s) (a u(x_t -> y) + b v(x_t -> y)),   a - b = 1,

    with u the velocity towards the data, v the one towards the source, and b = corrector (1 - t)^p t^q: any b >= 0
    keeps the one-time marginals, and a larger one lets mistakes be undone. `corrector_steps` further steps at s with
    a = b (jumps both ways, no advance) move x_s towards the law that the two velocities balance. A step that would jump
    with a probability above 1 is shortened (correctors) or jumps surely (the last steps); the step to s = 0 draws every
    site from the denoiser's law, the limit of the velocity there.

    Exact in the limit of many steps for a denoiser that is the exact law of x_0 given x_t, under any coupling (with
    correctors: given the exact `noise_model`); first order in the step size.

    Args:
        process: the path.
        corrector: strength of b, >= 0; 0 is plain Euler.
        powers: (p, q), p >= 1/2 with a corrector (v diverges at t = 1), q >= 0.
        corrector_steps: number of corrector steps after each step but the last; each is one more network call.
        corrector_size: duration of a corrector step, in units of t - s.
        noise_model: (x_t, t, **cond) -> the law of x_1 given x_t, for correctors under a coupling. None: the
            independent one, whose v is in closed form.

    Raises:
        ValueError: for negative numbers, or p < 1/2 with a corrector.

    References:
        Gat et al., "Discrete flow matching", 2024, arXiv:2407.15595 (sections 3.2 and 3.3).
    """

    process: MixturePath
    corrector: float = 0.0
    powers: tuple[float, float] = (0.5, 0.5)
    corrector_steps: int = 0
    corrector_size: float = 1.0
    noise_model: Callable[..., SiteLaw] | None = None

    def __post_init__(self) -> None:
        require(self, self.process, MixturePath, "its steps follow the velocity of a path")
        numbers = (self.corrector, *self.powers, self.corrector_size, float(self.corrector_steps))
        if not all(math.isfinite(v) and v >= 0 for v in numbers):
            raise ValueError(f"FlowEuler: met {numbers}, wanted finite corrector settings >= 0")
        if self.corrector > 0 and self.powers[0] < 0.5:
            raise ValueError(
                f"FlowEuler: powers={self.powers}; the first has to be at least 0.5, since the velocity towards the "
                "source diverges at t = 1"
            )

    def prior(self, shape: Any, rng: Rng) -> Tensor:
        return self.process.prior(shape, rng)

    def transition(self, denoiser: Denoiser, x: State, t: Tensor, s: Tensor, **cond: Any) -> Jump:
        """The law of x_s given x_t = x, correctors at s not included."""
        tokens = self.process._tokens(x, "FlowEuler")
        law = ask(denoiser, tokens, t, **cond)
        last, h = (s <= 0)[:, None], (t - s)[:, None]
        back = torch.where((t < 1) & (s > 0), self.corrector * (1 - t) ** self.powers[0] * t ** self.powers[1], 0.0)
        gains = (1 + back[:, None]) * self.process.generating_gains(t)
        pull = torch.where(back[:, None] > 0, back[:, None] * self._noising(t), 0.0)
        chances = h * torch.stack([gains[:, 0], pull[:, 1]], -1)
        chances = torch.cat([chances, h * (gains + pull)[:, 2:]], -1)
        chances = chances / chances.sum(-1, keepdim=True).clamp(min=1.0)
        only_data = torch.eye(chances.shape[-1], dtype=chances.dtype, device=chances.device)[0]
        return Jump(self.process, law, self._noise_law(tokens, t, cond), tokens, chances.where(~last, only_data))

    def correction(self, denoiser: Denoiser, x: State, s: Tensor, h: Tensor, **cond: Any) -> Jump:
        """One corrector step of duration h (b,) at time s in (0, 1): it keeps the law of x_s to first order in h."""
        tokens = self.process._tokens(x, "FlowEuler")
        law = ask(denoiser, tokens, s, **cond)
        gains, pull = self.process.generating_gains(s), self.process.noising_gains(s)
        chances = torch.cat([gains[:, :1], pull[:, 1:2], (gains + pull)[:, 2:]], -1)
        chances = chances * torch.minimum(h, 1 / chances.sum(-1))[:, None]
        return Jump(self.process, law, self._noise_law(tokens, s, cond), tokens, chances)

    def _noising(self, t: Tensor) -> Tensor:
        return self.process.noising_gains(t.where(t < 1, 0.5))  # where b = 0 in any case

    def _noise_law(self, tokens: Tensor, t: Tensor, cond: dict[str, Any]) -> SiteLaw | None:
        model = self.noise_model
        return None if model is None else ask(model, tokens, t, **cond)

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
        tokens = self.process._tokens(x, "FlowEuler")
        commit = torch.full(tokens.shape, torch.nan, device=tokens.device)
        noised = torch.zeros_like(tokens, dtype=torch.bool)
        for k in range(1 + (self.corrector_steps if bool((s > 0).all()) else 0)):
            if k == 0:
                law = self.transition(denoiser, tokens, t, s, **cond)
            else:
                law = self.correction(denoiser, tokens, s, self.corrector_size * (t - s), **cond)
            law = law if editable is None else law.only(editable)
            tokens, fresh, jumped, from_noise = law.jump(rng.fold(_ADVANCE if k == 0 else _CORRECT, k))
            commit, noised = torch.where(jumped, fresh, commit), torch.where(jumped, from_noise, noised)
        return tokens, Carry(commit_log_prob=commit, remasked=noised)


class Jump(StepLaw):
    """Each site keeps its token, or jumps to a draw from the model's law, from the source or from a detour.

    Whether a site jumps is drawn before where to, so the model is asked about the sites that jump to its law, and not
    at all when there are none.

    Args:
        law: of x_0.
        noise_law: of x_1; None for the source's own law.
        chances: probability of each kind of jump (data, source, detours), shape (b, j), sums at most 1.
    """

    def __init__(
        self,
        process: MixturePath,
        law: SiteLaw,
        noise_law: SiteLaw | None,
        xt: Int64[Tensor, "b *s"],
        chances: Float[Tensor, "b j"],
        open_sites: Bool[Tensor, "b *s"] | None = None,
    ) -> None:
        self.process, self.law, self.noise_law, self.xt, self.chances = process, law, noise_law, xt, chances
        self.open_sites = torch.ones_like(xt, dtype=torch.bool) if open_sites is None else open_sites

    def jump(self, rng: Rng) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(tokens, the model's log-probability of data drawn, which sites jumped, which of them to noise)."""
        u = rng.fold(_WHICH).uniform(self.xt.shape, self.xt.device)
        tokens, commit = self.xt, torch.full(self.xt.shape, torch.nan, device=self.xt.device)
        floor, noised = torch.zeros_like(u), torch.zeros_like(self.open_sites)
        jumped = noised
        for kind in range(self.chances.shape[1]):
            ceiling = floor + expand_time(self.chances[:, kind], u)
            hit, floor = (u >= floor) & (u < ceiling) & self.open_sites, ceiling
            if not bool(hit.any()):
                continue
            values, log_probs = self._values(kind, hit, rng)
            tokens, jumped = tokens.masked_scatter(hit, values), jumped | hit
            if log_probs is None:
                noised = noised | hit
            else:
                commit = commit.masked_scatter(hit, log_probs.to(commit.dtype))
        return tokens, commit, jumped, noised

    def _values(self, kind: int, hit: Tensor, rng: Rng) -> tuple[Tensor, Tensor | None]:
        if kind == 0:
            return self.law.sample_at(hit, rng.fold(_VALUES))
        u = rng.fold(_FIXED, kind).uniform(hit.shape, hit.device)[hit]
        if kind == 1 and self.noise_law is not None:
            return draw_categorical(self.noise_law.log_probs(hit), u), None
        return draw_repeatedly(self.process.fixed_laws[kind - 1].to(u.device).log(), u), None

    def draw(self, rng: Rng) -> tuple[Tensor, Tensor]:
        tokens, commit, _, _ = self.jump(rng)
        return tokens, commit

    def log_probs(self, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        sites = torch.ones_like(self.open_sites) if where is None else where
        row = sites.nonzero()[:, 0]
        chances = self.chances[row] * self.open_sites[sites][:, None]
        fixed = self.process.fixed_laws.to(chances.device)
        out = chances[:, :1] * self.law.log_probs(sites).double().exp() + chances[:, 2:] @ fixed[1:]
        source = fixed[0] if self.noise_law is None else self.noise_law.log_probs(sites).double().exp()
        stay = 1 - chances.sum(-1, keepdim=True).clamp(max=1.0)
        out = (out + chances[:, 1:2] * source + stay * one_hot(self.xt[sites], self.process.vocab_size)).log()
        return out if where is not None else out.reshape(*self.xt.shape, -1)

    def only(self, editable: State) -> Jump:
        """Sites outside `editable` stay, so that no value is asked for there."""
        assert isinstance(editable, Tensor)
        return Jump(self.process, self.law, self.noise_law, self.xt, self.chances, self.open_sites & editable)

    def map(self, fn: LogProbMap) -> Jump:
        """`fn` changes the data's law, not the chance of a jump."""
        return Jump(self.process, self.law.map(fn), self.noise_law, self.xt, self.chances, self.open_sites)
