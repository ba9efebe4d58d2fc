"""Riffle shuffles of permutations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.deferred import Deferred
from unmask.law import Law, State
from unmask.process import Process
from unmask.rng import Rng

_SHUFFLE = 1
_DIGITS = 52  # a double has no finer labels; 2^52 piles differ from more by less than n^2 / 2^52


@dataclass(frozen=True, kw_only=True)
class Riffle(Process):
    """Rows of n distinct items are riffle-shuffled, levels[k] times in all at time t = k / (len(levels) - 1).

    One shuffle (Gilbert, Shannon, Reeds) cuts the row in two and interleaves the parts; m of them are one shuffle of
    2^m parts, which is drawn at once by giving every place a random digit and sorting by it, backwards. The transition
    law depends only on the number r of rising sequences, maximal runs of the earlier order that stay in order:

        q(x_t | x_s) = C(2^m + n - r, n) / 2^(m n),   m the shuffles between s and t.

    Levels that skip counts merge reverse steps (a denoising schedule); `chain_length` and `merged_levels` choose them
    by total variation. A grid of len(levels) equal times takes one level a step.

    The prior knows a shape only and orders the items 0 .. n-1. Rows with other items, given places or padding start
    from `shuffled` instead, handed to `trajectory`.

    Args:
        levels: increasing numbers of shuffles from 0; the last should mix the row.

    Raises:
        ValueError: unless the levels start at 0 and increase.

    References:
        Zhang, Yang, Liao, "SymmetricDiffusers: learning discrete diffusion on finite symmetric groups", 2024,
        arXiv:2410.02942; Bayer and Diaconis, "Trailing the dovetail shuffle to its lair", Annals of Applied Probability
        1992.
    """

    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        steps = [b - a for a, b in zip(self.levels, self.levels[1:], strict=False)]
        if len(self.levels) < 2 or self.levels[0] != 0 or min(steps) < 1:
            raise ValueError(f"Riffle: levels={self.levels}, wanted at least two increasing counts that start at 0")

    @property
    def num_steps(self) -> int:
        """The number of reverse steps."""
        return len(self.levels) - 1

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        """Uniformly random orders of the items 0 .. n-1."""
        return rng.fold(_SHUFFLE).uniform(tuple(shape)).argsort(1)

    def corrupt(self, x0: State, t: Tensor, rng: Rng, x1: State | None = None) -> Tensor:
        if x1 is not None:
            raise ValueError("Riffle.corrupt: met an end point x1, but shuffles are drawn independently; omit x1")
        return self.corrupt_canvas(x0, t, rng)

    def corrupt_canvas(
        self,
        x0: State,
        t: Tensor,
        rng: Rng,
        *,
        editable: State | None = None,
        attention_mask: Bool[Tensor, "b n"] | None = None,
    ) -> Tensor:
        """The items of the free places are shuffled among these."""
        items = self.items(x0, "corrupt")
        free = torch.ones_like(items, dtype=torch.bool) if attention_mask is None else attention_mask
        free = free if editable is None else free & torch.as_tensor(editable)
        counts = self.shuffles(self.level_of(t.expand(len(items))), items.device)
        return riffle(items, counts, rng.fold(_SHUFFLE), free)

    def reverse(self, law: Law, xt: State, t: Tensor, s: Tensor) -> Law:
        """`law` itself: the model of this process is a law over x_s, one level before t, not over x_0.

        Raises:
            ValueError: if s is not one level before t.
        """
        gap = self.level_of(t) - self.level_of(s)
        if not bool((gap == 1).all()):
            raise ValueError(
                f"Riffle.reverse: from t to s are {gap.unique().tolist()} levels, wanted 1; use num_steps = "
                f"{self.num_steps}, and merge reverse steps by choosing `levels`"
            )
        return law.law if isinstance(law, Deferred) else law  # made now: only it can keep the places that are given

    def level_of(self, t: Tensor) -> Int64[Tensor, " b"]:
        """Which level time t means."""
        return torch.round(t * self.num_steps).long()

    def shuffles(self, level: Int64[Tensor, " b"], device: torch.device | None = None) -> Int64[Tensor, " b"]:
        """The number of shuffles made at a level."""
        return torch.tensor(self.levels, device=device)[level.to(device)]

    def items(self, x: State, operation: str) -> Tensor:
        """x, if it is one int64 tensor (b, n)."""
        if isinstance(x, dict) or x.dtype != torch.int64 or x.ndim != 2:
            met: Any = "a dict" if isinstance(x, dict) else f"{x.dtype} {tuple(x.shape)}"
            raise TypeError(f"Riffle.{operation}: met {met}, wanted an int64 tensor of items (b, n)")
        return x


def riffle(
    x: Int64[Tensor, "b n"], shuffles: Int64[Tensor, " b"], rng: Rng, real: Bool[Tensor, "b n"] | None = None
) -> Int64[Tensor, "b n"]:
    """Each row after its number of riffle shuffles, drawn at once; padding (real = False) keeps its places."""
    real = torch.ones_like(x, dtype=torch.bool) if real is None else real
    parts = 2.0 ** shuffles.clamp(max=_DIGITS).double()
    digits = torch.floor(rng.uniform(x.shape, x.device) * parts[:, None])
    comes_from = (~real).long().argsort(dim=1, stable=True)  # the j-th card of the old row ...
    goes_to = digits.masked_fill(~real, torch.inf).argsort(dim=1, stable=True)  # ... and its new place
    return torch.empty_like(x).scatter(1, goes_to, x.gather(1, comes_from))


def shuffled(x: Int64[Tensor, "b n"], rng: Rng, free: Bool[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
    """x_1 of rows of which only some places are free: their items in uniformly random order, the others where they are.

    Args:
        x: the rows, each item once among the free places of its row.
        free: editable places; padding is not.
    """
    return riffle(x, torch.full((len(x),), _DIGITS, device=x.device), rng.fold(_SHUFFLE), free)


def log_transition(
    before: Int64[Tensor, "b n"],
    after: Int64[Tensor, "b n"],
    shuffles: Int64[Tensor, " b"],
    real: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, " b"]:
    """log q(after | before) for a number of riffle shuffles of each row, nats; -inf where it is impossible."""
    real = torch.ones_like(before, dtype=torch.bool) if real is None else real
    length, order = real.sum(1), (~real).long().argsort(dim=1, stable=True)
    same = (before[:, :, None] == after[:, None, :]) & real[:, :, None] & real[:, None, :]
    place = same.long().argmax(2).gather(1, order)
    inner = torch.arange(1, before.shape[1], device=before.device) < length[:, None]
    rising = 1 + ((place[:, 1:] < place[:, :-1]) & inner).sum(1)
    k = torch.arange(1, before.shape[1] + 1, device=before.device).double()
    piles = 2.0 ** shuffles.double()
    share = ((k - rising[:, None]) / piles[:, None]).clamp(min=-1.0)
    terms = (torch.log1p(share) - k.log()).masked_fill(k > length[:, None], 0.0)
    return terms.sum(1).masked_fill(rising > piles, -torch.inf)


def _eulerian(n: int) -> list[int]:
    """How many permutations of n have r = 1, ..., n rising sequences."""
    counts = [1]
    for m in range(2, n + 1):
        counts = [
            (r * counts[r - 1] if r < m else 0) + ((m - r + 1) * counts[r - 2] if r > 1 else 0) for r in range(1, m + 1)
        ]
    return counts


def shuffle_distance(n: int, first: int, second: int | None = None) -> float:
    """The total variation between the laws of n items after `first` and `second` shuffles, in exact integers.

    `second` None means the uniform law.
    """

    def ways(shuffles: int, r: int) -> int:
        return math.comb(2**shuffles + n - r, n) if 2**shuffles >= r else 0

    scale, total = 2 ** (first * n), 0
    other = math.factorial(n) if second is None else 2 ** (second * n)
    for r, count in enumerate(_eulerian(n), start=1):
        theirs = 1 if second is None else ways(second, r)
        total += count * abs(ways(first, r) * other - theirs * scale)
    return total / (2 * scale * other)


def chain_length(n: int, tolerance: float = 0.005) -> int:
    """The fewest shuffles after which n items are within `tolerance` of uniform, in total variation."""
    if n < 1 or not 0 < tolerance < 1:
        raise ValueError(f"chain_length: n={n}, tolerance={tolerance}; wanted n >= 1 and a tolerance in (0, 1)")
    shuffles = 0
    while shuffle_distance(n, shuffles) > tolerance:
        shuffles += 1
    return shuffles


def merged_levels(n: int, length: int, gap: float = 0.3) -> tuple[int, ...]:
    """Levels from 0 to `length` shuffles, each step as long as it can be while the two laws differ by at most `gap`.

    Late shuffles of a mixed row change its law little and are merged; early ones are kept apart.
    """
    levels = [length]
    while levels[-1] > 0:
        near = [m for m in range(levels[-1]) if shuffle_distance(n, m, levels[-1]) <= gap]
        levels.append(min(near, default=levels[-1] - 1))
    return tuple(reversed(levels))
