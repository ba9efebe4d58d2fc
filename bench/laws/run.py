"""Draws of every sampler, compared with the exact law."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.laws.methods import Entry
from bench.laws.worlds import Tabulated
from unmask import Rng, sample
from unmask.oracles.statistics import total_variation
from unmask.oracles.tiny_joint import TinyJoint, state_index

NUM_SAMPLES = 30_000
IMPERFECTION = 0.25


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell.

    Args:
        steps: of the grid.
        calls: network evaluations of a sample, on average; rows that a step leaves alone are not evaluated.
        tv: total variation to the data's law.
        kl: KL(data || drawn), nats, half a draw added to every state.
    """

    steps: int
    calls: float
    tv: float
    kl: float


def floor(world: TinyJoint) -> float:
    """The expected TV of as many draws from the very law."""
    spread = (world.probs * (1 - world.probs) / NUM_SAMPLES).sqrt().sum()
    return float(spread) / math.sqrt(2 * math.pi)


def measure(entry: Entry, world: TinyJoint, *, imperfect: bool) -> list[Point]:
    """The points of one line."""
    model = Tabulated(world, entry.process, error=IMPERFECTION if imperfect else 0.0)
    points = []
    for steps in entry.steps:
        model.evaluations = 0
        drawn = sample(entry.make(steps), model, (NUM_SAMPLES, world.length), num_steps=steps, rng=Rng(steps))
        assert isinstance(drawn, Tensor)
        counts = state_index(drawn, world.num_values).bincount(minlength=len(world.probs)).double()
        smooth = (counts + 0.5) / (counts + 0.5).sum()
        kl = torch.special.xlogy(world.probs, world.probs / smooth).sum()
        points.append(
            Point(
                steps=steps,
                calls=model.evaluations / NUM_SAMPLES,
                tv=total_variation(counts / NUM_SAMPLES, world.probs),
                kl=float(kl),
            )
        )
    return points
