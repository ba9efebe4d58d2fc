"""Random orders drawn from learnt scores, with their probabilities."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.deferred import Deferred
from unmask.denoisers.unmasking_policy import PolicyLaw
from unmask.law import SiteLaw
from unmask.rng import Rng
from unmask.samplers.unmask import Order, noisy

_LOWEST = -1e30  # finite, so that no gradient is made of infinities; no score comes near


def policy_scores(law: SiteLaw, x: Tensor, t: Tensor, where: Bool[Tensor, "b *s"], rng: Rng) -> Float[Tensor, " n"]:
    """The scores that an `UnmaskingPolicy` gives the n sites of `where`.

    Raises:
        TypeError: the denoiser has no policy.
    """
    found = law.law if isinstance(law, Deferred) else law
    if not isinstance(found, PolicyLaw):
        raise TypeError(
            f"plackett_luce: met a {type(found).__name__}, wanted the PolicyLaw of an `UnmaskingPolicy` denoiser, "
            "which scores sites"
        )
    return found.scores[where]


def plackett_luce(*, noise: float = 1.0) -> Order:
    """Sites drawn without replacement, each with probability proportional to exp(score) among those that are left.

    With noise = 1: adding a standard Gumbel variable to each score and taking the k largest draws an ordered k-subset
    with exactly the probability that `ordered_log_prob` states. At 0 the best-scored sites come first.

    Args:
        noise: scale of the Gumbel noise, >= 0; the law is that of scores / noise.

    Raises:
        ValueError: for a scale that is not finite and >= 0.

    References:
        Huang, Chen, Wang, Li, Qi, "Reinforcing the diffusion chain of lateral thought with diffusion language models",
        2025, arXiv:2505.10446; Plackett, "The analysis of permutations", 1975; Luce, "Individual choice behavior",
        1959; Kool, van Hoof, Welling, "Stochastic beams and where to find them", 2019, arXiv:1903.06059 (Gumbel top-k).
    """
    return noisy(policy_scores, noise)


def is_plackett_luce(order: Order) -> bool:
    """Whether `ordered_log_prob` is the law of the order's choices: `plackett_luce` of noise 1."""
    own = plackett_luce()
    assert isinstance(own, partial)
    return isinstance(order, partial) and order.func is own.func and order.keywords == own.keywords


def ordered_log_prob(
    scores: Float[Tensor, "b l"],
    candidates: Bool[Tensor, "b l"],
    chosen: Bool[Tensor, "b l"],
    place: Int64[Tensor, "b l"],
) -> Float[Tensor, " b"]:
    """log-probability of an ordered subset i_1, ..., i_k of the candidates C under Plackett and Luce, (b,), nats:

        sum_j  s_{i_j} - log sum_{c in C - {i_1, ..., i_{j-1}}} exp(s_c).

    In float64, in O(l log l); rows may choose different numbers, also none (0 nats).

    Args:
        scores: s.
        candidates: C.
        chosen: the subset, part of C.
        place: j of each chosen site, from any start; not looked at elsewhere.
    """
    last = torch.iinfo(torch.int64).max
    key = torch.where(chosen, place, torch.where(candidates, last - 1, last))  # chosen, other candidates, the rest
    order = key.argsort(dim=1, stable=True)
    ranked = scores.double().masked_fill(~candidates, _LOWEST).gather(1, order)
    left = ranked.flip(1).logcumsumexp(1).flip(1)  # over the site itself and all that come behind it
    return torch.where(chosen.gather(1, order), ranked - left, 0.0).sum(1)
