"""Small doubles that several tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CountingHead(nn.Module):
    """A network without context (an embedding and a linear head) that counts the rows its head is given."""

    def __init__(self, vocab_size: int, dim: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(vocab_size, dim, generator=generator)
        self.weight = torch.randn(vocab_size, dim, generator=generator)
        self.mask_id = vocab_size - 1
        self.rows_seen = self.masks_seen = self.calls = 0

    def forward(self, tokens: Tensor, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Tensor:
        self.calls += 1
        self.masks_seen += int((tokens == self.mask_id).sum())
        self.last = tokens, t
        return self.table[tokens]

    def head(self, hidden: Tensor) -> Tensor:
        self.rows_seen += len(hidden)
        return hidden @ self.weight.T


def padded(x: Tensor, left: int, right: int) -> tuple[Tensor, Tensor]:
    """x with padding tokens 0 on both sides, and the attention mask."""
    tokens = torch.nn.functional.pad(x, (left, right))
    mask = torch.nn.functional.pad(torch.ones_like(x, dtype=torch.bool), (left, right))
    return tokens, mask
