"""Planned denoising: a planner finds the corrupted sites, a denoiser mends them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.deferred import ask
from unmask.denoiser import Denoiser
from unmask.denoisers.planned import GivenNoise, Planner
from unmask.law import Categorical, SiteLaw, State
from unmask.loss import require
from unmask.ops import expand_time, one_hot, safe_log
from unmask.process import Interpolating
from unmask.processes.masked import Masked
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler

_SITES, _VALUES, _NOISY, _TIMES = 1, 2, 3, 4
_LEAST = 1e-9  # noise: at none at all, no site could be corrupted


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan(Carry):
    """Each row's own time (b,), as its planner saw it last, and whether it is finished (b,)."""

    time: Float[Tensor, " b"] | None = None
    done: Bool[Tensor, " b"] | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedDenoising(Sampler):
    """Mend the sites that look corrupted, wherever and whenever they are.

    With z_i = 1 where site i of x_t was drawn from the noise, a flow from noise to data jumps at the rates

        r(x_t^i -> y) = -alpha' / (1 - alpha)  p(z_i = 1 | x_t)  p(x_0^i = y | x_t, z_i = 1),

    planner times denoiser. Whatever the grid, a step of this sampler makes the next jump of each row: at the time tau
    to which the noise falls by u^(1 / n), u ~ U(0, 1), when n = sum_i p(z_i = 1 | x_t) corrupted sites are expected
    among the m that may be set, at a site picked in proportion to the planner's chances, to a value of the denoiser's.
    Before that, the row's clock is set by the planner (time correction),

        1 - alpha = n / m,

    so that a canvas that is worse than expected is treated as an earlier one. A row with n < `tolerance` is finished
    and costs nothing more. Masks are noise for certain, and all that are left are filled in the last step.

    Heuristic: the planner's chances are held between jumps, the corrected time is not that of the jump process, and
    rows stop. With `adaptive` = False the jumps follow the grid, each site at s with probability p(z_i = 1 | x_t)
    (alpha_s - alpha_t) / (1 - alpha_t): exact in the limit of many steps, and with masks `Ancestral`.

    `network_calls` of the loop counts the denoiser; a planner of its own is called once a step in addition.

    Args:
        process: noise that mixes the data with a law that stays the same.
        planner: (x_t, t, **cond) -> the law of z, two classes a site, trained with `PlannerLoss`; the denoiser is then
            given that a site is noise (`GivenNoiseLoss`). None: an ordinary denoiser of x_0 plays both parts, as
            `Planner` and as `GivenNoise`, in two calls a step.
        moves: sites of a row mended on one call, >= 1.
        tolerance: expected number of corrupted sites below which a row is finished, in (0, 1].
        adaptive: one jump after the other by the planner's clock; False: as the grid says.
        mask_id: for a denoiser of masks, which sees masks where the planner's draws say noise, and at the chosen sites.

    Raises:
        ValueError: for numbers outside these ranges, or a process whose noise law moves: it jumps from noise to noise,
            too, which no planner of corrupted sites tells.

    References:
        Liu, Nam, Campbell, Staerk, Xu, Jaakkola, Gomez-Bombarelli, "Think while you generate: discrete diffusion with
        planned denoising", 2024, arXiv:2410.06264.
    """

    process: Interpolating
    planner: Callable[..., SiteLaw] | None = None
    moves: int = 1
    tolerance: float = 0.1
    adaptive: bool = True
    mask_id: int | None = None

    def __post_init__(self) -> None:
        require(self, self.process, Interpolating, "a site is either data or drawn from the noise")
        if self.moves < 1:
            raise ValueError(f"PlannedDenoising: moves={self.moves}, wanted at least one site per call")
        if not 0 < self.tolerance <= 1:
            raise ValueError(f"PlannedDenoising: tolerance={self.tolerance}, wanted a number of sites in (0, 1]")
        if self.mask_id is not None and self.planner is None:
            raise ValueError(
                f"PlannedDenoising: mask_id={self.mask_id} without a planner; a denoiser of masks cannot plan, pass one"
            )
        early, late = (self.process.mixing(torch.tensor(t, dtype=torch.float64)) for t in (0.25, 0.75))
        if not torch.allclose(early, late):
            raise ValueError(
                f"PlannedDenoising: the noise law of {type(self.process).__name__} moves with time; wanted one that "
                "stays, such as Uniform, Marginal or Masked"
            )

    def prior(self, shape: Any, rng: Rng) -> State:
        return self.process.prior(shape, rng)

    def _parts(self, denoiser: Denoiser) -> tuple[Callable[..., SiteLaw], Denoiser]:
        """The planner and the denoiser of noisy sites."""
        if self.planner is not None:
            return self.planner, denoiser
        return Planner(denoiser, self.process), GivenNoise(denoiser, self.process)

    def init(self, x: State) -> Plan:
        return Plan()

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
    ) -> tuple[State, Plan]:
        assert isinstance(carry, Plan)
        assert editable is None or isinstance(editable, Tensor)
        tokens, (planner, denoiser) = self.process._tokens(x, "PlannedDenoising"), self._parts(denoiser)
        open_sites = torch.ones_like(tokens, dtype=torch.bool) if editable is None else editable
        done = torch.zeros_like(t, dtype=torch.bool) if carry.done is None else carry.done
        open_sites = open_sites & ~expand_time(done, tokens)
        time = t if carry.time is None or not self.adaptive else carry.time
        commit = torch.full(tokens.shape, torch.nan, device=tokens.device)
        if not bool(open_sites.any()):
            return x, Plan(commit_log_prob=commit, time=time, done=done)
        log_noise = self._log_noise(planner, tokens, time, open_sites, cond)
        if self.adaptive:
            where, time, done = self._next(log_noise, open_sites, time, rng)
            where = where | (self._masks(tokens) & open_sites & expand_time(s == 0, tokens))
        else:
            where = rng.fold(_SITES).uniform(tokens.shape, tokens.device) < log_noise.exp() * expand_time(
                self._flip(t, s), tokens
            )
        if not bool(where.any()):
            return x, Plan(commit_log_prob=commit, time=time, done=done)
        seen = self._view(tokens, log_noise, where, rng)
        values, scores = ask(denoiser, seen, time, sites=where, **cond).sample_at(where, rng.fold(_VALUES))
        after = Plan(commit_log_prob=commit.masked_scatter(where, scores.to(commit.dtype)), time=time, done=done)
        return tokens.masked_scatter(where, values), after

    def _masks(self, x: Tensor) -> Bool[Tensor, "b *s"]:
        """The sites that are noise for certain."""
        return x == self.process.mask_id if isinstance(self.process, Masked) else torch.zeros_like(x, dtype=torch.bool)

    def _log_noise(
        self, planner: Callable[..., SiteLaw], x: Tensor, t: Tensor, where: Tensor, cond: dict[str, Any]
    ) -> Float[Tensor, "b *s"]:
        """log p(z_i = 1 | x_t = x) at the sites of `where`, -inf elsewhere."""
        found = ask(planner, x, t, sites=where, **cond).log_probs(where)[:, 1].double()
        chances = torch.full(x.shape, -torch.inf, dtype=torch.float64, device=x.device).masked_scatter(where, found)
        return chances.masked_fill(self._masks(x) & where, 0.0)

    def _next(self, log_noise: Tensor, open_sites: Tensor, time: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """The sites to mend, each row's time, and which rows are finished."""
        expected, sizes = log_noise.exp().flatten(1).sum(1), open_sites.flatten(1).sum(1)
        active = (sizes > 0) & (expected >= self.tolerance)
        noise = (expected / sizes.clamp(min=1)).clamp(max=1.0)
        for move in range(self.moves):
            u = rng.fold(_TIMES, move).uniform(noise.shape, noise.device)
            noise = noise * u ** (1.0 / expected.clamp(min=self.tolerance))
        time = torch.where(active, self.process.schedule.inverse(1.0 - noise.clamp(min=_LEAST)), time)
        gumbel = -(-rng.fold(_SITES).uniform(log_noise.shape, log_noise.device).log()).log()
        score = (log_noise + gumbel).flatten(1)
        best = score.topk(min(self.moves, score.shape[1]), dim=1)
        where = torch.zeros_like(score, dtype=torch.bool).scatter(1, best.indices, best.values > -torch.inf)
        return where.reshape(log_noise.shape) & expand_time(active, log_noise), time, ~active

    def _flip(self, t: Tensor, s: Tensor) -> Tensor:
        """The chance that a site that is noise at t becomes data by s."""
        noise = self.process.schedule.noise(t)
        return (noise - self.process.schedule.noise(s)) / noise

    def _view(self, x: Tensor, log_noise: Tensor, where: Tensor, rng: Rng) -> Tensor:
        """What the denoiser is shown."""
        if self.mask_id is None:
            return x
        noisy = rng.fold(_NOISY).uniform(x.shape, x.device) < log_noise.exp()
        return x.masked_fill(where | noisy, self.mask_id)

    def transition(self, denoiser: Denoiser, x: State, t: Tensor, s: Tensor, **cond: Any) -> Categorical:
        """The site-wise law of x_s given x_t = x when the jumps follow the grid.

        Raises:
            ValueError: if the planner tells the time, or a denoiser of masks sees drawn masks: no such law then.
        """
        if self.adaptive or self.mask_id is not None:
            raise ValueError("PlannedDenoising.transition: the sites of a step are chosen jointly; set adaptive=False")
        tokens, (planner, denoiser) = self.process._tokens(x, "PlannedDenoising"), self._parts(denoiser)
        log_noise = self._log_noise(planner, tokens, t, torch.ones_like(tokens, dtype=torch.bool), cond)
        jump = (log_noise.exp() * expand_time(self._flip(t, s), tokens))[..., None]
        values = ask(denoiser, tokens, t, **cond).log_probs().double().exp()
        stay = one_hot(tokens, self.process.vocab_size)
        return Categorical.from_logits(safe_log(jump * values + (1 - jump) * stay))
