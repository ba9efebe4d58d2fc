"""Canvases: batches of token rows, some sites given and the others to be filled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """Rows of given and open sites, padded on the right where rows differ in length.

    Args:
        tokens: (b, l); the mask stands at open sites, padding after the row's end.
        editable: (b, l), True at the sites to fill.
        attention_mask: (b, l), True at real sites; None when no row is padded.
        longest_fill: the most open sites that a row of this request can have, whichever rows are here.
    """

    tokens: Int64[Tensor, "b l"]
    editable: Bool[Tensor, "b l"]
    attention_mask: Bool[Tensor, "b l"] | None
    longest_fill: int

    def rows(self, begin: int, end: int) -> Canvas:
        """The rows begin .. end - 1."""
        mask = None if self.attention_mask is None else self.attention_mask[begin:end]
        return replace(self, tokens=self.tokens[begin:end], editable=self.editable[begin:end], attention_mask=mask)

    def to(self, device: torch.device) -> Canvas:
        """The same canvas on `device`."""
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        return replace(self, tokens=self.tokens.to(device), editable=self.editable.to(device), attention_mask=mask)


def build_canvas(
    rows: Sequence[Sequence[int | None]], *, mask_id: int, pad_id: int, longest_fill: int | None = None
) -> Canvas:
    """A canvas of rows in which None stands for a site to fill; `longest_fill` defaults to that of these rows.

    Raises:
        ValueError: there is no row, or a row is empty.
    """
    lengths = [len(row) for row in rows]
    if not lengths or min(lengths) < 1:
        raise ValueError(f"build_canvas: rows have lengths {lengths}; wanted at least one row, none of them empty")
    width = max(lengths)
    tokens = torch.full((len(rows), width), pad_id)
    editable = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor([mask_id if token is None else token for token in row])
        editable[i, : len(row)] = torch.tensor([token is None for token in row])
    real = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return Canvas(
        tokens=tokens,
        editable=editable,
        attention_mask=None if min(lengths) == width else real,
        longest_fill=longest_fill or max(1, int(editable.sum(1).max())),
    )
