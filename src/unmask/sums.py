"""Sums over the vocabulary in few passes: what the bounds need of a law, without its normalised probabilities."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def writable(x: Tensor) -> Tensor:
    """x itself if its values are nobody else's, else a copy: a block written to again and again stays in memory, where
    fresh ones would be asked of the system, and zeroed by it, each time.

    Not anybody else's: no gradient may want them, and they are not a part, or a repetition, of something stored.
    """
    whole = x.untyped_storage().nbytes() == x.numel() * x.element_size()
    return x if whole and not x.requires_grad else x.clone()


def apart(
    log_weights: Float[Tensor, "n v"], *columns: Int64[Tensor, " n"]
) -> tuple[list[Float[Tensor, " n"]], Float[Tensor, "n v"]]:
    """The log-weights of the named columns, float64, and exp(log_weights) of all others; each row over its largest.

    The second result (n, v) is zero at the named columns, so that its sums hold nothing of them: a difference from the
    whole would cancel where one of them has nearly all the mass.

    The columns leave float32 before anybody takes their exponential, since slopes of a bound in a probability can be
    more than float32 holds; they are harmless, times a probability of nearly zero. `log_weights` may be overwritten.
    """
    peak = log_weights.detach().amax(1, keepdim=True)
    chosen = [(log_weights.gather(1, column[:, None]) - peak).squeeze(1).double() for column in columns]
    shifted = writable(log_weights).sub_(peak)
    for column in columns:
        shifted.scatter_(1, column[:, None], -torch.inf)
    return chosen, shifted.exp_()


def sum_log1p(weights: Float[Tensor, "n v"], gain: Float[Tensor, " n"], largest: float) -> Float[Tensor, " n"]:
    """sum_y log(1 + gain w_y) of each row, for 0 <= gain w_y <= largest, with few logarithms; overwrites the weights.

    (1 + a)(1 + b) = 1 + (a + b + ab) holds to the precision of a and b, however small, so that one logarithm serves as
    many factors as cannot overflow.
    """
    x = weights * gain[:, None] if weights.requires_grad else weights.mul_(gain[:, None])
    factors = math.log(torch.finfo(x.dtype).max) / math.log1p(max(largest, 1e-3))
    sums = x.new_zeros(len(x))
    for _ in range(int(math.log2(max(factors, 1.0)))):
        half = x.shape[1] // 2
        a, b, left = x[:, :half], x[:, half : 2 * half], x[:, 2 * half :]
        sums = sums + left.log1p().sum(1)
        x = (a + b).addcmul_(a, b)
    return sums + x.log1p().sum(1)


def most_in_pairs(dtype: torch.dtype) -> float:
    """The largest x of which `sum_log1p` can still multiply two: above it even a square overflows."""
    return math.sqrt(torch.finfo(dtype).max) / 4
