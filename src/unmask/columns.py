"""Which sites of a state may change: padding, fixed sites and streams of one tensor, or of several columns."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unmask.law import State
from unmask.loss import row_positions
from unmask.rng import Rng


def keep_fixed(before: State, after: State, editable: State | None) -> State:
    """`after` at the editable sites, `before` elsewhere; None, or a column that is not named: all of it is editable."""
    if editable is None:
        return after
    if isinstance(before, dict):
        assert isinstance(after, dict)
        free = by_column(before, editable)
        return {k: torch.where(free[k], after[k], v) if k in free else after[k] for k, v in before.items()}
    assert isinstance(after, Tensor)
    assert isinstance(editable, Tensor)
    return torch.where(editable, after, before)


def by_column(x: Mapping[str, Tensor], editable: State | None) -> Mapping[str, Tensor]:
    """What is said of the columns of x.

    Raises:
        TypeError: for one tensor.
    """
    if isinstance(editable, Tensor):
        raise TypeError(f"met one editable tensor, wanted a dict with some of the columns {sorted(x)}")
    return editable or {}


def masks_by_column(x: Mapping[str, Tensor], attention_mask: Tensor) -> dict[str, Tensor]:
    """The mask of each column that it tells: those of its own shape, or all, side by side in their order."""
    columns = list(x.values())
    flat = len(columns) > 1 and all(v.ndim == 2 and len(v) == len(attention_mask) for v in columns)
    if flat and attention_mask.shape[1:] == (sum(v.shape[1] for v in columns),):
        return dict(zip(x, attention_mask.split([v.shape[1] for v in columns], 1), strict=True))
    return {k: attention_mask for k, v in x.items() if _told(v, attention_mask)}


def key_columns(rng: Rng, masks: Mapping[str, Tensor]) -> Rng:
    """The stream whose columns count their own real sites only."""
    return rng if not masks else rng.columns({k: (mask.cumsum(1) - 1).clamp(min=0) for k, mask in masks.items()})


def respect_padding(
    x: State, rng: Rng, editable: State | None, attention_mask: Tensor | None
) -> tuple[Rng, State | None]:
    """Padding is never edited, and draws are keyed by the position among real tokens.

    Of a product this goes for the columns whose sites the mask tells.

    Raises:
        TypeError: for one editable tensor of a product.
    """
    if attention_mask is None:
        return rng, editable
    if isinstance(x, Tensor):
        assert editable is None or isinstance(editable, Tensor)
        keyed = row_positions(attention_mask, rng) if _told(x, attention_mask) else rng
        return keyed, _and_real(x, editable, attention_mask)
    allowed, masks = by_column(x, editable), masks_by_column(x, attention_mask)
    return key_columns(rng, masks), {k: _and_real(v, allowed.get(k), masks.get(k)) for k, v in x.items()}


def _told(x: Tensor, attention_mask: Tensor) -> bool:
    return x.shape[: attention_mask.ndim] == attention_mask.shape


def _and_real(x: Tensor, editable: Tensor | None, attention_mask: Tensor | None) -> Tensor:
    """The editable sites that are no padding; further dimensions are channels of a site."""
    editable = torch.ones_like(x, dtype=torch.bool) if editable is None else editable
    if attention_mask is None or not _told(x, attention_mask):
        return editable
    return editable & attention_mask.reshape(*attention_mask.shape, *[1] * (editable.ndim - attention_mask.ndim))
