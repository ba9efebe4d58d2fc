"""Sequential Monte Carlo: samples of a model tilted by a reward, whatever the reward is made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unmask.columns import keep_fixed, respect_padding
from unmask.denoiser import Denoiser
from unmask.law import Law, State
from unmask.loops import Counted, start, time_grid
from unmask.ops import draw_categorical
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler

_STEP, _LOOK, _RESAMPLE, _PICK, _MOVE = 2, 3, 4, 5, 6
_DEEPEST = -60.0  # of a look ahead, relative to the row's best: a potential of zero could not be taken back

Reward = Callable[[Tensor], Tensor]
"""x_0 (n, *s) -> reward (n,), each row for itself; minus infinity for what must not be."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Particles:
    """A weighted sample of the tilted law for each row.

    Args:
        x: K particles of each of b rows, (b, K, *s).
        log_weights: normalised, (b, K).
        log_normaliser: an estimate of log E_model[exp(reward / temperature)], (b,), nats; its exponential is unbiased.
        effective: particles' effective number before each resampling decision, (steps, b).
        network_calls: evaluations of the denoiser and of the proposal, each of b K rows at most.
    """

    x: Int64[Tensor, "b k *s"]
    log_weights: Float[Tensor, "b k"]
    log_normaliser: Float[Tensor, " b"]
    effective: Float[Tensor, "n b"]
    network_calls: int

    def draw(self, rng: Rng) -> Tensor:
        """One particle of each row, by its weight, (b, *s)."""
        chosen = draw_categorical(self.log_weights, rng.fold(_PICK).uniform((len(self.x),), self.x.device))
        return self.x[torch.arange(len(self.x), device=self.x.device), chosen]


@dataclass(frozen=True, kw_only=True)
class TwistedSMC:
    """Draws from p(x_0) exp(r(x_0) / temperature) / Z by K particles a row that are moved, weighted and resampled.

    After each step, particle x_s is worth what the model expects to come of it, by M draws from its law of x_0:

        G_s(x_s) = 1/M sum_m exp( r(x_0^m) / temperature ),   x_0^m ~ p(x_0 | x_s);   G_0(x_0) = exp( r / temperature ).

    Its weight grows by G_s / G_t, times p(x_s | x_t) / q(x_s | x_t) if it was moved by another denoiser than the
    model's (`proposal`: any guided one). A row whose effective number of particles (sum w)^2 / sum w^2 falls below
    `threshold` K is resampled systematically. The G's cancel from step to step, so that they may be noisy and wrong:

    **Exact** as K grows, for any reward, any number of steps, and any proposal that can make each move of the model's:
    it targets the law of the *sampler* tilted by the reward, and exp(`log_normaliser`) is unbiased for its Z with any
    K. K = 1 without a proposal is the sampler, draw for draw.

    The reward is asked about clean states only, K M (steps - 1) + K times a row; the denoiser once a step more than by
    the sampler, but for the last.

    Args:
        sampler: with a site-wise `transition`, such as `Ancestral`, if there is a proposal; else any whose carry holds
            tensors.
        num_particles: K >= 1.
        temperature: > 0; the smaller, the more the reward counts.
        threshold: in [0, 1]; 0 never resamples, 1 always.
        num_draws: M >= 1.

    Raises:
        ValueError: for numbers outside these ranges; for rewards that are NaN or +inf, or of another shape.
        TypeError: a sampler that does not fit.

    References:
        Wu, Trippe, Naesseth, Blei, Cunningham, "Practical and asymptotically exact conditional sampling in diffusion
        models", 2023, arXiv:2306.17775 (twisted proposals); Singhal et al., "A general framework for inference-time
        scaling and steering of diffusion models", 2025, arXiv:2501.06848 (potentials of rewards, discrete too); Del
        Moral, Doucet, Jasra, "Sequential Monte Carlo samplers", 2006 (adaptive resampling, the normaliser).
    """

    sampler: Sampler
    num_particles: int
    temperature: float = 1.0
    threshold: float = 0.5
    num_draws: int = 1

    def __post_init__(self) -> None:
        if self.num_particles < 1 or self.num_draws < 1:
            raise ValueError(
                f"TwistedSMC: num_particles={self.num_particles}, num_draws={self.num_draws}, wanted at least 1 of each"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0 and 0 <= self.threshold <= 1):
            raise ValueError(
                f"TwistedSMC: temperature={self.temperature}, threshold={self.threshold}; wanted a temperature > 0 and "
                "a threshold in [0, 1]"
            )

    def sample(
        self,
        denoiser: Denoiser,
        reward: Reward,
        canvas: Any,
        /,
        *,
        num_steps: int,
        rng: Rng,
        proposal: Denoiser | None = None,
        editable: Tensor | None = None,
        **cond: Any,
    ) -> Particles:
        """Weighted particles; `Particles.draw` picks one a row.

        Args:
            denoiser: the model, whose samples are tilted.
            reward: asked about (b K, *s) or more states at once.
            canvas: a shape (b, *s), or a state whose non-editable sites are kept.
            num_steps: equal steps from noise to data.
            rng: names rows, as everywhere.
            proposal: what moves the particles in place of `denoiser`, for instance a guided version of it.
            editable: boolean, like the canvas; None: all sites.
            cond: conditions of the denoisers.
        """
        run = _Run(self, denoiser, proposal, reward, canvas, rng, editable, cond)
        times = time_grid(num_steps)
        for index, (t, s) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
            run.move(index, t, s)
            run.weigh(index, s)
        return run.particles()


