"""A policy of tables on three or four tokens: every trajectory can be listed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from unmask import Categorical, Denoiser, Rng
from unmask.denoisers.unmasking_policy import PolicyLaw
from unmask.oracles.tiny_joint import state_index
from unmask.processes.masked import Masked
from unmask.samplers.recorded import Rollout

BITS = Masked(vocab_size=3, mask_id=2)


class Tables(Denoiser):
    """Logits of bits and scores of sites for each canvas, parameters both, float64."""

    def __init__(self, length: int, seed: int) -> None:
        super().__init__()
        logits = Rng(seed).fold(1).normal((3**length, length, 3))
        self.logits = nn.Parameter(logits.index_fill(2, torch.tensor([2]), -1e9))
        self.scores = nn.Parameter(Rng(seed).fold(2).normal((3**length, length)))

    def forward(self, xt: Any, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> PolicyLaw:
        index = state_index(xt, 3)
        law = Categorical.from_logits(self.logits[index]).with_known(xt, xt != 2)
        return PolicyLaw(law, self.scores[index])


def trajectories(length: int, k: int) -> Rollout:
    """All of them, k sites a step: ordered choices in every step but the last, then values."""
    rows: list[tuple[list[int], list[int], list[int]]] = []
    steps = -(-length // k)

    def choices(left: tuple[int, ...], number: int) -> Iterator[list[tuple[int, ...]]]:
        if number == steps - 1:
            yield [left]
            return
        for chosen in itertools.permutations(left, k):
            for rest in choices(tuple(i for i in left if i not in chosen), number + 1):
                yield [chosen, *rest]

    for plan in choices(tuple(range(length)), 0):
        step, place = [0] * length, [0] * length
        for number, chosen in enumerate(plan):
            for j, site in enumerate(chosen):
                step[site], place[site] = number, j
        rows += [(list(x), step, place) for x in itertools.product(range(2), repeat=length)]
    x, step, place = (torch.tensor(column) for column in zip(*rows, strict=True))
    return Rollout(process=BITS, x=x, step=step, place=place, num_steps=steps, by_policy=True)


def by_hand(model: Tables, listed: Rollout) -> Tensor:
    """log p of each trajectory from the definition, one token and one choice at a time."""
    totals = []
    for x, step, place in zip(listed.x.tolist(), listed.step.tolist(), listed.place.tolist(), strict=True):
        total = torch.zeros((), dtype=torch.float64)
        for number in range(listed.num_steps):
            canvas = [v if s < number else 2 for v, s in zip(x, step, strict=True)]
            row = int(state_index(torch.tensor([canvas]), 3))
            left = [i for i in range(len(x)) if step[i] >= number]
            chosen = sorted((i for i in left if step[i] == number), key=lambda i: place[i])
            for i in chosen:
                total = total + model.logits[row, i].log_softmax(0)[x[i]]
            for i in chosen if len(chosen) < len(left) else []:
                total = total + model.scores[row, i] - torch.stack([model.scores[row, c] for c in left]).logsumexp(0)
                left.remove(i)
        totals.append(total)
    return torch.stack(totals)
