"""Sums over the vocabulary against their plain forms, to the ends of what a float32 can hold."""

from __future__ import annotations

import pytest
import torch

from unmask import Rng
from unmask.sums import apart, most_in_pairs, sum_log1p, writable


@pytest.mark.parametrize("v", [1, 2, 3, 17, 64, 1001])
@pytest.mark.parametrize("largest", [0.0, 1e-12, 1e-3, 1.0, 1e5, most_in_pairs(torch.float32), 3e38])
def test_logarithms_of_products_are_sums_of_logarithms(largest: float, v: int) -> None:
    """Every entry at the largest allowed, and entries spread below it."""
    for x in (torch.full((3, v), largest), largest * Rng(0).uniform((3, v)).float() ** 4):
        torch.testing.assert_close(
            sum_log1p(x.clone(), torch.ones(3), largest), x.double().log1p().sum(1).float(), rtol=2e-6, atol=0
        )


def test_the_slope_of_the_sum_is_that_of_its_logarithms() -> None:
    x = (50 * Rng(0).uniform((2, 13))).requires_grad_(True)
    gain = torch.tensor([0.5, 2.0]).double().requires_grad_(True)
    slopes = torch.autograd.grad(sum_log1p(x, gain, 100.0).sum(), (x, gain))
    plain = torch.autograd.grad((gain[:, None] * x).log1p().sum(), (x, gain))
    torch.testing.assert_close(slopes, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_stands_apart_is_not_in_the_rest(dtype: torch.dtype) -> None:
    """A column of nearly all the mass leaves the others' sum exact; a column named twice is left out once."""
    logits = Rng(1).normal((4, 6)).to(dtype)
    logits[:, 2] = 60.0
    logits.requires_grad_(True)
    first, second = torch.tensor([2, 2, 2, 2]), torch.tensor([2, 0, 1, 5])
    (a, b), rest = apart(logits, first, second)
    probs = logits.detach().double().softmax(1)
    torch.testing.assert_close(a, torch.zeros(4).double())
    torch.testing.assert_close(b.exp(), probs.gather(1, second[:, None]).squeeze(1), rtol=1e-5, atol=0)
    probs = probs.scatter(1, first[:, None], 0.0).scatter(1, second[:, None], 0.0)
    torch.testing.assert_close(rest, probs.to(dtype), rtol=1e-5, atol=0)
    (slope,) = torch.autograd.grad(rest.sum(), logits)
    torch.testing.assert_close(slope, rest.detach())


def test_only_what_is_nobody_elses_is_written_to() -> None:
    table = torch.zeros(4, 3)
    assert writable(table) is table
    for shared in (table[:2], table[1:2].expand(5, -1), table[:, :2], table.clone().requires_grad_(True) + 0):
        mine = writable(shared)
        mine.add_(1.0)
        assert float(table.abs().max()) == 0
        assert float(shared.detach().abs().max()) == 0
