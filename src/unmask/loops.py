"""The sampling loops: generators of `Step` events over any sampler, denoiser and editable set."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.law import Law, State
from unmask.loss import row_positions
from unmask.rng import Rng
from unmask.sampler import Sampler

_PRIOR, _STEP = 1, 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One event of a trajectory: progress bars, streaming, pages and traces all read it.

    Args:
        index: 0-based number of the step.
        t, s: its times, t > s.
        canvas: the state after it, (b, *s).
        newly_set: sites whose value the step set (changed to a value, or drawn), boolean.
        remasked: sites that the step took back to noise, boolean.
        commit_log_prob: the model's log-probability of each newly set value, NaN elsewhere (None if the sampler has
            none).
        network_calls: denoiser evaluations so far.
        seconds: wall-clock since the loop began.
    """

    index: int
    t: float
    s: float
    canvas: State
    newly_set: State
    remasked: State
    commit_log_prob: State | None
    network_calls: int
    seconds: float


class _Counted(Denoiser):
    """Counts evaluations; guidance that evaluates twice is counted twice only if it is inside."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Law:
        self.calls += 1
        if attention_mask is not None:
            cond["attention_mask"] = attention_mask
        law: Law = self.inner(xt, t, **cond)
        return law


def time_grid(num_steps: int) -> Float[Tensor, " n"]:
    """num_steps + 1 equally spaced times from 1 to 0, float64.

    Raises:
        ValueError: if num_steps < 1.
    """
    if num_steps < 1:
        raise ValueError(f"time_grid: num_steps={num_steps}, wanted at least 1")
    return torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)


def trajectory(
    sampler: Sampler,
    denoiser: Denoiser,
    x: State,
    times: Float[Tensor, " n"],
    /,
    *,
    rng: Rng,
    editable: State | None = None,
    **cond: Any,
) -> Iterator[Step]:
    """Run a sampler from x along decreasing times, yielding a `Step` after each.

    Args:
        sampler, denoiser: the method and the model.
        x: the starting canvas, noise at the editable sites and data elsewhere.
        times: n >= 2 strictly decreasing times in [0, 1].
        rng: step k of row b draws from rng.fold(k) at row b; name rows and positions for invariance to batching and
            padding.
        editable: boolean, like x; sites where it is False never change. None: all sites.
        cond: conditions for the denoiser (attention_mask, document_ids, ...).

    Raises:
        ValueError: for times that do not decrease.
    """
    _check_times(times)
    counted = _Counted(denoiser)
    carry, begun, site = sampler.init(x), time.perf_counter(), _first(x)
    rng, editable = _respect_padding(x, rng, editable, cond.get("attention_mask"))
    grid = times.tolist()
    with torch.no_grad():
        for index, (t, s) in enumerate(itertools.pairwise(grid)):
            t_row = torch.full((len(site),), t, dtype=torch.float64, device=site.device)
            s_row = torch.full((len(site),), s, dtype=torch.float64, device=site.device)
            proposed, carry = sampler.step(counted, x, t_row, s_row, carry, rng.fold(_STEP, index), **cond)
            after = _keep_fixed(x, proposed, editable)
            newly_set, remasked = _changes(x, after, carry.remasked)
            x = after
            yield Step(
                index=index,
                t=t,
                s=s,
                canvas=x,
                newly_set=newly_set,
                remasked=remasked,
                commit_log_prob=carry.commit_log_prob,
                network_calls=counted.calls,
                seconds=time.perf_counter() - begun,
            )


def sample(
    sampler: Sampler,
    denoiser: Denoiser,
    canvas: Any,
    /,
    *,
    num_steps: int,
    rng: Rng,
    editable: State | None = None,
    **cond: Any,
) -> State:
    """Sample from the prior down to t = 0 and return the final state.

    Args:
        canvas: a shape (b, *s) (a dict of shapes for products), or a state whose non-editable sites are kept.
        num_steps: number of equal time steps, >= 1.
        rng, editable, cond: as for `trajectory`.
    """
    x = start(sampler, canvas, rng, editable)
    for event in trajectory(sampler, denoiser, x, time_grid(num_steps), rng=rng, editable=editable, **cond):
        x = event.canvas
    return x


def sample_blocks(
    sampler: Sampler,
    denoiser: Denoiser,
    x: Tensor,
    times: Float[Tensor, " n"],
    /,
    *,
    block_size: int,
    rng: Rng,
    editable: Tensor | None = None,
    **cond: Any,
) -> Iterator[Step]:
    """Semi-autoregressive sampling: blocks of positions left to right, each along all of `times` while later ones wait.

    Exact for masked denoisers as a generation order; `times` are those of one block.

    Args:
        x: the starting canvas (b, l), noise at the editable sites.
        block_size: positions per block, >= 1.

    Raises:
        ValueError: if block_size < 1.
    """
    if block_size < 1:
        raise ValueError(f"sample_blocks: block_size={block_size}, wanted at least 1")
    allowed = torch.ones_like(x, dtype=torch.bool) if editable is None else editable
    position = torch.arange(x.shape[1], device=x.device)
    index, calls, begun = 0, 0, time.perf_counter()
    for number, begin in enumerate(range(0, x.shape[1], block_size)):
        block = allowed & (position >= begin) & (position < begin + block_size)
        done = calls
        for event in trajectory(sampler, denoiser, x, times, rng=rng.fold(number), editable=block, **cond):
            x, calls = _tensor(event.canvas), done + event.network_calls
            yield Step(
                **{
                    **vars(event),
                    "index": index,
                    "network_calls": calls,
                    "seconds": time.perf_counter() - begun,
                }
            )
            index += 1


def start(sampler: Sampler, canvas: Any, rng: Rng, editable: State | None = None) -> State:
    """The canvas at t = 1: prior noise at the editable sites, the given values elsewhere."""
    if isinstance(canvas, Tensor):
        noise = _tensor(sampler.prior(canvas.shape, rng.fold(_PRIOR))).to(canvas.device)
        return noise if editable is None else torch.where(_tensor(editable), noise, canvas)
    if isinstance(canvas, dict) and all(isinstance(v, Tensor) for v in canvas.values()):
        drawn = sampler.prior({k: v.shape for k, v in canvas.items()}, rng.fold(_PRIOR))
        return drawn if editable is None else _keep_fixed(canvas, drawn, editable)
    return sampler.prior(canvas, rng.fold(_PRIOR))


def _keep_fixed(before: State, after: State, editable: State | None) -> State:
    if editable is None:
        return after
    if isinstance(before, dict):
        assert isinstance(after, dict)
        assert isinstance(editable, dict)
        return {k: torch.where(editable[k], after[k], v) if k in editable else after[k] for k, v in before.items()}
    return torch.where(_tensor(editable), _tensor(after), before)


def _changes(before: State, after: State, reported: State | None) -> tuple[State, State]:
    """(newly set, re-masked): sites that changed, split by what the sampler reports as taken back to noise."""
    if isinstance(before, dict):
        assert isinstance(after, dict)
        pairs = {
            k: _changes(v, after[k], reported.get(k) if isinstance(reported, dict) else None) for k, v in before.items()
        }
        return {k: _tensor(p[0]) for k, p in pairs.items()}, {k: _tensor(p[1]) for k, p in pairs.items()}
    changed = _tensor(after) != before
    if reported is None:
        return changed, torch.zeros_like(changed)
    remasked = changed & _tensor(reported)
    return changed & ~remasked, remasked


def _respect_padding(
    x: State, rng: Rng, editable: State | None, attention_mask: Tensor | None
) -> tuple[Rng, State | None]:
    """Padding is never edited, and draws are keyed by the position among real tokens."""
    if attention_mask is None or isinstance(x, dict):
        return rng, editable
    allowed = attention_mask if editable is None else _tensor(editable) & attention_mask
    return row_positions(attention_mask, rng), allowed


def _check_times(times: Tensor) -> None:
    if len(times) < 2 or not bool((times[1:] < times[:-1]).all()):
        raise ValueError(
            f"trajectory: times {times.tolist()[:5]}... do not decrease strictly; wanted at least two, as time_grid(64)"
        )


def _first(x: State) -> Tensor:
    return next(iter(x.values())) if isinstance(x, dict) else x


def _tensor(x: State) -> Tensor:
    if isinstance(x, dict):
        raise TypeError(f"met columns {sorted(x)}, wanted one tensor")
    return x
