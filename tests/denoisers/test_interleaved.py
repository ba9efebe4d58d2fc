"""The interleaved denoiser: what it hides, what it keeps, what it hands on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from interleaved_worlds import process
from unmask.denoisers.interleaved import InterleavedDenoiser
from unmask.processes.interleaved import TOKENS, VALUES

NOISE = process(3)


class Recording(nn.Module):
    def forward(
        self, tokens: Tensor, values: Tensor, t: Tensor, u: Tensor, visited: Tensor, given: Tensor, **cond: Any
    ):
        self.seen = {"tokens": tokens, "values": values, "u": u, "visited": visited, "given": given, **cond}
        return torch.zeros(*tokens.shape, 2), values + 1


def test_only_the_visited_token_is_hidden_and_open() -> None:
    net, x = Recording(), {TOKENS: torch.tensor([[0, 1], [1, 1]]), VALUES: torch.tensor([[0.3], [0.4]])}
    denoiser = InterleavedDenoiser(net, NOISE)
    law = denoiser(x, torch.tensor([2 / 9, 3 / 9]).double(), label=7)  # visits to the second token, to the number
    assert net.seen["tokens"].tolist() == [[0, 2], [1, 1]]
    assert net.seen["visited"].tolist() == [[False, True, False], [False, False, True]]
    assert net.seen["u"].tolist() == [1, 1]
    assert not bool(net.seen["given"].any())
    assert net.seen["label"] == 7
    expected = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.0, 1.0]]])
    torch.testing.assert_close(law.column(TOKENS).log_probs().exp(), expected)
    assert torch.equal(law.column(VALUES).mean, x[VALUES] + 1)
