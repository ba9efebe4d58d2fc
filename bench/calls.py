"""Network calls of ancestral sampling against T (1 - (1 - 1/T)^L): a step that reveals nothing makes no call."""

from __future__ import annotations

import math
import statistics

import torch

from bench.measure import Row
from bench.sampling_overhead import FixedLogits
from unmask import Rng, time_grid, trajectory
from unmask.denoisers.masked import MaskedDenoiser
from unmask.processes.masked import Masked
from unmask.samplers.ancestral import Ancestral


def count(num_steps: int, length: int, seed: int) -> int:
    """Network calls for one sample of `length` tokens in `num_steps` steps."""
    net = FixedLogits(torch.zeros(1, length, 3))
    sampler = Ancestral(process=Masked(vocab_size=3, mask_id=2))
    denoiser = MaskedDenoiser(net, vocab_size=3, mask_id=2)
    canvas = torch.full((1, length), 2)
    steps = trajectory(sampler, denoiser, canvas, time_grid(num_steps), rng=Rng(seed))
    return [step.network_calls for step in steps][-1]


def compare(num_steps: int, length: int, samples: int) -> list[Row]:
    """The deviation of the mean from the formula, in standard errors: below 4 unless calls are wasted or missing."""
    counts = [count(num_steps, length, seed) for seed in range(samples)]
    expected = num_steps * (1 - (1 - 1 / num_steps) ** length)
    mean, error = statistics.fmean(counts), statistics.stdev(counts) / math.sqrt(samples)
    return [
        Row(
            target_number="2",
            what=f"network calls, T = {num_steps}, L = {length}, {samples} samples: distance from the formula",
            value=abs(mean - expected) / error,
            bound=4,
            at_least=False,
            unit="standard errors",
            details=f"mean {mean:.2f} +- {error:.2f}, formula {expected:.2f}",
        )
    ]


def rows() -> list[Row]:
    return compare(num_steps=256, length=256, samples=24) + compare(num_steps=64, length=16, samples=64)
