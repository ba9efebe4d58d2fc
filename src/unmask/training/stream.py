"""The order of the data: an endless stream of dataset indices that depends on the seed alone."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor

from unmask.data.cache import epoch_order


@runtime_checkable
class Examples(Protocol):
    """What is trained on: `batch` gives {"tokens": (b, l), "attention_mask": (b, l) or None, further conditions}."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, /) -> dict[str, Any]: ...


class Stream:
    """Position g of the stream is example perm_e[g mod n] of epoch e = g div n; each epoch has its own permutation.

    Args:
        num_examples: n, the size of the dataset.
        seed: of the permutations.
    """

    def __init__(self, num_examples: int, seed: int) -> None:
        self.num_examples, self.seed = num_examples, seed
        self._orders: dict[int, Tensor] = {}

    def examples(self, positions: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
        """Dataset indices at stream positions (b,)."""
        epochs = positions // self.num_examples
        found = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            found[here] = self._order(epoch)[positions[here] % self.num_examples]
        return found

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            # A step straddles at most a few epochs and never goes back: two orders are enough to keep.
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = epoch_order(self.num_examples, self.seed, epoch)
        return self._orders[epoch]
