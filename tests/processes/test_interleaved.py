"""Interleaved noise: one element a step, with the marginals it says."""

from __future__ import annotations

import pytest
import torch

from contracts import time
from interleaved_worlds import process
from unmask import Categorical, Rng
from unmask.processes.interleaved import TOKENS, VALUES, Interleaved

NOISE = process(3)
CLEAN = {TOKENS: torch.tensor([[0, 1]]), VALUES: torch.tensor([[1.5]])}


def many(n: int) -> dict[str, torch.Tensor]:
    return {name: column.expand(n, -1) for name, column in CLEAN.items()}


def test_elements_take_turns() -> None:
    """After k visits the first k elements have changed, tokens before numbers, and no padding has."""
    n, real = 200, torch.tensor([[True, False, True, True, False]]).expand(200, -1)
    x = {TOKENS: torch.zeros(n, 3, dtype=torch.int64), VALUES: torch.zeros(n, 2)}
    changed = []
    for k in range(4):
        drawn = NOISE.corrupt_canvas(x, time(k / 9).expand(n), Rng(1), attention_mask=real)
        assert isinstance(drawn, dict)
        changed.append([bool((drawn[name] != x[name])[:, i].any()) for name in x for i in range(x[name].shape[1])])
    assert changed == [[j in (0, 2, 3)[:k] for j in range(5)] for k in range(4)]


@pytest.mark.parametrize("step", [0, 2, 3, 7])
def test_what_is_left_of_tokens_and_numbers(step: int) -> None:
    n = 40_000
    drawn = NOISE.corrupt(many(n), time(step / 9).expand(n), Rng(1))
    visits = [(step - e + 2) // 3 for e in range(3)]
    for site in (0, 1):
        kept = 0.4 ** visits[site]
        same = (drawn[TOKENS][:, site] == CLEAN[TOKENS][0, site]).double().mean()
        assert abs(float(same) - (kept + (1 - kept) / 2)) < 5.3 * 0.5 / n**0.5
    left, y = 0.5 ** visits[2], drawn[VALUES].double()
    assert abs(float(y.mean()) - 1.5 * left) < 5.3 / n**0.5 + 1e-6
    assert float(y.var()) == pytest.approx(1 - left**2, abs=5.3 * (2 / n) ** 0.5)


def test_given_elements_stay() -> None:
    given = torch.tensor([[True, False, True]]).expand(500, -1)
    drawn = NOISE.corrupt_steps(many(500), torch.full((500,), 9), Rng(2), torch.ones_like(given), given)
    assert bool((drawn[TOKENS][:, 0] == 0).all())
    assert bool((drawn[VALUES] == 1.5).all())
    assert bool((drawn[TOKENS][:, 1] == 0).any())


def test_refuses() -> None:
    with pytest.raises(ValueError, match="retention=1"):
        Interleaved(tokens=NOISE.tokens, retention=1.0)
    with pytest.raises(TypeError, match="wanted tokens"):
        NOISE.corrupt(CLEAN[TOKENS], time(0.5), Rng(0))
    with pytest.raises(TypeError, match="InterleavedSteps"):
        NOISE.reverse(Categorical.from_logits(torch.zeros(1, 2, 2)), CLEAN, time(1.0), time(0.5))
