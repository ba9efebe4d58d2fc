"""Distances and tests between an exact law and another law or a sample."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def total_variation(p: Float[Tensor, " k"], q: Float[Tensor, " k"]) -> float:
    """TV(p, q) = 1/2 sum |p - q|, in [0, 1]."""
    return float((p - q).abs().sum() / 2)


def kl_divergence(p: Float[Tensor, " k"], q: Float[Tensor, " k"]) -> float:
    """KL(p || q) in nats; infinite where q misses mass of p."""
    return float((torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum())


def chi_square(counts: Int64[Tensor, " k"], probs: Float[Tensor, " k"], *, min_expected: float = 5.0) -> float:
    """The p-value of Pearson's goodness-of-fit test that `counts` were drawn from `probs`.

    Cells expected fewer than `min_expected` times are pooled into one. A count where the probability is zero gives 0.0.

    Args:
        counts: how often each outcome was seen, shape (k,).
        probs: the claimed law, shape (k,).

    References:
        Pearson, "On the criterion that a given system of deviations...", Philosophical Magazine 1900.
    """
    if counts.shape != probs.shape:
        raise ValueError(f"chi_square: counts {tuple(counts.shape)} and probs {tuple(probs.shape)} differ in shape")
    if bool((counts[probs == 0] > 0).any()):
        return 0.0
    expected = probs.double() / probs.sum() * counts.sum()
    small = expected < min_expected
    seen = torch.cat([counts[~small].double(), counts[small].sum().double()[None]])
    wanted = torch.cat([expected[~small], expected[small].sum()[None]])
    if wanted[-1] == 0:
        seen, wanted = seen[:-1], wanted[:-1]
    if len(wanted) < 2:
        raise ValueError("chi_square: fewer than two cells are expected often enough; draw more samples")
    statistic = ((seen - wanted) ** 2 / wanted).sum()
    freedom = torch.tensor((len(wanted) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))
