"""Noise a finished sample a little and denoise it again."""

from __future__ import annotations

from typing import Any

import torch

from unmask.columns import respect_padding
from unmask.denoiser import Denoiser
from unmask.law import State
from unmask.loops import trajectory
from unmask.process import Process
from unmask.rng import Rng
from unmask.sampler import Sampler

_NOISE, _STEPS = 1, 2


def redenoise(
    sampler: Sampler,
    denoiser: Denoiser,
    process: Process,
    x: State,
    /,
    *,
    t: float,
    num_steps: int,
    rng: Rng,
    rounds: int = 1,
    editable: State | None = None,
    **cond: Any,
) -> State:
    """x_t ~ q(x_t | x_0 = x), then back to x_0 with the sampler; `rounds` times.

    **Exact** as far as the sampler is: with the model's exact reverse law, a draw of the model stays one. A draw that
    an imperfect start or sampler has left off the data moves closer to it, at num_steps more steps a round.

    Args:
        sampler: any sampler of the process.
        denoiser: the model.
        process: the noise.
        x: finished samples.
        t: how far back to noise, in (0, 1].
        num_steps: equal steps from t to 0.
        rng: names rows, as everywhere.
        rounds: >= 1.
        editable: boolean, like x; other sites stay clean. None: all.
        cond: conditions of the denoiser.

    Raises:
        ValueError: for t outside (0, 1], or rounds or num_steps < 1.

    References:
        Anil et al., "Interleaved Gibbs diffusion for constrained generation", 2025, arXiv:2502.13450 (ReDeNoise).
    """
    if not 0 < t <= 1 or min(rounds, num_steps) < 1:
        raise ValueError(
            f"redenoise: t={t}, num_steps={num_steps}, rounds={rounds}; wanted 0 < t <= 1 and at least 1 of each"
        )
    keyed, free = respect_padding(x, rng, editable, cond.get("attention_mask"))
    some = next(iter(x.values())) if isinstance(x, dict) else x
    level = torch.full((len(some),), t, dtype=torch.float64, device=some.device)
    grid = torch.linspace(t, 0.0, num_steps + 1, dtype=torch.float64)
    for index in range(rounds):
        noise = keyed.fold(_NOISE, index)
        x = process.corrupt_canvas(x, level, noise, editable=free, attention_mask=cond.get("attention_mask"))
        for event in trajectory(sampler, denoiser, x, grid, rng=rng.fold(_STEPS, index), editable=editable, **cond):
            x = event.canvas
    return x
