"""Small pure functions that the abstractions share."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_SHORT_LIST, _BUCKETS, _BUCKETS_PER_NAT = 256, 1024, 32  # of `keep_top_p`
_ROWS = 8  # worked on together, so that they stay in the processor's cache


def expand_time(t: Tensor, like: Tensor) -> Tensor:
    """View times of shape (b,) or () as (b, 1, ..., 1), ready to broadcast against `like`; (b, *s) stays."""
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim)) if t.ndim else t


def one_hot(x: Int64[Tensor, "*s"], num_classes: int, dtype: torch.dtype = torch.float64) -> Float[Tensor, "*s v"]:
    """One-hot vectors, shape (*s, v)."""
    return torch.nn.functional.one_hot(x, num_classes).to(dtype)


def safe_log(p: Tensor) -> Tensor:
    """log p, -inf at zero, with a gradient of zero there rather than NaN."""
    return torch.where(p > 0, p.where(p > 0, 1.0).log(), -torch.inf)


def draw_categorical(log_probs: Float[Tensor, "*n v"], u: Float[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    """Draw from log-probabilities by the inverse CDF in float64, one uniform per row.

    k = min { j : sum_{i <= j} p_i > u sum_i p_i }. Weights need not be normalised; zero-probability classes are never
    drawn. Unlike Gumbel noise in float32 (which tops out near 16.6) this keeps the tail to about 1e-16.

    Raises:
        ValueError: if some row has no finite positive mass (all -inf, or NaN).
    """
    return draw_repeatedly(log_probs, u.unsqueeze(-1)).squeeze(-1)


def draw_repeatedly(log_probs: Float[Tensor, "*n v"], u: Float[Tensor, "*n m"]) -> Int64[Tensor, "*n m"]:
    """`draw_categorical` with m uniforms for each row, whose CDF is made once."""
    weights = (log_probs - log_probs.amax(-1, keepdim=True)).double().exp_()
    cdf = weights.cumsum(-1)
    total = cdf[..., -1:]
    if not bool((total > 0).all()):  # NaN compares false as well
        row = int((~(total.squeeze(-1) > 0)).flatten().nonzero()[0])
        raise ValueError(
            f"draw_categorical: row {row} has no probability mass (all -inf, or NaN among its {log_probs.shape[-1]} "
            "log-probabilities); check the network's output for NaN and the filters for an empty set"
        )
    # u * total must not be rounded onto the last step of the CDF: below it, the last class that has mass is found
    return torch.searchsorted(cdf, u.double().clamp(max=1 - 2.0**-52) * total, right=True)


def low_discrepancy_uniforms(shift: float, rows: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Stratified uniforms u_i = frac(shift + i / phi): any run of consecutive rows is evenly spread over [0, 1).

    The golden-ratio Kronecker sequence needs neither the batch size nor the number of processes, so a row's time
    depends on its global index alone. Each u_i is uniform when `shift` is.

    References:
        Kuipers and Niederreiter, "Uniform Distribution of Sequences", 1974, chapter 2.
    """
    # exact integer arithmetic modulo 2^62, so that large indices lose nothing
    step = int(0.6180339887498949 * 2**62)
    return (shift + ((rows * step) & (2**62 - 1)).double() * 2.0**-62) % 1.0


def temper(log_probs: Float[Tensor, "n v"], *, temperature: float) -> Float[Tensor, "n v"]:
    """Log-probabilities divided by the temperature; at 0, all mass on the most probable class."""
    if temperature == 0:
        best = log_probs.argmax(-1, keepdim=True)
        return torch.full_like(log_probs, -torch.inf).scatter(-1, best, 0.0)
    return (log_probs - log_probs.amax(-1, keepdim=True)) / temperature  # shifted: a tiny temperature overflows nothing


def keep_top_k(log_probs: Float[Tensor, "n v"], *, k: int) -> Float[Tensor, "n v"]:
    """The k most probable classes of each row; the others get probability zero."""
    if k >= log_probs.shape[-1]:
        return log_probs
    values, index = log_probs.topk(k, dim=-1)
    return torch.full_like(log_probs, -torch.inf).scatter(-1, index, values)


def keep_top_p(log_probs: Float[Tensor, "n v"], *, p: float) -> Float[Tensor, "n v"]:
    """The fewest classes of each row, most probable first, whose probabilities sum to at least p.

    Of equal ones the first. No row is sorted as a whole: a short list of the most probable classes settles most rows,
    and a histogram of the log-probabilities the others.
    """
    out, short = torch.empty_like(log_probs), True
    for block, into in zip(log_probs.split(_ROWS), out.split(_ROWS), strict=True):
        kept = _kept_by_short_list(block, p) if short else None
        short = kept is not None  # rows of a batch are alike: no list that is too short is made twice
        into.copy_(_keep_top_p_of_long_lists(block, p) if kept is None else torch.where(kept, block, -torch.inf))
    return out


def _kept_by_short_list(log_probs: Tensor, p: float) -> Tensor | None:
    """Which classes `keep_top_p` keeps, if the most probable few tell in every row, else None."""
    short = log_probs.topk(min(_SHORT_LIST, log_probs.shape[-1]), dim=-1).values
    before = short.double().exp().cumsum(-1) - short.double().exp()
    needed = (before < p).sum(1, keepdim=True)
    if short.shape[1] < log_probs.shape[1] and bool((needed == short.shape[1]).any()):
        return None
    kept = log_probs >= short.gather(1, needed - 1)
    return kept if bool((kept.sum(1, keepdim=True) == needed).all()) else None  # more are kept: equal classes


def _keep_top_p_of_long_lists(log_probs: Tensor, p: float) -> Tensor:
    """`keep_top_p` by buckets of log-probability: only that which holds the last class is sorted."""
    depth = (log_probs.amax(-1, keepdim=True) - log_probs) * _BUCKETS_PER_NAT
    bucket = depth.clamp_(max=_BUCKETS - 1).long()
    mass = torch.zeros(len(bucket), _BUCKETS, dtype=torch.float64, device=bucket.device)
    mass.scatter_add_(1, bucket, log_probs.exp().double())
    total = mass.cumsum(1)
    last = (total < p).sum(1, keepdim=True).clamp(max=_BUCKETS - 1)
    row, column = (bucket == last).nonzero().unbind(1)
    order = log_probs[row, column].argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]  # by row, then from the most probable
    row, column = row[order], column[order]
    probs = log_probs[row, column].double().exp()
    before, size = probs.cumsum(0) - probs, row.bincount(minlength=len(bucket))
    before = before - before[(size.cumsum(0) - size)[row]] + (total - mass).gather(1, last).squeeze(1)[row]
    out = torch.where(bucket <= last, log_probs, -torch.inf)
    drop = before >= p
    return out.index_put((row[drop], column[drop]), out.new_tensor(-torch.inf))
