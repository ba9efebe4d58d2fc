"""A single-site chain with bounded rates, and exact laws of two-stage solvers, for the tests of the reverse chain."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask import Denoiser, Law, Rng, Sampler, Schedule, sample, time_grid
from unmask.deferred import ask
from unmask.leaping import at_an_end
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, mix_products
from unmask.process import DiscreteProcess
from unmask.processes.uniform import Uniform
from unmask.two_stage import TwoStage


@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    """alpha(t) = exp(-rate t): forward rates that do not change with time, as in the solvers' paper's toy chain."""

    rate: float = 6.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.rate * t)

    def noise(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.rate * t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -self.rate * torch.exp(-self.rate * t)


TOY = TinyJoint(torch.rand(15, generator=torch.Generator().manual_seed(0)))
TOY_PROCESS = Uniform(vocab_size=15, schedule=Exponential())


def products(sites: Tensor) -> Tensor:
    """prod_i sites[n, i, x_i] for every state x, in lexicographic order: (n, l, v) -> (n, k)."""
    out = torch.ones(len(sites), 1, dtype=torch.float64)
    for i in range(sites.shape[1]):
        out = (out[:, :, None] * sites[:, i, None, :]).flatten(1)
    return out


def start_law(world: TinyJoint, process: DiscreteProcess) -> Tensor:
    """The prior, over all states."""
    return mix_products(torch.ones(1, dtype=torch.float64), process.prior_probs.expand(1, world.length, -1))


def grid(steps: int | Sequence[float]) -> Tensor:
    """So many equal steps from 1 to 0, or the times given."""
    return time_grid(steps) if isinstance(steps, int) else torch.tensor(steps, dtype=torch.float64)


def inner(num_steps: int) -> list[float]:
    """Equal steps from 0.9 to 0.1, where rates are tame."""
    return [0.9 - 0.8 * k / num_steps for k in range(num_steps + 1)]


def one_stage_law(
    sampler: object, world: TinyJoint, process: DiscreteProcess, steps: int | Sequence[float], law: Tensor
) -> Tensor:
    """The law at the last time of a sampler with a `transition`, from that at the first."""
    states, denoiser = enumerate_states(process.vocab_size, world.length), world.denoiser(process)
    for t, s in itertools.pairwise(grid(steps)):
        rows = t.expand(len(states)), s.expand(len(states))
        kernel = sampler.transition(denoiser, states, *rows)  # type: ignore[attr-defined]
        law = mix_products(law, kernel.log_probs().double().exp())
    return law


def two_stage_law(
    sampler: TwoStage, world: TinyJoint, process: DiscreteProcess, steps: int | Sequence[float], law: Tensor
) -> Tensor:
    """The same for a two-stage solver, summed over all states in the middle of a step."""
    states, denoiser = enumerate_states(process.vocab_size, world.length), world.denoiser(process)
    for t, s in itertools.pairwise(grid(steps)):
        alive = law.nonzero().squeeze(1)
        x = states[alive]
        rows = t.expand(len(x)), s.expand(len(x))
        at_x = ask(denoiser, x, rows[0])
        if at_an_end(process, *rows):
            law = mix_products(law[alive], process.reverse(at_x, x, *rows).log_probs().double().exp())  # type: ignore[attr-defined]
            continue
        trial = products(sampler.first(at_x, x, *rows).log_probs().double().exp())
        pairs = trial * law[alive][:, None]
        i, j = pairs.nonzero(as_tuple=True)
        x, star, rows = x[i], states[j], (t.expand(len(i)), s.expand(len(i)))
        later = ask(denoiser, star, sampler.middle(*rows))
        kernel = sampler.second(ask(denoiser, x, rows[0]), later, x, star, *rows)
        law = mix_products(pairs[i, j], kernel.log_probs().double().exp())
    return law


class _Watching(Denoiser):
    """Another denoiser, with a count of the fixed tokens that were shown to it changed."""

    def __init__(self, inner: Denoiser, canvas: Tensor, fixed: Tensor) -> None:
        super().__init__()
        self.inner, self.canvas, self.fixed, self.changed = inner, canvas, fixed, 0

    def forward(self, xt: Tensor, t: Tensor, *, row: Tensor, **cond: object) -> Law:  # type: ignore[override]
        self.changed += int(((xt != self.canvas[row]) & self.fixed[row]).sum())
        law: Law = self.inner(xt, t)
        return law


def changes_shown(sampler: Sampler, world: TinyJoint, process: DiscreteProcess) -> int:
    """How often a model is shown a fixed token changed, which the loop would mend only after the step."""
    canvas = world.sample(64, Rng(4))
    editable = Rng(5).uniform(canvas.shape) < 0.5
    denoiser = _Watching(world.denoiser(process), canvas, ~editable)
    sample(sampler, denoiser, canvas, num_steps=4, rng=Rng(6), editable=editable, row=torch.arange(64))
    return denoiser.changed


def orders(errors: Sequence[float]) -> list[float]:
    """Log-log slopes of errors at step sizes that halve."""
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]
