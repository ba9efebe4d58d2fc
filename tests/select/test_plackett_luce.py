"""Ordered subsets: their probabilities sum to one, and the order draws them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from contracts import FALSE_ALARM, PaddedChain
from unmask import Categorical, Rng, ask
from unmask.denoisers.unmasking_policy import PolicyLaw
from unmask.oracles.statistics import chi_square
from unmask.select.plackett_luce import ordered_log_prob, plackett_luce, policy_scores

SITES, OPEN = 6, (0, 2, 3, 5)
CANDIDATES = torch.tensor([i in OPEN for i in range(SITES)])
SCORES = torch.tensor([0.3, 9.0, -1.2, 2.0, -9.0, 0.7], dtype=torch.float64)


def subsets(k: int) -> tuple[Tensor, Tensor, Tensor]:
    """All ordered k-subsets of the open sites: which, and the place of each."""
    orders = list(itertools.permutations(OPEN, k))
    chosen = torch.zeros(len(orders), SITES, dtype=torch.bool)
    place = torch.full((len(orders), SITES), -7)
    for row, order in enumerate(orders):
        for j, site in enumerate(order):
            chosen[row, site], place[row, site] = True, j + 3
    return torch.tensor(orders), chosen, place


def log_probs(k: int, scores: Tensor = SCORES) -> Tensor:
    _, chosen, place = subsets(k)
    return ordered_log_prob(scores.expand(len(chosen), -1), CANDIDATES.expand(len(chosen), -1), chosen, place)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_probabilities_of_all_ordered_subsets_sum_to_one(k: int) -> None:
    assert float(log_probs(k).exp().sum()) == pytest.approx(1.0, abs=1e-10)
    assert float(log_probs(k, 300 * SCORES).exp().sum()) == pytest.approx(1.0, abs=1e-10)
    one_by_one = []
    for order in subsets(k)[0].tolist():
        left, total = list(OPEN), 0.0
        for site in order:
            total += float(SCORES[site] - SCORES[left].logsumexp(0))
            left.remove(site)
        one_by_one.append(total)
    torch.testing.assert_close(log_probs(k), torch.tensor(one_by_one, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_order_draws_them() -> None:
    n, k = 100_000, 3
    law = PolicyLaw(Categorical.from_logits(torch.zeros(n, SITES, 3)), SCORES.expand(n, -1))
    where, x = CANDIDATES.expand(n, -1), torch.zeros(n, SITES, dtype=torch.int64)
    drawn = plackett_luce()(law, x, torch.ones(n), where, Rng(0)).reshape(n, len(OPEN))
    first = torch.tensor(OPEN)[drawn.argsort(1, descending=True)[:, :k]]
    orders = subsets(k)[0]
    counts = (first[:, None] == orders).all(2).sum(0)
    assert chi_square(counts, log_probs(k).exp()) > FALSE_ALARM
    greedy = plackett_luce(noise=0.0)(law, x, torch.ones(n), where, Rng(0))
    assert torch.equal(greedy, SCORES[CANDIDATES].repeat(n))


def test_gradients_are_finite_and_stay_among_the_candidates() -> None:
    scores = SCORES.clone().requires_grad_(True)
    log_probs(2, scores).sum().backward()
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())
    assert torch.equal(scores.grad[~CANDIDATES], torch.zeros(2, dtype=torch.float64))
    assert float(scores.grad[CANDIDATES].abs().min()) > 0
    none = torch.zeros(2, SITES, dtype=torch.bool)
    empty = ordered_log_prob(SCORES.expand(2, -1), none, none, torch.zeros(2, SITES, dtype=torch.int64))
    assert torch.equal(empty, torch.zeros(2, dtype=torch.float64)), "nothing is chosen for certain"


def test_refuses_a_denoiser_without_a_policy() -> None:
    x, t = torch.full((1, 2), 3), torch.ones(1).double()
    law = ask(PaddedChain(4), x, t)
    with pytest.raises(TypeError, match="UnmaskingPolicy"):
        policy_scores(law, x, t, x == 3, Rng(0))