class _Run:
    """The particles of all rows on their way: states (b K, *s), logarithms of weights and potentials (b, K)."""

    def __init__(
        self,
        smc: TwistedSMC,
        denoiser: Denoiser,
        proposal: Denoiser | None,
        reward: Reward,
        canvas: Any,
        rng: Rng,
        editable: Tensor | None,
        cond: dict[str, Any],
    ) -> None:
        self.smc, self.denoiser, self.reward = smc, Counted(denoiser), reward
        self.proposal = None if proposal is None else Counted(proposal)
        if isinstance(canvas, dict):
            raise TypeError(f"TwistedSMC: met columns {sorted(canvas)}, wanted one tensor of tokens, or its shape")
        whole = canvas if isinstance(canvas, Tensor) else torch.zeros(tuple(canvas), dtype=torch.int64)
        k, self.rows = smc.num_particles, len(whole)
        ids = rng.row_indices(self.rows)
        self.row_rng = rng
        repeated = (ids[:, None] * k + torch.arange(k, device=ids.device)).flatten()
        self.cond = {name: self._repeat(value) for name, value in cond.items()}
        free = None if editable is None else self._repeat(editable)
        start_at = whole.repeat_interleave(k, 0)
        keyed = dataclasses.replace(rng, row_ids=repeated, site_ids=self._repeat(rng.site_ids))
        keyed, allowed = respect_padding(start_at, keyed, free, self.cond.get("attention_mask"))
        assert allowed is None or isinstance(allowed, Tensor)
        self.rng, self.editable = keyed, allowed
        begun = start(smc.sampler, start_at, keyed, allowed)
        assert isinstance(begun, Tensor)
        self.x, self.carry = begun, smc.sampler.init(begun)
        self.log_weights = torch.zeros(self.rows, k, dtype=torch.float64, device=begun.device)
        self.potential = torch.zeros_like(self.log_weights)
        self.log_normaliser = torch.zeros(self.rows, dtype=torch.float64, device=begun.device)
        self.effective: list[Tensor] = []

    def _repeat(self, value: Any) -> Any:
        per_row = isinstance(value, Tensor) and value.ndim > 0 and len(value) == self.rows
        return value.repeat_interleave(self.smc.num_particles, 0) if per_row else value

    @torch.no_grad()
    def move(self, index: int, t: float, s: float) -> None:
        """Every particle from t to s."""
        at, to = (torch.full((len(self.x),), v, dtype=torch.float64, device=self.x.device) for v in (t, s))
        rng = self.rng.fold(_STEP, index)
        if self.proposal is None:
            after, self.carry = self.smc.sampler.step(
                self.denoiser, self.x, at, to, self.carry, rng, editable=self.editable, **self.cond
            )
        else:
            after, gain = self._propose(self.proposal, at, to, rng)
            self.log_weights = self.log_weights + gain.reshape(self.rows, -1)
        kept = keep_fixed(self.x, after, self.editable)
        assert isinstance(kept, Tensor)
        self.x = kept

    def _propose(self, proposal: Denoiser, t: Tensor, s: Tensor, rng: Rng) -> tuple[State, Tensor]:
        """A move of the proposal's, and the logarithm of its chance under the model over that under the proposal."""
        transition: Callable[..., Law] | None = getattr(self.smc.sampler, "transition", None)
        if transition is None:
            raise TypeError(
                f"TwistedSMC: a proposal needs a sampler with a site-wise transition, such as Ancestral; met "
                f"{type(self.smc.sampler).__name__}"
            )
        theirs, ours = (transition(model, self.x, t, s, **self.cond) for model in (proposal, self.denoiser))
        if self.editable is not None:
            theirs, ours = theirs.only(self.editable), ours.only(self.editable)
        after, _ = theirs.draw(rng.fold(_MOVE))
        return after, (ours.log_prob(after) - theirs.log_prob(after)).double()

    @torch.no_grad()
    def weigh(self, index: int, s: float) -> None:
        """Weights for what the particles are worth at s, and resampling of rows in which few of them count."""
        fresh = self._worth(index, s)
        self.log_weights = self.log_weights + fresh - self.potential
        self.potential = fresh
        share = self.log_weights.softmax(1).nan_to_num(nan=1.0 / self.smc.num_particles)  # NaN: nothing is possible
        self.effective.append(1.0 / share.square().sum(1))
        poor = self.effective[-1] < self.smc.threshold * self.smc.num_particles
        if s > 0 and bool(poor.any()):
            self._resample(index, poor, share)

    def _worth(self, index: int, s: float) -> Float[Tensor, "b k"]:
        """log G at s."""
        if s == 0:
            return self._rewards(self.x)
        time, rng = (
            torch.full((len(self.x),), s, dtype=torch.float64, device=self.x.device),
            self.rng.fold(_LOOK, index),
        )
        law: Law = self.denoiser(self.x, time, **self.cond)
        seen = []
        for draw in range(self.smc.num_draws):
            guess = keep_fixed(self.x, law.draw(rng.fold(draw))[0], self.editable)
            assert isinstance(guess, Tensor)
            seen.append(self._rewards(guess))
        worth = torch.logsumexp(torch.stack(seen), 0) - math.log(self.smc.num_draws)
        best = worth.amax(1, keepdim=True)
        return torch.maximum(worth, torch.where(best.isfinite(), best, 0.0) + _DEEPEST)

    def _rewards(self, x: Tensor) -> Float[Tensor, "b k"]:
        value = self.reward(x).double()
        if value.shape != (len(x),) or bool((value.isnan() | (value == math.inf)).any()):
            raise ValueError(
                f"TwistedSMC: the reward of {len(x)} states came as {tuple(value.shape)}, "
                f"{int(value.isnan().sum())} NaN, {int((value == math.inf).sum())} +inf; wanted one number a state, "
                "finite or -inf"
            )
        return value.reshape(self.rows, -1) / self.smc.temperature

    def _resample(self, index: int, poor: Tensor, share: Tensor) -> None:
        """Systematic: the j-th of K equally spaced points, all moved by one uniform, picks the j-th new particle."""
        k = self.smc.num_particles
        u = self.row_rng.fold(_RESAMPLE, index).uniform((self.rows,), self.x.device)
        points = (torch.arange(k, device=self.x.device) + u[:, None]) / k
        chosen = torch.searchsorted(share.cumsum(1), points).clamp(max=k - 1)
        stay = torch.arange(k, device=self.x.device).expand(self.rows, k)
        chosen = torch.where(poor[:, None], chosen, stay)
        flat = (chosen + k * torch.arange(self.rows, device=self.x.device)[:, None]).flatten()
        mean = torch.logsumexp(self.log_weights, 1) - math.log(k)
        self.log_normaliser = self.log_normaliser + torch.where(poor, mean, 0.0)
        self.log_weights = torch.where(poor[:, None], 0.0, self.log_weights)
        self.potential = self.potential.gather(1, chosen)
        self.x, self.carry = self.x[flat], _taken(self.carry, flat)

    def particles(self) -> Particles:
        total = torch.logsumexp(self.log_weights, 1)
        k = self.smc.num_particles
        normalised = self.log_weights - total[:, None]
        return Particles(
            x=self.x.reshape(self.rows, k, *self.x.shape[1:]),
            log_weights=torch.where(total[:, None].isfinite(), normalised, -math.log(k)),
            log_normaliser=self.log_normaliser + total - math.log(k),
            effective=torch.stack(self.effective),
            network_calls=self.denoiser.calls + (0 if self.proposal is None else self.proposal.calls),
        )


def _taken(carry: Carry, rows: Tensor) -> Carry:
    """The memory of the chosen particles."""
    fields = {f.name: getattr(carry, f.name) for f in dataclasses.fields(carry)}
    for name, value in fields.items():
        if not (value is None or isinstance(value, Tensor)):
            raise TypeError(
                f"TwistedSMC: the sampler remembers {name}, a {type(value).__name__}, which cannot be handed from one "
                "particle to another; wanted a sampler whose carry holds tensors, such as Ancestral"
            )
    return dataclasses.replace(carry, **{k: v[rows] for k, v in fields.items() if isinstance(v, Tensor)})
