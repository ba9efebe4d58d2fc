"""Samples with all that a policy gradient needs to know about how they came about."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.columns import respect_padding
from unmask.deferred import take_rows
from unmask.denoiser import Denoiser
from unmask.denoisers.unmasking_policy import PolicyLaw
from unmask.law import Law, SiteLaw, State
from unmask.loops import time_grid, trajectory
from unmask.loss import require, row_positions, sum_sites
from unmask.processes.masked import Masked
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler
from unmask.samplers.unmask import Unmask
from unmask.select.plackett_luce import is_plackett_luce, ordered_log_prob

_VALUES, _STEP = 3, 2  # those of `Unmask` and of the loops, so that the draws are theirs


@dataclass(frozen=True, kw_only=True, eq=False)
class Record(Carry):
    """When each site was revealed.

    Args:
        step: the step that revealed it, 0 for the first, -1 for sites that no step did, (b, l).
        place: its place in the order among those of its step, (b, l); 0 if the step reveals all that is left.
        count: steps so far.
    """

    step: Int64[Tensor, "b l"]
    place: Int64[Tensor, "b l"]
    count: int = 0


@dataclass(frozen=True, kw_only=True)
class Recorded(Sampler):
    """`Unmask`, draw for draw, whose carry remembers when and in which order the sites were revealed.

    As exact as the sampler inside.

    Args:
        base: the sampler, of temperature 1; by `plackett_luce` if the order is to be learnt.

    Raises:
        TypeError, ValueError: for another sampler, or a temperature, whose values are not drawn from the model's law.

    References:
        Huang et al., "Reinforcing the diffusion chain of lateral thought with diffusion language models", 2025,
        arXiv:2505.10446.
    """

    base: Unmask

    def __post_init__(self) -> None:
        require(self, self.base, Unmask, "its order and quota are what is recorded")
        if self.base.temperature != 1:
            raise ValueError(
                f"Recorded: temperature={self.base.temperature}, wanted 1: gradients are of the model's law"
            )

    def prior(self, shape: Any, rng: Rng) -> State:
        return self.base.prior(shape, rng)

    def init(self, x: State) -> Record:
        assert isinstance(x, Tensor)
        return Record(step=torch.full_like(x, -1), place=torch.zeros_like(x))

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
    ) -> tuple[State, Record]:
        assert isinstance(carry, Record)
        found, where = self.base.choose(self.base.candidates(denoiser, x, t, s, rng, editable=editable, **cond))
        commit = torch.full(where.shape, torch.nan, device=where.device)
        step = carry.step.masked_fill(where, carry.count)
        if not bool(where.any()):
            return found.x, Record(commit_log_prob=commit, step=step, place=carry.place, count=carry.count + 1)
        values, scores = found.law.sample_at(where, rng.fold(_VALUES))
        place, chosen = carry.place, where & (where != found.where).any(1, keepdim=True)
        if bool(chosen.any()):  # else all is revealed, in whichever order
            place = torch.where(chosen, found.ranking.argsort(1), place)
        after = found.x.masked_scatter(where, values)
        revealed = commit.masked_scatter(where, scores.to(commit.dtype))
        return after, Record(commit_log_prob=revealed, step=step, place=place, count=carry.count + 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """Samples, and the order in which their sites were revealed.

    Args:
        process: the masked process.
        x: the samples, (b, l).
        step, place: as in `Record`.
        num_steps: of the sampler.
        by_policy: whether the order was `plackett_luce` of noise 1, so that its choices have probabilities.
    """

    process: Masked
    x: Int64[Tensor, "b l"]
    step: Int64[Tensor, "b l"]
    place: Int64[Tensor, "b l"]
    num_steps: int
    by_policy: bool

    def log_probs(self, denoiser: Denoiser, **cond: Any) -> Float[Tensor, "b n"]:
        """log-probability of each step: of the values, and of the ordered choice of their sites if that is a policy's.

        A step that reveals all that is left chooses nothing, and orders other than `plackett_luce` of noise 1 count as
        given, as the quota does: they must not depend on what is trained. Nats, with gradients; a call a step, which
        spares the rows that reveal nothing in it.
        """
        return torch.stack([self._step(denoiser, number, cond) for number in range(self.num_steps)], 1)

    def _step(self, denoiser: Denoiser, number: int, cond: dict[str, Any]) -> Float[Tensor, " b"]:
        total = torch.zeros(len(self.x), dtype=torch.float64, device=self.x.device)
        rows = (self.step == number).any(1)
        if not bool(rows.any()):
            return total
        x, step, taken = self.x[rows], self.step[rows], {name: take_rows(v, rows) for name, v in cond.items()}
        where, left = step == number, step >= number
        canvas = x.masked_fill(left, self.process.mask_id)
        attention_mask = taken.get("attention_mask")
        real = torch.ones_like(left) if attention_mask is None else attention_mask
        share = ((canvas == self.process.mask_id) & real).sum(1).double() / real.sum(1).clamp(min=1)
        law = self.process._sites(denoiser(canvas, self.process.schedule.inverse(1.0 - share), **taken), "Rollout")
        nats = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        nats = nats.masked_scatter(where, law.token_log_prob(x, where).double()).sum(1)
        if self.by_policy:
            if not isinstance(law, PolicyLaw):
                raise TypeError(
                    f"Rollout: sites were chosen by plackett_luce, but the denoiser's law is a {type(law).__name__}; "
                    "wanted the PolicyLaw of an `UnmaskingPolicy`, which scores sites"
                )
            choice = ordered_log_prob(law.scores, left, where, self.place[rows])
            nats = nats + torch.where((where == left).all(1), 0.0, choice)
        return total.masked_scatter(rows, nats)


@dataclass(frozen=True, kw_only=True, eq=False)
class Path:
    """The canvases of any sampler whose kernel is known, e.g. of `Euler` on the rates of a score model.

    Args:
        transition: (denoiser, x, t, s, **cond) -> the law of x_s given x_t = x, such as `Ancestral.transition`.
        canvases: x at each of the times, (b, l) each.
        times: decreasing, (n + 1,).
        editable: the sites that the steps could change, boolean (b, l); None: all.
    """

    transition: Callable[..., Law]
    canvases: tuple[Int64[Tensor, "b l"], ...]
    times: Float[Tensor, " n1"]
    editable: Bool[Tensor, "b l"] | None = None

    def log_probs(self, denoiser: Denoiser, **cond: Any) -> Float[Tensor, "b n"]:
        """log p(x_s | x_t) of each step over the editable sites, nats, with gradients."""
        steps = []
        for (x, after), (t, s) in zip(
            itertools.pairwise(self.canvases), itertools.pairwise(self.times.to(self.canvases[0].device)), strict=True
        ):
            law = self.transition(denoiser, x, t.expand(len(x)), s.expand(len(x)), **cond)
            steps.append(self._log_prob(law, after))
        return torch.stack(steps, 1)

    def _log_prob(self, law: Law, x: Tensor) -> Float[Tensor, " b"]:
        if self.editable is None:
            return law.log_prob(x).double()
        if not isinstance(law, SiteLaw):
            raise TypeError(f"Path: met a {type(law).__name__}, wanted a law of sites: some of them were fixed")
        return sum_sites(law.token_log_prob(x, self.editable), self.editable)


@torch.no_grad()
def rollout(
    base: Unmask,
    denoiser: Denoiser,
    canvas: Int64[Tensor, "b l"],
    *,
    num_steps: int,
    rng: Rng,
    editable: Bool[Tensor, "b l"] | None = None,
    **cond: Any,
) -> Rollout:
    """What `sample` draws from a canvas, with its record; arguments as for `sample`.

    Args:
        canvas: its editable sites are masked first, the others kept.
    """
    sampler, attention_mask = Recorded(base=base), cond.get("attention_mask")
    allowed = torch.ones_like(canvas, dtype=torch.bool) if editable is None else editable
    allowed = allowed if attention_mask is None else allowed & attention_mask
    x: Any = canvas.masked_fill(allowed, base.process.mask_id)
    record, keyed = sampler.init(x), row_positions(attention_mask, rng)
    for number, (t, s) in enumerate(itertools.pairwise(time_grid(num_steps).to(canvas.device))):
        times = t.expand(len(canvas)), s.expand(len(canvas))
        x, record = sampler.step(denoiser, x, *times, record, keyed.fold(_STEP, number), editable=allowed, **cond)
    return Rollout(
        process=base.process,
        x=x,
        step=record.step,
        place=record.place,
        num_steps=num_steps,
        by_policy=is_plackett_luce(base.order),
    )


@torch.no_grad()
def path(
    sampler: Sampler,
    denoiser: Denoiser,
    x: Int64[Tensor, "b l"],
    *,
    num_steps: int,
    rng: Rng,
    editable: Bool[Tensor, "b l"] | None = None,
    **cond: Any,
) -> Path:
    """What `trajectory` draws from x with a sampler that offers its `transition`.

    Raises:
        TypeError: the sampler's steps have no known law.
    """
    transition = getattr(sampler, "transition", None)
    if transition is None:
        raise TypeError(f"path: {type(sampler).__name__} has no `transition`, wanted a sampler whose kernel is known")
    times, canvases = time_grid(num_steps), [x]
    _, allowed = respect_padding(x, rng, editable, cond.get("attention_mask"))
    assert allowed is None or isinstance(allowed, Tensor)
    for event in trajectory(sampler, denoiser, x, times, rng=rng, editable=allowed, **cond):
        assert isinstance(event.canvas, Tensor)
        canvases.append(event.canvas)
    return Path(transition=transition, canvases=tuple(canvases), times=times, editable=allowed)
