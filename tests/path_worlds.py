"""The exact output law of path planning with planners that do not look at draws, for its tests."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from unmask import Denoiser, Rng
from unmask.oracles.tiny_joint import TableDenoiser, TinyJoint, enumerate_states, state_index
from unmask.processes.masked import Masked
from unmask.samplers.path_planning import PathPlanning


def output_law(
    sampler: PathPlanning, denoiser: Denoiser, length: int, times: Tensor, start: Tensor | None = None
) -> Tensor:
    """Over all canvases, from the law `start` (None: all masks); a canvas has one plan, and its draws are independent.

    Args:
        times: the decreasing grid.
    """
    v = sampler.process.vocab_size
    canvases, law = enumerate_states(v, length), all_masks(sampler, length) if start is None else start
    for _, s in itertools.pairwise(times):
        alive = law.nonzero().squeeze(1)
        x = canvases[alive]
        draft, chosen = sampler.plan(denoiser, x, s.expand(len(x)), Rng(0))
        revealed = draft.masks & chosen
        kept = torch.where(draft.decoded & ~chosen, sampler.process.mask_id, x)
        sites = torch.nn.functional.one_hot(kept, v).double()
        if bool(revealed.any()):
            sites[revealed] = draft.law.log_probs(revealed).double().exp()
        after = law[alive][:, None]
        for i in range(length):
            after = (after[:, :, None] * sites[:, i, None, :]).flatten(1)
        law = after.sum(0)
    return law


def all_masks(sampler: PathPlanning, length: int) -> Tensor:
    """All mass on the canvas of masks."""
    v = sampler.process.vocab_size
    out = torch.zeros(v**length).double()
    out[state_index(torch.full((1, length), sampler.process.mask_id), v)] = 1
    return out


CODE_PROCESS = Masked(vocab_size=3, mask_id=2)


def code(seed: int, *, length: int = 5, words: int = 5, slip: float = 0.01) -> TinyJoint:
    """A few random words of bits with random weights; with probability about slip / words, any sequence."""
    table = torch.full((2**length,), slip / 2**length).double()
    chosen = Rng(seed).uniform((len(table),)).argsort()[:words]
    table[chosen] += 0.5 + Rng(seed).fold(1).uniform((words,))
    return TinyJoint(table.reshape((2,) * length))


def uncertain(world: TinyJoint, amount: float) -> TableDenoiser:
    """The exact conditionals of bits, mixed with a coin the more so, the less of the canvas is decoded."""
    states = enumerate_states(3, world.length)
    masked = states == 2
    exact = world.conditionals(CODE_PROCESS, states, torch.full((len(states),), 0.5).double())
    blur = (amount * masked.double().mean(1)[:, None] * masked)[..., None]
    table = (1 - blur) * exact + blur * torch.tensor([0.5, 0.5, 0.0]).double()
    return TableDenoiser(lambda xt, t: table[state_index(xt, 3)])
