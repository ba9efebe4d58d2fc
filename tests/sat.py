"""Random 3-SAT with a few variables, and a small network that reads its clauses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NUM_VARIABLES, NUM_CLAUSES = 8, 28


def instances(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """(clauses (n, m, v) with entries -1, 0, 1, a satisfying assignment (n, v)): all solutions equally likely."""
    rng = torch.Generator().manual_seed(seed)
    all_states = torch.cartesian_prod(*[torch.tensor([0, 1])] * NUM_VARIABLES)
    found, solved = [], []
    while sum(len(f) for f in found) < n:
        k = 4 * n
        chosen = torch.rand(k, NUM_CLAUSES, NUM_VARIABLES, generator=rng).topk(3).indices
        signs = torch.randint(2, (k, NUM_CLAUSES, 3), generator=rng).float() * 2 - 1
        clauses = torch.zeros(k, NUM_CLAUSES, NUM_VARIABLES).scatter(2, chosen, signs)
        good = satisfied_by_all(clauses, all_states)
        some = good.any(1)
        pick = torch.multinomial(good[some].float(), 1, generator=rng).squeeze(1)
        found.append(clauses[some])
        solved.append(all_states[pick])
    return torch.cat(found)[:n], torch.cat(solved)[:n]


def satisfied_by_all(clauses: Tensor, states: Tensor) -> Tensor:
    """(k, m, v) clauses and (s, v) states -> (k, s): whether each state satisfies each formula."""
    held = torch.einsum("kmv,sv->kms", clauses, states.float() * 2 - 1)
    return (held > -3).all(1)


def solved(clauses: Tensor, assignment: Tensor) -> Tensor:
    """Whether each row's assignment satisfies its own formula, (n,)."""
    return (torch.einsum("nmv,nv->nm", clauses, assignment.float() * 2 - 1) > -3).all(1)


class ClauseNet(nn.Module):
    """Messages between variables and clauses; hidden states of variables, and a head of `outputs` logits."""

    def __init__(self, seed: int, *, outputs: int, dim: int = 48, layers: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed, self.time = nn.Embedding(4, dim), nn.Linear(1, dim)
            self.to_clause = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(layers))
            self.update = nn.ModuleList(
                nn.Sequential(nn.Linear(3 * dim, dim), nn.SiLU(), nn.Linear(dim, dim)) for _ in range(layers)
            )
            self.head = nn.Linear(dim, outputs)

    def forward(self, tokens: Tensor, t: Tensor, *, clauses: Tensor, attention_mask: Any = None) -> Tensor:
        hidden = self.embed(tokens) + self.time(t[:, None].float())[:, None]
        positive, negative = clauses.clamp(min=0), (-clauses).clamp(min=0)
        for to_clause, update in zip(self.to_clause, self.update, strict=True):
            told = torch.cat([positive @ hidden, negative @ hidden], -1)
            message = nn.functional.silu(to_clause(told))
            back = torch.cat([positive.mT @ message, negative.mT @ message], -1)
            hidden = hidden + update(torch.cat([hidden, back], -1))
        return hidden
