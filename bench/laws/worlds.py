"""Three tiny worlds, their exact denoiser and an imperfect one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask import Categorical, Denoiser, DiscreteProcess, Rng
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index

LENGTH = 4


def worlds() -> dict[str, TinyJoint]:
    """Four bits: independent ones; a chain whose neighbours agree nine times of ten; an even number of ones."""
    bits = enumerate_states(2, LENGTH)
    ones = torch.tensor([0.2, 0.7, 0.5, 0.9]).double()
    independent = torch.where(bits == 1, ones, 1 - ones).prod(1)
    chain = torch.where(bits[:, 1:] == bits[:, :-1], 0.9, 0.1).double().prod(1)
    parity = (bits.sum(1) % 2 == 0).double()
    return {
        name: TinyJoint(table.reshape((2,) * LENGTH))
        for name, table in {"independent": independent, "chain": chain, "parity": parity}.items()
    }


class Tabulated(Denoiser):
    """A world's denoiser, evaluated once for each state and time that occur in a batch.

    Args:
        error: 0 is the exact one. Otherwise its logits are flattened by this share and moved by this multiple of
            standard normal noise, the same whenever a state is met: a network that has learnt imperfectly.
    """

    def __init__(self, world: TinyJoint, process: DiscreteProcess, *, error: float = 0.0) -> None:
        super().__init__()
        # a sampler may reach canvases that no data lead to, and a network would answer there as well
        self.world = TinyJoint((world.probs + 1e-9).reshape((world.num_values,) * world.length))
        self.process, self.error = process, error
        self.states = enumerate_states(process.vocab_size, world.length)
        self.evaluations = 0
        self.noise = Rng(11).normal((len(self.states), world.length, world.num_values))

    def forward(self, xt: Tensor, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Categorical:
        self.evaluations += len(xt)
        times, time = t.unique(return_inverse=True)
        pairs, where = (time * len(self.states) + state_index(xt, self.process.vocab_size)).unique(return_inverse=True)
        known = pairs % len(self.states)
        probs = self.world.conditionals(self.process, self.states[known], times[pairs // len(self.states)])
        if self.error:
            values = self.world.num_values
            given = probs[..., :values].amax(-1, keepdim=True) == 1  # what noise cannot have put is known for certain
            logits = (1 - self.error) * (probs[..., :values] + 1e-3).log() + self.error * self.noise[known]
            probs[..., :values] = torch.where(given & self._certain(known), probs[..., :values], logits.softmax(-1))
        return Categorical.from_logits(probs[where].log())

    def _certain(self, states: Tensor) -> Tensor:
        """Sites that hold a value which noise does not put there."""
        x = self.states[states]
        noise = self.process.prior_probs[x] == 0
        return noise[..., None]
