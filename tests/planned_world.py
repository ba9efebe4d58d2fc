"""The exact law of (x_0, z) given x_t, z telling the sites drawn from the noise, by enumeration, for the tests of
planned denoising."""

from __future__ import annotations

import torch
from torch import Tensor

from contracts import time
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states
from unmask.process import Interpolating

Joint = tuple[Tensor, Tensor, Tensor]


def joint_with_noise(world: TinyJoint, process: Interpolating, t: float) -> Joint:
    """p(x_0, z, x_t) over (n sequences, 2^l patterns, k states), with the patterns (2^l, l) and the states (k, l)."""
    patterns, states = enumerate_states(2, world.length).bool(), enumerate_states(process.vocab_size, world.length)
    alpha, noise = process.schedule.alpha(time(t)[0]), process.schedule.noise(time(t)[0])
    kept = alpha * (world.sequences[:, None] == states).double()
    drawn = (noise * process.mixing(time(t)[0]))[states]
    factors = torch.where(patterns[:, None], drawn, kept[:, None])  # (n, 2^l, k, l)
    return world.probs[:, None, None] * factors.prod(-1), patterns, states
