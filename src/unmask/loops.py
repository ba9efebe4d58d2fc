"""The sampling loops: generators of `Step` events over any sampler, denoiser and editable set."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.columns import keep_fixed, respect_padding
from unmask.denoiser import Denoiser, Forwarding
from unmask.law import Law, State
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
        newly_set: sites that the step changed to a value, boolean.
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


class Counted(Forwarding):
    """Counts evaluations; guidance that evaluates twice is counted twice only if it is inside."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.calls = 0

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
        ValueError: for times that do not decrease strictly or leave [0, 1]; at once, not at the first step.
    """
    _check_times(times)
    return _steps(sampler, denoiser, x, times, rng=rng, editable=editable, **cond)


def _steps(
    sampler: Sampler,
    denoiser: Denoiser,
    x: State,
    times: Tensor,
    /,
    *,
    rng: Rng,
    editable: State | None,
    **cond: Any,
) -> Iterator[Step]:
    counted, begun = Counted(denoiser), time.perf_counter()
    rng, editable = respect_padding(x, rng, editable, cond.get("attention_mask"))
    carry, site = sampler.init(x), _first(x)
    for index, (t, s) in enumerate(itertools.pairwise(times.tolist())):
        with torch.no_grad():  # never across the yield: the caller's gradient mode is its own
            t_row = torch.full((len(site),), t, dtype=torch.float64, device=site.device)
            s_row = torch.full((len(site),), s, dtype=torch.float64, device=site.device)
            step_rng = rng.fold(_STEP, index)
            proposed, carry = sampler.step(counted, x, t_row, s_row, carry, step_rng, editable=editable, **cond)
            after = keep_fixed(x, proposed, editable)
            newly_set, remasked = _changes(x, after, carry.remasked)
            commit = _only_where(newly_set, carry.commit_log_prob)
        x = after
        yield Step(
            index=index,
            t=t,
            s=s,
            canvas=x,
            newly_set=newly_set,
            remasked=remasked,
            commit_log_prob=commit,
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
    keyed, is_state = (
        rng,
        isinstance(canvas, Tensor)
        or (isinstance(canvas, dict) and all(isinstance(v, Tensor) for v in canvas.values())),
    )
    if is_state:  # padding of the canvas is kept as it came, and moves no draw of the prior
        keyed, editable = respect_padding(canvas, rng, editable, cond.get("attention_mask"))
    x = start(sampler, canvas, keyed, editable)
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
    _check_times(times)
    return _block_steps(sampler, denoiser, x, times, block_size=block_size, rng=rng, editable=editable, **cond)


def _block_steps(
    sampler: Sampler,
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    /,
    *,
    block_size: int,
    rng: Rng,
    editable: Tensor | None,
    **cond: Any,
) -> Iterator[Step]:
    attention_mask = cond.get("attention_mask")
    everywhere = torch.ones_like(x, dtype=torch.bool)
    index, calls, begun = 0, 0, time.perf_counter()
    for number, block in open_blocks(everywhere if editable is None else editable, attention_mask, block_size):
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


def open_blocks(
    editable: Bool[Tensor, "b l"], attention_mask: Bool[Tensor, "b l"] | None, block_size: int
) -> list[tuple[int, Bool[Tensor, "b l"]]]:
    """The blocks that have something to fill, left to right: (number, its editable sites). Padding does not count."""
    real = torch.ones_like(editable) if attention_mask is None else attention_mask
    allowed = editable & real
    block_of = torch.div(real.cumsum(1) - 1, block_size, rounding_mode="floor")
    return [(number, allowed & (block_of == number)) for number in block_of[allowed].unique().tolist()]


def start(sampler: Sampler, canvas: Any, rng: Rng, editable: State | None = None) -> State:
    """The canvas at t = 1: prior noise at the editable sites, the given values elsewhere."""
    if isinstance(canvas, Tensor):
        noise = _tensor(sampler.prior(canvas.shape, rng.fold(_PRIOR))).to(canvas.device)
        return noise if editable is None else torch.where(_tensor(editable), noise, canvas)
    if isinstance(canvas, dict) and all(isinstance(v, Tensor) for v in canvas.values()):
        drawn = sampler.prior({k: v.shape for k, v in canvas.items()}, rng.fold(_PRIOR))
        assert isinstance(drawn, dict)
        return keep_fixed(canvas, {k: v.to(canvas[k].device) for k, v in drawn.items()}, editable)
    return sampler.prior(canvas, rng.fold(_PRIOR))


def _only_where(newly_set: State, commit: State | None) -> State | None:
    """Commit scores at newly set sites, NaN elsewhere."""
    if commit is None:
        return None
    if isinstance(commit, dict):
        assert isinstance(newly_set, dict)
        return {k: v.masked_fill(~newly_set[k], torch.nan) for k, v in commit.items()}
    return commit.masked_fill(~_tensor(newly_set), torch.nan)


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


def _check_times(times: Tensor) -> None:
    inside = bool(((times >= 0) & (times <= 1)).all())
    if len(times) < 2 or not inside or not bool((times[1:] < times[:-1]).all()):
        raise ValueError(
            f"trajectory: times {times.tolist()[:5]}... do not decrease strictly inside [0, 1]; "
            "wanted at least two that do, such as time_grid(64)"
        )


def _first(x: State) -> Tensor:
    return next(iter(x.values())) if isinstance(x, dict) else x


def _tensor(x: State) -> Tensor:
    if isinstance(x, dict):
        raise TypeError(f"met columns {sorted(x)}, wanted one tensor")
    return x
