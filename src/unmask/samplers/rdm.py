"""Routed sampling: each token is sent to the predicted clean value, or to noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from unmask.deferred import ask
from unmask.denoiser import Denoiser
from unmask.law import LogProbMap, SiteLaw, State, StepLaw
from unmask.loss import require
from unmask.ops import expand_time, one_hot, safe_log, temper
from unmask.process import Interpolating
from unmask.processes.masked import Masked
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler

_CLEAN, _ROUTE, _STAY, _NOISE = 1, 2, 3, 4


@dataclass(frozen=True, eq=False)
class Routes:
    """The posterior q(x_s | x_t, x_0) split by b = 1[x_t = x_0], one number a site:

        b = 1:  x_s = x_t with chance `keep`, else a draw of pi_s;
        b = 0:  x_s = x_0 with chance `denoise`, else x_t with chance `stay`, else a draw of pi_s.

    With the kernel q(x_t | x_s) = a 1[x_t = x_s] + J and a = alpha_t / alpha_s these are 1 - J (1 - alpha_s) / q(x_t |
    x_0 = x_t), J alpha_s / ((1 - alpha_t) pi_t(x_t)) and a pi_s(x_t) / (a pi_s(x_t) + J).
    """

    keep: Tensor
    denoise: Tensor
    stay: Tensor
    corruptible: Tensor
    never_data: Tensor

    @classmethod
    def of(cls, process: Interpolating, xt: Int64[Tensor, "*n"], t: Tensor, s: Tensor) -> Routes:
        """`corruptible`: noise can have put x_t, so that b = 0 is possible; `never_data`: b = 1 is not.

        Times broadcast against x_t: one a row, (b, 1), keeps a moving mixing law at (b, 1, v).
        """
        noise_t, noise_s = process._noise_at(xt, t), process._noise_at(xt, s)
        alpha_t, alpha_s, rest = process.schedule.alpha(t), process.schedule.alpha(s), process.schedule.noise(s)
        kept = alpha_t / alpha_s
        jump, corruptible = noise_t - kept * noise_s, noise_t > 0
        pi_s = process.mixing(s).to(t).expand(*xt.shape, process.vocab_size).gather(-1, xt[..., None]).squeeze(-1)
        by_noise = kept * pi_s + jump
        evidence = alpha_t + noise_t
        return cls(
            keep=1.0 - jump * rest / evidence.where(evidence > 0, 1.0),
            denoise=torch.where(corruptible, jump * alpha_s / noise_t.where(corruptible, 1.0), 0.0),
            stay=torch.where(by_noise > 0, kept * pi_s / by_noise.where(by_noise > 0, 1.0), 1.0),
            corruptible=corruptible,
            never_data=xt == process.mask_id if isinstance(process, Masked) else torch.zeros_like(corruptible),
        )


class RoutedLaw(StepLaw):
    """The law of x_s | x_t by routing: draw x_0 from the model, then the indicator from its true law."""

    def __init__(
        self,
        law: SiteLaw,
        process: Interpolating,
        xt: Int64[Tensor, "b *s"],
        t: Tensor,
        s: Tensor,
        routes: Routes | None = None,
    ) -> None:
        self.law, self.process, self.xt, self.t, self.s = law, process, xt, t, s
        self.routes: Routes = Routes.of(process, xt, t, s) if routes is None else routes

    def draw(self, rng: Rng) -> tuple[Tensor, Tensor]:
        u = rng.fold(_ROUTE).uniform(self.xt.shape, self.xt.device)
        commit = torch.full(self.xt.shape, torch.nan, device=self.xt.device)
        where, unseen = self.routes.corruptible, self.routes.never_data & (u >= self.routes.denoise)
        asked = where & ~unseen  # a mask that is not denoised goes to noise whatever its clean value
        if not bool(asked.any()):
            return self.xt, commit
        drawn, log_probs = self.law.sample_at(asked, rng.fold(_CLEAN))
        clean = self.xt.masked_scatter(asked, drawn)
        same = (clean == self.xt) & ~self.routes.never_data
        routed = asked & (u < torch.where(same, self.routes.keep, self.routes.denoise))
        stays = rng.fold(_STAY).uniform(self.xt.shape, self.xt.device) < self.routes.stay
        noise = self.process.draw_mixing(self.s, rng.fold(_NOISE).uniform(self.xt.shape, self.xt.device))
        after = torch.where(routed, clean, torch.where(stays & ~same, self.xt, noise)).where(where, self.xt)
        scores = commit.masked_scatter(asked, log_probs.to(commit.dtype))
        return after, scores.where(routed & (after != self.xt), torch.nan)

    def log_probs(self, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        sites = torch.ones_like(self.xt, dtype=torch.bool) if where is None else where
        keep, denoise, stay, corruptible = (
            v[sites][:, None]
            for v in (self.routes.keep, self.routes.denoise, self.routes.stay, self.routes.corruptible)
        )
        here = one_hot(self.xt[sites], self.process.vocab_size)
        p0 = self.law.log_probs(sites).double().exp()
        same = (p0 * here).sum(-1, keepdim=True)
        same = torch.where(corruptible, same, 1.0)
        others = p0 * (1 - here)
        pi_s = self.process.mixing(self.s.expand(self.xt.shape)[sites]).to(p0)
        fresh = (1 - same) * (1 - denoise) * (1 - stay) + same * (1 - keep)
        stuck = same * keep + (1 - same) * (1 - denoise) * stay
        probs = stuck * here + torch.where(corruptible, denoise * others, 0.0) + fresh * pi_s
        log_probs = safe_log(probs)
        return log_probs if where is not None else log_probs.reshape(*self.xt.shape, -1)

    def only(self, editable: State) -> RoutedLaw:
        """Sites outside `editable` stay, and no value is asked for there."""
        assert isinstance(editable, Tensor)
        routes = replace(self.routes, corruptible=self.routes.corruptible & editable)
        return RoutedLaw(self.law, self.process, self.xt, self.t, self.s, routes)

    def map(self, fn: LogProbMap) -> RoutedLaw:
        """`fn` changes the law of clean values, not the routing."""
        return RoutedLaw(self.law.map(fn), self.process, self.xt, self.t, self.s, self.routes)


@dataclass(frozen=True, kw_only=True)
class Routed(Sampler):
    """Draw x_0 from the model, then route each token to it or to noise with the true chances of the posterior.

    Exact: averaged over the draws it is the kernel of `Ancestral` for the same process.

    Args:
        process: masked, uniform or any other interpolating noise.

    References:
        Zheng, Yuan, Yu, Kong, "A reparameterized discrete diffusion model for text generation", 2023,
        arXiv:2302.05737, proposition 3.1.
    """

    process: Interpolating

    def __post_init__(self) -> None:
        require(self, self.process, Interpolating, "routing needs noise that mixes data with a law")

    def prior(self, shape: Any, rng: Rng) -> State:
        return self.process.prior(shape, rng)

    def transition(self, denoiser: Denoiser, x: State, t: Tensor, s: Tensor, **cond: Any) -> RoutedLaw:
        """The law of x_s given x_t = x; the network is asked when a value is needed, and in the rows that need one."""
        tokens = self.process._tokens(x, "Routed")
        tt, ss = expand_time(t, tokens), expand_time(s, tokens)
        return RoutedLaw(ask(denoiser, x, t, **cond), self.process, tokens, tt, ss)

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
        law = self.transition(denoiser, x, t, s, **cond)
        after, commit = (law if editable is None else law.only(editable)).draw(rng)
        return after, Carry(commit_log_prob=commit, remasked=(after != law.xt) & commit.isnan())


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutedCarry(Carry):
    """Which sites hold a denoised value."""

    denoised: Bool[Tensor, "b *s"]


@dataclass(frozen=True, kw_only=True)
class RoutedTopK(Sampler):
    """Adaptive routing: the floor(alpha(s) n) most confident of a row's n editable tokens are denoised, the rest noise.

    Every site proposes a value: a draw from the model where it is not denoised yet, else the token it holds; the
    model's log-probability of the proposal ranks the sites. Those that drop out of the top k return to noise. A
    denoiser that is certain of the tokens it sees, as `MaskedDenoiser` is, ranks them first and takes none back.

    Heuristic: keeping what was drawn because it is probable favours the modes. It pays in few steps and with masks;
    uniform noise mends mistakes by itself, and exact routing has caught up by eight steps on eight tokens.

    Args:
        process: masked, uniform or any other interpolating noise; its schedule sets k.
        temperature: of the proposals, >= 0; at 0 the most probable value.

    Raises:
        ValueError: for a negative, infinite or NaN temperature.

    References:
        Zheng, Yuan, Yu, Kong, "A reparameterized discrete diffusion model for text generation", 2023,
        arXiv:2302.05737, section 4.3.
    """

    process: Interpolating
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require(self, self.process, Interpolating, "routing needs noise that mixes data with a law")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"RoutedTopK: temperature={self.temperature}, wanted a finite number >= 0")

    def prior(self, shape: Any, rng: Rng) -> State:
        return self.process.prior(shape, rng)

    def init(self, x: State) -> RoutedCarry:
        """Nothing is denoised at first; fixed tokens are left out by `editable` and never ranked."""
        return RoutedCarry(denoised=torch.zeros_like(self.process._tokens(x, "RoutedTopK"), dtype=torch.bool))

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
    ) -> tuple[State, RoutedCarry]:
        assert isinstance(carry, RoutedCarry)
        tokens = self.process._tokens(x, "RoutedTopK")
        allowed = torch.ones_like(carry.denoised) if editable is None else editable
        assert isinstance(allowed, Tensor)
        before = carry.denoised & allowed
        proposed, scores = self._propose(denoiser, tokens, t, before, allowed, rng.fold(_CLEAN), cond)
        count = torch.floor(self.process.schedule.alpha(s) * allowed.flatten(1).sum(1) + 1e-9)
        surprise = (-scores).masked_fill(~allowed, torch.inf).flatten(1)
        rank = surprise.argsort(stable=True, dim=1).argsort(1)
        chosen = (rank < count[:, None]).reshape(tokens.shape) & allowed
        after = torch.where(chosen, proposed, self._noised(tokens, t, s, before, rng)).where(allowed, tokens)
        commit = scores.float().where(chosen & ~before, torch.nan)
        return after, RoutedCarry(commit_log_prob=commit, remasked=allowed & ~chosen, denoised=chosen)

    def _propose(
        self,
        denoiser: Denoiser,
        tokens: Tensor,
        t: Tensor,
        denoised: Tensor,
        allowed: Tensor,
        rng: Rng,
        cond: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """A value for every allowed site and the log-probability that the model gives it."""
        law = self.process._sites(denoiser(tokens, t, **cond), "RoutedTopK")
        scores = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
        fresh, old = allowed & ~denoised, denoised
        proposed = tokens
        if bool(fresh.any()):
            filtered = law if self.temperature == 1 else law.map(partial(temper, temperature=self.temperature))
            values, log_probs = filtered.sample_at(fresh, rng)
            proposed, scores = proposed.masked_scatter(fresh, values), scores.masked_scatter(fresh, log_probs.double())
        if bool(old.any()):
            scores = scores.masked_scatter(old, law.token_log_prob(tokens, old).double())
        return proposed, scores

    def _noised(self, tokens: Tensor, t: Tensor, s: Tensor, denoised: Tensor, rng: Rng) -> Tensor:
        """Noise at time s: fresh where a value is dropped, else what stands there with its chance to stay."""
        tt, ss = expand_time(t, tokens), expand_time(s, tokens)
        stays = rng.fold(_STAY).uniform(tokens.shape, tokens.device) < Routes.of(self.process, tokens, tt, ss).stay
        noise = self.process.draw_mixing(ss, rng.fold(_NOISE).uniform(tokens.shape, tokens.device))
        return torch.where(stays & ~denoised, tokens, noise)
